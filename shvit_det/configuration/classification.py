"""The task of a classifier's config: models of mmpretrain, data in ImageNet's layout, top-1 and top-5 accuracy."""

import os
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.evaluator import DumpResults
from torch import nn

from ..common.errors import UsageError
from ..data.class_folders import check_listed, class_folders
from ..models.mmpretrain_import import require_mmpretrain
from .reading import evaluators_of, type_of
from .task import Task, table_of_numbers

TOP_K = (1, 5)
ACCURACY = 'accuracy/top'  # and k: mmpretrain's names of metrics
IMAGE_EXTENSIONS = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif')  # mmpretrain's


class Classification(Task):
    """The task of an mmpretrain config."""

    scope = 'mmpretrain'
    noun = 'classifier'
    metrics = ('accuracy',)
    dump_type = DumpResults

    def register(self) -> None:
        require_mmpretrain()
        from mmpretrain.utils import register_all_modules

        register_all_modules(init_default_scope=False)

    def check_model(self, config: Config, model: Any, splits: Sequence[str]) -> None:
        """Compare backbone, head, data preprocessor, evaluators and the classes that the datasets state."""
        channels = getattr(model.backbone, 'out_channels', (None,))[-1]
        in_channels = getattr(model.head, 'in_channels', None)
        if None not in (channels, in_channels) and not model.with_neck and channels != in_channels:
            raise UsageError(
                f"head.in_channels is {in_channels}, but the backbone's last feature has {channels} channels: "
                f'make them equal in the config'
            )
        num_classes = getattr(model.head, 'num_classes', None)
        if num_classes is None:
            return
        preprocessor = getattr(model.data_preprocessor, 'num_classes', None)
        if preprocessor is not None and preprocessor != num_classes:
            raise UsageError(
                f'data_preprocessor.num_classes is {preprocessor}, but head.num_classes is {num_classes}: '
                f'make them equal'
            )
        for split, classes in self.stated_classes(config, splits):
            if len(classes) != num_classes:
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

    def check_data(self, config: Config, model: nn.Module, splits: Sequence[str]) -> dict[Path, Any]:
        """Check the class folders or image lists of mmpretrain's folder data sets: all have one list of classes."""
        from mmpretrain.datasets import CustomDataset

        num_classes = getattr(model.head, 'num_classes', None)
        first: tuple[Path, tuple[str, ...]] | None = None
        for _, dataset, kind in self.datasets(config, splits):
            is_remote = '://' in str(dataset.get('data_root'))  # on storage that mmpretrain reads itself
            if not issubclass(kind, CustomDataset) or num_classes is None or is_remote:
                continue
            images, listing = places_of(dataset)
            if listing is not None:
                check_listed(listing, images, num_classes)
                continue
            folders = class_folders(images, dataset.get('extensions', IMAGE_EXTENSIONS))
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
        return {}  # all images of a folder are listed by what a data set finds there

    def set_metrics(self, config: Config, model: nn.Module, metrics: Sequence[str]) -> None:
        """Set the config so that the accuracy is computed, top-5 only if there are as many classes."""
        num_classes = getattr(model.head, 'num_classes', None) or max(TOP_K)
        top_k = tuple(k for k in TOP_K if k <= num_classes)
        named = [evaluator for _, evaluator in evaluators_of(config, 'test') if type_of(evaluator) == 'Accuracy']
        config.test_evaluator = named or [ConfigDict(type='Accuracy', topk=top_k)]

    def score_names(self, config: Config) -> list[str]:
        found = [evaluator for _, evaluator in evaluators_of(config, 'val')]
        if not all(type_of(each) == 'Accuracy' and not each.keys() & {'thrs', 'prefix'} for each in found):
            return []
        return [f'{ACCURACY}{k}' for each in found for k in as_tuple(each.get('topk', 1))]

    def table(self, metrics: Mapping[str, float]) -> str:
        """Return the accuracies (mmpretrain's names, percent) as a table of one row."""
        found = {
            f'top-{name.removeprefix(ACCURACY)}': value for name, value in metrics.items() if name.startswith(ACCURACY)
        }
        if not found:
            return table_of_numbers(metrics, 'no accuracy was measured')
        header = ' ' * 10 + '  '.join(f'{name:>6}' for name in found)
        return header + '\naccuracy  ' + '  '.join(f'{value:6.2f}' for value in found.values()) + '  (%)'


def places_of(dataset: MutableMapping) -> tuple[Path, Path | None]:
    """Return the folder from which mmpretrain reads the images of a dataset dict, and the list of them or None."""
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
