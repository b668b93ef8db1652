"""From a trained checkpoint to pictures and a COCO file: the tool as a process, the rest in this one."""

import importlib.util
import io
import json
import pickle
import re
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.apis import init_detector
from mmengine.config import Config
from paths import MASK_RCNN, ROOT
from PIL import Image
from processes import tool
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from serving import head, serving
from tool_runs import succeeded

from shvit_det import Predictor, UsageError
from shvit_det.checkpoint import fetch
from shvit_det.data.layouts.reading import read_labels
from shvit_det.deployment import is_deployed
from shvit_det.prediction import run_over_inputs as run
from shvit_det.prediction.predict import predict
from shvit_det.prediction.progress import Progress

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def folder(trained_once, tmp_path_factory):
    """A folder in which a tiny Mask R-CNN was trained on a few drawn images."""
    folder = tmp_path_factory.mktemp('predict') / 'trained'
    shutil.copytree(trained_once, folder)
    return folder


@pytest.fixture(scope='module')
def weights(folder):
    return str(folder / 'run' / 'epoch_1.pth')


@pytest.fixture(scope='module')
def images(folder):
    return sorted((folder / 'data' / 'sample' / 'val2017').glob('*.jpg'))


@pytest.fixture(scope='module')
def predictor(weights):
    return Predictor(weights, device='cpu')


@pytest.fixture
def photograph(images, tmp_path):
    """A folder with two pictures."""
    (tmp_path / 'in').mkdir()
    for path in images[:2]:
        shutil.copy(path, tmp_path / 'in')
    return tmp_path / 'in'


def content_of(out) -> dict:
    return json.loads((Path(out) / 'predictions.json').read_text())


def same(one, other) -> bool:
    one, other = one.pred_instances, other.pred_instances
    return len(one) > 0 and all(torch.equal(one[key], other[key]) for key in ('bboxes', 'labels', 'scores', 'masks'))


@pytest.mark.parametrize('options', [[], ['--deploy']], ids=['plain', 'deployed'])
def test_predictions_are_those_of_the_test_tool(options, folder, weights):
    out = f'test{len(options)}.pkl'
    succeeded(tool('test', MASK_RCNN, weights, *options, '--out', out, '--work-dir', 'test', cwd=folder))
    tested = pickle.loads((folder / out).read_bytes())
    predictor = Predictor(weights, device='cpu', deploy=bool(options))
    assert is_deployed(predictor.model) == bool(options)
    assert len(tested) == 4
    for expected in tested:
        found = predictor(folder / expected['img_path']).pred_instances
        assert len(found) > 0
        for name in ('bboxes', 'scores', 'labels'):
            assert torch.equal(found[name], expected['pred_instances'][name])
        assert (found.masks.numpy() == mask_utils.decode(expected['pred_instances']['masks']).transpose(2, 0, 1)).all()


def test_the_tool_writes_pictures_and_a_coco_file(folder, weights, images, predictor):
    output = succeeded(
        tool('predict', 'data/sample/val2017', '--weights', weights, '--out', 'out', '--score', 0, '--batch', 3,
             '--threads', 1, '--device', 'cpu', cwd=folder)
    )  # fmt: skip
    drawn = {path.name: cv2.imread(str(path)) for path in (folder / 'out' / 'pictures').iterdir()}
    assert sorted(drawn) == [path.name for path in images]
    assert {picture.shape for picture in drawn.values()} == {(576, 576, 3)}  # 192, enlarged to be read
    coco = COCO(folder / 'out' / 'predictions.json')
    names = ['disc', 'square', 'triangle', 'star', 'cross']
    assert [category['name'] for category in coco.loadCats(coco.getCatIds())] == names == list(predictor.classes)
    assert output.splitlines()[-2].startswith(f'4 of 4 predicted, {len(coco.anns)} objects')
    for number, path in enumerate(images, start=1):
        image = coco.imgs[number]
        assert image['file_name'] == f'data/sample/val2017/{path.name}' and image['picture'] == path.name
        assert (image['height'], image['width']) == (192, 192)
        found = predictor(path).pred_instances.numpy()
        annotations = coco.loadAnns(coco.getAnnIds(number))
        assert len(annotations) == len(found) > 0
        for index, annotation in enumerate(annotations):
            left, top, right, bottom = found.bboxes[index]
            np.testing.assert_allclose(annotation['bbox'], (left, top, right - left, bottom - top), atol=2e-2)
            np.testing.assert_allclose(annotation['score'], found.scores[index], atol=1e-5)
            assert annotation['category_id'] == found.labels[index] + 1
            differing = coco.annToMask(annotation).astype(bool) != found.masks[index]
            assert differing.mean() < 1e-3 and annotation['area'] == coco.annToMask(annotation).sum()


