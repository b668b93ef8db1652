"""What was predicted is kept, whatever ends the run: errors, signals, full disks; and one picture costs no other."""

import importlib.util
import io
import itertools
import json
import shutil
import signal
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.models.detectors import MaskRCNN
from mmengine.config import Config
from mmengine.registry import MODELS, TRANSFORMS
from paths import MASK_RCNN as CONFIG
from PIL import Image
from processes import Running
from pycocotools.coco import COCO

from shvit_det import Predictor, UsageError
from shvit_det.common.errors import RunError
from shvit_det.configuration.detection import Detection
from shvit_det.prediction.coco_results import ResultsFile
from shvit_det.prediction.predict import predict
from shvit_det.prediction.video import VideoWriter
from shvit_det.training.hooks.termination import Terminated

pytestmark = pytest.mark.slow

NO_ROOM = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
failures: dict[int, BaseException] = {}  # by the number of a picture
largest_batch = [99]


@MODELS.register_module(force=True)
class MoodyRCNN(MaskRCNN):
    """A detector of a user's own, with bugs."""

    def predict(self, batch_inputs, batch_data_samples, rescale=True):
        if len(batch_inputs) > largest_batch[0]:
            raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')
        for sample in batch_data_samples:
            if sample.img_id in failures:
                raise failures[sample.img_id]
        return super().predict(batch_inputs, batch_data_samples, rescale)


@TRANSFORMS.register_module(force=True)
class MoodyStep:
    """A step of a pipeline of a user's own, with bugs."""

    def __call__(self, results):
        if -results['img_id'] in failures:
            raise failures[-results['img_id']]
        return results


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    config = Config.fromfile(CONFIG)
    torch.manual_seed(0)
    model = Detection().build(config)
    path = tmp_path_factory.mktemp('weights') / 'a.pth'
    meta = dict(cfg=config.pretty_text, dataset_meta=dict(classes=('a', 'b', 'c', 'd', 'e')))
    torch.save(dict(meta=meta, state_dict=model.state_dict()), path)
    return str(path)


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pictures')
    random = np.random.default_rng(0)
    for number in range(5):
        cv2.imwrite(str(folder / f'{number}.png'), random.integers(0, 256, (96, 128, 3), np.uint8))
    return sorted(map(str, folder.iterdir()))


@pytest.fixture
def run(weights, tmp_path):
    """Predict with the moody detector, and say how that ended: the summary, and what was written to the terminal."""
    failures.clear()
    largest_batch[0] = 99
    stream = io.StringIO()

    def run(inputs, **options):
        changes = {'model.type': 'MoodyRCNN', **options.pop('changes', {})}
        try:
            done = predict(inputs, weights, str(tmp_path), score=0, device='cpu', deploy=False, cfg_options=changes,
                           stream=stream, **options)  # fmt: skip
        except BaseException as error:
            done = error
        return done, stream.getvalue()

    yield run
    failures.clear()


def results(out) -> COCO:
    """The results, which are whole: every annotation belongs to an image, and every image has its drawing."""
    coco = COCO(Path(out) / 'predictions.json')
    assert {each['image_id'] for each in coco.anns.values()} == set(coco.imgs) and len(coco.anns) > 0
    assert all(cv2.imread(str(Path(out) / 'pictures' / each['picture'])) is not None for each in coco.imgs.values())
    assert not list(Path(out).rglob('*.part*'))
    return coco


def names(coco: COCO) -> list[str]:
    return [Path(each['file_name']).name for each in coco.imgs.values()]


ERRORS = {
    'out of memory in Python': (MemoryError(), ' pixels need more memory than cpu has'),
    'on a GPU': (torch.OutOfMemoryError('CUDA out of memory.'), 'need more memory'),
    'on a CPU': (RuntimeError(NO_ROOM), 'need more memory'),
    'in C++': (RuntimeError('std::bad_alloc'), 'need more memory'),
    'a bug': (IndexError('list index out of range'), 'IndexError: list index out of range, in line '),
    'a bug of torch': (RuntimeError('shapes differ'), 'RuntimeError: shapes differ, in line '),
    'an empty assertion': (AssertionError(), 'AssertionError: , in line '),
    'a file that it misses': (FileNotFoundError(2, 'No such file', 'vocabulary.txt'), 'vocabulary.txt'),
}


