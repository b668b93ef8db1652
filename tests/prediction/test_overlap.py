"""Reading and drawing go on while the model predicts, and change nothing but the time that a run takes."""

import io
import json
from collections import defaultdict
from pathlib import Path
from threading import Event

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData
from PIL import Image

from shvit_det import Predictor
from shvit_det.common.errors import RunError
from shvit_det.common.image_files import no_size_limit
from shvit_det.prediction import overlap
from shvit_det.prediction import predict as prediction
from shvit_det.prediction.image_reader import ImageReader
from shvit_det.prediction.overlap import Finishing

WAIT_S = 20
STEPS = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64), keep_ratio=False),
    dict(type='PackDetInputs', meta_keys=('img_id', 'ori_shape', 'img_shape', 'scale_factor')),
]


class Fake(Predictor):
    """A predictor whose model finds nothing, after it has done for each picture what a test wants."""

    def __init__(self, during=lambda number: None):
        self.batch, self.tile, self.device = 1, None, torch.device('cpu')
        self.during = during
        self.model, self.classes, self.colors = self, ('a',), ((0, 0, 255),)
        self.reader = ImageReader(Config(dict(test_dataloader=dict(dataset=dict(pipeline=STEPS)))))

    def test_step(self, data):
        for sample in data['data_samples']:
            self.during(sample.img_id)
            found = dict(bboxes=torch.zeros(0, 4), scores=torch.zeros(0), labels=torch.zeros(0, dtype=torch.long))
            sample.pred_instances = InstanceData(**found)
        return data['data_samples']


class Recorded:
    """A reader that tells when it begins."""

    is_thread_safe = True

    def __init__(self, reader, begun):
        self.reader, self.begun = reader, begun

    def __call__(self, image, number):
        self.begun[number].set()
        return self.reader(image, number)


@pytest.fixture
def files(tmp_path):
    """Seven pictures, the number of each in its pixels."""
    (tmp_path / 'in').mkdir()
    paths = [tmp_path / 'in' / f'{number}.png' for number in range(7)]
    for number, path in enumerate(paths):
        cv2.imwrite(str(path), np.full((400, 400, 3), number, np.uint8))
    return paths


@pytest.fixture
def processors(monkeypatch):
    return lambda count: monkeypatch.setattr(overlap, 'usable_processors', lambda: count)


def predicted(fake, files, out, monkeypatch):
    """Run; return the error that ended it, what was said, and the numbers of the pictures in the results."""
    monkeypatch.setattr(prediction, 'Predictor', lambda *arguments: fake)
    stream, error = io.StringIO(), None
    try:
        prediction.predict(list(map(str, files)), 'a.pth', str(out), stream=stream)
    except (RunError, KeyboardInterrupt) as raised:
        error = raised
    images = json.loads((out / 'predictions.json').read_text())['images']
    assert not list(out.rglob('*.part*'))
    assert {each['picture'] for each in images} == {path.name for path in (out / 'pictures').iterdir()}
    return error, stream.getvalue(), [int(Path(each['file_name']).stem) for each in images]


def test_the_next_picture_is_read_while_one_is_predicted(files, processors):
    processors(2)
    begun, ended = defaultdict(Event), []

    def during(number):
        assert number == 6 or begun[number + 1].wait(WAIT_S), f'{number + 1} is not read'
        ended.append(number)

    fake = Fake(during)
    fake.reader = Recorded(fake.reader, begun)
    assert [done.error for done in fake.stream(enumerate(files), files_stay=True)] == [None] * 7
    assert ended == list(range(7))


def test_a_picture_is_predicted_while_the_one_before_is_drawn(files, processors, monkeypatch, tmp_path):
    processors(2)
    begun = defaultdict(Event)
    fake = Fake(lambda number: begun[number].set())
    draw = fake.draw

    def slow(picture, *arguments):
        number = int(picture[0, 0, 0])
        assert number == 6 or begun[number + 1].wait(WAIT_S), f'{number + 1} is not predicted'
        return draw(picture, *arguments)

    fake.draw = slow
    assert predicted(fake, files, tmp_path / 'out', monkeypatch) == (None, '', list(range(7)))