def test_a_batch_changes_nothing_and_sizes_do_not_mix(weights, images, predictor):
    """Pictures of another size would be padded, which attention and squeeze-excite would see."""
    picture = cv2.imread(str(images[0]))
    small = np.ascontiguousarray(picture[:120])
    mixed = [images[0], small, images[1], str(images[2]), small, picture]
    results = Predictor(weights, device='cpu', batch=3)(mixed)
    assert [result.pred_instances.masks.shape[1:] for result in results] == [
        (192, 192), (120, 192), (192, 192), (192, 192), (120, 192), (192, 192)
    ]  # fmt: skip
    for image, result in zip(mixed, results, strict=True):
        alone = predictor(image).pred_instances
        assert len(alone) == len(result.pred_instances) > 0
        torch.testing.assert_close(alone.bboxes, result.pred_instances.bboxes, rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(alone.scores, result.pred_instances.scores, rtol=1e-4, atol=1e-5)


def test_few_pictures_are_held(weights, images):
    """With sizes that never fill a batch, results come all the same while pictures still come in."""
    pulled = []

    def pictures():
        for number in range(12):
            pulled.append(number)
            yield number, np.zeros((100 + 8 * number, 192, 3), np.uint8)

    stream = Predictor(weights, device='cpu', batch=2).stream(pictures())
    next(stream)
    assert len(pulled) == 9
    assert len({done.key for done in stream}) == 11


def test_a_picture_as_large_as_a_tile_is_predicted_as_it_is(weights, images, predictor):
    result, expected = (
        each(images[0]).pred_instances for each in (Predictor(weights, device='cpu', tile=192), predictor)
    )
    assert torch.equal(result.bboxes, expected.bboxes) and torch.equal(result.scores, expected.scores)
    assert (np.asarray(result.masks) == expected.masks.numpy()).all() and len(result) > 0


def test_a_large_picture_is_predicted_in_tiles(weights, images, tmp_path, predictor):
    """Four pictures in one, in tiles of their size; what is found far from the borders of each is found again."""
    singles = [cv2.imread(str(path)) for path in images[:4]]
    cv2.imwrite(str(tmp_path / 'large.png'), np.vstack([np.hstack(singles[:2]), np.hstack(singles[2:])]))
    options = ('--tile', 192, '--batch', 3, '--score', 0, '--device', 'cpu')
    succeeded(tool('predict', 'large.png', '--weights', weights, '--out', 'out', *options, cwd=tmp_path))
    coco = COCO(tmp_path / 'out' / 'predictions.json')
    assert (coco.imgs[1]['width'], coco.imgs[1]['height'], coco.dataset['info']['tile']) == (384, 384, 192)
    found = list(coco.anns.values())
    assert all(each['segmentation']['size'] == [384, 384] for each in found)
    for number, single in enumerate(singles):
        expected = predictor(single).pred_instances.numpy()
        offset = np.array([number % 2, number // 2] * 2) * 192
        inner = ((expected.bboxes > 5) & (expected.bboxes < 187)).all(1)
        assert inner.any()
        for index in np.flatnonzero(inner):
            left, top, right, bottom = expected.bboxes[index] + offset
            of_class = [each for each in found if each['category_id'] == expected.labels[index] + 1]
            box = [left, top, right - left, bottom - top]
            assert mask_utils.iou([each['bbox'] for each in of_class], [box], [0]).max() > 0.3


@pytest.mark.parametrize('options', [[], ['--deploy']], ids=['plain', 'deployed'])
def test_test_time_augmentation_is_that_of_the_test_tool(options, folder, weights):
    out = f'tta{len(options)}.pkl'
    arguments = ('--tta', *options, '--eval', 'bbox', 'segm', '--out', out, '--work-dir', 'tta')
    succeeded(tool('test', MASK_RCNN, weights, *arguments, cwd=folder))
    predictor = Predictor(weights, device='cpu', deploy=bool(options), tta=True)
    tested = pickle.loads((folder / out).read_bytes())
    assert len(tested) == 4
    for expected in tested:
        found = predictor(folder / expected['img_path']).pred_instances
        assert torch.equal(found.bboxes, expected['pred_instances']['bboxes']) and len(found) > 0
        assert (found.masks.numpy() == mask_utils.decode(expected['pred_instances']['masks']).transpose(2, 0, 1)).all()


def test_test_time_augmentation_sees_an_image_as_its_mirror_image(weights, images, predictor):
    """Which the model by itself does not."""
    picture = cv2.imread(str(images[0]))
    mirrored = np.ascontiguousarray(picture[:, ::-1])
    augmented = Predictor(weights, device='cpu', tta=True, batch=2)
    first, second = (each.pred_instances for each in augmented([picture, mirrored]))
    assert len(first) > 0
    torch.testing.assert_close(first.scores, second.scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first.bboxes[:, 0], 192 - second.bboxes[:, 2], rtol=1e-4, atol=1e-2)
    assert (first.masks != second.masks.flip(-1)).float().mean() < 1e-3
    plain, other = (predictor(each).pred_instances.scores for each in (picture, mirrored))
    assert len(plain) != len(other) or not torch.allclose(plain, other, rtol=1e-3)


def test_arrays_with_red_first_are_told_so(images, predictor):
    picture = cv2.imread(str(images[0]))
    result, expected = predictor(picture[..., ::-1], rgb=True), predictor(picture)
    assert same(result, expected) and not same(predictor(picture[..., ::-1]), expected)
    alpha = np.dstack([picture[..., ::-1], np.full((192, 192), 7, np.uint8)])
    assert same(predictor([alpha, images[0]], rgb=True)[0], expected)
    drawn = predictor.draw(picture[..., ::-1], result, score=0, rgb=True)
    assert (drawn[..., ::-1] == predictor.draw(picture, result, score=0)).all()


def test_results_become_supervisions_detections(weights, images, predictor):
    supervision = pytest.importorskip('supervision', reason='needs the extra supervision')
    result = predictor(images[0])
    for each in (result, Predictor(weights, device='cpu', tile=192)(images[0])):
        found = predictor.to_supervision(each)
        expected = result.pred_instances.numpy()
        assert isinstance(found, supervision.Detections) and len(found) == len(expected) > 0
        assert (found.xyxy == expected.bboxes).all() and (found.mask == expected.masks).all()
        assert (found.confidence == expected.scores).all() and (found.class_id == expected.labels).all()
        assert found['class_name'].tolist() == [predictor.classes[label] for label in expected.labels]
        annotated = supervision.MaskAnnotator().annotate(cv2.imread(str(images[0])), found)
        assert (annotated != cv2.imread(str(images[0]))).any()


def test_without_supervision_one_sentence_says_how_to_get_it(images, predictor, monkeypatch):
    monkeypatch.setitem(sys.modules, 'supervision', None)
    with pytest.raises(UsageError, match='pip install supervision'):
        predictor.to_supervision(predictor(images[0]))


def test_the_tool_writes_a_data_set_too(weights, images, tmp_path):
    arguments = (images[0], '--weights', weights, '--out', 'out', '--score', 0, '--polygons', '--labels', 'yolo')
    output = succeeded(tool('predict', *arguments, cwd=tmp_path))
    content = content_of(tmp_path / 'out')
    assert any(isinstance(each['segmentation'], list) for each in content['annotations'])
    labels = read_labels(tmp_path / 'out' / 'yolo')
    assert len(labels.splits['train'].objects) == len(content['annotations']) > 0
    assert output.splitlines()[-1].startswith('written: 1 picture, ')


def test_exif_orientation_is_one_frame_for_reading_drawing_and_results(images, tmp_path, weights, predictor):
    upright = Image.open(images[0]).crop((0, 0, 192, 128))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / 'turned.png', exif=exif)
    upright.save(tmp_path / 'upright.png')
    result = predictor(tmp_path / 'turned.png')
    assert result.ori_shape == (128, 192) and result.pred_instances.masks.shape[1:] == (128, 192)
    assert same(result, predictor(tmp_path / 'upright.png'))
    drawn = predictor.draw(tmp_path / 'turned.png', result, score=0)
    assert (drawn == predictor.draw(tmp_path / 'upright.png', result, score=0)).all()
    predict([str(tmp_path / 'turned.png')], weights, str(tmp_path / 'out'), device='cpu', stream=io.StringIO())
    (image,) = content_of(tmp_path / 'out')['images']
    assert (image['height'], image['width']) == (128, 192)


def test_what_is_broken_is_named_and_skipped(weights, photograph, tmp_path):
    whole = next(photograph.glob('*.jpg')).read_bytes()
    (photograph / 'cut.jpg').write_bytes(whole[: len(whole) // 2])
    (photograph / 'empty.png').touch()
    (photograph / 'text.jpg').write_text('no picture')
    (photograph / 'clip.mp4').write_bytes(b'no video')
    (photograph / 'phone.heic').write_bytes(bytes([0, 0, 0, 24]) + b'ftypheic' + bytes(12))
    arguments = ('in', '--weights', weights, '--out', 'out', '--device', 'cpu')
    result = tool('predict', *arguments, cwd=tmp_path)
    assert result.returncode == 1 and '2 of 7 predicted' in result.stdout and 'Traceback' not in result.stderr
    for name, reason in (
        ('cut.jpg', 'truncated'), ('empty.png', 'empty'), ('text.jpg', 'read'), ('clip.mp4', 'as a video')
    ):  # fmt: skip
        (line,) = (line for line in result.stderr.splitlines() if line.startswith(f'failed: in/{name}: '))
        assert reason in line
    last = '5 failed, named above: 4 cannot be read, 1 HEIC, for which pillow-heif is needed'
    has_reader = importlib.util.find_spec('pillow_heif') is not None
    assert result.stderr.splitlines()[-1] == ('5 failed, named above: 5 cannot be read' if has_reader else last)
    names = {path.name for path in photograph.glob('0*.jpg')}
    assert len(names) == 2 and {path.name for path in (tmp_path / 'out' / 'pictures').iterdir()} == names
    assert {image['picture'] for image in content_of(tmp_path / 'out')['images']} == names


MISTAKES = {
    'no such file': (['in/typo.jpg'], [], ['no such file', 'in/typo.jpg']),
    'a folder without pictures': (['empty'], [], ['empty has no picture or video']),
    'pictures in folders within': (['.'], [], ["'./**/*'"]),
    'a pattern that matches nothing': (['in/*.webp'], [], ['in/*.webp', 'matches']),
    'another kind of URL': (['ftp://example.com/a.jpg'], [], ['http:// or https://']),
    'no such checkpoint': (['in'], ['--weights', 'nowhere.pth'], ['no such checkpoint', 'nowhere.pth']),
    'a checkpoint without its config': (['in'], ['--weights', 'plain.pth'], ['plain.pth', '--config']),
    'a config of another model': (
        ['in'], ['--config', ROOT / 'tests' / 'data' / 'tiny_retinanet.py'], ['another model']
    ),
    'the pictures would be written over': (['out/pictures'], [], ['written over', 'another --out']),
    'out is a file': (['in'], ['--out', 'plain.pth'], ['plain.pth is a file']),
    'score': (['in'], ['--score', '30'], ['--score', '30']),
    'batch': (['in'], ['--batch', '0'], ['batch', '0']),
    'tile': (['in'], ['--tile', '32'], ['tile', '64 pixels', '32']),
    'device': (['in'], ['--device', 'tpu'], ["'tpu'"]),
    'threads': (['in'], ['--threads', '0'], ['--threads']),
    'options': (['in'], ['--cfg-options', 'model.backbone.arch=s9'], ["'s9'", 's1, s2, s3, s4']),
}  # fmt: skip


@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_mistake_ends_in_one_sentence_before_anything_is_written(mistake, weights, photograph, tmp_path):
    inputs, options, words = MISTAKES[mistake]
    (tmp_path / 'empty').mkdir()
    shutil.copytree(photograph, tmp_path / 'out' / 'pictures')
    content = torch.load(weights, weights_only=False)
    torch.save(content['state_dict'], tmp_path / 'plain.pth')
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}
    result = tool('predict', *inputs, '--weights', weights, '--out', 'out', *options, cwd=tmp_path)
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith('error: ')]
    assert all(word in line for word in words), line
    assert 'Traceback' not in result.stderr
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')} == before


def test_a_folder_with_files_is_kept_and_results_of_one_name_replaced(weights, photograph, tmp_path):
    out = tmp_path / 'out'
    (out / 'pictures').mkdir(parents=True)
    name = next(photograph.iterdir()).name
    for path in (out / 'mine.txt', out / 'pictures' / 'mine.jpg', out / 'pictures' / name, out / 'predictions.json'):
        path.write_text('before')
    done = predict([str(photograph)], weights, str(out), device='cpu', stream=io.StringIO())
    assert (done.inputs, done.failed) == (2, 0)
    assert (out / 'mine.txt').read_text() == (out / 'pictures' / 'mine.jpg').read_text() == 'before'
    assert cv2.imread(str(out / 'pictures' / name)) is not None and len(content_of(out)['images']) == 2
    assert not list(out.rglob('*.part*'))


def test_an_interruption_keeps_what_is_done(weights, photograph, tmp_path, monkeypatch):
    save, saved = run.save_picture, []

    def interrupted(path, picture):
        if saved:
            raise KeyboardInterrupt
        saved.append(path)
        save(path, picture)

    monkeypatch.setattr(run, 'save_picture', interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict([str(photograph)], weights, str(tmp_path / 'out'), device='cpu', stream=io.StringIO())
    assert saved[0].is_file() and content_of(tmp_path / 'out')['images'][0]['picture'] == saved[0].name
    assert not list((tmp_path / 'out').rglob('*.part*'))


def test_a_full_disk_keeps_the_results_of_the_run_before(weights, photograph, tmp_path, monkeypatch):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'predictions.json').write_text('before')

    def full(path, picture):
        raise OSError(28, 'No space left on device', str(path))

    monkeypatch.setattr(run, 'save_picture', full)
    with pytest.raises(UsageError, match=r'cannot write .*\.jpg: No space left'):
        predict([str(photograph)], weights, str(tmp_path / 'out'), device='cpu', stream=io.StringIO())
    assert (tmp_path / 'out' / 'predictions.json').read_text() == 'before'
    assert not list((tmp_path / 'out').rglob('*.part*'))


def test_mmdets_own_functions_read_the_checkpoint_of_a_run(weights, predictor):
    loaded = init_detector(str(MASK_RCNN), weights, device='cpu')
    assert loaded.dataset_meta['classes'] == predictor.classes
    kept = torch.load(weights, weights_only=False)['state_dict']
    assert all(torch.equal(value, kept[name]) for name, value in loaded.state_dict().items())


def test_urls_are_downloaded_and_failures_named(weights, images, tmp_path, monkeypatch):
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    monkeypatch.setattr(fetch, 'PAUSE_S', 0.01)
    monkeypatch.setattr(run, 'MAX_DOWNLOAD', 100_000)
    picture = images[0].read_bytes()

    def send(handler, content, **headers):
        head(handler, length=len(content), **headers)
        handler.wfile.write(content)

    def answer(handler):
        match handler.path.partition('?')[0].rsplit('/', 1)[-1]:
            case 'gone.jpg':
                head(handler, 404, 0)
            case 'page.jpg':
                send(handler, b'<!DOCTYPE html><html>Sign in</html>', Content_Type='text/html')
            case 'disguised.jpg':
                send(handler, b'<!DOCTYPE html><html>Sign in</html>', Content_Type='image/jpeg')
            case 'huge.jpg':
                send(handler, bytes(100_001))
            case 'endless.jpg':
                head(handler)
                handler.wfile.write(bytes(200_000))
            case _:
                send(handler, picture, Content_Type='image/jpeg')

    stream = io.StringIO()
    with serving(answer) as server:
        base = server.url.rsplit('/', 1)[0]
        names = ['gone.jpg', 'page.jpg', 'disguised.jpg', 'huge.jpg', 'endless.jpg', 'a%20b.jpg?size=2', 'v1.2']
        urls = [f'{base}/{name}' for name in names]
        done = predict(urls, weights, str(tmp_path), score=0, device='cpu', stream=stream)
    assert (done.inputs, done.failed) == (7, 5)
    lines = stream.getvalue().splitlines()
    for url, line, word in zip(
        urls[:5], lines, ['404', 'web page', 'web page', '100,000 bytes', '100,000 bytes'], strict=True
    ):
        assert line.startswith(f'failed: {url}: it cannot be downloaded (') and word in line
    content = content_of(tmp_path)
    assert [image['file_name'] for image in content['images']] == urls[5:]
    assert {path.name for path in (tmp_path / 'pictures').iterdir()} == {'a b.jpg', 'v1.jpg'}
    found = [[a['bbox'] for a in content['annotations'] if a['image_id'] == i['id']] for i in content['images']]
    assert len(found[0]) > 0 and found[0] == found[1]


def write_video(path, frames, rate=12.0):
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'mp4v'), rate, (width, height))
    for frame in frames:
        writer.write(frame)
    writer.release()


