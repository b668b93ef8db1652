"""The prediction behind ``tools/predict.py``: of files, folders, patterns and URLs, into a folder."""

import json
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from ..common.errors import RunError, UsageError, keeping
from ..data.layouts.labels import PICTURES, Labels, Split, content_of
from ..data.layouts.writing import WRITERS, write_labels
from .coco_results import ResultsFile
from .inputs import Input, find_inputs, output_names
from .predictor import Predictor
from .run_over_inputs import FILE, FOLDER, Run, kind_of
from .video import LiveReader

DEFAULT_SCORE = 0.3


class Summary(NamedTuple):
    """The end of a run."""

    inputs: int  # pictures and videos that were named
    failed: int  # those of them that could not be read or predicted
    kinds: Mapping[str, int]  # how many of those failed for one kind of reason, by its name
    objects: int
    labels: list[str]  # lines about the data set that was written


def check_targets(inputs: Sequence[Input], targets: Sequence[Path]) -> None:
    """Raise ``UsageError`` if what is to be read would be written over, or a folder or a file is in the way."""
    sources = {Path(item.source).resolve() for item in inputs if not item.is_url and not item.is_live}
    for target in targets:
        if target.resolve() in sources:
            raise UsageError(f'{target} would be written over, and it is to be predicted: choose another --out')
        if os.path.isdir(target):  # noqa: PTH112  (a Path's own raises an error for a name that is too long)
            raise UsageError(f'{target} is a folder where a file is to be written: choose another --out')
        for folder in target.parents:
            if os.path.exists(folder) and not folder.is_dir():  # noqa: PTH110
                raise UsageError(f'{folder} is a file and no folder: choose another --out')


def check_labels(layout: str, out: Path) -> None:
    """Raise ``UsageError`` if no data set of a layout can be written, or there is one, which may be corrected."""
    if layout not in WRITERS:
        raise UsageError(f'--labels is {", ".join(WRITERS)}, but got {layout}')
    if (out / layout).exists():
        raise UsageError(f'{out / layout} exists, and labels in it may be corrected ones: choose another --out')


def is_picture(image: dict[str, Any]) -> bool:
    """Tell whether an entry of the results is a whole file that annotation tools read."""
    item = Input(image['file_name'])
    return not item.is_url and 'frame_index' not in image and item.path.suffix.lower() in PICTURES


def save_labels(results: Path, classes: Sequence[str], layout: str) -> list[str]:
    """Write the pictures of a file of results as a data set in a folder beside it; return lines for the user.

    Frames, pages and downloads in the results, which are no files, are left out. The folder has the name of the layout.

    Raises:
        UsageError: If it cannot be written.
    """
    content = json.loads(results.read_text(encoding='utf-8'))
    images = [image for image in content['images'] if is_picture(image)]
    left_out = len(content['images']) - len(images)
    lines = []
    if left_out:
        lines.append(f'frames, pages, downloads and pictures of other kinds, which get no labels, left out: {left_out}')
    if not images:
        return lines
    kept = {image['id'] for image in images}
    objects = [each for each in content['annotations'] if each['image_id'] in kept]
    split = Split('train', Path(), content_of(images, objects, classes))
    labels = Labels(results.parent, 'coco', tuple(classes), {'train': split}, (len(images), len(objects)))
    return [*lines, *write_labels(labels, results.parent / layout, layout)]


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
    tile: int | None = None,
    tta: bool = False,
    polygons: bool = False,
    labels: str | None = None,
    stream: TextIO | None = None,
) -> Summary:
    """Predict pictures and videos, draw the detections into ``OUT/pictures``, and write ``OUT/predictions.json``.

    Files of an earlier run with the same names are replaced; nothing else in the folder is touched. What cannot be read
    or predicted is named and left out. Whatever ends the run early, the results so far are in the file; where nothing
    was predicted, an earlier file stays.

    Args:
        named: Files, folders, patterns, URLs, and one camera or live stream, which is predicted last until Ctrl-C.
        weights: A checkpoint.
        out: The folder for the results.
        config: As for :class:`shvit_det.Predictor`, with ``batch``, ``device``, ``deploy``, ``cfg_options``,
            ``tile`` and ``tta``.
        score: Detections with a lower score are left out of pictures and results.
        polygons: Whether the results have polygons in place of run lengths.
        labels: ``'yolo'``, ``'labelme'`` or ``'coco'``, the layout of a data set with the pictures and their objects,
            which is written into a folder of that name unless the run ends early.
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
    if labels is not None:
        check_labels(labels, folder)
    live = next((LiveReader(item.source, item.name) for item in inputs if item.is_live), None)
    predictor = Predictor(weights, config, device, deploy, batch, cfg_options, tile, tta)
    info = dict(weights=Path(weights).name, score=score, tile=tile, tta=tta)
    try:
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        file = ResultsFile(folder / FILE, predictor.classes, info, polygons)
    except OSError as error:
        raise UsageError(f'cannot write {error.filename}: {error.strerror}') from error
    run = Run(predictor, file, score, inputs, targets, stream or sys.stderr, live)
    try:
        with file:
            run.pictures()
            for index, item in sorted(enumerate(inputs), key=lambda each: each[1].is_live):
                if item.is_video or index in run.with_pages:
                    run.frames(index)
    except OSError as error:
        sentence = f'cannot write {error.filename}: {error.strerror or error}'
        if not file.entries:
            raise UsageError(sentence) from error
        raise RunError(f'{sentence}; {run.so_far()}') from error
    except BaseException:
        print(f'stopped: {run.so_far()}', file=run.stream, flush=True)
        raise
    lines = []
    if labels is not None:
        with keeping(lambda: [str(file.path)]):
            lines = save_labels(file.path, predictor.classes, labels)
    kinds = Counter(map(kind_of, run.failed.values()))
    return Summary(len(inputs), len(run.failed), kinds, file.last.num_annotations, lines)