@pytest.mark.parametrize('kind, batch', zip(ERRORS, itertools.cycle([1, 3])))
def test_a_picture_that_fails_is_named_and_the_others_go_on(kind, batch, run, pictures, tmp_path):
    failures[1], words = ERRORS[kind]
    done, said = run(pictures, batch=batch)
    assert (done.inputs, done.failed) == (5, 1)
    assert f'failed: {pictures[1]}: the model fails on it (' in said and words in said
    assert sorted(names(results(tmp_path))) == ['0.png', '2.png', '3.png', '4.png']


@pytest.mark.parametrize('error', [MemoryError(), ZeroDivisionError('division by zero'), RuntimeError('no')])
def test_a_step_that_fails_is_named_and_the_others_go_on(error, run, pictures, tmp_path):
    failures[-1] = error
    loading, *others = Config.fromfile(CONFIG).test_dataloader.dataset.pipeline
    steps = [loading, dict(type='MoodyStep'), *others]
    done, said = run(pictures, changes={'test_dataloader.dataset.pipeline': steps})
    assert done.failed == 1 and f'failed: {pictures[1]}: it cannot be read as a picture (' in said
    assert names(results(tmp_path)) == ['0.png', '2.png', '3.png', '4.png']


def test_a_batch_that_is_too_large_is_predicted_one_by_one(run, pictures, weights, tmp_path, log):
    largest_batch[0] = 2
    done, said = run(pictures, batch=4)
    assert done.failed == 0 and said == ''
    assert '4 pictures at once need more memory than cpu has: going on with 2' in log.text
    found = results(tmp_path)
    assert names(found) == [Path(path).name for path in pictures]
    expected = Predictor(weights, device='cpu', deploy=False)(pictures)
    for number, one in enumerate(expected, start=1):
        scores = [each['score'] for each in found.loadAnns(found.getAnnIds(number))]
        np.testing.assert_allclose(scores, one.pred_instances.scores, atol=1e-5)


ENDS = [KeyboardInterrupt(), Terminated(signal.SIGTERM), SystemExit(3), GeneratorExit()]


@pytest.mark.parametrize('end', ENDS, ids=[type(end).__name__ for end in ENDS])
def test_what_ends_the_run_leaves_what_was_done(end, run, pictures, tmp_path):
    (tmp_path / 'predictions.json').write_text('of the run before')
    failures[2] = end
    done, said = run(pictures)
    assert done is end and f'stopped: 2 of 5 predicted, 2 entries of results are in {tmp_path}' in said
    assert names(results(tmp_path)) == ['0.png', '1.png']


def test_a_run_that_fails_at_once_leaves_the_results_before_it(run, pictures, tmp_path):
    for end in (KeyboardInterrupt(), *(error for error, _ in ERRORS.values())):
        (tmp_path / 'predictions.json').write_text('of the run before')
        failures.update(dict.fromkeys(range(5), end))
        run(pictures)
        assert (tmp_path / 'predictions.json').read_text() == 'of the run before'
        assert not list(tmp_path.rglob('*.part*'))
    assert 'nothing was predicted' in run(pictures[:1])[1]


def test_a_result_that_cannot_be_drawn_costs_no_other(run, pictures, tmp_path, monkeypatch):
    predicted = MoodyRCNN.predict

    def odd(self, batch_inputs, batch_data_samples, rescale=True):
        (sample,) = predicted(self, batch_inputs, batch_data_samples, rescale)
        if sample.img_id == 1:
            sample.pred_instances.bboxes *= float('nan')
        return [sample]

    monkeypatch.setattr(MoodyRCNN, 'predict', odd)
    done, said = run(pictures)
    assert done.failed == 1 and f'{pictures[1]}: its result cannot be drawn (' in said
    assert names(results(tmp_path)) == ['0.png', '2.png', '3.png', '4.png']