@pytest.mark.parametrize('count', [1, 2, 9])
def test_failures_and_order_do_not_depend_on_threads(count, files, processors, monkeypatch, tmp_path):
    """Picture 1 is broken, 3 fails in the model, 4 when it is drawn; 0 is drawn last where that is possible."""
    processors(count)
    files[1].write_bytes(files[1].read_bytes()[:60])
    drawn = Event()

    def during(number):
        if number == 3:
            raise IndexError('no')

    fake = Fake(during)
    draw = fake.draw

    def odd(picture, *arguments):
        number = int(picture[0, 0, 0])
        if number == 0 and count == 9:
            assert drawn.wait(WAIT_S)
        if number == 2:
            drawn.set()
        if number == 4:
            raise IndexError('nor this')
        return draw(picture, *arguments)

    fake.draw = odd
    error, said, images = predicted(fake, files, tmp_path / 'out', monkeypatch)
    assert error is None and images == [0, 2, 5, 6]
    reasons = [line.partition('.png: ')[2].partition(' (')[0] for line in said.splitlines()]
    assert reasons == ['it cannot be read as a picture', 'the model fails on it', 'its result cannot be drawn']


@pytest.mark.parametrize('count', [1, 9])
def test_no_drawing_comes_after_one_that_cannot_be_written(count, files, processors, monkeypatch, tmp_path):
    processors(count)
    pictures, fake, drawn = tmp_path / 'out' / 'pictures', Fake(), Event()
    (pictures / '2.png.part').mkdir(parents=True)  # in the way
    draw = fake.draw

    def third_last(picture, *arguments):
        if picture[0, 0, 0] == 2 and count == 9:
            assert drawn.wait(WAIT_S)
        drawing = draw(picture, *arguments)
        if picture[0, 0, 0] == 4:
            drawn.set()
        return drawing

    fake.draw = third_last
    monkeypatch.setattr(prediction, 'Predictor', lambda *arguments: fake)
    with pytest.raises(RunError, match=r'cannot write .*2\.png.*; 2 of 7 predicted, 2 entries of results are in '):
        prediction.predict(list(map(str, files)), 'a.pth', str(tmp_path / 'out'), stream=io.StringIO())
    images = json.loads((tmp_path / 'out' / 'predictions.json').read_text())['images']
    assert [Path(each['picture']).stem for each in images] == ['0', '1']
    assert sorted(path.name for path in pictures.iterdir() if path.is_file()) == ['0.png', '1.png']


@pytest.mark.parametrize('count', [1, 9])
def test_what_is_predicted_before_a_signal_is_drawn(count, files, processors, monkeypatch, tmp_path):
    processors(count)

    def during(number):
        if number == 4:
            raise KeyboardInterrupt

    error, said, images = predicted(Fake(during), files, tmp_path / 'out', monkeypatch)
    assert isinstance(error, KeyboardInterrupt) and images == [0, 1, 2, 3]
    assert said.startswith('stopped: 4 of 7 predicted, 4 entries of results are in ')


@pytest.mark.parametrize('files_stay, ahead', [(True, 2), (False, 0)])
def test_few_files_are_read_ahead(files_stay, ahead, files, processors):
    processors(3)
    asked = []
    stream = Fake().stream(((number, path) for number, path in enumerate(files) if asked.append(number) is None),
                           files_stay)  # fmt: skip
    for number in range(3):
        assert next(stream).key == number and len(asked) == number + 1 + ahead
    stream.close()


def test_few_bytes_wait_for_their_drawing(monkeypatch):
    monkeypatch.setattr(overlap, 'MOST_BYTES', 100)
    drawn, counted, waiting = Event(), [], []
    with Finishing(4) as finishing:
        for number in range(8):
            waiting.append(number - len(counted))
            finishing.add(drawn.wait if number == 0 else int, lambda draw: draw(), counted.append, 40)
            if number == 1:
                assert counted == []
                drawn.set()
    assert len(counted) == 8 and max(waiting) == 2


def test_pillows_limit_returns_after_the_last_of_several_blocks():
    limit, first, second = Image.MAX_IMAGE_PIXELS, no_size_limit(), no_size_limit()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert Image.MAX_IMAGE_PIXELS is None
    second.__exit__(None, None, None)
    assert Image.MAX_IMAGE_PIXELS == limit is not None
