"""Videos, read and written frame by frame."""

import math
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import cv2

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
        self.writer: cv2.VideoWriter | None = None
        self.count = 0

    def add(self, frame: Picture) -> None:
        """Write a frame; the first one sets the size.

        Raises:
            UsageError: If the file cannot be written.
        """
        if self.writer is None:
            height, width = frame.shape[:2]
            code = cv2.VideoWriter.fourcc(*'mp4v')
            self.writer = cv2.VideoWriter(str(self.part), code, self.rate, (width, height))
            if not self.writer.isOpened():
                raise UsageError(f'OpenCV cannot write the video {self.path} of {width}x{height} pixels')
        self.writer.write(frame)
        self.count += 1

    def __enter__(self) -> 'VideoWriter':
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.writer is None:
            return
        self.writer.release()
        try:
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
