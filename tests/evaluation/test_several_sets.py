"""Validation and testing on several data sets: each is scored as if it were alone."""

import json
import pickle
import re
from pathlib import Path

import pytest
from mmengine.config import Config
from paths import MASK_RCNN

from shvit_det.evaluation.evaluate import evaluate
from shvit_det.training.train import train

pytestmark = pytest.mark.slow

SIZES = dict(new=2, old=4)
CONFIG = f"""
_base_ = {str(MASK_RCNN)!r}
sample_set = dict(num_train={SIZES['old']}, num_val={SIZES['new']}, image_size=96)
model = dict(test_cfg=dict(rcnn=dict(score_thr=0.0, max_per_img=10)))
train_cfg = dict(max_epochs=1)
splits = dict(new='val', old='train')
files = {{name: f'data/sample/annotations/instances_{{split}}2017.json' for name, split in splits.items()}}
sets = {{
    name: dict(type='CocoDataset', ann_file=files[name], data_prefix=dict(img=f'data/sample/{{split}}2017/'),
               test_mode=True, metainfo={{{{_base_.metainfo}}}}, pipeline={{{{_base_.test_pipeline}}}})
    for name, split in splits.items()
}}
metrics = {{name: dict(type='CocoMetric', ann_file=file, metric=['bbox', 'segm']) for name, file in files.items()}}
"""
BOTH = """
val_dataloader = dict(dataset=dict(_delete_=True, type='ConcatDataset', datasets=[*sets.values()]))
val_evaluator = dict(
    _delete_=True, type='MultiDatasetsEvaluator', dataset_prefixes=[*sets], metrics=[*metrics.values()])
test_dataloader, test_evaluator = val_dataloader, val_evaluator
"""


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A folder in which a run was validated on two data sets: its config is ``both.py``."""
    folder = tmp_path_factory.mktemp('several')
    (folder / 'both.py').write_text(CONFIG + BOTH)
    for name in SIZES:
        alone = f'test_dataloader = dict(dataset=dict(sets[{name!r}], data_root=None))\n'
        alone += f'test_evaluator = metrics[{name!r}]\n'
        (folder / f'{name}.py').write_text(CONFIG + alone)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train('both.py', work_dir='run', seed=0)
    return folder


def logged(folder: Path) -> str:
    return ''.join(path.read_text() for path in folder.glob('*/*.log'))


def test_validation_has_a_table_for_each(trained):
    lines = logged(trained / 'run').splitlines()
    for name in SIZES:
        start = lines.index(f'{name}/coco')
        assert [line.split()[0] for line in lines[start + 1 : start + 4]] == ['AP', 'bbox', 'segm']


def test_each_is_scored_as_if_it_were_alone(trained, monkeypatch):
    monkeypatch.chdir(trained)
    options = dict(metrics=['bbox'], classwise=True)
    both = evaluate('both.py', 'run/epoch_1.pth', work_dir='both', out='both.pkl', **options)
    assert len(pickle.loads(Path('both.pkl').read_bytes())) == sum(SIZES.values())
    evaluate('both.py', 'run/epoch_1.pth', work_dir='files', format_only=True)
    for name in SIZES:
        alone = evaluate(f'{name}.py', 'run/epoch_1.pth', work_dir=name, **options)
        own = {key.removeprefix(f'{name}/'): value for key, value in both.items() if key.startswith(f'{name}/')}
        assert own == pytest.approx(alone, nan_ok=True) and 'coco/disc_precision' in own and 'coco/bbox_mAP' in own
        evaluate(f'{name}.py', 'run/epoch_1.pth', work_dir=name, format_only=True)
        for kind in ('bbox', 'segm'):
            of_both = json.loads(Path(f'files/results_{name}.{kind}.json').read_text())
            assert of_both == json.loads(Path(f'{name}/results.{kind}.json').read_text()) and of_both
    assert not list(Path().glob('**/*.part*')) and Config.fromfile('both.py').val_evaluator.dataset_prefixes == [*SIZES]


def test_a_report_has_a_section_for_each(trained, monkeypatch):
    monkeypatch.chdir(trained)
    evaluate('both.py', 'run/epoch_1.pth', work_dir='reported', report='page')
    text = Path('page/index.html').read_text()
    for number, (name, size) in enumerate(SIZES.items()):
        section = text.partition(f'<h2 id="set{number}">{name}</h2>')[2].partition('<h2 ')[0]
        assert f'{size} images with ' in section
        split = dict(new='val', old='train')[name]
        images = [path.name for path in Path('data', 'sample', f'{split}2017').iterdir()]
        pictures = re.findall(r'<h4>(.*?), ', section)
        assert pictures and set(pictures) <= set(images)