def test_an_address_that_is_none_is_named(run, pictures, tmp_path):
    bad = ['http://[1/a.jpg', 'http://127.0.0.1:1/a.jpg', f'http://{"a" * 70}.example/b.jpg']
    done, said = run([pictures[0], *bad, pictures[1]])
    assert done.failed == 3 and all(f'failed: {url}: it cannot be downloaded (' in said for url in bad)
    assert names(results(tmp_path)) == ['0.png', '1.png']


def clip(path, count=4):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'mp4v'), 5, (416, 240))
    for number in range(count):
        writer.write(np.full((240, 416, 3), 40 * number, np.uint8))
    writer.release()
    return str(path)


def test_frames_that_fail_are_left_out(run, pictures, tmp_path):
    video = clip(tmp_path / 'clip.mp4')
    failures.update({1: MemoryError(), 2: IndexError('no')})
    done, said = run([video])
    assert done.failed == 1 and 'clip.mp4: frame 1: the model fails on it (' in said
    assert said.strip().endswith(', and 1 more')
    content = json.loads((tmp_path / 'predictions.json').read_text())
    assert [(each['id'], each['frame_index']) for each in content['images']] == [(2, 0), (3, 3)]
    drawn = cv2.VideoCapture(str(tmp_path / 'pictures' / 'clip.mp4'))
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == 2


@pytest.mark.parametrize('name', ['stack.tif', 'clip.gif'])
def test_all_pages_and_frames_of_a_picture_are_predicted(name, run, pictures, weights, tmp_path):
    first, *others = [Image.open(path) for path in pictures[:4]]
    first.save(tmp_path / name, save_all=True, append_images=others)
    (tmp_path / 'other').mkdir()
    shutil.copy(pictures[4], tmp_path / 'other' / 'stack.png')
    done, said = run([str(tmp_path / name), str(tmp_path / 'other' / 'stack.png')], batch=3)
    assert (done.inputs, done.failed, said) == (2, 0, '')
    found = results(tmp_path)
    entries = [(each['id'], each.get('frame_index'), each['picture']) for each in found.imgs.values()]
    single, stem = ('other-stack.png', f'{tmp_path.name}-stack') if name == 'stack.tif' else ('stack.png', 'clip')
    assert entries == [(2, None, single), *((3 + page, page, f'{stem}/{page}.png') for page in range(4))]
    expected = Predictor(weights, device='cpu', deploy=False)(pictures)
    if name == 'stack.tif':  # without loss
        for number, one in zip((3, 4, 5, 6, 2), expected, strict=True):
            scores = [each['score'] for each in found.loadAnns(found.getAnnIds(number))]
            np.testing.assert_allclose(scores, one.pred_instances.scores, atol=1e-5)


def test_a_page_that_fails_is_named(run, pictures, tmp_path):
    first, *others = [Image.open(path) for path in pictures[:4]]
    first.save(tmp_path / 'stack.tif', save_all=True, append_images=others)
    failures[2] = IndexError('no')
    done, said = run([str(tmp_path / 'stack.tif')])
    assert done.failed == 1 and 'stack.tif: frame 2: the model fails on it (IndexError: no' in said
    assert [each['frame_index'] for each in results(tmp_path).imgs.values()] == [0, 1, 3]


def test_a_checkpoint_of_a_run_without_a_test_split_is_enough(weights, pictures, tmp_path):
    """Its images are read as those of the validation, which has the names of the classes too."""
    content = torch.load(weights, weights_only=False)
    config = Config.fromfile(CONFIG)
    config.test_dataloader = config.test_evaluator = config.test_cfg = None
    content['meta'] = dict(cfg=config.pretty_text)
    torch.save(content, tmp_path / 'a.pth')
    predictor = Predictor(tmp_path / 'a.pth', device='cpu', deploy=False)
    assert predictor.classes == ('disc', 'square', 'triangle', 'star', 'cross')
    expected = Predictor(weights, device='cpu', deploy=False)(pictures[0])
    assert torch.equal(predictor(pictures[0]).pred_instances.scores, expected.pred_instances.scores)


