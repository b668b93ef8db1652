"""The check behind ``tools/check_data.py``."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmengine.config import Config

from ..common.atomic_files import save_json
from ..common.errors import UsageError
from ..common.processors import usable_processors
from ..data.checking.check_report import Report, as_record, what_was_done
from ..data.checking.cleaning import Cleaned, clean
from ..data.checking.files import check_files, check_presence, require_folder
from ..data.checking.findings import Finding, counts_of, errors_among, in_words
from ..data.checking.reading import parse_annotations, read_bytes, require_annotations
from ..data.sample import ensure_sample
from .cfg_options import pasteable
from .changing import set_data_root
from .coco_sets import CocoSet, check_annotations_of, coco_sets
from .detector_or_classifier import task_of
from .reading import SPLITS, load_config

Images = Literal['decode', 'headers', 'presence']
SCOPES: dict[Images, str] = {
    'decode': 'annotations, and all images decoded',
    'headers': 'annotations, and the headers of all images',
    'presence': 'annotations, and that the images exist',
}


@dataclass
class Checked:
    """A data set with what was found in it.

    Attributes:
        data: The data set.
        report: What was found.
        target: Where a cleaned copy of its annotation file is to go, if one was asked for.
        file_sizes: Width and height of its image files, in pixels, by their place in the list.
    """

    data: CocoSet
    report: Report
    target: Path | None = None
    file_sizes: dict[int, tuple[int, int]] = field(default_factory=dict)


def check_data(
    config_path: str,
    data_root: str | None = None,
    cfg_options: Mapping[str, Any] | None = None,
    images: Images = 'decode',
    workers: int | None = None,
    fix: str | None = None,
    progress: Callable[[str], None] = lambda text: None,
    tell: Callable[[Checked], None] = lambda checked: None,
) -> list[Checked]:
    """Check the COCO data sets of a detector's config, in all splits; :func:`.write_copies` repairs them.

    Args:
        config_path: The config file.
        data_root: Another folder of the layout that the config expects.
        cfg_options: Changes of single values, dotted names.
        images: How thoroughly images are checked.
        workers: Threads; by default one per processor that this process may use.
        fix: The folder for cleaned copies of the annotation files.
        progress: Called with a line of progress.
        tell: Called with each data set as soon as it is checked.

    Raises:
        UsageError: If there is no such config or data set, or ``fix`` would overwrite a file or cannot be written to.
    """
    if workers is not None and workers < 1:
        raise UsageError(f'--workers is {workers}: it takes at least one to look at images')
    config = load_config(config_path, cfg_options)
    if data_root is not None:
        set_data_root(config, data_root)
    sets = find_sets(config)
    for data in sets:  # before any image is decoded, which may take an hour
        require_annotations(data.annotations)
        if data.images is not None:
            require_folder(data.images)
    targets = [None] * len(sets) if fix is None else name_copies(sets, Path(fix))
    checked = []
    for data, target in zip(sets, targets, strict=True):
        checked.append(check_set(data, images, workers or usable_processors(), progress))
        checked[-1].target = target
        tell(checked[-1])
    return checked


def write_copies(checked: Sequence[Checked], done: list[str]) -> None:
    """Write the requested cleaned copies, and add sentences about them to ``done``.

    Raises:
        UsageError: If one cannot be written.
    """
    options: dict[str, str] = {}
    for each in checked:
        if each.target is not None:
            sentence, is_written = write_copy(each, each.target)
            done.append(sentence)
            if is_written:
                options.update(dict.fromkeys(each.data.places, str(each.target.absolute())))
    if options:
        done.append('Use them: ' + pasteable(options))


def find_sets(config: Config) -> list[CocoSet]:
    """Return the COCO data sets of all splits of a config; a missing sample set is drawn.

    Raises:
        UsageError: If there is none.
    """
    task = task_of(config)
    task.register()
    sets = coco_sets(task, config, SPLITS) if task.scope == 'mmdet' else []
    if not sets:
        raise UsageError('this config has no data set in the form of COCO, which is what can be checked here')
    if 'sample_set' in config:
        ensure_sample(config.data_root, **config.sample_set)
    return sets


def check_set(data: CocoSet, images: Images, workers: int, progress: Callable[[str], None]) -> Checked:
    """Check one annotation file and its images.

    Raises:
        UsageError: If the file cannot be read.
    """
    name = ', '.join(data.splits)
    progress(f'{name}: reading {data.annotations}')
    raw = read_bytes(data.annotations)
    classes = data.classes if data.is_plain else None
    scope = SCOPES[images] if data.images else 'annotations, and not the images, which are on remote storage'
    report = Report(name, data.annotations, data.images, None, classes, [], scope)
    checked = Checked(data, report)
    try:
        report.content = content = parse_annotations(raw, data.annotations)
    except UsageError as error:
        report.findings = [Finding('file', str(error))]
        return checked
    progress(f'{name}: checking annotations')
    report.findings = check_annotations_of(data, content)
    if data.images is None:
        return checked
    if images == 'presence':
        report.findings += check_presence(content, data.images)
    else:
        found, checked.file_sizes = check_files(
            content,
            data.images,
            data.loader,
            headers_only=images == 'headers',
            workers=workers,
            progress=lambda done, total: progress(f'{name}: image {done} of {total}'),
        )
        report.findings += found
    return checked


def name_copies(sets: Sequence[CocoSet], folder: Path) -> list[Path]:
    """Return the paths of the cleaned copies, one for each data set.

    Raises:
        UsageError: If one of them exists, or the folder is a file or cannot be written to.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UsageError(f'--fix takes a folder, and {there} is a file')
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f'--fix {folder}: nothing can be written into {there}')
    targets: list[Path] = []
    for data in sets:
        name, number = data.annotations.name, 2
        while folder / name in targets:  # two splits may have files of one name in different folders
            name, number = f'{data.annotations.stem}_{number}{data.annotations.suffix}', number + 1
        targets.append(folder / name)
    for target in targets:
        if target.exists():
            raise UsageError(f'{target} exists, and --fix overwrites nothing: name another folder')
    return targets