def test_a_video_is_predicted_frame_by_frame(weights, images, tmp_path, predictor):
    pictures = [cv2.resize(cv2.imread(str(path)), (416, 240)) for path in images]
    write_video(tmp_path / 'clip.mp4', [*pictures, *pictures[:1]])
    stream = io.StringIO()
    inputs = [str(tmp_path / 'clip.mp4'), str(images[0])]
    done = predict(inputs, weights, str(tmp_path / 'out'), score=0, batch=2, device='cpu', stream=stream)
    assert (done.inputs, done.failed) == (2, 0)
    content = content_of(tmp_path / 'out')
    frames = [image for image in content['images'] if 'frame_index' in image]
    assert [image['frame_index'] for image in frames] == [0, 1, 2, 3, 4]
    assert len({image['id'] for image in content['images']}) == 6
    assert {image['file_name'] for image in frames} == {str(tmp_path / 'clip.mp4')}
    assert (frames[0]['height'], frames[0]['width'], frames[0]['picture']) == (240, 416, 'clip.mp4')
    drawn = cv2.VideoCapture(str(tmp_path / 'out' / 'pictures' / 'clip.mp4'))
    read = cv2.VideoCapture(str(tmp_path / 'clip.mp4'))
    assert drawn.get(cv2.CAP_PROP_FPS) == 12 and drawn.get(cv2.CAP_PROP_FRAME_COUNT) == 5
    for image in frames:
        frame, shown = read.read()[1], drawn.read()[1]
        result = predictor(frame)
        expected = result.pred_instances.scores.numpy()
        scores = [a['score'] for a in content['annotations'] if a['image_id'] == image['id']]
        np.testing.assert_allclose(sorted(scores), sorted(expected), atol=1e-4)
        # mp4v is lossy, but what it shows is the drawing and not the frame
        to_drawn, to_frame = (
            np.abs(shown.astype(int) - other).mean() for other in (predictor.draw(frame, result, 0), frame)
        )
        assert len(scores) > 0 and to_drawn < to_frame / 2
    drawn.release()


