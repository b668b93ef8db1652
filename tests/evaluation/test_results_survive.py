"""Files that took time to make: what was there stays until the new one is whole, and an error costs no result."""

import itertools
import json
import os
import pickle

import pytest
import torch
from mmdet.evaluation import CocoMetric
from mmdet.models.detectors import MaskRCNN
from mmengine.config import Config
from paths import ROOT
from processes import Running, tool
from timed import TINY_RETINANET, settings

from shvit_det import UsageError
from shvit_det.common import atomic_files as atomic
from shvit_det.configuration.detection import Detection
from shvit_det.data.sample import draw_sample
from shvit_det.evaluation.evaluate import evaluate
from shvit_det.export.comparison import compare
from shvit_det.timing import benchmark as timing
from shvit_det.timing.record import Ceilings

pytestmark = pytest.mark.slow

CONFIG = ROOT / 'tests' / 'data' / 'tiny_mask_rcnn.py'


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A folder with the data of the sample config, and a checkpoint."""
    folder = tmp_path_factory.mktemp('trained')
    draw_sample(folder / 'data' / 'sample', num_train=8, num_val=4)
    config = Config.fromfile(CONFIG)
    torch.manual_seed(0)
    torch.save(dict(state_dict=Detection().build(config).state_dict()), folder / 'a.pth')
    return folder


@pytest.fixture
def place(trained, monkeypatch):
    monkeypatch.chdir(trained)
    return trained


class EndError(BaseException):
    """Whatever ends a run."""


def failing_at(number, method):
    """Return a method that ends the run at its call of that number."""
    calls = itertools.count(1)

    def fail(self, *arguments, **options):
        if next(calls) == number:
            raise EndError
        return method(self, *arguments, **options)

    return fail


def test_a_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / 'a.json'
    path.write_text('before')
    for error in (EndError(), OSError(28, 'No space left on device')):
        with pytest.raises((EndError, UsageError)), atomic.saving(path) as part:
            part.write_text('half')
            raise error
        assert path.read_text() == 'before' and list(tmp_path.iterdir()) == [path]
    (tmp_path / 'link').symlink_to(path)
    atomic.save_json(tmp_path / 'link', [1])
    assert path.read_text() == '[1]\n' and (tmp_path / 'link').is_symlink()


def test_what_is_no_file_is_written_to(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    reader = os.open(tmp_path / 'pipe', os.O_RDONLY | os.O_NONBLOCK)
    atomic.save_json(tmp_path / 'pipe', [1])
    assert os.read(reader, 9) == b'[1]\n' and len(list(tmp_path.iterdir())) == 1
    os.close(reader)


@pytest.mark.parametrize('number', [1, 3])
def test_a_test_that_ends_early_leaves_its_predictions(number, place, tmp_path, monkeypatch):
    out = tmp_path / 'out.pkl'
    out.write_bytes(b'before')
    trial = 1  # prediction before the start
    monkeypatch.setattr(MaskRCNN, 'predict', failing_at(trial + number, MaskRCNN.predict))
    with pytest.raises(EndError):
        evaluate(str(CONFIG), 'a.pth', out=str(out), work_dir=str(tmp_path / 'work'))
    assert out.read_bytes() == b'before'
    partial = tmp_path / 'out.partial.pkl'
    assert partial.exists() == (number > 1)
    assert number == 1 or len(pickle.loads(partial.read_bytes())) == number - 1


def test_predictions_are_written_before_anything_is_computed_of_them(place, tmp_path, monkeypatch):
    trial = 1  # scoring before the start
    monkeypatch.setattr(CocoMetric, 'compute_metrics', failing_at(trial + 1, CocoMetric.compute_metrics))
    with pytest.raises(EndError):
        evaluate(str(CONFIG), 'a.pth', out=str(tmp_path / 'out.pkl'), work_dir=str(tmp_path / 'work'))
    assert len(pickle.loads((tmp_path / 'out.pkl').read_bytes())) == 4
    assert not (tmp_path / 'out.partial.pkl').exists()


def test_result_files_are_replaced_when_they_are_whole(place, tmp_path, monkeypatch):
    file = tmp_path / 'results.bbox.json'
    file.write_text('before')
    with monkeypatch.context() as patch:
        patch.setattr(CocoMetric, 'results2json', failing_at(1, CocoMetric.results2json))
        with pytest.raises(EndError):
            evaluate(str(CONFIG), 'a.pth', format_only=True, work_dir=str(tmp_path))
    assert file.read_text() == 'before'
    evaluate(str(CONFIG), 'a.pth', format_only=True, work_dir=str(tmp_path))
    assert len(json.loads(file.read_text())) > 0 and not list(tmp_path.glob('*.part*'))


def test_a_benchmark_that_ends_early_leaves_its_rounds(monkeypatch):
    monkeypatch.setattr(timing, 'measure_ceilings', lambda *_: Ceilings(matmul_gflop_s=1, matmul_by='', copy_gb_s=1))
    monkeypatch.setattr(timing.Measurement, 'add_round', failing_at(6, timing.Measurement.add_round))  # of two a round
    saved = []
    with pytest.raises(EndError):
        timing.benchmark([TINY_RETINANET, 'shvit:s1'], settings(runs=5), save=saved.append)
    (record,) = saved
    assert [subject['whole']['runs'] for subject in record['subjects']] == [2, 2]
    assert {part['time']['runs'] for part in record['subjects'][0]['alone']} == {2}
    assert 'after 2 rounds' in record['warnings'][0]


def test_a_comparison_that_ends_early_leaves_its_images(place, monkeypatch):
    saved = []
    # of two forms, which both run once before they are timed, this is the second one on the third image
    monkeypatch.setattr(MaskRCNN, 'test_step', failing_at(8, MaskRCNN.test_step))
    with pytest.raises(EndError):
        compare(str(CONFIG), 'a.pth', [], save=saved.append)
    (record,) = saved
    assert record['settings']['images'].startswith('2 images') and len(record['forms']) == 2


def test_a_check_tells_of_every_data_set_even_if_a_copy_cannot_be_written(place, tmp_path):
    file = place / 'data' / 'sample' / 'annotations' / 'instances_val2017.json'
    content = json.loads(file.read_text())
    content['annotations'][0]['bbox'] = [1, 2, 3]
    data = tmp_path / 'data'
    draw_sample(data, num_train=8, num_val=4)
    (data / 'annotations' / file.name).write_text(json.dumps(content))
    (tmp_path / 'clean' / f'{file.name}.part').mkdir(parents=True)  # in the way
    options = ('--data-root', data, '--fix', 'clean', '--json', 'found.json')
    ended = tool('check_data', CONFIG, *options, cwd=tmp_path)
    assert ended.returncode == 1 and 'cannot write' in ended.stderr and 'Traceback' not in ended.stderr
    assert ended.stderr.rstrip().endswith('; written before: found.json')
    found = json.loads((tmp_path / 'found.json').read_text())['sets']
    assert 'box_invalid' in ended.stdout and any('box_invalid' in each['findings'] for each in found)


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_a_conversion_on_a_full_disk_is_one_sentence(suffix, place, tmp_path):
    target = tmp_path / f'b{suffix}'
    target.write_bytes(b'before')
    limit = {'FILE_LIMIT': '4096'}
    ended = Running('convert_checkpoint', 'a.pth', target, '--to', 'ours', cwd=place, environment=limit).finish()
    assert ended.returncode == 2 and ended.stderr.count('\n') == 1
    assert ended.stderr.startswith(f'error: cannot write {target}: ')
    assert target.read_bytes() == b'before' and list(tmp_path.iterdir()) == [target]


def test_a_folder_stays_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / 'path'
    path.mkdir()
    (path / 'a').write_text('old')
    with pytest.raises(EndError), atomic.replacing_folder(path) as folder:
        (folder / 'a').write_text('new')
        raise EndError
    assert (path / 'a').read_text() == 'old'
    with atomic.replacing_folder(path) as folder:
        (folder / 'a').write_text('new')
    assert (path / 'a').read_text() == 'new' and list(tmp_path.iterdir()) == [path]
