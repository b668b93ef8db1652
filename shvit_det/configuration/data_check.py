"""The check of all COCO data sets of a config, as ``tools/check_data.py`` runs it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.errors import UsageError
from ..common.processors import usable_processors
from ..data.checking.data_set_check import CheckedSet, Images, check_set, clean_set, name_copies, write_copy
from ..data.checking.findings import Finding
from .cfg_options import pasteable
from .changing import set_data_root
from .coco_set_checks import check_places, comparisons, draw_sample_set, leaked_images
from .coco_sets import coco_sets
from .detector_or_classifier import task_of
from .reading import SPLITS, load_config


def check_data(
    config_path: str,
    data_root: str | None = None,
    cfg_options: Mapping[str, Any] | None = None,
    images: Images = 'decode',
    workers: int | None = None,
    fix: str | None = None,
    progress: Callable[[str], None] = lambda text: None,
    tell: Callable[[CheckedSet], None] = lambda checked: None,
) -> list[CheckedSet]:
    """Check the COCO data sets that a detector's config would use, in all splits; :func:`.write_copies` mends them.

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
    task = task_of(config)
    task.register()
    sets = coco_sets(task, config, SPLITS) if task.scope == 'mmdet' else []
    if not sets:
        raise UsageError('this config has no data set in the form of COCO, which is what can be checked here')
    draw_sample_set(config)
    check_places(task, config, SPLITS, sets)  # before any image is decoded, which may take an hour
    targets = [None] * len(sets) if fix is None else name_copies(sets, Path(fix))
    class_difference = task.class_difference(config, SPLITS)
    compared = list(comparisons(task, config, SPLITS, sets))
    contents: dict[Path, Mapping[str, Any]] = {}
    checked = []
    for data, target in zip(sets, targets, strict=True):
        found = check_set(data, images, workers or usable_processors(), progress)
        found.target = target
        if found.content is not None:
            contents[data.annotations] = found.content
            progress(f'{", ".join(data.splits)}: comparing with the other data sets')
            found.findings += leaked_images(sets, data, contents, by_content=images != 'presence')
        for each in compared:
            are_read = all(one.annotations in contents for one in each.sets)
            if data in each.sets and are_read and (fault := each.fault(contents)):
                found.findings.append(Finding('evaluator', fault))
        if class_difference and data is sets[-1]:
            found.findings.append(Finding('classes', class_difference))
        checked.append(found)
        tell(found)
    return checked


def write_copies(checked: Sequence[CheckedSet], done: list[str], allow_loss: bool = False) -> None:
    """Write the cleaned copies that were asked for, and add sentences about them to ``done``.

    Raises:
        UsageError: If one cannot be written, or, without ``allow_loss``, would lose most of its images or objects.
    """
    options: dict[str, str] = {}
    asked_for = [(each, each.target) for each in checked if each.target is not None]
    all_cleaned = [clean_set(each, allow_loss) for each, _ in asked_for]  # before any is written
    for (each, target), cleaned in zip(asked_for, all_cleaned, strict=True):
        sentence, is_written = write_copy(each, cleaned, target)
        done.append(sentence)
        if is_written:
            options.update(dict.fromkeys(each.data.keys, str(target.absolute())))
    if options:
        done.append('Use them: ' + pasteable(options))
