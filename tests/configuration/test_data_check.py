"""``check_data``, the start of a run, and the data set of the run say the same of a data set."""

import json
from pathlib import Path

import pytest
from coco_files import CLASSES, coco_content, write_set
from coco_problems import FAULTS, FORMS, annotation, both, every, rewritten
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

from shvit_det import UsageError
from shvit_det.configuration.changing import use_checked_datasets
from shvit_det.configuration.coco_set_checks import check_before_run
from shvit_det.configuration.data_check import check_data, write_copies
from shvit_det.configuration.detection import Detection
from shvit_det.data.checking.findings import errors_among

PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs'),
]


def emptied(content):
    content['annotations'] = []


def at_windows(content):
    rewritten('images', 'file_name', write='images\\{}'.format)(content)


# Changes of a whole file that are no single fault: name, change of the content, other arguments of the data set.
OTHERS = {
    'nothing': (lambda content: None, {}),
    'no object': (emptied, {}),
    'no object, and images without are left out': (emptied, dict(filter_cfg=dict(filter_empty_gt=True))),
    'images are too small': (lambda content: None, dict(filter_cfg=dict(min_size=99))),
    'all ignored': (every('annotations', ignore=1), {}),
    'other classes': (lambda content: None, dict(metainfo=dict(classes=('fox', 'cat')))),
    'a class that no object has': (lambda content: content['categories'].append(dict(id=9, name='cow')),
                                   dict(metainfo=dict(classes=(*CLASSES, 'cow')))),
    'no image is there': (rewritten('images', 'file_name', write='x/{}'.format), {}),
    'backslashes': (at_windows, dict(data_prefix=dict(img=''))),
}  # fmt: skip
CASES = OTHERS | {name: (change, {}) for name, (_, change, _) in FAULTS.items()}
CASES |= {name: (both(prepare or (lambda content: None), write), {}) for name, (_, prepare, write) in FORMS.items()}


@pytest.fixture(scope='module')
def task():
    task = Detection()
    task.register()
    return task


def config_of(folder: Path, split: str, bad_data: str = 'refuse', **changes) -> Config:
    """Return a config with one data set, for one split."""
    dataset = dict(
        type='CocoDataset', data_root=str(folder), ann_file='annotations.json', data_prefix=dict(img='images/'),
        metainfo=dict(classes=CLASSES), pipeline=PIPELINE, test_mode=split != 'train',
    )  # fmt: skip
    evaluator = dict(type='CocoMetric', ann_file=str(folder / 'annotations.json'), metric=['bbox', 'segm'])
    return Config({
        'model': dict(), 'bad_data': bad_data,
        f'{split}_dataloader': dict(dataset=dataset | changes),
        **({} if split == 'train' else {f'{split}_evaluator': evaluator}),
    })  # fmt: skip


def written(folder: Path, change) -> Path:
    """Write a data set whose annotation file was changed after its images were written."""
    content = coco_content()
    file = write_set(folder, content)
    change(content)
    file.write_text(json.dumps(content))
    return folder


def refusal_of(function, *arguments) -> str | None:
    try:
        function(*arguments)
    except UsageError as error:
        assert '\n' not in str(error)
        return str(error)
    return None


def build(config: Config, split: str) -> None:
    with DefaultScope.overwrite_default_scope('mmdet'):
        use_checked_datasets(config)
        DATASETS.build(config[f'{split}_dataloader'].dataset)


@pytest.mark.parametrize('case', CASES)
def test_the_check_the_start_and_the_run_agree(case, task, tmp_path, log):
    change, arguments = CASES[case]
    written(tmp_path, change)
    for split in ('train', 'test'):
        config = config_of(tmp_path, split, **arguments)
        config.dump(tmp_path / 'config.py')
        (checked,) = check_data(str(tmp_path / 'config.py'), images='presence')
        errors = errors_among(checked.findings)
        sentence = refusal_of(check_before_run, task, config, [split])
        assert bool(errors) == bool(sentence), sentence
        if not errors:
            assert refusal_of(build, config, split) is None
            assert checked.objects().as_phrase('trained on' if split == 'train' else 'scored') in log.text
    config = config_of(tmp_path, 'train', bad_data='skip', **arguments)
    if refusal_of(check_before_run, task, config, ['train']) is None:
        assert refusal_of(build, config, 'train') is None