def test_a_video_that_breaks_off_keeps_its_frames_and_is_named(weights, images, tmp_path, monkeypatch):
    write_video(tmp_path / 'clip.avi', [cv2.resize(cv2.imread(str(images[0])), (416, 240))] * 4)
    read = cv2.VideoCapture.read

    class Breaking:
        def __init__(self, path):
            self.capture, self.frames = cv2_capture(path), 0

        def __getattr__(self, name):
            return getattr(self.capture, name)

        def read(self):
            self.frames += 1
            return read(self.capture) if self.frames <= 2 else (False, None)

    cv2_capture = cv2.VideoCapture
    monkeypatch.setattr(cv2, 'VideoCapture', Breaking)
    stream = io.StringIO()
    done = predict([str(tmp_path / 'clip.avi')], weights, str(tmp_path / 'out'), device='cpu', stream=stream)
    assert done.failed == 1 and 'clip.avi: it ends after 2 of 4 frames' in stream.getvalue()
    assert [image['frame_index'] for image in content_of(tmp_path / 'out')['images']] == [0, 1]
    monkeypatch.undo()
    kept = cv2.VideoCapture(str(tmp_path / 'out' / 'pictures' / 'clip.mp4'))
    assert kept.get(cv2.CAP_PROP_FRAME_COUNT) == 2
    kept.release()


