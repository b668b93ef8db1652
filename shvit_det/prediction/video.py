"""Videos, read and written frame by frame.

OpenCV reads nearly all videos. What it can write everywhere is MPEG-4 part 2, which no browser plays. H.264 is written
by PyAV where it is installed, and by OpenCV where its build has an encoder.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
from mmengine.logging import print_log

from ..common.atomic_files import publish
from ..common.errors import UsageError
from .drawing import Picture

DEFAULT_RATE = 25.0  # frames a second of a file that does not state them
OPEN_TIMEOUT_MS = READ_TIMEOUT_MS = 10_000  # of live streams
FFMPEG_LOG = 'OPENCV_FFMPEG_LOGLEVEL'
COMPLETE = 0.9  # of the frames that a file declares, which is an estimate in some formats


@contextmanager
def without_log() -> Iterator[None]:
    """Let OpenCV try what may fail, without its lines, and FFmpeg's, about everything that it tries."""
    level, variable = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT), os.environ.get(FFMPEG_LOG)
    os.environ.setdefault(FFMPEG_LOG, '-8')  # silent; it is read when a process uses FFmpeg for the first time
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
        if variable is None:
            del os.environ[FFMPEG_LOG]


def first_frame(capture: cv2.VideoCapture, sentence: str) -> Picture:
    """Return the first frame of a video or a stream; if it has none, raise ``UsageError`` with a sentence."""
    found, frame = capture.read() if capture.isOpened() else (False, None)
    if not found:
        capture.release()
        raise UsageError(sentence)
    return frame  # type: ignore[return-value]  # OpenCV's annotations do not know the type of the pixels


def rate_of(capture: cv2.VideoCapture) -> float:
    """Return the frames a second that a video declares, or what is usual."""
    rate = capture.get(cv2.CAP_PROP_FPS)
    return rate if math.isfinite(rate) and 0 < rate <= 1000 else DEFAULT_RATE


class VideoReader:
    """The frames of a video, upright.

    Raises:
        UsageError: If it cannot be opened, or has no first frame.
    """

    def __init__(self, path: Path) -> None:
        with without_log():
            self.capture = cv2.VideoCapture(str(path))
        self.first = first_frame(self.capture, 'it cannot be read as a video')
        self.rate = rate_of(self.capture)
        declared = self.capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.declared = int(declared) if math.isfinite(declared) and declared > 0 else None

    def __iter__(self) -> Iterator[Picture]:
        """Yield the frames; raise ``UsageError`` after the last one if the file declares many more."""
        found, frame, count = True, self.first, 0
        try:
            while found:
                yield frame
                count += 1
                found, frame = self.capture.read()  # type: ignore[assignment]
        finally:
            self.capture.release()
        if self.declared is not None and count < COMPLETE * self.declared:
            raise UsageError(f'it ends after {count} of {self.declared} frames')


class LiveReader:
    """The frames of a camera, whose number is the source, or a live stream: whenever one is asked for, the latest.

    A thread reads them, so that no frame is late where predicting takes longer than the time between two.

    Raises:
        UsageError: If it cannot be opened, or gives no frame.
    """

    def __init__(self, source: str, name: str) -> None:
        timeouts = (cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ_TIMEOUT_MS)
        with without_log():
            if source.isdecimal():
                self.capture = cv2.VideoCapture(int(source))
            else:
                self.capture = cv2.VideoCapture(source, cv2.CAP_FFMPEG, timeouts)
        what = f'camera {name}, which is also no file,' if source.isdecimal() else name
        self.latest: Picture | None = first_frame(self.capture, f'{what} cannot be opened, or gives no picture')
        self.rate = rate_of(self.capture)
        self.is_stopped = self.has_ended = False
        self.changed = threading.Condition()

    def stop(self) -> None:
        """End the frames; a signal's handler may call it."""
        self.is_stopped = True

    def __iter__(self) -> Iterator[tuple[int, Picture]]:
        """Yield frames with their numbers: those that they have at the rate of the stream, from 0 on."""
        reading = threading.Thread(target=self._read, daemon=True)  # it may wait for a frame that never comes
        reading.start()
        start, number = time.monotonic(), -1
        try:
            while (frame := self._next()) is not None:
                number = max(number + 1, round((time.monotonic() - start) * self.rate))
                yield number, frame
        finally:
            self.stop()
            reading.join(1)

    def _next(self) -> Picture | None:
        with self.changed:
            while self.latest is None and not self.has_ended and not self.is_stopped:
                self.changed.wait(0.1)  # and look whether it was stopped
            frame, self.latest = self.latest, None
        return None if self.is_stopped else frame

    def _read(self) -> None:
        while not self.is_stopped:
            found, frame = self.capture.read()
            with self.changed:
                if not found:
                    break
                self.latest = frame  # type: ignore[assignment]
                self.changed.notify()
        self.has_ended = True
        self.capture.release()


