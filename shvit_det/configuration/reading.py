"""Configs: loaded from a file with ``--cfg-options``, and asked what they say."""

import inspect
import os
from collections.abc import Iterator, Mapping, MutableMapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.utils import import_modules_from_strings, is_abs
from torch import nn

from ..common.errors import UsageError
from ..data.checking.findings import short
from .model_zoo import PREFIX, config_names, is_config
from .names_at_top import check_names_at_top, merge_options
from .reading_errors import import_error, is_file, reading_error
from .type_names import use_names
from .value_kinds import check_kinds

SPLITS = ('train', 'val', 'test')
JOINED = "several data sets are joined by dict(type='ConcatDataset', datasets=[...])"


def load_config(path: str, options: Mapping[str, Any] | None = None) -> Config:
    """Return the config of a file with ``--cfg-options`` merged into it.

    Args:
        path: A file, the name of a config of ours, ``mask_rcnn_shvit_s4_coco``, or a config of an installed project,
            ``mmdet::retinanet/retinanet_r50_fpn_1x_coco.py``.
        options: Changes of single values, dotted names.

    Raises:
        UsageError: If the config does not exist or cannot be read, or holds values of the wrong kind.
    """
    path = config_path(path)
    try:
        file = Config._get_cfg_path(path, '')[0] if '::' in path else path
        config = Config.fromfile(file, import_custom_modules=False)
        import_custom_modules(config, path)
        use_names(config)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:  # a config is Python and may raise anything
        raise UsageError(f'cannot read the config {path}: {reading_error(error, path)}') from error
    change_and_check(config, options)
    return config


def config_path(named: str) -> str:
    """Return what mmengine takes for a config: ``shvit_det::NAME.py`` for one of ours, else the path itself."""
    if '::' in named or is_file(named):
        return named
    if is_config(named) and os.sep not in named:
        return f'{PREFIX}{named.removesuffix(".py")}.py'
    file = Path(named)
    if os.sep not in named:
        hint = f'; ours are {", ".join(config_names())}'
    elif is_config(file.name):
        hint = f'; ours of this name needs no folder: {file.stem}'
    else:
        near = get_close_matches(file.name, [each.name for each in file.parent.glob('*.py')], 1)
        hint = f': did you mean {file.with_name(near[0])}?' if near else ''
    raise UsageError(f'no such config: {named}{hint}')


def import_custom_modules(config: Config, path: str) -> None:
    """Import the modules that a config names, as mmengine does after reading it."""
    named = config.get('custom_imports')
    if not named:
        return
    if not isinstance(named, Mapping) or not {'imports'} <= named.keys() <= {'imports', 'allow_failed_imports'}:
        raise UsageError(f'custom_imports of {path} is {named!r}: write custom_imports=dict(imports=[...])')
    try:
        import_modules_from_strings(**named)
    except Exception as error:  # a module may raise anything
        reason = import_error(error, Path(path).parent)
        raise UsageError(f'custom_imports of {path} names what cannot be imported: {reason}') from error


def change_and_check(config: Config, options: Mapping[str, Any] | None) -> None:
    """Merge ``--cfg-options`` into a config, and check the kinds of all its values.

    Settings that are None although mmengine's runner wants a value are removed, so that it takes its default. None as
    ``default_scope`` has a meaning: no project is searched for names.
    """
    check_names_at_top(config)
    merge_options(config, options)
    for split in SPLITS:
        if isinstance(config.get(f'{split}_evaluator'), tuple):  # mmengine takes lists
            config[f'{split}_evaluator'] = list(config[f'{split}_evaluator'])
    if isinstance(config.get('randomness'), MutableMapping):
        config.randomness.setdefault('seed', None)  # which mmengine's runner needs
    for name, parameter in inspect.signature(Runner.__init__).parameters.items():
        wants_value = parameter.default not in (None, inspect.Parameter.empty)
        if wants_value and name != 'default_scope' and name in config and config[name] is None:
            config.pop(name)
    check_kinds(config)