def test_an_interrupted_video_leaves_no_half_file(weights, images, tmp_path, monkeypatch):
    write_video(tmp_path / 'clip.mp4', [cv2.resize(cv2.imread(str(images[0])), (416, 240))] * 3)
    advance, counted = Progress.advance, []

    def interrupted(progress):
        advance(progress)
        counted.append(progress.done)
        if progress.done == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, 'advance', interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict([str(tmp_path / 'clip.mp4')], weights, str(tmp_path / 'out'), device='cpu', stream=io.StringIO())
    assert counted == [1, 2]
    assert list((tmp_path / 'out' / 'pictures').iterdir()) == []
    assert len(content_of(tmp_path / 'out')['images']) == 2


def test_a_detector_without_our_parts_is_predicted_as_it_is(images, tmp_path, log):
    from mmengine.registry import MODELS, DefaultScope

    from shvit_det.configuration.reading import load_config

    config = load_config(str(ROOT / 'tests' / 'data' / 'tiny_r18.py'))
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(config.model)
    meta = dict(cfg=config.pretty_text, dataset_meta=dict(classes=('a', 'b', 'c', 'd', 'e')))
    torch.save(dict(meta=meta, state_dict=model.state_dict()), tmp_path / 'r18.pth')
    predictor = Predictor(tmp_path / 'r18.pth', device='cpu')
    assert 'predicting with the model as it is: only a SHViT' in log.text
    assert predictor.classes == ('a', 'b', 'c', 'd', 'e') and not is_deployed(predictor.model)
    assert predictor(images[0]).pred_instances.bboxes.shape[1] == 4


