"""A detector or backbone that is timed: how to run it, whole or by part, compiled or in another runtime."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from torch import nn

from ..common.errors import UsageError, first_line
from ..configuration.batches import copy_containers
from ..deployment import is_deployed
from ..deployment.compilation import compile_parts, weights_frozen
from .detection_count import DEFAULT_DETECTIONS, counting, detection_config, fix_detections
from .detector_parts import Call, Span, instrumented, owners_of, record_calls, replay, spans_of
from .other_runtimes import exported
from .record import UNATTRIBUTED
from .settings import Settings, dtype_name

COMPILED_PARTS = ('backbone', 'neck', 'rpn_head', 'bbox_head', 'mask_head')
BOX_RESULTS = tuple(
    Span('boxes', head, 'predict_by_feat', replayed=True) for head in ('roi_head.bbox_head', 'bbox_head', 'mask_head')
)
PROPOSALS = (Span('proposals', 'rpn_head', 'predict'),)
OPTIMIZER = 'optimizer'


class BackboneRunner(nn.Module):
    """A backbone with the two methods by which a detector is run."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def test_step(self, images: torch.Tensor) -> Any:
        return self.backbone(images)

    def train_step(self, images: torch.Tensor, optim_wrapper: OptimWrapper) -> None:
        features = self.backbone(images)
        optim_wrapper.update_params(sum(feature.float().mean() for feature in features))