def test_images_without_objects_may_stand_beside_others(task, tmp_path):
    written(tmp_path / 'background', emptied)
    config = config_of(written(tmp_path / 'good', lambda content: None), 'train')
    both_sets = [config.train_dataloader.dataset, config_of(tmp_path / 'background', 'train').train_dataloader.dataset]
    config.train_dataloader.dataset = dict(type='ConcatDataset', datasets=both_sets)
    assert refusal_of(check_before_run, task, config, ['train']) is None
    both_sets[1].filter_cfg = dict(filter_empty_gt=True)
    config.train_dataloader.dataset = dict(type='ConcatDataset', datasets=both_sets)
    assert 'background/annotations.json has no annotations' in refusal_of(check_before_run, task, config, ['train'])


def cleaned(folder: Path, task, split: str = 'train', allow_loss: bool = False, **arguments) -> list[str]:
    """Return what ``--fix`` says, in a folder ``clean``."""
    config_of(folder, split, **arguments).dump(folder / 'config.py')
    done: list[str] = []
    write_copies(check_data(str(folder / 'config.py'), fix=str(folder / 'clean')), done, allow_loss)
    return done


def test_a_cleaned_copy_that_loses_most_is_refused(task, tmp_path):
    written(tmp_path, both(*(annotation(number, bbox=[1, 2, 3]) for number in range(4))))
    with pytest.raises(UsageError) as caught:
        cleaned(tmp_path, task)
    for words in ('would leave 2 of 6 objects', 'annotations.json (4 objects removed (4 box_invalid))', '--allow-loss'):
        assert words in str(caught.value)
    assert not (tmp_path / 'clean').exists()
    assert '2 of 6 annotations' in cleaned(tmp_path, task, allow_loss=True)[0]
    assert len(json.loads((tmp_path / 'clean' / 'annotations.json').read_text())['annotations']) == 2


def test_a_cleaned_copy_without_images_is_never_written(task, tmp_path):
    written(tmp_path, lambda content: None)
    for path in (tmp_path / 'images').iterdir():
        path.write_bytes(b'')
    with pytest.raises(UsageError, match=r'would leave 0 of 4 images .*\(4 image_empty\)') as caught:
        cleaned(tmp_path, task, allow_loss=True)
    assert '--allow-loss' not in str(caught.value) and not (tmp_path / 'clean').exists()


def test_no_copy_is_written_if_one_of_several_loses_most(task, tmp_path):
    written(tmp_path / 'train', annotation(0, bbox=None))
    written(tmp_path / 'val', every('annotations', bbox=None))
    config = config_of(tmp_path / 'train', 'train')
    config.merge_from_dict(config_of(tmp_path / 'val', 'val')._cfg_dict.to_dict())
    config.dump(tmp_path / 'config.py')
    checked = check_data(str(tmp_path / 'config.py'), fix=str(tmp_path / 'clean'))
    with pytest.raises(UsageError, match='would leave 0 of 6 objects'):
        write_copies(checked, [])
    assert not (tmp_path / 'clean').exists()


@pytest.mark.parametrize('form', FORMS)
def test_a_cleaned_copy_of_another_form_is_used_without_loss(form, task, tmp_path):
    _, prepare, write = FORMS[form]
    written(tmp_path, both(prepare or (lambda content: None), write))
    done = cleaned(tmp_path, task, 'test')
    assert '6 of 6 annotations' in done[0] and 'removed' not in done[0]
    config = config_of(tmp_path, 'test', ann_file=str(tmp_path / 'clean' / 'annotations.json'))
    config.test_evaluator.ann_file = config.test_dataloader.dataset.ann_file
    check_before_run(task, config, ['test'])


def test_backslashes_are_mended_and_sizes_are_compared_after_the_cast(task, tmp_path):
    written(tmp_path, both(at_windows, every('images', width='40', height='31')))
    config_of(tmp_path, 'train', data_prefix=dict(img='')).dump(tmp_path / 'config.py')
    (checked,) = check_data(str(tmp_path / 'config.py'))
    assert {finding.kind for finding in checked.findings} == {
        'image_form',
        'image_backslash',
        'image_size_differs',
        'rle_size',
    }
    written(tmp_path, both(at_windows, every('images', width='40', height='30')))
    done = cleaned(tmp_path, task, data_prefix=dict(img=''))
    assert '4 of 4 images' in done[0] and '4 image_backslash' in done[0] and '4 image_form' in done[0]