def test_names_come_from_the_config_where_the_checkpoint_has_none(weights, tmp_path):
    state = torch.load(weights, weights_only=False)['state_dict']
    torch.save(dict(state_dict=state), tmp_path / 'stripped.pth')
    assert Predictor(tmp_path / 'stripped.pth', str(MASK_RCNN), 'cpu').classes[0] == 'disc'


@pytest.mark.parametrize(
    'old, new, words',
    [
        ("type='MaskRCNN'", "type=print('ran')", 'is not run'),
        ("type='MaskRCNN'", "type='os.system'", "the type 'os.system'"),
        ("type='MaskRCNN'", "type='os.MaskRCNN'", "the type 'os.MaskRCNN'"),
        ("type='nms'", 'type=\'__import__("os").system("true")\'', 'the type'),
        ("type='PackDetInputs'", "type='PackMyInputs'", "the type 'PackMyInputs'"),
        ("type='PackDetInputs'", "type='PackDetInputs', dtype='float if os.system(1) else int'", 'holds code'),
        ("type='nms'", 'type=\'mmdet.x[__import__("os").system("true")].nms\'', 'the type'),
        ("type='MaskRCNN'", "type='MaskRCNN', _scope_='antigravity'", "the type 'antigravity'"),
        ("type='MaskRCNN'", "type='{{fileDirname}}'", 'the type'),
    ],
    ids=[
        'a call',
        'a function',
        'a module',
        'an expression',
        'not registered',
        'an argument that is evaluated',
        'an expression between names',
        'a scope',
        'a variable',
    ],
)
def test_nothing_in_a_checkpoints_config_is_run(old, new, words, weights, tmp_path, capsys):
    content = torch.load(weights, weights_only=False)
    text = content['meta']['cfg']
    assert old in text
    meta = dict(content['meta'], cfg=text.replace(old, new))
    torch.save(dict(state_dict=content['state_dict'], meta=meta), tmp_path / 'hostile.pth')
    with pytest.raises(UsageError, match='config') as caught:
        Predictor(tmp_path / 'hostile.pth')
    assert words in str(caught.value) and 'ran' not in capsys.readouterr().out.split()


