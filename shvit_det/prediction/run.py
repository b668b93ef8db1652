"""The prediction behind ``tools/predict.py``."""

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import cv2

from ..checkpoint.fetch import HopelessDownloadError, download
from ..checkpoint.reading import head_of, wrong_kind
from ..common.atomic_files import partial_path
from ..common.errors import RunError, UsageError
from .inputs import Input, find_inputs, output_names
from .pictures import Picture, reason_of
from .predictor import Prediction, Predictor
from .progress import Progress
from .results import ResultsFile
from .video import VideoReader, VideoWriter

DEFAULT_SCORE = 0.3
MAX_DOWNLOAD = 1 << 30  # bytes
JPEG_QUALITY = 95
FOLDER, FILE = 'pictures', 'predictions.json'


@dataclass
class Summary:
    """What a run did.

    Args:
        out: Its folder.
        inputs: Pictures and videos that were named.
        failed: Those of them that could not be read or predicted.
        objects: What was found.
    """

    out: Path
    inputs: int
    failed: int = 0
    objects: int = 0


def predict(
    named: Sequence[str],
    weights: str,
    out: str,
    config: str | None = None,
    score: float = DEFAULT_SCORE,
    batch: int = 1,
    device: str | None = None,
    deploy: bool = True,
    cfg_options: Mapping[str, Any] | None = None,
    stream: TextIO | None = None,
) -> Summary:
    """Predict pictures and videos, draw what is found into ``OUT/pictures``, and write ``OUT/predictions.json``.

    Files of an earlier run with the same names are replaced; nothing else in the folder is touched. What cannot be read
    or predicted is named and left out. Whatever ends the run early, the results so far are in the file; where nothing
    was predicted, one that is there stays.

    Args:
        named: Files, folders, patterns, URLs.
        weights: A checkpoint.
        out: The folder for the results.
        config: As for :class:`shvit_det.Predictor`, with ``batch``, ``device``, ``deploy`` and ``cfg_options``.
        score: Detections below are left out of pictures and results.
        stream: Where progress and failures are shown; None for stderr.

    Raises:
        UsageError: If the run cannot start, or the first result cannot be written; nothing has been written then.
        RunError: If further results cannot be written.
    """
    if not 0 <= score <= 1:
        raise UsageError(f'--score is between 0 and 1, but got {score:g}')
    inputs = find_inputs(named)
    folder = Path(out)
    targets = [folder / FOLDER / name for name in output_names(inputs)]
    check_targets(inputs, [*targets, folder / FILE])
    predictor = Predictor(weights, config, device, deploy, batch, cfg_options)
    try:
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        file = ResultsFile(folder / FILE, predictor.classes, dict(weights=Path(weights).name, score=score))
    except OSError as error:
        raise UsageError(f'cannot write {error.filename}: {error.strerror}') from error
    run = Run(predictor, file, score, inputs, targets, stream or sys.stderr)
    try:
        with file:
            run.everything()
    except OSError as error:
        sentence = f'cannot write {error.filename}: {error.strerror or error}'
        if not file.entries:
            raise UsageError(sentence) from error
        raise RunError(f'{sentence}; {run.so_far()}') from error
    except BaseException:
        print(f'stopped: {run.so_far()}', file=run.stream, flush=True)
        raise
    return Summary(folder, len(inputs), len(run.failed), run.file.num_annotations)


def check_targets(inputs: Sequence[Input], targets: Sequence[Path]) -> None:
    """Refuse to write over what is to be read, or where a folder or file is in the way.

    Raises:
        UsageError: Naming the first.
    """
    sources = {Path(item.source).resolve() for item in inputs if not item.is_url}
    for target in targets:
        if target.resolve() in sources:
            raise UsageError(f'{target} would be written over, and it is to be predicted: choose another --out')
        if target.is_dir():
            raise UsageError(f'{target} is a folder where a file is to be written: choose another --out')
        for folder in target.parents:
            if folder.exists() and not folder.is_dir():
                raise UsageError(f'{folder} is a file and no folder: choose another --out')