def name_of(path: str) -> str:
    """Return the name of a config, a file or one of an installed project, without folders, project and suffix."""
    return Path(path.rpartition('::')[2]).stem


def type_of(node: Mapping[str, Any], default: str = '') -> str:
    """Return the name of the class that a dict in a config names, without its project."""
    kind = node.get('type', default)
    return (kind if isinstance(kind, str) else getattr(kind, '__name__', '')).rsplit('.', 1)[-1]


def splits_of(config: Config) -> list[str]:
    """Return the splits that a config says how to run; refuse a part of that, as mmengine does."""
    splits = []
    for split in SPLITS:
        last = 'optim_wrapper' if split == 'train' else f'{split}_evaluator'
        names = (f'{split}_dataloader', f'{split}_cfg', last)
        missing = [name for name in names if config.get(name) is None]
        if not missing:
            splits.append(split)
        elif len(missing) < len(names):
            there = ' and '.join(name for name in names if name not in missing)
            raise UsageError(
                f'the config has {there}, but no {" and ".join(missing)}: set all three, or all three to None'
            )
    return splits


def dataset_tree(config: Config, split: str) -> Iterator[tuple[str, MutableMapping, bool]]:
    """Yield the dataset dicts of a split, wrappers such as ``ConcatDataset`` before what is inside.

    With each comes its place in the config, as ``--cfg-options`` spells it, and whether it is a wrapper.

    Raises:
        UsageError: If one is no dict: mmdet 2 took lists of data sets and of annotation files.
    """
    loader, key = config.get(f'{split}_dataloader'), f'{split}_dataloader'
    if loader and (not isinstance(loader, Mapping) or 'dataset' not in loader):
        raise UsageError(f'{key} is {short(loader)}, and a dict with a dataset is wanted: dict(dataset=dict(...))')
    pending = [(f'{key}.dataset', loader['dataset'])] if loader else []
    while pending:
        place, dataset = pending.pop(0)
        if not isinstance(dataset, MutableMapping):
            raise UsageError(f'{place} is {short(dataset)}, and one dict is wanted: {JOINED}')
        inner: list[tuple[str, Any]] = []
        if 'dataset' in dataset:
            inner = [(f'{place}.dataset', dataset['dataset'])]
        elif 'datasets' in dataset:
            inner = [(f'{place}.datasets.{number}', each) for number, each in enumerate(dataset['datasets'])]
        for key in ('data_prefix', 'ann_file'):
            if dataset.get(key, '') is None:
                raise UsageError(f'{place}.{key} is None: leave it out, or write what the data set is to read')
        named = {'ann_file': dataset.get('ann_file'), 'data_root': dataset.get('data_root')}
        if isinstance(prefix := dataset.get('data_prefix'), Mapping):
            named |= {f'data_prefix.{key}': value for key, value in prefix.items()}
        for key, value in named.items():
            if not isinstance(value, str | None):
                raise UsageError(f'{place}.{key} is {short(value)}, and one path is wanted: {JOINED}')
        yield place, dataset, bool(inner)
        pending = inner + pending


def dataset_places(config: Config, split: str) -> Iterator[tuple[str, MutableMapping]]:
    """Yield the innermost dataset dicts of a split, each with its place in the config."""
    return ((place, dataset) for place, dataset, is_wrapper in dataset_tree(config, split) if not is_wrapper)


def path_within(dataset: Mapping, path: str) -> str:
    """Return a file or folder that a dataset dict names, joined with its ``data_root`` as mmengine does."""
    return path if is_abs(path) else os.path.join(dataset.get('data_root') or '', path)


def inference_split(config: Config) -> str | None:
    """Return the split whose pipeline and classes are those for new images: test, or else val; None without both."""
    return next((split for split in ('test', 'val') if config.get(f'{split}_dataloader')), None)