@dataclass(eq=False)
class TimedModel:
    """A model with the images that it is run on."""

    name: str  # in the tables
    source: str  # as the user named it
    kind: str  # 'detector' or 'backbone'
    model: Any  # has test_step and train_step
    batches: Sequence[Any]  # one for each run, in turn
    settings: Settings
    weights: str  # 'random' or a checkpoint's file name
    prepared: list[str]  # how the model was changed
    config_sha256: str | None = None
    optim_wrapper: OptimWrapper | None = None  # of training
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.spans = spans_of(self.model, self.settings.train)

    def run(self, index: int = 0) -> Callable[[], Any]:
        """Return a function that makes one run, on the batch of this index, and returns what mmdet returns."""
        batch = copy_containers(self.batches[index % len(self.batches)])

        def train() -> Any:
            torch.manual_seed(index)  # regions are sampled; all models take the same ones
            with self._autocast():
                return self.model.train_step(batch, self.optim_wrapper)

        return train if self.settings.train else self._predicting(lambda: self.model.test_step(batch))

    def first_run(self) -> None:
        """Make one run, to see that it can be made."""
        try:
            self.run()()
        except (RuntimeError, ValueError, AssertionError, IndexError) as error:
            size = f'{self.settings.batch} x {" x ".join(map(str, self.image_shape()))}, {self.settings.dtype}'
            raise UsageError(f'{self.name} cannot run on this input ({size}): {first_line(error)}') from error

    def _autocast(self) -> AbstractContextManager:
        """Return autocast, as in mmdet's mixed precision, for a detector that has not been converted."""
        if self.kind == 'backbone' or self.settings.convert or self.settings.dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self.settings.device.type, self.settings.dtype)

    def parts(self) -> list[str]:
        """Return the names of the parts that can run alone, in the order of a run."""
        return list(dict.fromkeys(span.part for span in self.spans if span.replayed and owners_of(self.model, span)))

    def part_order(self) -> list[str]:
        """Return the name of every part that a run can have, in the order of the tables."""
        return list(dict.fromkeys([*(span.part for span in self.spans), OPTIMIZER, UNATTRIBUTED]))

    def parts_alone(self) -> dict[str, Callable[[], Callable[[], Any]]]:
        """Return, by part, a function that prepares a run of that part alone, on its inputs in a run of batch 0."""
        if self.settings.train or self.kind == 'backbone':
            return {}
        parts = record_calls(self.model, self.spans, self.run())
        wanted = [part for part in self.part_order() if part in parts and self.settings.only in (None, part)]
        if self.settings.only is not None and not wanted:
            raise UsageError(
                f'--only {self.settings.only}: this part of {self.name} did not run, since nothing was detected: '
                f'--detections sets how many'
            )
        return {part: partial(self._prepare, parts[part]) for part in wanted}

    def _prepare(self, calls: Sequence[Call]) -> Callable[[], Any]:
        return self._predicting(replay(calls))

    def _predicting(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """Return a function that makes a call in the way of a prediction."""

        def predict() -> Any:
            with torch.no_grad(), self._autocast():
                return call()

        return predict

    def fix_detections(self) -> None:
        """Fix the number of detections; without ``--detections`` only for random weights."""
        asked = self.settings.detections
        number = DEFAULT_DETECTIONS if asked is None and self.weights == 'random' else asked
        if number is None or self.settings.train or self.kind == 'backbone':
            return
        has_threshold = detection_config(self.model) is not None
        calls = record_calls(self.model, BOX_RESULTS, self.run()) if has_threshold else {}
        if not calls:
            if asked is not None:
                self.warnings.append(f'{self.name} has no score threshold: --detections {asked} changes nothing')
            return
        found = fix_detections(self.model, calls['boxes'], number)
        if found < number:
            self.warnings.append(f'{self.name}: the boxes suffice for {found} detections per image, not for {number}')

    def counts(self) -> dict[str, list[int]]:
        """Run once and return the number of proposals and detections of each image; in training, of its objects."""
        if self.kind == 'backbone':
            return {}
        if self.settings.train:
            return {'ground truth': [len(sample.gt_instances) for sample in self.batches[0]['data_samples']]}
        proposals: list[int] = []
        with instrumented(self.model, PROPOSALS, lambda _, method: counting(method, proposals)):
            samples = self.run()()
        detections = [len(sample.pred_instances) for sample in samples if 'pred_instances' in sample]
        return {name: numbers for name, numbers in (('proposals', proposals), ('detections', detections)) if numbers}

    def image_shape(self) -> list[int]:
        """Return C, H, W of the images of the first batch."""
        images = self.batches[0] if self.kind == 'backbone' else self.batches[0]['inputs'][0]
        return list(images.shape[-3:])

    def input_shape(self) -> list[int]:
        """Return B, C, H, W of the first batch as the backbone gets it."""
        if self.kind == 'backbone':
            return list(self.batches[0].shape)
        return list(self.model.data_preprocessor(copy_containers(self.batches[0]), False)['inputs'].shape)

    def compile(self) -> None:
        """Compile backbone, neck and dense head; in prediction on a CPU, with frozen weights."""
        mode = self.settings.compile
        freeze = self.settings.device.type == 'cpu' and not self.settings.train
        if is_deployed(self.model):  # as deploy(..., compile=True) does, or in the mode that was asked for
            if not compile_parts(self.model, {} if freeze or mode == 'default' else dict(dynamic=False, mode=mode)):
                self.prepared.append('nothing left to compile')
                return
        else:
            for name in COMPILED_PARTS:
                module = getattr(self.model, name, None)
                if isinstance(module, nn.Module):
                    forward = module.forward
                    compiled = compile_frozen(forward) if freeze else torch.compile(forward, dynamic=False, mode=mode)
                    module.forward = compiled  # type: ignore[method-assign]
        self.prepared.append('compiled with frozen weights' if freeze else f'compiled, {mode}')

    def export(self) -> None:
        """Make another runtime run the backbone, on NumPy arrays."""
        settings = self.settings
        assert settings.runtime is not None
        (images,) = self.batches
        self.model = exported(settings.runtime, self.model.backbone, images, settings.threads, settings.dtype)
        self.batches = [images.numpy()]
        self.prepared.append(f'{self.model.title}, {dtype_name(settings.dtype)}')


def compile_frozen(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function with the weights of its modules as constants, which inductor packs; only without gradients."""
    compiled = torch.compile(function, dynamic=False)

    def frozen(*args: Any, **kwargs: Any) -> Any:
        with weights_frozen():
            return compiled(*args, **kwargs)

    return frozen
