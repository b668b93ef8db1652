"""Videos, read and written frame by frame.

OpenCV reads nearly all videos. What it can write everywhere is MPEG-4 part 2, which no browser plays; where PyAV is
installed, H.264 is written by it.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from mmengine.logging import print_log

from ..common.atomic_files import publish
from ..common.errors import UsageError
from .drawing import Picture

DEFAULT_RATE = 25.0  # frames a second of a file that does not state them
COMPLETE = 0.9  # of the frames that a file declares, which is an estimate in some formats


class VideoReader:
    """The frames of a video, upright.

    Raises:
        UsageError: If it cannot be opened, or has no first frame.
    """

    def __init__(self, path: Path) -> None:
        self.capture = cv2.VideoCapture(str(path))
        self.first = self.capture.read()[1] if self.capture.isOpened() else None
        if self.first is None:
            self.capture.release()
            raise UsageError('it cannot be read as a video')
        rate = self.capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if math.isfinite(rate) and 0 < rate <= 1000 else DEFAULT_RATE
        declared = self.capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.declared = int(declared) if math.isfinite(declared) and declared > 0 else None

    def __iter__(self) -> Iterator[Picture]:
        """Yield the frames.

        Raises:
            UsageError: After the last one, if there are much fewer than the file declares.
        """
        frame, count = self.first, 0
        try:
            while frame is not None:
                yield frame  # type: ignore[misc]  # OpenCV's annotations do not know the type of the pixels
                count += 1
                found, following = self.capture.read()
                frame = following if found else None
        finally:
            self.capture.release()
        if self.declared is not None and count < COMPLETE * self.declared:
            raise UsageError(f'it ends after {count} of {self.declared} frames')


class H264Writer:
    """What ``cv2.VideoWriter`` is, for H.264 by PyAV; a last odd row or column is left out, as OpenCV does.

    Args:
        path: The file.
        rate: Frames a second.
        size: Width and height.

    Raises:
        ImportError, ValueError: If PyAV is not installed, or lacks this encoder.
        UsageError: If the file cannot be written; the methods raise it too.
    """

    def __init__(self, path: Path, rate: float, size: tuple[int, int]) -> None:
        import av

        self.av, self.path = av, path
        with self._errors():
            self.file = av.open(str(path), 'w', format='mp4')
            options = dict(preset='veryfast', crf='20')
            self.stream = self.file.add_stream('libx264', rate=Fraction(rate).limit_denominator(1001), options=options)
            self.stream.width, self.stream.height = (side // 2 * 2 for side in size)
            self.stream.pix_fmt = 'yuv420p'  # the only one that all players know

    def write(self, frame: Picture) -> None:
        whole = np.ascontiguousarray(frame[: self.stream.height, : self.stream.width])
        with self._errors():
            self.file.mux(self.stream.encode(self.av.VideoFrame.from_ndarray(whole, format='bgr24')))

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

    If another error than ``UsageError``, which is one of the frames' source, ends the block, the file is deleted.

    Args:
        path: The file.
        rate: Frames a second.

    Raises:
        UsageError: At the end of the block, if the file lacks frames: OpenCV does not report a full disk.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.path, self.rate = path, rate
        self.part = path.with_name(f'.part-{path.name}')  # OpenCV chooses the format by the suffix
        self.writer: cv2.VideoWriter | H264Writer | None = None
        self.count = 0

    def add(self, frame: Picture) -> None:
        """Write a frame; the first one sets the size.

        Raises:
            UsageError: If the file cannot be written.
        """
        if self.writer is None:
            self.writer = self._open(frame.shape[1], frame.shape[0])
        self.writer.write(frame)
        self.count += 1

    def _open(self, width: int, height: int) -> cv2.VideoWriter | H264Writer:
        try:
            return H264Writer(self.part, self.rate, (width, height))
        except (ImportError, ValueError):
            print_log(
                f'{self.path} is MPEG-4 part 2, which browsers do not play: pip install av for H.264',
                'current',
            )
        writer = cv2.VideoWriter(str(self.part), cv2.VideoWriter.fourcc(*'mp4v'), self.rate, (width, height))
        if not writer.isOpened():
            raise UsageError(f'OpenCV cannot write the video {self.path} of {width}x{height} pixels')
        return writer

    def __enter__(self) -> 'VideoWriter':
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.writer is None:
            return
        try:
            self.writer.release()
            if kind is None or issubclass(kind, UsageError):
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
