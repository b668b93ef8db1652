"""The prediction behind ``tools/predict.py``."""

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import cv2

from ..checkpoint.fetch import HopelessDownloadError, download
from ..checkpoint.reading import head_of, wrong_kind
from ..errors import UsageError
from .inputs import Input, find_inputs, output_names
from .pictures import Picture
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
    or predicted is named and left out.

    Args:
        named: Files, folders, patterns, URLs.
        weights: A checkpoint.
        out: The folder for the results.
        config: As for :class:`shvit_det.Predictor`, with ``batch``, ``device``, ``deploy`` and ``cfg_options``.
        score: Detections below are left out of pictures and results.
        stream: Where progress and failures are shown; None for stderr.

    Raises:
        UsageError: If the run cannot start, and nothing has been written then; or if results cannot be written.
    """
    if not 0 <= score <= 1:
        raise UsageError(f'--score is between 0 and 1, but got {score:g}')
    inputs = find_inputs(named)
    folder = Path(out)
    targets = [folder / FOLDER / name for name in output_names(inputs)]
    check_targets(inputs, [*targets, folder / FILE])
    predictor = Predictor(weights, config, device, deploy, batch, cfg_options)
    with writing():
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        file = ResultsFile(folder / FILE, predictor.classes, dict(weights=Path(weights).name, score=score))
    with file, writing():
        run = Run(predictor, file, score, inputs, targets, stream or sys.stderr)
        run.pictures()
        for index, item in enumerate(inputs):
            if item.is_video:
                run.video(index)
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


@contextmanager
def writing() -> Iterator[None]:
    """Turn the failures of files into a sentence."""
    try:
        yield
    except OSError as error:
        raise UsageError(f'cannot write {error.filename or "the results"}: {error.strerror or error}') from error


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
        self.frames = 0

    def pictures(self) -> None:
        """Predict all pictures; several of one size share a batch."""
        indices = [index for index, item in enumerate(self.inputs) if not item.is_video]
        progress = Progress(len(indices), 'pictures', self.stream)
        for done in self.predictor.stream(self._files(indices, progress)):
            if done.error is not None:
                self._fail(done.key, done.error, progress)
            else:
                image = dict(id=done.key + 1, file_name=self.inputs[done.key].source)
                save_picture(self.targets[done.key], self._record(done, image, self.targets[done.key]))
                progress.advance()
        progress.clear()

    def video(self, index: int) -> None:
        """Predict a video frame by frame, and write one."""
        item, target = self.inputs[index], self.targets[index]
        progress = Progress(None, f'frames of {item.path.name}', self.stream)
        writer, whole = None, False
        try:
            with self._local(item) as path:
                reader = VideoReader(path)
                progress.total = reader.declared
                writer = VideoWriter(target, reader.rate)
                for done in self.predictor.stream(enumerate(reader)):
                    if done.error is not None:
                        raise UsageError(f'frame {done.key}: {done.error}')
                    self.frames += 1
                    number = len(self.inputs) + self.frames  # after those of the pictures
                    image = dict(id=number, file_name=item.source, frame_index=done.key)
                    writer.add(self._record(done, image, target))
                    progress.advance()
            whole = True
        except UsageError as error:
            whole = True  # what was written is a video of the frames that there are
            self._fail(index, str(error), progress)
        finally:
            if writer is not None:
                writer.close(keep=whole)
        progress.clear()

    def _record(self, done: Prediction, image: dict[str, Any], target: Path) -> Picture:
        """Enter a prediction into the results, and return what is drawn of it."""
        assert done.picture is not None  # it has a result
        height, width = done.picture.shape[:2]
        self.file.add({**image, 'width': width, 'height': height, 'picture': target.name}, done.result, self.score)
        return self.predictor.drawn(done.picture, done.result, self.score)

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
            except (HopelessDownloadError, OSError) as error:
                raise UsageError(f'it cannot be downloaded ({error})') from error
            yield path

    def _fail(self, index: int, reason: str, progress: Progress) -> None:
        self.failed.append(index)
        progress.say(f'failed: {self.inputs[index].source}: {reason}')
        progress.advance()


def save_picture(path: Path, picture: Picture) -> None:
    """Write a picture in the format of the file's ending."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if path.suffix == '.jpg' else []
    _, encoded = cv2.imencode(path.suffix, picture, quality)
    path.write_bytes(encoded.tobytes())
