"""Exported files held against PyTorch on the photographs of a config: the same detections, average precision, time."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from ..common.environment import describe_environment
from ..common.errors import UsageError
from ..configuration.changing import remove_pretrained, set_data_root
from ..configuration.detection import Detection, has_masks
from ..configuration.reading import load_config
from ..deployment import deploy
from ..timing.inputs import fresh
from .comparison_report import FORMAT
from .exportable import check_exportable
from .exporting import can_be_deployed
from .random_weights import load_detector
from .running import open_exported

SAME_PIXELS = 1.0
"""Boxes of one class whose sides are no further apart than this are one detection in two runtimes."""


@dataclass
class Agreement:
    """How far the detections of a form are from PyTorch's, over all images.

    Args:
        detections: Of PyTorch.
        missing: Of these, without a counterpart in the other form.
        further: Of the other form, without a counterpart in PyTorch.
        box_px: The largest difference of a side of a box, in pixels of the original image.
        score: The largest difference of a score.
        mask_px: Pixels that only one of two masks has.
        object_px: Pixels that either has.
        image_px: Pixels of all images, once for each mask.
        worst_mask: The smallest share of the pixels of an image that the two masks of an object agree on.
    """

    detections: int = 0
    missing: int = 0
    further: int = 0
    box_px: float = 0.0
    score: float = 0.0
    mask_px: int = 0
    object_px: int = 0
    image_px: int = 0
    worst_mask: float = 1.0

    def add(self, expected: Any, found: Any) -> None:
        """Add the detections of one image, mmdet's ``InstanceData`` of both."""
        pairs = match(expected, found)
        ours, theirs = pairs[:, 0], pairs[:, 1]
        self.detections += len(expected)
        self.missing += len(expected) - len(pairs)
        self.further += len(found) - len(pairs)
        if not len(pairs):
            return
        self.box_px = max(self.box_px, float((expected.bboxes[ours] - found.bboxes[theirs]).abs().max()))
        self.score = max(self.score, float((expected.scores[ours] - found.scores[theirs]).abs().max()))
        if 'masks' in expected and 'masks' in found:
            for one, other in zip(ours.tolist(), theirs.tolist(), strict=True):
                self._add_mask(expected.masks[one], found.masks[other])

    def _add_mask(self, one: torch.Tensor, other: torch.Tensor) -> None:
        different = int((one ^ other).sum())
        self.mask_px += different
        self.object_px += int((one | other).sum())
        self.image_px += one.numel()
        self.worst_mask = min(self.worst_mask, 1 - different / one.numel())


def match(expected: Any, found: Any) -> torch.Tensor:
    """Return which detection is which: pairs of positions, (K, 2).

    The nearest are paired first: those of one class whose boxes differ by a pixel at most.
    """
    if not len(expected) or not len(found):
        return torch.zeros(0, 2, dtype=torch.long)
    distance = (expected.bboxes[:, None] - found.bboxes[None]).abs().amax(-1)
    distance = distance + (expected.scores[:, None] - found.scores[None]).abs()  # of equal boxes, the nearer score
    distance[expected.labels[:, None] != found.labels[None]] = torch.inf
    pairs: list[tuple[int, int]] = []
    for position in distance.flatten().argsort().tolist():
        one, other = divmod(position, len(found))
        if distance[one, other] > SAME_PIXELS or len(pairs) == min(distance.shape):
            break
        pairs.append((one, other))
        distance[one], distance[:, other] = torch.inf, torch.inf
    return torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)


@dataclass
class Form:
    """One form of the detector, and what came of it."""

    name: str
    test_step: Callable[[Any], Any]
    evaluator: Evaluator
    agreement: Agreement = field(default_factory=Agreement)
    seconds: list[float] = field(default_factory=list)


