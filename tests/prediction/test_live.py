"""Cameras and live streams. A server that sends pictures one after another stands in for a camera."""

import json
import signal
import socket
import threading
import time
from contextlib import contextmanager

import cv2
import numpy as np
import pytest
from processes import Running, tool

from shvit_det import UsageError
from shvit_det.prediction.inputs import Input, find_inputs, output_names
from shvit_det.prediction.video import LiveReader, VideoWriter, frames_in

pytestmark = pytest.mark.slow

PAUSE_S = 0.02


@contextmanager
def camera(picture_of, count=10_000):
    """Send pictures to whoever connects; ``picture_of`` returns the one of a number."""
    server, stop = socket.create_server(('127.0.0.1', 0)), threading.Event()

    def send():
        connection = None
        try:
            connection, _ = server.accept()
            for number in range(count):
                connection.sendall(cv2.imencode('.jpg', picture_of(number))[1].tobytes())
                if stop.wait(PAUSE_S):
                    break
        except OSError:  # the other side has gone
            pass
        finally:
            if connection is not None:
                connection.close()

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield f'tcp://127.0.0.1:{server.getsockname()[1]}'
    finally:
        stop.set()
        server.close()
        thread.join(10)


NOISE = np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8)  # large files, of which few are probed


def grey(number):
    """Return noise with a grey square that tells the number."""
    picture = NOISE.copy()
    picture[:160, :160] = number % 256
    return picture


def value_of(picture):
    return float(picture[20:140, 20:140].mean())


def test_the_latest_picture_is_read_and_numbered_by_time():
    with camera(lambda number: grey(number // 2)) as url:
        reader = LiveReader(url, url)
        numbers, values = [], []
        for number, frame in reader:
            numbers.append(number)
            values.append(value_of(frame))
            time.sleep(0.25)
            if len(numbers) == 5:
                reader.stop()
    assert len(numbers) == 5 and numbers[0] == 0
    times = np.diff(numbers) / reader.rate
    assert (times > 0.2).all()
    assert (np.diff(values) > 2).all()  # of about twelve pictures in this time, all but one are passed over


def test_a_stream_that_ends_gives_its_last_picture():
    with camera(grey, count=200) as url:
        values = [round(value_of(frame)) for _, frame in LiveReader(url, url)]
    assert values == sorted(values) and values[-1] == 199


def test_a_video_has_a_frame_for_every_number(tmp_path):
    with VideoWriter(tmp_path / 'a.mp4', 10, is_live=True) as writer:
        for number in (0, 1, 5):
            writer.add(grey(40 * number), number)
    video = cv2.VideoCapture(str(tmp_path / 'a.mp4'))
    values = [value_of(video.read()[1]) for _ in range(6)]
    assert values == pytest.approx([0, 40, 40, 40, 40, 200], abs=6) and not video.read()[0]


@pytest.mark.parametrize(('number', 'status'), [(signal.SIGINT, 0), (signal.SIGTERM, 143)], ids=['Ctrl-C', 'SIGTERM'])
def test_a_signal_ends_a_stream_with_all_that_was_predicted(number, status, trained_once, tmp_path):
    picture = NOISE.copy()
    picture[:192, :192] = cv2.imread(str(min((trained_once / 'data' / 'sample' / 'val2017').glob('*.jpg'))))
    out = tmp_path / 'run'
    out.mkdir()
    weights = trained_once / 'run' / 'epoch_1.pth'
    with camera(lambda number: picture) as url:
        running = Running(
            'predict', url, '--weights', weights, '--out', 'out', '--score', 0, '--device', 'cpu', cwd=out
        )
        images = out / 'out' / 'predictions.json.images.part'
        running.wait_for(lambda: images.is_file() and images.read_bytes().count(b'"frame_index"') >= 5)
        running.signal(number)
        result = running.finish()
    assert result.returncode == status, result.stderr[-2000:]
    assert ('1 of 1 predicted' in result.stdout) == (status == 0)
    assert f'{url} is predicted until Ctrl-C' in result.stderr
    content = json.loads((out / 'out' / 'predictions.json').read_text())
    numbers = [image['frame_index'] for image in content['images']]
    assert len(numbers) >= 5 and numbers == sorted(set(numbers)) and content['annotations']
    (video,) = (out / 'out' / 'pictures').iterdir()
    assert content['images'][0]['picture'] == video.name and frames_in(video) >= numbers[-1] + 1


@pytest.mark.parametrize('source', ['7', 'rtsp://somebody:secret@127.0.0.1:9/live'])
def test_what_cannot_be_opened_is_one_sentence_before_a_model_is_loaded(source, tmp_path):
    result = tool('predict', source, '--weights', 'nowhere.pth', '--out', 'out', cwd=tmp_path)
    shown = source.replace('somebody:secret@', '')
    (line,) = [line for line in result.stderr.splitlines() if line.startswith('error: ')]
    assert result.returncode == 2 and shown in line and 'cannot be opened' in line and 'secret' not in line
    assert not (tmp_path / 'out').exists()


def test_streams_are_told_by_their_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = ['0', 'rtsp://me:secret@cam.local:554/live/1?token=secret', 'a.jpg']
    assert [Input(name).is_live for name in named] == [True, True, False]
    assert output_names([Input(name) for name in named]) == ['camera-0.mp4', 'cam.local-554-live-1.mp4', 'a.jpg']
    with pytest.raises(UsageError, match='0 and rtsp://cam/1 have no end: name one'):
        find_inputs(['0', 'rtsp://me:secret@cam/1'])
    (tmp_path / '0').touch()
    assert not Input('0').is_live and len(find_inputs(['0'])) == 1  # a file of that name