def inference_pipeline(config: Config, needed: bool = True) -> list[Mapping]:
    """Return the steps that make an input for the model from a new image, and perhaps load annotations too.

    A config without any is refused if they are ``needed``.
    """
    split = inference_split(config)
    _, dataset = next(dataset_places(config, split), ('', {})) if split else ('', {})
    pipeline = dataset.get('pipeline') or config.get('test_pipeline')
    if not pipeline and needed:
        raise UsageError(
            'the config does not say how a new image is read: it needs a test_dataloader or a val_dataloader with a '
            'pipeline, or test_pipeline'
        )
    return list(pipeline or ())


def named_classes(dataset: Mapping, kind: Any) -> tuple[str, ...] | None:
    """Return the names of the classes that a dataset dict or its class states, or None if neither does.

    As in mmengine, they may stand in a file with one name in each line.

    Raises:
        UsageError: If they are no list, as in ``classes=('disc')`` without a comma, or stand where nothing reads them.
    """
    metainfo = dict(dataset.get('metainfo') or {})
    is_of_mmpretrain = hasattr(kind, '_compat_classes')  # then it takes classes as an argument of its own too
    if is_of_mmpretrain:
        metainfo = {key: value for key, value in {'classes': dataset.get('classes'), **metainfo}.items() if value}
    elif 'classes' in dataset:
        raise UsageError(f'a {kind.__name__} takes no classes: write metainfo=dict(classes=...)')
    others = [key for key, value in metainfo.items() if key not in getattr(kind, 'METAINFO', {}) and is_names(value)]
    if 'classes' not in metainfo and others:
        raise UsageError(f'nothing reads {others[0]} in metainfo of a data set: write metainfo=dict(classes=...)')
    try:
        classes = kind._load_metainfo(metainfo).get('classes') if hasattr(kind, '_load_metainfo') else None
    except (OSError, ValueError) as error:  # of a folder, or a file that is no text
        raise UsageError(f'metainfo.classes of a data set is {metainfo["classes"]!r}: {error}') from error
    if classes is None:
        return None
    if not is_names(classes):
        raise UsageError(
            f'metainfo.classes of a data set is {classes!r}, which is neither a list of names nor a file of them: '
            f"write classes=('NAME',) for a single class, with the comma"
        )
    for number, name in enumerate(classes):
        if not name.strip() or name[0] == '\ufeff':
            raise UsageError(
                f'metainfo.classes of a data set, {short(metainfo.get("classes"))}, has the name {name!r}: write no '
                f'empty lines and no byte-order mark into a file of names'
            )
        if not is_of_mmpretrain and name in classes[:number]:  # ImageNet has two cranes
            raise UsageError(f'metainfo.classes of a data set names {name!r} twice: each class has one name')
    return tuple(classes)


def is_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(each, str) for each in value)


def evaluators_of(config: Config, split: str) -> Iterator[tuple[str, MutableMapping]]:
    """Yield the evaluators of a split, each with its place in the config as ``--cfg-options`` spells it."""
    place = f'{split}_evaluator'
    found: Any = config.get(place) if split != 'train' else None
    if isinstance(found, Mapping) and 'metrics' in found:  # mmengine's Evaluator, which a config may name itself
        place, found = f'{place}.metrics', found['metrics']
    if isinstance(found, MutableMapping):
        yield place, found
    else:
        yield from ((f'{place}.{number}', each) for number, each in enumerate(found or ()))


def pretrained_parts(model: nn.Module) -> Iterator[tuple[nn.Module, dict[str, Any]]]:
    """Yield the parts of a model that start from the weights of a ``SHViTPretrained``, with its arguments."""
    for part in model.modules():
        initial = getattr(part, 'init_cfg', None)
        for each in initial if isinstance(initial, list | tuple) else [initial]:
            if isinstance(each, Mapping) and type_of(each) == 'SHViTPretrained':
                yield part, {name: value for name, value in each.items() if name != 'type'}
