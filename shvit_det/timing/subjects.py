"""What is timed: a whole detector, one part of it, or a backbone alone; each knows how to make one run."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from torch import nn

from ..common.errors import UsageError
from ..deployment import is_deployed
from ..deployment.compilation import compile_parts
from .compiling import compile_frozen
from .detections import DEFAULT_DETECTIONS, counting, detection_config, fix_detections
from .inputs import fresh
from .record import UNATTRIBUTED
from .runtimes import exported
from .settings import Settings
from .single_parts import Calls, capture
from .spans import BACKWARD, FORWARD, OPTIMIZER, Recorder, Span, instrumented, modules_by_part, owners_of, spans_of

COMPILED = ('backbone', 'neck', 'rpn_head', 'bbox_head', 'mask_head')
BOX_RESULTS = tuple(
    Span('boxes', head, 'predict_by_feat', alone=True) for head in ('roi_head.bbox_head', 'bbox_head', 'mask_head')
)
UPDATE_SPANS = (Span('losses', '', 'backward'), Span(OPTIMIZER, '', 'step'), Span(OPTIMIZER, '', 'zero_grad'))


class BackboneRunner(nn.Module):
    """A backbone with the two methods by which a detector is run, so that both are timed by the same code."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def test_step(self, images: torch.Tensor) -> Any:
        return self.backbone(images)

    def train_step(self, images: torch.Tensor, optim_wrapper: OptimWrapper) -> None:
        features = self.backbone(images)
        optim_wrapper.update_params(sum(feature.float().mean() for feature in features))