def test_text_in_a_config_is_no_code(weights, images, tmp_path):
    """Names of classes, folders and files of any kind, in a checkpoint that mmengine wrote."""
    names = ('disc (big)', 'my__class', 'a "b" {{fileDirname}}', '$(id)\n[x, y]', "žlutý 界's")
    folder = '/data/my__data (old)/[1] {{fileDirname}} $HOME "x" \'y\', z\n/'
    config = Config.fromfile(MASK_RCNN)
    for loader in (config.train_dataloader, config.test_dataloader):
        loader.dataset.update(data_root=folder, ann_file=f'{folder}a', metainfo=dict(classes=names, type='x y'))
    config.model.backbone.init_cfg = dict(type='SHViTPretrained', checkpoint=f'{folder}__import__("os").pth')
    config.data_root, config.work_dir, config.custom_imports = folder, folder, dict(imports=['antigravity'])
    content = torch.load(weights, weights_only=False)
    content['meta'].update(cfg=config.pretty_text)
    content['meta'].pop('dataset_meta')  # else the names are those
    torch.save(content, tmp_path / 'a.pth')
    assert Predictor(tmp_path / 'a.pth', device='cpu').config.test_dataloader.dataset.data_root == folder
    done = predict(
        [str(images[0])], str(tmp_path / 'a.pth'), str(tmp_path), score=0, device='cpu', stream=io.StringIO()
    )
    assert done.failed == 0 and done.objects > 0
    assert tuple(each['name'] for each in content_of(tmp_path)['categories']) == names


