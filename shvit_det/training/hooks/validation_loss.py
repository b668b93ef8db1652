"""The losses of the validation images, to see beside those of the training whether a model overfits."""

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.dist import all_reduce_dict
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...checkpoint.loading import without_wrapper
from ...common.errors import UsageError
from ...configuration.build_errors import dicts_in
from ...configuration.reading import type_of
from ...registry import HOOKS, register
from ..seeding import same_random_numbers, seed_everything

PREFIX = 'val_'


@register(HOOKS)
class ValidationLossHook(Hook):
    """Compute the losses of the validation images after each validation, by a second pass over them.

    The model is in eval mode, without gradients, and has averaged weights where there are some. The means go into the
    log, the scores and the curves of the run, under the names of the training losses after ``val_``. ``--val-loss`` of
    the train tool adds this hook.
    """

    priority = 'ABOVE_NORMAL'  # EMAHook is NORMAL, and takes the averaged weights out again

    def before_train(self, runner: Runner) -> None:
        loader: Any = runner._val_dataloader  # of a config, or built by a program
        if isinstance(loader, Mapping):
            loader = runner.build_dataloader(with_annotations_first(loader), seed=runner.seed)
        self._loader = loader

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        model: Any = without_wrapper(runner.model)
        with same_random_numbers(), without_augmentation(model):
            seed_everything(runner.seed or 0)  # boxes are sampled: each validation draws the same numbers
            means = mean_losses(model.eval(), self._loader)
        for name, value in means.items():
            runner.message_hub.update_scalar(f'val/{name}', value)
        if metrics is not None:
            metrics.update(means)


@torch.no_grad()
def mean_losses(model: Any, loader: Any) -> dict[str, float]:
    """Return the means of the losses over the batches of a loader, of all processes."""
    totals: Counter[str] = Counter()
    for batch in loader:
        batch = model.data_preprocessor(batch, True)
        losses = model(**batch, mode='loss') if isinstance(batch, Mapping) else model(*batch, mode='loss')
        _, values = model.parse_losses(losses)
        totals.update({name: float(value) for name, value in values.items() if 'loss' in name})
        totals['number'] += 1
    sums = {name: torch.tensor(total, dtype=torch.float64) for name, total in totals.items()}
    all_reduce_dict(sums)
    number = sums.pop('number')
    return {f'{PREFIX}{name}': float(total / number) for name, total in sums.items()}


@contextmanager
def without_augmentation(model: Any) -> Iterator[None]:
    """Let the preprocessor pad masks as in training, and not change the images of a batch."""
    preprocessor = model.data_preprocessor
    augments = getattr(preprocessor, 'batch_augments', None)
    preprocessor.batch_augments = None
    try:
        yield
    finally:
        preprocessor.batch_augments = augments


def with_annotations_first(loader: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a loader whose annotations are changed with the images, for losses.

    Pipelines for scores load annotations after the image has been resized, since scores are in pixels of the file.

    Raises:
        UsageError: If a pipeline does not load its images in a known way.
    """
    copied: dict[str, Any] = copy.deepcopy(dict(loader))
    for _, node in dicts_in(copied, 'loader'):
        if isinstance(node.get('pipeline'), list):
            node['pipeline'] = reordered(node['pipeline'])  # type: ignore[index]
    return copied


def reordered(pipeline: list[Any]) -> list[Any]:
    """Return a pipeline with ``LoadAnnotations`` right after the image is loaded; one without it stays as it is."""
    kinds = [type_of(step).rpartition('.')[2] for step in pipeline]
    if 'LoadAnnotations' not in kinds:
        if kinds[-1] == 'PackDetInputs':
            raise UsageError(
                '--val-loss needs the annotations of the validation images, and the pipeline of val_dataloader has no '
                'LoadAnnotations: add it'
            )
        return pipeline  # a classifier's labels come with the list of the images
    annotations = pipeline[kinds.index('LoadAnnotations')]
    others = [step for step in pipeline if step is not annotations]
    first = next((place for place, step in enumerate(others) if 'LoadImage' in type_of(step)), -1) + 1
    return [*others[:first], annotations, *others[first:]]