def test_thin_images_are_predicted(weights, pictures, tmp_path):
    """One is four pixels high after resizing; of the other nothing would be left. In both forms of the model."""
    cv2.imwrite(str(tmp_path / 'thin.png'), np.full((20, 900, 3), 90, np.uint8))
    cv2.imwrite(str(tmp_path / 'gone.png'), np.full((1, 3000, 3), 90, np.uint8))
    inputs = [pictures[0], *(str(tmp_path / name) for name in ('gone.png', 'thin.png')), pictures[1]]
    for deploy in (True, False):
        stream = io.StringIO()
        done = predict(inputs, weights, str(tmp_path / 'out'), score=0, batch=2, device='cpu', deploy=deploy,
                       stream=stream)  # fmt: skip
        assert (done.inputs, done.failed, stream.getvalue()) == (4, 0, '')
        assert names(results(tmp_path / 'out')) == ['0.png', 'gone.png', 'thin.png', '1.png']


def test_a_video_is_one_that_browsers_play_where_there_is_an_encoder(tmp_path, log):
    with VideoWriter(tmp_path / 'clip.mp4', 29.97) as writer:
        for number in range(7):
            writer.add(np.full((241, 417, 3), 30 * number, np.uint8))
    read = cv2.VideoCapture(str(tmp_path / 'clip.mp4'))
    code = int(read.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, 'little').decode().lower()
    frame = read.read()[1]
    assert frame.shape == (240, 416, 3) and read.get(cv2.CAP_PROP_FRAME_COUNT) == 7
    assert read.get(cv2.CAP_PROP_FPS) == pytest.approx(29.97, abs=0.01)
    is_played = 'clip.mp4 is MPEG-4 part 2, which browsers do not play' not in log.text
    assert code in (('h264', 'avc1') if is_played else ('fmp4', 'mp4v'))
    if importlib.util.find_spec('av') is not None:
        import av

        with av.open(tmp_path / 'clip.mp4') as video:
            assert is_played and video.streams.video[0].pix_fmt == 'yuv420p'


def test_a_video_that_opencv_loses_is_told(tmp_path):
    """It writes on without a word when there is no room."""
    frame = np.zeros((240, 416, 3), np.uint8)
    (tmp_path / 'clip.mp4').write_text('before')
    with (
        pytest.raises(UsageError, match=r'is the disk full|cannot be written'),
        VideoWriter(tmp_path / 'clip.mp4', 5) as writer,
    ):
        for _ in range(9):
            writer.add(frame)
        writer.writer.release()
        (tmp_path / '.part-clip.mp4').write_bytes(b'half of it')
    assert (tmp_path / 'clip.mp4').read_text() == 'before' and len(list(tmp_path.iterdir())) == 1


def started(weights, pictures, folder, copies, *options, **environment):
    """Start the tool on copies of the pictures, into ``run``."""
    (folder / 'in').mkdir()
    (folder / 'run').mkdir()
    for number in range(copies):
        shutil.copy(pictures[number % 5], folder / 'in' / f'{number:04}.png')
    arguments = ('in', '--weights', weights, '--out', 'run', '--score', 0, '--device', 'cpu', '--no-deploy')
    return Running('predict', *arguments, *options, cwd=folder, environment=environment)


def test_a_request_to_end_keeps_what_is_done(weights, pictures, tmp_path):
    running = started(weights, pictures, tmp_path, 400)
    running.wait_for(lambda: len(list((tmp_path / 'run').glob('pictures/*.png'))) > 3)
    running.signal(signal.SIGTERM)
    ended = running.finish()
    assert ended.returncode == 143 and ended.stderr.splitlines()[-1] == 'terminated'
    found = results(tmp_path / 'run')
    assert 3 <= len(found.imgs) < 400 and f'stopped: {len(found.imgs)} of 400 predicted' in ended.stderr


