"""Classification: data in ImageNet's layout, top-1 and top-5 accuracy, models of mmpretrain."""

import os
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from torch import nn

from ..common.errors import UsageError
from ..compat.mmpretrain_import import require_mmpretrain
from ..data.class_folders import check_listed, class_folders
from .config import evaluators_of, type_of
from .prediction_dump import WholeDump
from .scores import accuracy_table
from .task import Task, draw_by_hook, named_classes

TOP_K = (1, 5)
IMAGE_EXTENSIONS = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif')  # mmpretrain's


class Classification(Task):
    """The task of an mmpretrain config."""

    scope = 'mmpretrain'
    noun = 'classifier'
    metrics = ('accuracy',)

    def register(self) -> None:
        require_mmpretrain()
        from mmpretrain.utils import register_all_modules

        register_all_modules(init_default_scope=False)

    def check_model(self, config: Config, model: Any, splits: Sequence[str]) -> None:
        """Compare backbone, head, data preprocessor, evaluators and the classes that the datasets state.

        Raises:
            UsageError: If two of them differ.
        """
        channels = getattr(model.backbone, 'out_channels', (None,))[-1]
        in_channels = getattr(model.head, 'in_channels', None)
        if None not in (channels, in_channels) and not model.with_neck and channels != in_channels:
            raise UsageError(
                f"head.in_channels is {in_channels}, but the backbone's last feature has {channels} channels: "
                f'make them equal in the config'
            )
        num_classes = num_classes_of(model)
        if num_classes is None:
            return
        preprocessor = getattr(model.data_preprocessor, 'num_classes', None)
        if preprocessor is not None and preprocessor != num_classes:
            raise UsageError(
                f'data_preprocessor.num_classes is {preprocessor}, but head.num_classes is {num_classes}: '
                f'make them equal'
            )
        for split, dataset, kind in self.datasets(config, splits):
            classes = named_classes(dataset, kind)
            if classes is not None and len(classes) != num_classes:
                raise UsageError(
                    f'head.num_classes is {num_classes}, but the {split} data set has {len(classes)} classes: set '
                    f'model.head.num_classes and data_preprocessor.num_classes, or metainfo=dict(classes=...) of the '
                    f'datasets'
                )
        for split in splits:
            for _, evaluator in evaluators_of(config, split):
                largest = max(as_tuple(evaluator.get('topk', 1)))
                if largest > num_classes:
                    raise UsageError(
                        f'{split}_evaluator.topk asks for the {largest} best of {num_classes} classes: lower it'
                    )

    def check_data(self, config: Config, model: nn.Module, splits: Sequence[str]) -> None:
        """Look at the class folders or image lists of mmpretrain's folder data sets.

        Raises:
            UsageError: If a folder or file is missing, or its classes are not those of the head or of the other splits.
        """
        from mmpretrain.datasets import CustomDataset

        num_classes = num_classes_of(model)
        first: tuple[Path, tuple[str, ...]] | None = None
        for _, dataset, kind in self.datasets(config, splits):
            if not issubclass(kind, CustomDataset) or num_classes is None:
                continue
            if '://' in str(dataset.get('data_root')):  # mmpretrain asks remote storage itself
                continue
            images, listing = places_of(dataset)
            if listing is not None:
                check_listed(listing, images, num_classes)
                continue
            extensions = dataset.get('extensions', IMAGE_EXTENSIONS)
            folders = class_folders(images, extensions)
            if len(folders) != num_classes:
                raise UsageError(
                    f'{images} has {len(folders)} class folders, but head.num_classes is {num_classes}: name another '
                    f'folder with --data-root DIR, or set model.head.num_classes, data_preprocessor.num_classes and '
                    f'metainfo=dict(classes=...) of the datasets'
                )
            first = first or (images, folders)
            if folders != first[1]:
                other = sorted(set(folders) ^ set(first[1]))[0]
                raise UsageError(
                    f'the class folders in {images} and {first[0]} differ ({other} is in one of them only), and labels '
                    f'would get the wrong names: give both the same class folders'
                )

    def set_metrics(self, config: Config, model: nn.Module, metrics: Sequence[str]) -> None:
        """Let the accuracy be computed, top-5 too where there are that many classes."""
        num_classes = num_classes_of(model) or max(TOP_K)
        top_k = tuple(k for k in TOP_K if k <= num_classes)
        named = [evaluator for _, evaluator in evaluators_of(config, 'test') if type_of(evaluator) == 'Accuracy']
        config.test_evaluator = named or [ConfigDict(type='Accuracy', topk=top_k)]

    def dump(self, path: str) -> WholeDump:
        return WholeDump(out_file_path=path)

    def draw_into(self, config: Config, folder: str) -> None:
        draw_by_hook(config, enable=True, interval=1, out_dir=str(Path(folder).resolve()))

    def table(self, metrics: Mapping[str, float]) -> str:
        return accuracy_table(metrics)


def num_classes_of(classifier: Any) -> int | None:
    """Return the number of classes that the head of a classifier tells apart, or None where it does not say."""
    return getattr(classifier.head, 'num_classes', None)


def places_of(dataset: MutableMapping) -> tuple[Path, Path | None]:
    """Return where mmpretrain takes the images of a dataset dict from, and its list of them or None."""
    root, split = dataset.get('data_root') or '', dataset.get('split') or ''
    prefix = dataset.get('data_prefix') or split
    if isinstance(prefix, Mapping):
        prefix = prefix.get('img_path', '')
    images = Path(os.path.join(root, prefix))
    if dataset.get('ann_file'):
        return images, Path(os.path.join(root, dataset['ann_file']))
    listing = Path(root) / 'meta' / f'{split}.txt'
    return images, listing if split and listing.is_file() else None


def as_tuple(value: int | Sequence[int]) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)
