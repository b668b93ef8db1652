"""One run of ``tools/predict.py`` over its inputs: each is read, predicted, drawn and counted, or named as failed."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import cv2

from ..checkpoint.fetch import PermanentDownloadError, download
from ..checkpoint.reading import head_of, wrong_kind
from ..common.atomic_files import replacing
from ..common.errors import UsageError
from ..common.image_files import pages_of
from .coco_results import ResultsFile
from .drawing import Picture, shown_names
from .image_reader import reason_of
from .inputs import Input
from .overlap import Finishing, spare_threads
from .predictor import Prediction, Predictor
from .progress import Progress
from .video import LiveReader, VideoReader, VideoWriter, ending_at_interrupt

MAX_DOWNLOAD = 1 << 30  # bytes
JPEG_QUALITY = 95
FOLDER, FILE = 'pictures', 'predictions.json'
Place = tuple[Path, Callable[[Any], None]]  # of a drawing, and what writes it there
Opened = tuple[Iterable[tuple[int, Picture]], int | None, Callable[[int], Place]]  # numbered frames, how many, places


@dataclass
class Run:
    """One run over all inputs."""

    predictor: Predictor
    file: ResultsFile
    score: float  # detections with a lower one are left out
    inputs: Sequence[Input]
    targets: Sequence[Path]  # the file for the drawing of each input
    stream: TextIO  # where progress and failures are shown
    live: LiveReader | None  # the frames of the input that is a camera or a live stream
    failed: dict[int, str] = field(default_factory=dict)  # why inputs could not be predicted, by their indices
    done: int = 0
    num_frames: int = 0  # of videos, and pages of pictures
    with_pages: list[int] = field(default_factory=list)  # the indices of pictures of several pages or frames
    opened: dict[int, ExitStack] = field(default_factory=dict)  # closes local files that are being predicted, by index

    def so_far(self) -> str:
        """Return how much is done and where the results are: the end of a sentence on why the run ended."""
        if not self.file.entries:
            return f'nothing was predicted, and {self.file.path} is as it was'
        where = self.file.path if self.file.is_saved else self.file.annotations.path
        return (
            f'{self.done} of {len(self.inputs)} predicted, {len(self.file.entries)} entries of results are in {where}'
        )

    def pictures(self) -> None:
        """Predict all pictures; several of one size share a batch. They are drawn while the next ones are predicted."""
        indices = [index for index, item in enumerate(self.inputs) if not item.is_video]
        progress = Progress(len(indices), 'pictures', self.stream)
        shown_names(self.predictor.classes)  # which may log, once, and not in several threads

        def count(index: int, reason: str | None) -> None:
            self._count(index, reason, progress)
            progress.advance()

        try:
            with Finishing(spare_threads()) as finishing:
                for prediction in self.predictor.stream(self._files(indices, progress), files_stay=True):
                    index, target = prediction.key, self.targets[prediction.key]
                    self.opened.pop(index).close()
                    draw = partial(self._drawing, prediction, target.suffix)
                    image = dict(id=index + 1, file_name=self.inputs[index].name)
                    keep = partial(self._keep, prediction, image, (target, partial(save_picture, target)))
                    finishing.add(draw, keep, partial(count, index), size_of(prediction))
        finally:
            for stack in self.opened.values():
                stack.close()
        progress.clear()

    def frames(self, index: int) -> None:
        """Predict a video frame by frame, or a picture page by page; those that fail are left out."""
        item = self.inputs[index]
        progress = Progress(None, f'frames of {item.path.name}', self.stream)
        reasons = []
        try:
            with self._local(item) as path, self._opened(path, index) as (frames, progress.total, place_of):
                for prediction in self.predictor.stream(frames):
                    number = len(self.inputs) + self.num_frames + 1  # after those of the pictures
                    image = dict(id=number, file_name=item.name, frame_index=prediction.key)
                    draw = partial(self._drawing, prediction)
                    reason = self._keep(prediction, image, place_of(prediction.key), draw)
                    if reason is not None:
                        reasons.append(f'frame {prediction.key}: {reason}')
                    else:
                        self.num_frames += 1
                    progress.advance()
        except UsageError as error:
            reasons.append(str(error))
        more = f', and {len(reasons) - 1} more' if len(reasons) > 1 else ''
        self._count(index, reasons[0] + more if reasons else None, progress)
        progress.clear()

    @contextmanager
    def _opened(self, path: Path, index: int) -> Iterator[Opened]:
        """Open a video, or a picture with several pages, whose drawings go into a folder of its name."""
        item, target = self.inputs[index], self.targets[index]
        if item.is_live:
            assert self.live is not None
            print(f'{item.name} is predicted until Ctrl-C', file=self.stream, flush=True)
            with ending_at_interrupt(self.live), VideoWriter(target, self.live.rate, is_live=True) as writer:
                yield self.live, None, lambda number: (target, partial(writer.add, number=number))
        elif item.is_video:
            reader = VideoReader(path)
            with VideoWriter(target, reader.rate) as writer:
                yield enumerate(reader), reader.declared, lambda _: (target, writer.add)
        else:
            numbers, folder = pages_of(path), target.with_suffix('')
            folder.mkdir(exist_ok=True)

            def place_of(number: int) -> Place:
                drawing = folder / f'{number:0{len(str(numbers[-1]))}}{target.suffix}'
                return drawing, lambda picture: save_picture(drawing, encode(picture, drawing.suffix))

            yield zip(numbers, self.predictor.reader.pages(path, numbers), strict=False), len(numbers), place_of

    def _drawing(self, prediction: Prediction, suffix: str | None = None) -> Any:
        """Return the drawing of a prediction, or the content of a file with a suffix; None if there is no result."""
        if prediction.picture is None or prediction.error is not None:
            return None
        picture = self.predictor.draw(prediction.picture, prediction.result, self.score)
        return picture if suffix is None else encode(picture, suffix)

    def _keep(self, prediction: Prediction, image: dict[str, Any], place: Place, draw: Callable[[], Any]) -> str | None:
        """Save a prediction's drawing and add it to the results; return why it failed, None if it did not."""
        if prediction.picture is None or prediction.error is not None:
            return prediction.error
        height, width = prediction.picture.shape[:2]
        target, save = place
        name = target.relative_to(self.file.path.parent / FOLDER).as_posix()
        try:
            save(draw())
            image = {**image, 'width': width, 'height': height, 'picture': name}
            self.file.add(image, prediction.result, self.score)
        except (OSError, UsageError):  # the disk or a video takes no more
            raise
        except Exception as error:  # the result of a user's own model may be anything
            return f'its result cannot be drawn ({reason_of(error)})'
        return None

    def _files(self, indices: Sequence[int], progress: Progress) -> Iterator[tuple[int, Path]]:
        """Yield the pictures of one page as local files; each is there until it is predicted."""
        for index in indices:
            try:
                with ExitStack() as stack:
                    path = stack.enter_context(self._local(self.inputs[index]))
                    if len(pages_of(path)) > 1:
                        self.with_pages.append(index)
                        progress.advance()
                        continue
                    self.opened[index] = stack.pop_all()
                yield index, path
            except UsageError as error:
                self._count(index, str(error), progress)
                progress.advance()

    @contextmanager
    def _local(self, item: Input) -> Iterator[Path]:
        """Give the local file of an input; a download is deleted in the end."""
        if not item.is_url:
            yield Path(item.source)
            return
        with tempfile.TemporaryDirectory(prefix='shvit_det-') as folder:
            path = Path(folder) / f'download{item.path.suffix}'
            try:
                with path.open('wb') as file:
                    download(item.source, file, MAX_DOWNLOAD)
                if wrong := wrong_kind(head_of(path)):
                    raise PermanentDownloadError(wrong)
            except (PermanentDownloadError, OSError, ValueError) as error:  # ValueError: the URL is malformed
                raise UsageError(f'it cannot be downloaded ({error})') from error
            yield path

    def _count(self, index: int, reason: str | None, progress: Progress) -> None:
        """Count an input as done, or as failed for a reason, which is shown."""
        if reason is None:
            self.done += 1
        else:
            self.failed[index] = reason
            progress.print(f'failed: {self.inputs[index].name}: {reason}')


def kind_of(reason: str) -> str:
    """Return what failures have in common, in a few words that follow a number."""
    if 'pillow-heif' in reason:
        return 'HEIC, for which pillow-heif is needed'
    whats = ('cannot be read', 'cannot be downloaded')
    return next((what for what in whats if reason.startswith(f'it {what}')), 'not predicted, or not completely')


def encode(picture: Picture, suffix: str) -> bytes:
    """Return a picture as the content of a file with a suffix."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if suffix == '.jpg' else []
    return cv2.imencode(suffix, picture, quality)[1].tobytes()


def size_of(prediction: Prediction) -> int:
    """Return how many bytes the picture and the masks of a prediction hold."""
    masks = getattr(getattr(prediction.result, 'pred_instances', None), 'masks', None)
    return getattr(prediction.picture, 'nbytes', 0) + getattr(masks, 'nbytes', 0)


def save_picture(path: Path, content: bytes) -> None:
    """Write the content of a picture's file, completely or not at all."""
    try:
        with replacing(path) as part:
            part.write_bytes(content)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk's error names no file