def test_a_process_that_is_killed_leaves_its_parts(weights, pictures, tmp_path):
    running = started(weights, pictures, tmp_path, 400)
    running.wait_for(lambda: len(list((tmp_path / 'run').glob('pictures/*.png'))) > 3)
    running.signal(signal.SIGKILL)
    running.finish()
    annotations = (tmp_path / 'run' / 'predictions.json.part').read_text()
    images = (tmp_path / 'run' / 'predictions.json.images.part').read_text()
    whole = annotations.rpartition('\n')[0].rstrip(',') + images.rpartition('\n')[0].rstrip(',') + ']}'
    assert len(json.loads(whole)['images']) >= 3


def test_a_file_that_may_not_grow_holds_the_first_results(weights, pictures, tmp_path):
    many = ('--cfg-options', 'model.test_cfg.rcnn.max_per_img=100')  # so that no picture is larger than the results
    ended = started(weights, pictures, tmp_path, 30, *many, FILE_LIMIT='600000').finish()
    assert ended.returncode == 1 and 'Traceback' not in ended.stderr
    sentence = ended.stderr.splitlines()[-1]
    assert sentence.startswith('error: cannot write run/predictions.json.part: File too large; ')
    found = COCO(tmp_path / 'run' / 'predictions.json')
    assert 0 < len(found.imgs) < 30 and f'{len(found.imgs)} entries of results' in sentence


@pytest.mark.parametrize('size', [700, 2500])
def test_a_disk_that_fills_up_holds_the_first_results(size, weights, pictures, tmp_path):
    if not shutil.which('unshare') or subprocess.run(['unshare', '-m', 'true'], capture_output=True).returncode:
        pytest.skip('disks can be mounted by root only, and not in every container')
    ended = started(weights, pictures, tmp_path, 30, DISK=f'size={size}k', KEEP='kept').finish()
    assert ended.returncode == 1 and 'Traceback' not in ended.stderr, ended.stderr
    sentence = ended.stderr.splitlines()[-1]
    assert sentence.startswith('error: cannot write run/') and 'No space left on device; ' in sentence
    found = results(tmp_path / 'kept')
    assert len(found.imgs) == len(list((tmp_path / 'kept' / 'pictures').iterdir())) > 0
    assert f'{len(found.imgs)} of 30 predicted' in sentence


def test_an_error_within_an_entry_leaves_no_trace(tmp_path):
    """Of the numbers of a picture one cannot be written; the next picture follows the one before."""

    class Found(dict):
        scores = bboxes = labels = np.zeros(0)

        def __getitem__(self, index):
            return self

        def numpy(self):
            return self

    result = type('Result', (), {'pred_instances': Found()})
    with ResultsFile(tmp_path / 'a.json', ('a',), {}) as file:
        file.add(dict(id=1), result, 0)
        file.images.write(b'{"id": ', file.entries[-1][3])  # what an interruption within leaves
        file.annotations.write(b'{"id', file.entries[-1][2])
        file.add(dict(id=2), result, 0)
    assert [each['id'] for each in json.loads((tmp_path / 'a.json').read_text())['images']] == [1, 2]


def test_the_first_result_that_cannot_be_written_is_a_mistake_and_later_ones_end_the_run(run, pictures, tmp_path):
    (tmp_path / 'pictures').mkdir()
    (tmp_path / 'pictures' / '1.png.part').mkdir()  # in the way
    error, _ = run(pictures)
    assert isinstance(error, RunError) and '1 of 5 predicted, 1 entries of results are in ' in str(error)
    (tmp_path / 'pictures' / '0.png.part').mkdir()
    error, _ = run(pictures)
    assert isinstance(error, UsageError)
    assert len(json.loads((tmp_path / 'predictions.json').read_text())['images']) == 1