def test_the_api_names_what_it_cannot_take(predictor, images, tmp_path):
    for image, words in (
        (tmp_path / 'nowhere.jpg', 'nowhere.jpg: it cannot be read'),
        (
            np.zeros((0, 64, 3), np.uint8),
            r'array 0: it cannot be read as a picture \(an array has to be .*\(0, 64, 3\)',
        ),
        (np.zeros((64, 64), np.uint16), r'array 0: it cannot be read as a picture \(an array has to be \(H, W, 3\)'),
        ([images[0], np.zeros((64, 64, 3), np.float32)], 'array 1: .* float32'),
    ):
        with pytest.raises(UsageError, match=words):
            predictor(image)


def test_arrays_and_images_of_pillows_are_predicted_as_their_file(predictor, images, tmp_path):
    cv2.imwrite(str(tmp_path / 'grey.png'), cv2.imread(str(images[0]), cv2.IMREAD_GRAYSCALE))
    expected = predictor(tmp_path / 'grey.png')
    grey = cv2.imread(str(tmp_path / 'grey.png'), cv2.IMREAD_GRAYSCALE)
    for image in (grey, grey[..., None], np.ma.masked_less(grey, 9), Image.open(tmp_path / 'grey.png')):
        assert same(expected, predictor(image))
        assert (predictor.draw(image, expected, 0) == predictor.draw(tmp_path / 'grey.png', expected, 0)).all()
    assert same(expected, predictor([Image.fromarray(grey).convert('RGBA'), images[1]])[0])


def test_photographs_go_through(coco_mini, weights, tmp_path):
    paths = [str(path) for path in sorted((coco_mini / 'val2017').glob('*.jpg'))[:3]]
    done = predict(paths, weights, str(tmp_path), score=0, batch=2, device='cpu', stream=io.StringIO())
    assert (done.inputs, done.failed) == (3, 0) and done.objects > 0
    for image, path in zip(content_of(tmp_path)['images'], paths, strict=True):
        assert image['file_name'] == path
        with Image.open(path) as original, Image.open(tmp_path / 'pictures' / image['picture']) as drawn:
            assert original.size == drawn.size == (image['width'], image['height'])


@pytest.mark.parametrize('page', ['README.md', 'docs/prediction.md'])
def test_the_lines_in_the_documents_run(page, weights, images, tmp_path, monkeypatch, capsys):
    shutil.copy(weights, tmp_path / 'CHECKPOINT')
    shutil.copy(images[0], tmp_path / 'image.jpg')
    blocks = re.findall(r'```python\n(.*?)```', (ROOT / page).read_text(), re.DOTALL)
    lines = '\n'.join(block for block in blocks if 'redictor' in block)
    if importlib.util.find_spec('supervision') is None:  # an extra, whose test skips without it
        lines = re.sub(r'.*to_supervision.*\n', '', lines)
    monkeypatch.chdir(tmp_path)
    names = dict(cv2=cv2, paths=images)
    exec(lines, names)
    assert len(names['result'].pred_instances) > 0
    if page != 'README.md':
        assert (tmp_path / 'drawn.jpg').is_file()
        assert str(images[3]) in capsys.readouterr().out