class Subject:
    """Something that can be run, whole or by part.

    Args:
        name: How it is called in the tables.
        source: What the user named.
        kind: ``'detector'`` or ``'backbone'``.
        model: The model, with ``test_step`` and ``train_step``.
        batches: What it is run on, in turn.
        settings: How it is run.
        optim_wrapper: What updates the weights in training.
        config_sha256: Of the config that it was built from.
        weights: ``'random'`` or a checkpoint's file name.
        prepared: What was done to the model.
    """

    def __init__(
        self,
        name: str,
        source: str,
        kind: str,
        model: Any,
        batches: Sequence[Any],
        settings: Settings,
        optim_wrapper: OptimWrapper | None = None,
        config_sha256: str | None = None,
        weights: str = 'random',
        prepared: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.source = source
        self.kind = kind
        self.model = model
        self.batches = batches
        self.settings = settings
        self.optim_wrapper = optim_wrapper
        self.config_sha256 = config_sha256
        self.weights = weights
        self.prepared = list(prepared)
        self.warnings: list[str] = []
        self.spans = spans_of(model, settings.train)

    def run(self, index: int = 0) -> Callable[[], Any]:
        """Return a function that makes one run, on the batch of this index, and returns what mmdet returns."""
        batch = fresh(self.batches[index % len(self.batches)])

        def predict() -> Any:
            with torch.no_grad(), self._autocast():
                return self.model.test_step(batch)

        def train() -> Any:
            torch.manual_seed(index)  # regions are sampled; all that are compared take the same ones
            with self._autocast():
                return self.model.train_step(batch, self.optim_wrapper)

        return train if self.settings.train else predict

    def first_run(self) -> None:
        """Make one run, to see that it can be made.

        Raises:
            UsageError: If it cannot; most often the images are too small or too large.
        """
        try:
            self.run()()
        except (RuntimeError, ValueError, AssertionError, IndexError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise UsageError(f'{self.name} cannot run on this input ({self._input()}): {lines[0]}') from error

    def _input(self) -> str:
        images = self.batches[0] if self.kind == 'backbone' else self.batches[0]['inputs'][0]
        return f'{self.settings.batch} x {" x ".join(map(str, images.shape[-3:]))}, {self.settings.dtype}'

    def _autocast(self) -> AbstractContextManager:
        """A detector runs under autocast, as mmdet's mixed precision does, unless it has been converted."""
        if self.kind == 'backbone' or self.settings.convert or self.settings.dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self.settings.device.type, self.settings.dtype)

    @contextmanager
    def recorded(self, recorder: Recorder) -> Iterator[None]:
        """Let runs tell ``recorder`` which part they are in, for the time of the context."""
        with ExitStack() as stack:
            stack.enter_context(instrumented(self.model, self.spans, recorder.wrap))
            if self.optim_wrapper is not None:

                def claim(span: Span, method: Callable[..., Any]) -> Callable[..., Any]:
                    return recorder.claim(method, (span.part, BACKWARD if span.method == 'backward' else FORWARD))

                stack.enter_context(instrumented(self.optim_wrapper, UPDATE_SPANS, claim))
            yield

    def alone(self) -> dict[str, Callable[[], Callable[[], Any]]]:
        """Return, by part, what prepares one run of that part alone, on what the parts before it made of batch 0."""
        if self.settings.train or self.kind == 'backbone':
            return {}
        parts = capture(self.model, self.spans, self.run())
        return {part: partial(self._prepare, parts[part]) for part in self.part_order() if part in parts}

    def _prepare(self, calls: Calls) -> Callable[[], Any]:
        prepared = calls.prepare()

        def run() -> Any:
            with torch.no_grad(), self._autocast():
                return prepared()

        return run

    def settle_detections(self) -> None:
        """Fix the number of detections; unless a number is asked for, only of random weights."""
        asked = self.settings.detections
        number = DEFAULT_DETECTIONS if asked is None and self.weights == 'random' else asked
        if number is None or self.settings.train or self.kind == 'backbone':
            return
        calls = capture(self.model, BOX_RESULTS, self.run()) if detection_config(self.model) is not None else {}
        if not calls:
            if asked is not None:
                self.warnings.append(f'{self.name} has no score threshold: --detections {asked} changes nothing')
            return
        found = fix_detections(self.model, calls['boxes'], number)
        if found is not None and found < number:
            self.warnings.append(f'{self.name}: the boxes suffice for {found} detections per image, not for {number}')

    def counts(self) -> dict[str, list[int]]:
        """Run once and return how many proposals and detections each image has; in training, its objects."""
        if self.kind == 'backbone':
            return {}
        if self.settings.train:
            return {'ground truth': [len(sample.gt_instances) for sample in self.batches[0]['data_samples']]}
        proposals: list[int] = []
        span = Span('proposals', 'rpn_head', 'predict')
        with instrumented(self.model, [span], lambda _, method: counting(method, proposals)):
            samples = self.run()()
        detections = [len(sample.pred_instances) for sample in samples if 'pred_instances' in sample]
        return {name: numbers for name, numbers in (('proposals', proposals), ('detections', detections)) if numbers}

    def input_shape(self) -> list[int]:
        """Return B, C, H, W of the first batch as the backbone gets it."""
        if self.kind == 'backbone':
            return list(self.batches[0].shape)
        return list(self.model.data_preprocessor(fresh(self.batches[0]), False)['inputs'].shape)

    def parts(self) -> list[str]:
        """Return the names of the parts that can run alone, in the order of a run."""
        return list(dict.fromkeys(span.part for span in self.spans if span.alone and owners_of(self.model, span)))

    def part_order(self) -> list[str]:
        """Return every name that a moment of a run can have, in the order of the tables."""
        return list(dict.fromkeys([*(span.part for span in self.spans), OPTIMIZER, UNATTRIBUTED]))

    def modules(self) -> dict[str, list[nn.Module]]:
        """Return the modules of each part."""
        return modules_by_part(self.model, self.spans)

    def compile(self) -> None:
        """Let backbone, neck and dense head run compiled; on a CPU, prediction freezes the weights."""
        mode = self.settings.compile
        freeze = self.settings.device.type == 'cpu' and not self.settings.train
        if is_deployed(self.model):  # as deploy(..., compile=True) does, or with the mode that was asked for
            if not compile_parts(self.model, {} if freeze or mode == 'default' else dict(dynamic=False, mode=mode)):
                self.prepared.append('nothing left to compile')
                return
        else:
            for name in COMPILED:
                module = getattr(self.model, name, None)
                if isinstance(module, nn.Module):
                    plain = module.forward
                    compiled = compile_frozen(plain) if freeze else torch.compile(plain, dynamic=False, mode=mode)
                    module.forward = compiled  # type: ignore[method-assign]
        self.prepared.append('compiled with frozen weights' if freeze else f'compiled, {mode}')

    def export(self) -> None:
        """Let another runtime run the backbone, on NumPy arrays.

        Raises:
            UsageError: If it cannot, or computes something else.
        """
        settings = self.settings
        assert settings.runtime is not None
        (images,) = self.batches
        self.model = exported(settings.runtime, self.model.backbone, images, settings.threads, settings.dtype)
        self.batches = [images.numpy()]
        self.prepared.append(f'{self.model.title}, {str(settings.dtype).removeprefix("torch.")}')