def compare(
    config_path: str,
    checkpoint: str,
    files: Sequence[str],
    limit: int | None = None,
    threads: int = 1,
    data_root: str | None = None,
    cfg_options: Mapping[str, Any] | None = None,
    command: str = '',
    progress: Callable[[str], None] = lambda _: None,
    save: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Run a detector in PyTorch, plain and deployed, and exported files on the test images of a config.

    Every image goes through all forms before the next one, so that a busy machine is busy for all of them.

    Args:
        config_path: The config.
        checkpoint: The weights that the files were made of, or ``'random'``.
        files: What ``tools/export.py`` wrote.
        limit: The first so many images; None for all.
        threads: Of every form.
        data_root: Another folder of the layout that the config expects.
        cfg_options: Changes of single values, those that the files were exported with.
        command: What the record names as the command that made it.
        progress: Is told now and then how far it is.
        save: Gets the record as soon as there is one: also, of the images so far, when an error ends the comparison.

    Returns:
        A record, ready for JSON.

    Raises:
        UsageError: If something is missing or does not fit.
    """
    torch.set_num_threads(threads)
    config = load_config(config_path, cfg_options)
    if data_root is not None:
        set_data_root(config, data_root)
    task = Detection()
    remove_pretrained(config)
    detector: Any = task.build(config)
    check_exportable(detector)
    task.set_metrics(config, detector, ['bbox', 'segm'] if has_masks(detector) else ['bbox'])
    models = {file: open_exported(file, config) for file in files}
    task.check_model(config, detector, ('test',))
    task.check_data(config, detector, ('test',))
    detector = load_detector(config, config_path, checkpoint)
    steps = {'PyTorch': detector.test_step}
    if can_be_deployed(detector):
        steps['PyTorch, deployed'] = deploy(detector).test_step
    for model in models.values():
        name = model.detector.runtime.title
        steps[name if name not in steps else f'{name} ({len(steps)})'] = model.test_step

    with DefaultScope.overwrite_default_scope('mmdet'), torch.no_grad():
        loader = _loader(config, limit)
        forms = [Form(name, step, _evaluator(config, loader)) for name, step in steps.items()]
        shapes: list[tuple[int, ...]] = []
        try:
            _run(forms, loader, progress, shapes)
        finally:
            if shapes:
                scores = {form.name: form.evaluator.evaluate(len(shapes)) for form in forms}
                record = _record(forms, scores, shapes, config_path, checkpoint, threads, cfg_options, command)
                save(record)
    return record


def _record(
    forms: Sequence[Form],
    scores: Mapping[str, Mapping[str, float]],
    shapes: Sequence[tuple[int, ...]],
    config_path: str,
    checkpoint: str,
    threads: int,
    cfg_options: Mapping[str, Any] | None,
    command: str,
) -> dict[str, Any]:
    by_area = sorted(shapes, key=np.prod)
    return dict(
        format=FORMAT,
        command=command,
        date=datetime.now(timezone.utc).date().isoformat(),
        environment=describe_environment(torch.device('cpu')),
        settings=dict(
            device='cpu',
            threads=threads,
            batch=1,
            shape=None,
            images=f'{len(shapes)} images, {_times(by_area[0])} to {_times(by_area[-1])}',
            dtype='float32',
            channels_last=False,
            compile=None,
            mode='predict',
            config=Path(config_path.rsplit('::', 1)[-1]).name,
            weights=Path(checkpoint).name,
            options={key: value for key, value in (cfg_options or {}).items()},
        ),
        forms=[_result(form, scores[form.name], form is not forms[0]) for form in forms],
    )


def _times(size: Sequence[int]) -> str:
    return 'x'.join(map(str, size))


def _loader(config: Config, limit: int | None) -> Any:
    settings = dict(config.test_dataloader, batch_size=1, num_workers=0, persistent_workers=False)
    if limit is not None:
        settings['dataset'] = dict(settings['dataset'], indices=limit)
    return Runner.build_dataloader(settings)


def _evaluator(config: Config, loader: Any) -> Evaluator:
    evaluator = Evaluator(config.test_evaluator)
    evaluator.dataset_meta = loader.dataset.metainfo
    return evaluator


def _run(forms: Sequence[Form], loader: Any, progress: Callable[[str], None], shapes: list[tuple[int, ...]]) -> None:
    """Run all forms on all images; add the size of each, as the detector gets it, when all forms have run on it.

    Each form runs on the first image once before, since a first run also makes what all later ones use.
    """
    for number, batch in enumerate(loader):
        if number == 0:
            for form in forms:
                form.test_step(fresh(batch))
        samples, seconds = [], []
        for form in forms:
            own = fresh(batch)
            start = time.perf_counter()
            samples += form.test_step(own)
            seconds.append(time.perf_counter() - start)
        for form, sample, duration in zip(forms, samples, seconds, strict=True):
            form.seconds.append(duration)
            form.agreement.add(samples[0].pred_instances, sample.pred_instances)
            form.evaluator.process(data_samples=[sample], data_batch=batch)
        shapes.append(tuple(batch['inputs'][0].shape[-2:]))
        progress(f'{number + 1} of {len(loader)} images')
    if not shapes:
        raise UsageError('the test data set of this config has no images')


def _result(form: Form, scores: Mapping[str, float], compared: bool) -> dict[str, Any]:
    return dict(
        name=form.name,
        agreement=asdict(form.agreement) if compared else None,
        scores={name: value for name, value in scores.items() if name.startswith('coco/')},
        median_ms=statistics.median(form.seconds) * 1e3,
    )