class Run:
    """One run over all inputs.

    Args:
        predictor: What predicts.
        file: Where the results go.
        score: Detections below are left out.
        inputs: What is predicted.
        targets: For each, the file for what is drawn.
        stream: Where progress and failures are shown.
    """

    def __init__(
        self,
        predictor: Predictor,
        file: ResultsFile,
        score: float,
        inputs: Sequence[Input],
        targets: Sequence[Path],
        stream: TextIO,
    ) -> None:
        self.predictor, self.file, self.score = predictor, file, score
        self.inputs, self.targets, self.stream = inputs, targets, stream
        self.failed: list[int] = []
        self.done = 0
        self.frames = 0

    def everything(self) -> None:
        """Predict the pictures, then the videos."""
        self.pictures()
        for index, item in enumerate(self.inputs):
            if item.is_video:
                self.video(index)

    def so_far(self) -> str:
        """Return what was done, and where the results are, as the end of a sentence about what ended the run."""
        if not self.file.entries:
            return f'nothing was predicted, and {self.file.path} is as it was'
        where = self.file.path if self.file.is_saved else self.file.annotations.path
        return (
            f'{self.done} of {len(self.inputs)} predicted, {len(self.file.entries)} entries of results are in {where}'
        )

    def pictures(self) -> None:
        """Predict all pictures; several of one size share a batch."""
        indices = [index for index, item in enumerate(self.inputs) if not item.is_video]
        progress = Progress(len(indices), 'pictures', self.stream)
        for done in self.predictor.stream(self._files(indices, progress)):
            target = self.targets[done.key]
            image = dict(id=done.key + 1, file_name=self.inputs[done.key].source)
            reason = self._keep(done, image, target, partial(save_picture, target))
            if reason is not None:
                self._fail(done.key, reason, progress)
            else:
                self.done += 1
                progress.advance()
        progress.clear()

    def video(self, index: int) -> None:
        """Predict a video frame by frame, and write one; frames that fail are left out."""
        item, target = self.inputs[index], self.targets[index]
        progress = Progress(None, f'frames of {item.path.name}', self.stream)
        reasons = []
        try:
            with self._local(item) as path:
                reader = VideoReader(path)
                progress.total = reader.declared
                with VideoWriter(target, reader.rate) as writer:
                    for done in self.predictor.stream(enumerate(reader)):
                        number = len(self.inputs) + self.frames + 1  # after those of the pictures
                        image = dict(id=number, file_name=item.source, frame_index=done.key)
                        reason = self._keep(done, image, target, writer.add)
                        if reason is not None:
                            reasons.append(f'frame {done.key}: {reason}')
                        else:
                            self.frames += 1
                        progress.advance()
        except UsageError as error:
            reasons.append(str(error))
        if reasons:
            more = f', and {len(reasons) - 1} more' if len(reasons) > 1 else ''
            self._fail(index, reasons[0] + more, progress)
        else:
            self.done += 1
        progress.clear()

    def _keep(
        self, done: Prediction, image: dict[str, Any], target: Path, save: Callable[[Picture], None]
    ) -> str | None:
        """Draw and save a prediction and enter it into the results; return why it failed, None if it did not.

        Raises:
            OSError: If the disk takes no more.
            UsageError: If a video takes no more.
        """
        if done.picture is None or done.error is not None:
            return done.error
        height, width = done.picture.shape[:2]
        try:
            save(self.predictor.drawn(done.picture, done.result, self.score))
            image = {**image, 'width': width, 'height': height, 'picture': target.name}
            self.file.add(image, done.result, self.score)
        except (OSError, UsageError):
            raise
        except Exception as error:  # of one picture, that of a model of the user's own for instance
            return f'its result cannot be drawn ({reason_of(error)})'
        return None

    def _files(self, indices: Sequence[int], progress: Progress) -> Iterator[tuple[int, Path]]:
        """Yield what can be had, as local files; each is there until the next one is asked for."""
        for index in indices:
            try:
                with self._local(self.inputs[index]) as path:
                    yield index, path
            except UsageError as error:
                self._fail(index, str(error), progress)

    @contextmanager
    def _local(self, item: Input) -> Iterator[Path]:
        """Give the local file of an input; what is downloaded is deleted in the end.

        Raises:
            UsageError: If it cannot be downloaded.
        """
        if not item.is_url:
            yield Path(item.source)
            return
        with tempfile.TemporaryDirectory(prefix='shvit_det-') as folder:
            path = Path(folder) / f'download{item.path.suffix}'
            try:
                with path.open('wb') as file:
                    download(item.source, file, MAX_DOWNLOAD)
                if wrong := wrong_kind(head_of(path)):
                    raise HopelessDownloadError(wrong)
            except (HopelessDownloadError, OSError, ValueError) as error:  # the last for URLs that are none
                raise UsageError(f'it cannot be downloaded ({error})') from error
            yield path

    def _fail(self, index: int, reason: str, progress: Progress) -> None:
        self.failed.append(index)
        progress.say(f'failed: {self.inputs[index].source}: {reason}')
        progress.advance()


def save_picture(path: Path, picture: Picture) -> None:
    """Write a picture in the format of the file's ending, whole or not at all."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if path.suffix == '.jpg' else []
    _, encoded = cv2.imencode(path.suffix, picture, quality)
    part = partial_path(path)
    try:
        part.write_bytes(encoded.tobytes())
        part.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        part.unlink(missing_ok=True)