def write_copy(checked: Checked, target: Path) -> tuple[str, bool]:
    """Write the cleaned copy of one annotation file, if there is anything to clean; say what was done, and whether.

    Raises:
        UsageError: If it cannot be written.
    """
    data, report = checked.data, checked.report
    if report.content is None or not data.is_plain:
        why = 'it cannot be read' if report.content is None else 'its dataset reads it in a way of its own'
        return f'{data.annotations}: cannot be cleaned, because {why}', False
    cleaned = clean(
        report.content, report.findings, data.use, data.annotations, data.classes, file_sizes=checked.file_sizes
    )
    left = errors_among(cleaned.left)
    rest = f'; left for a hand: {in_words(counts_of(left))}' if left else ''
    if not cleaned.is_changed:
        return f'{data.annotations}: nothing to repair{rest}', False
    save(cleaned, target)
    sizes = ', '.join(
        f'{len(cleaned.content[section])} of {total} {section}' for section, total in report.totals().items()
    )
    return f'{target}: {sizes}; {what_was_done(cleaned)}{rest}', True


def save(cleaned: Cleaned, target: Path) -> None:
    """Write a cleaned copy: all of it or nothing.

    Raises:
        UsageError: If it cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f'cannot write {target}: {error.strerror}') from error
    save_json(target, cleaned.content, separators=(',', ':'))


def write_record(path: str, checked: Sequence[Checked], done: Sequence[str], num_examples: int) -> None:
    """Write what was found as JSON.

    Raises:
        UsageError: If it cannot be written.
    """
    record = {'sets': [as_record(each.report, num_examples) for each in checked], 'fixed': list(done)}
    save_json(path, record, indent=1, default=str)
