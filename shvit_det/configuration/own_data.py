"""A config for a data set of one's own: a few lines over a config that has a detector, its pipelines and its schedule.

Everything that depends on the data, and nothing else, is in these lines: folders, files, classes, the numbers of
classes of the heads, and the length, the rate and the warm-up of the training.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..common.atomic_files import save_json, write_text
from ..common.durations import counted
from ..common.errors import UsageError
from ..data.layouts.labels import Labels, below
from ..data.layouts.reading import read_labels, with_validation
from .changing import SMALLEST_FROM_SCRATCH, apply_recipe, drop_pretrained
from .config_text import Variable, lines_of, nested
from .detection import Detection, class_heads, has_masks, key_of_part
from .detector_or_classifier import task_of
from .model_zoo import is_config
from .reading import SPLITS, config_path, dataset_places, load_config, name_of, type_of

SMALLEST_SIDE = 64  # pixels that the backbone takes
WARM_UP_PART = 0.1  # of the iterations at most
SHORTEST_RISE = 2  # steps or epochs: mmengine's linear schedules begin in the first and reach the end in the last
SIZES = ('Resize', 'RandomResize')  # transforms whose scale is the size of the images


@dataclass(frozen=True)
class Settings:
    """What a user may set; None keeps what the base has.

    Attributes:
        epochs: The length of the training.
        batch_size: Images in a step of one process.
        learning_rate: The rate for this batch; by default the base's, scaled to the batch.
        image_size: The longer side of the images as the model sees them, in pixels.
        from_scratch: Start from random weights, with the settings of ``configs/_base_/from_scratch.py``.
    """

    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    image_size: int | None = None
    from_scratch: bool = False


@dataclass(frozen=True)
class OwnConfig:
    """A config for a data set, and the annotation files that go with it.

    Attributes:
        text: The config, complete.
        annotations: Annotation files to write, by path.
        lines: What to tell the user.
    """

    text: str
    annotations: Mapping[Path, Mapping[str, Any]]
    lines: list[str]

    def write(self, path: Path) -> list[Path]:
        """Write the config and its annotation files; return those that were not there before.

        Raises:
            UsageError: If one cannot be written; what is new is removed then.
        """
        files = [*self.annotations, path]
        new = [each for each in files if not each.exists()]
        try:
            for file, content in self.annotations.items():
                file.parent.mkdir(parents=True, exist_ok=True)
                save_json(file, content)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, self.text)
        except BaseException as error:
            remove(new)
            if isinstance(error, OSError):
                raise UsageError(f'cannot write {error.filename or path}: {error.strerror or error}') from error
            raise
        return new


def remove(files: list[Path]) -> None:
    """Remove files, and their folders where nothing else is in them."""
    for file in files:
        with suppress(OSError):  # it may have no folder, or the disk may be gone
            file.unlink(missing_ok=True)
            for folder in (file.parent, file.parent.parent):
                folder.rmdir()  # fails if something is in it


def own_config(
    base: str,
    folder: str,
    settings: Settings,
    annotations: Path,
    work_dir: Path | None = None,
    labels: Labels | None = None,
) -> OwnConfig:
    """Return the config that trains the detector of another config on the data set in a folder.

    Args:
        base: The other config, a name of ours or a file.
        folder: The data set, in a layout that :func:`~shvit_det.data.layouts.reading.read_labels` knows.
        settings: What the user has set.
        annotations: The folder for annotation files that have to be written.
        work_dir: The work dir that the config shall name.
        labels: The data set, if it has been read already, with a part for validation.

    Raises:
        UsageError: If the data set cannot be read, or the other config cannot be changed for it.
    """
    for option, value, least in (
        ('--epochs', settings.epochs, 1),
        ('--batch-size', settings.batch_size, 1),
        ('--image-size', settings.image_size, SMALLEST_SIDE),
    ):
        if value is not None and value < least:
            raise UsageError(f'{option} is {value}: {least} is the least')
    if settings.from_scratch and (settings.image_size or SMALLEST_FROM_SCRATCH) < SMALLEST_FROM_SCRATCH:
        raise UsageError(
            f'--image-size is {settings.image_size}: {SMALLEST_FROM_SCRATCH} is the least with --no-pretrained, since '
            f'norms cannot learn from smaller images'
        )
    if settings.learning_rate is not None and not 0 < settings.learning_rate < math.inf:
        raise UsageError(f'--lr is {settings.learning_rate}: a number above 0 is wanted')
    path = config_path(base)
    config = load_config(path)
    task = task_of(config)
    if not isinstance(task, Detection):
        raise UsageError(f'{base} is no detector: --data takes the config of one, such as retinanet_shvit_s1_coco')
    for key in ('train_dataloader', 'train_cfg'):
        if not config.get(key):
            raise UsageError(f'{base} has no {key}: --data takes a config that trains')
    config.setdefault('default_scope', task.scope)
    values = dict[str, Any]()
    unscaled = config.get('auto_scale_lr', {}) is None
    if settings.from_scratch:
        values |= drop_pretrained(config)
    model = task.build(config)
    if settings.from_scratch:
        values |= apply_recipe(config, model)
    if unscaled:
        values['auto_scale_lr._delete_'] = True  # mmengine does not put a dict in the place of None
    labels = labels or with_validation(read_labels(folder))
    if has_masks(model) and not labels.has_masks:
        raise UsageError(no_masks(base, labels))
    keys = [key_of_part(config, name) for name, _ in class_heads(model)]
    if not keys or None in keys:
        raise UsageError(f'{base} has a head whose number of classes is not found in the config')
    values |= dict.fromkeys(map(str, keys), len(labels.classes))
    files, variables = place_data(config, base, labels, annotations, settings.image_size, values)
    num_images = len(labels.splits['train'].content['images'])
    notes = [*labels.lines(), *fit_training(config, base, num_images, settings, values)]
    if 'sample_set' in config:
        values['sample_set'] = None
    if work_dir is not None:
        values['work_dir'] = work_dir.absolute().as_posix()
    classes = counted(len(labels.classes), 'class')
    comment = f'# {name_of(base)} for {labels.folder}, {classes} ({labels.layout} layout)'
    beginning = dict(
        _base_=path if '::' in path else Path(path).absolute().as_posix(),
        data_root=f'{labels.folder.resolve().as_posix()}/',
        metainfo=dict(classes=labels.classes),
    )
    lines = [f'{key} = {lines_of(value)}' for key, value in {**beginning, **variables, **nested(values)}.items()]
    return OwnConfig('\n'.join([comment, *lines]) + '\n', files, notes)


def default_base(labels: Labels) -> str:
    """Return the name of the detector that is taken where none is named: it has masks if all objects have outlines."""
    return 'mask_rcnn_shvit_s1_coco' if labels.has_masks else 'retinanet_shvit_s1_coco'


def no_masks(base: str, labels: Labels) -> str:
    without, number = labels.without_outline()
    boxes = name_of(base).replace('mask_rcnn', 'retinanet')
    other = boxes if boxes != name_of(base) and is_config(boxes) else 'a detector of boxes'
    which = 'the objects' if without == number else f'{without} of {number} objects'
    return f'{name_of(base)} learns masks, and {which} of {labels.folder} have boxes alone: train {other}'


def changed_pipeline(before: Sequence[Mapping], name: str, size: int | None, has_masks: bool) -> list[dict[str, Any]]:
    """Return a pipeline whose images get another size, and that loads no masks where the data have none.

    Some detectors of boxes load masks too. ``size`` is the longer side in pixels; None keeps that of the pipeline.
    """
    pipeline = [dict(step) for step in before]
    resized = [step for step in pipeline if type_of(step) in SIZES and 'scale' in step]
    if size is not None and not resized:
        raise UsageError(f'--image-size changes Resize, and {name} has none with a scale')
    for step in resized if size is not None else ():
        step['scale'] = (size, size)
    for step in pipeline:
        if step.get('with_mask') and not has_masks:
            step['with_mask'] = False
    return pipeline


def place_data(
    config: Config,
    base: str,
    labels: Labels,
    annotations: Path,
    size: int | None,
    values: dict[str, Any],
) -> tuple[dict[Path, Mapping[str, Any]], dict[str, Any]]:
    """Set the data sets and evaluators; return the annotation files to write, and variables of the config."""
    files: dict[Path, Mapping[str, Any]] = {}
    pipelines: dict[str, Any] = {}
    data: dict[str, Any] = {}
    root = labels.folder.resolve()
    for split in SPLITS:
        if not config.get(f'{split}_dataloader'):
            continue
        name = split if split in labels.splits and labels.splits[split].objects else 'val'
        part = labels.splits[name]
        path = part.source
        if path is None:
            path = annotations / f'{name}.json'
            files[path] = part.content
        file, images = below(path, root), below(part.images, root)
        place, dataset = dataset_of(config, base, split)
        values[place] = Variable(name)
        pipeline = changed_pipeline(dataset['pipeline'], f'the {split} pipeline of {base}', size, labels.has_masks)
        if name not in data:  # else the set for validation is tested on too
            data[name] = dict(
                data_root=Variable('data_root'),
                ann_file=file,
                data_prefix=dict(img='' if images == '.' else f'{images}/'),
                metainfo=Variable('metainfo'),
            )
            if pipeline != dataset['pipeline']:
                pipelines[f'{name}_pipeline'] = pipeline
                data[name]['pipeline'] = Variable(f'{name}_pipeline')
        if split != 'train':
            evaluator = config.get(f'{split}_evaluator')
            if not isinstance(evaluator, Mapping) or type_of(evaluator) != 'CocoMetric':
                raise UsageError(
                    f'{split}_evaluator of {base} is not one CocoMetric: --data takes a config where it is'
                )
            if not labels.has_masks and 'segm' in evaluator.get('metric', ()):
                values[f'{split}_evaluator.metric'] = 'bbox'
            is_below = not Path(file).is_absolute()
            values[f'{split}_evaluator.ann_file'] = Variable(f'data_root + {file!r}') if is_below else file
    return files, pipelines | data


def dataset_of(config: Config, base: str, split: str) -> tuple[str, Mapping[str, Any]]:
    """Return the place and the dict of the one data set of a split."""
    places = list(dataset_places(config, split))
    place, dataset = places[0]
    if (
        len(places) > 1
        or any(part.isdigit() for part in place.split('.'))
        or not {'ann_file', 'pipeline'} <= {*dataset}
    ):
        raise UsageError(
            f'{base} has not one data set of COCO with a pipeline for {split}: --data takes a config that has'
        )
    return place, dataset


def fit_training(config: Config, base: str, num_images: int, settings: Settings, values: dict[str, Any]) -> list[str]:
    """Set length, batch, rate, warm-up and schedule; return lines about them."""
    loop = config.train_cfg
    former = loop.get('max_epochs')
    if former is None:
        raise UsageError(f'{base} counts iterations: --data takes a config with train_cfg.max_epochs')
    epochs, batch = settings.epochs or former, settings.batch_size or config.train_dataloader.batch_size
    per_epoch = math.ceil(num_images / batch)
    values['train_dataloader.batch_size'] = batch
    values['train_cfg.max_epochs'] = epochs
    if loop.get('val_interval', 1) > epochs:
        values['train_cfg.val_interval'] = epochs
    schedules = config.get('param_scheduler') or []
    schedules = schedules if isinstance(schedules, list) else [schedules]
    changed = [fitted(each, epochs, former, per_epoch) for each in schedules]
    values['param_scheduler'] = [each for each in changed if not stays_at_its_start(each, per_epoch)]
    optimizer = config.optim_wrapper.get('optimizer') or {}
    base_batch = (config.get('auto_scale_lr') or {}).get('base_batch_size')
    rate = settings.learning_rate
    if rate is None:
        rate = float(f'{optimizer.get("lr", 0) * batch / base_batch:.4g}') if base_batch else optimizer.get('lr')
    if rate is not None:
        values['optim_wrapper.optimizer.lr'] = rate
    values['auto_scale_lr.base_batch_size'] = batch
    scaled = f' ({optimizer.get("lr")} is for {base_batch})' if base_batch and settings.learning_rate is None else ''
    return [f'{counted(epochs, "epoch")} of {counted(per_epoch, "step")}, batch {batch}, learning rate {rate}{scaled}']


def fitted(schedule: Mapping[str, Any], epochs: int, former: int, per_epoch: int) -> dict[str, Any]:
    """Return a schedule of another length: counted in epochs in proportion, in steps a tenth of the run at most."""
    changed = dict(schedule)
    if not changed.get('by_epoch', True):
        if changed.get('end', 0) and changed.get('begin', 0) == 0:
            changed['end'] = min(changed['end'], max(SHORTEST_RISE, int(WARM_UP_PART * epochs * per_epoch)))
        return changed
    for key in ('begin', 'end', 'T_max', 'total_steps'):
        if isinstance(changed.get(key), int) and 0 < changed[key] <= former:
            changed[key] = max(1, round(changed[key] * epochs / former))
    if 'milestones' in changed:
        moved = {round(each * epochs / former) for each in changed['milestones']}
        changed['milestones'] = sorted(each for each in moved if 0 < each < epochs)
    return changed


def stays_at_its_start(schedule: Mapping[str, Any], per_epoch: int) -> bool:
    """Tell whether a warm-up has become too short to reach the full rate."""
    end = schedule.get('end')
    if 'start_factor' not in schedule or end is None:
        return False
    length = end - schedule.get('begin', 0)
    return length * (per_epoch if schedule.get('convert_to_iter_based') else 1) < SHORTEST_RISE