@contextmanager
def ending_at_interrupt(reader: LiveReader) -> Iterator[None]:
    """Make the first Ctrl-C end a live stream, and the next one the process."""
    if threading.current_thread() is not threading.main_thread():  # where signals do not arrive
        yield
        return

    def stop(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, before)
        reader.stop()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class H264Writer:
    """What ``cv2.VideoWriter`` is, for H.264 by PyAV; width and height are even.

    Raises:
        ImportError, ValueError: If PyAV is not installed, or lacks this encoder.
        UsageError: If the file cannot be written; the methods raise it too.
    """

    def __init__(self, path: Path, rate: float, size: tuple[int, int]) -> None:
        import av

        self.av, self.path = av, path
        with self._errors():
            self.file = av.open(str(path), 'w', format='mp4', options=dict(movflags='faststart'))  # plays as it loads
            options = dict(preset='veryfast', crf='20')
            self.stream = self.file.add_stream('libx264', rate=Fraction(rate).limit_denominator(1001), options=options)
            self.stream.width, self.stream.height = size
            self.stream.pix_fmt = 'yuv420p'  # the only one that all players know

    def write(self, frame: Picture) -> None:
        with self._errors():
            self.file.mux(self.stream.encode(self.av.VideoFrame.from_ndarray(frame, format='bgr24')))

    def release(self) -> None:
        with self._errors():
            self.file.mux(self.stream.encode())
            self.file.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self.av.FFmpegError as error:
            raise UsageError(f'the video {self.path} cannot be written: {error.strerror}') from error


class VideoWriter:
    """An mp4 file, which gets its name at the end of a ``with`` block.

    If another error than ``UsageError``, which is one of the frames' source, ends the block, the file is deleted. Only
    that of a live stream, which has no end, stays whatever ends the block.

    Raises:
        UsageError: At the end of the block, if the file lacks frames: OpenCV does not report a full disk.
    """

    def __init__(self, path: Path, rate: float, is_live: bool = False) -> None:
        self.path, self.rate, self.is_live = path, rate, is_live
        self.part = path.with_name(f'.part-{path.name}')  # OpenCV chooses the format by the suffix
        self.writer: cv2.VideoWriter | H264Writer | None = None
        self.count = 0
        self.last: Picture | None = None

    def add(self, frame: Picture, number: int = 0) -> None:
        """Write a frame, and before it the last one again for each number that is missing before that of the frame.

        A last odd row or column is left out, which H.264 cannot have. The first frame sets the size.

        Raises:
            UsageError: If the file cannot be written.
        """
        height, width = (side // 2 * 2 for side in frame.shape[:2])
        if self.writer is None:
            self.writer = self._open(width, height)
        missing = [] if self.last is None else [self.last] * (number - self.count)
        self.last = np.ascontiguousarray(frame[:height, :width])
        for each in (*missing, self.last):
            self.writer.write(each)
            self.count += 1

    def _open(self, width: int, height: int) -> cv2.VideoWriter | H264Writer:
        try:
            return H264Writer(self.part, self.rate, (width, height))
        except (ImportError, ValueError):
            pass
        for codec in ('avc1', 'mp4v'):
            with without_log():  # of an encoder that is not there
                writer = cv2.VideoWriter(str(self.part), cv2.VideoWriter.fourcc(*codec), self.rate, (width, height))
            if writer.isOpened():
                if codec == 'mp4v':
                    sentence = f'{self.path} is MPEG-4 part 2, which browsers do not play: pip install av for H.264'
                    print_log(sentence, 'current')
                return writer
        raise UsageError(f'OpenCV cannot write the video {self.path} of {width}x{height} pixels')

    def __enter__(self) -> 'VideoWriter':
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.writer is None:
            return
        try:
            self.writer.release()
            if kind is None or self.is_live or issubclass(kind, UsageError):
                if frames_in(self.part) < self.count:
                    raise UsageError(f'not all of the video {self.path} could be written: is the disk full?')
                publish(self.part, self.path)
        finally:
            self.part.unlink(missing_ok=True)


def frames_in(path: Path) -> int:
    """Return how many frames a video declares; 0 if it cannot be opened."""
    capture = cv2.VideoCapture(str(path))
    count = capture.get(cv2.CAP_PROP_FRAME_COUNT) if capture.isOpened() and capture.read()[0] else 0
    capture.release()
    return int(count)
