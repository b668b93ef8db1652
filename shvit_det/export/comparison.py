"""Exported files compared with PyTorch on the test images of a config: detections, average precision, time."""

import copy
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
from ..common.measurement_records import conditions, origin
from ..configuration.cfg_options import format_value
from ..configuration.changing import set_data_root
from ..configuration.detection import Detection, has_masks
from ..configuration.reading import load_config
from ..deployment import deploy
from .detector_export import can_be_deployed
from .detector_weights import detector_with_weights
from .running import open_exported

FORMAT = 'export comparison 1'
SAME_PIXELS = 1.0
"""Two boxes of one class are the same detection if no side differs by more pixels than this."""


@dataclass
class Agreement:
    """How far the detections of a form are from PyTorch's, over all images."""

    detections: int = 0  # the number of PyTorch's detections
    missing: int = 0  # how many of them have no counterpart in the form
    further: int = 0  # how many of the form's detections have no counterpart in PyTorch's
    box_px: float = 0.0  # the largest difference of a side of a box, in pixels of the original image
    score: float = 0.0  # the largest difference of a score
    mask_px: int = 0  # pixels that only one of two masks has
    object_px: int = 0  # pixels that at least one of two masks has
    image_px: int = 0  # pixels of all images, once for each mask
    worst_mask: float = 1.0  # the smallest share of an image's pixels in which the two masks of an object agree

    def add(self, expected: Any, found: Any) -> None:
        """Add the detections of one image, both as mmdet's ``InstanceData``."""
        pairs = pair_detections(expected, found)
        ours, theirs = pairs[:, 0], pairs[:, 1]
        self.detections += len(expected)
        self.missing += len(expected) - len(pairs)
        self.further += len(found) - len(pairs)
        if not len(pairs):
            return
        self.box_px = max(self.box_px, float((expected.bboxes[ours] - found.bboxes[theirs]).abs().max()))
        self.score = max(self.score, float((expected.scores[ours] - found.scores[theirs]).abs().max()))
        if 'masks' in expected and 'masks' in found:
            for one, other in pairs.tolist():  # together they would take much memory
                self._add_mask(expected.masks[one], found.masks[other])

    def _add_mask(self, one: torch.Tensor, other: torch.Tensor) -> None:
        different = int((one ^ other).sum())
        self.mask_px += different
        self.object_px += int((one | other).sum())
        self.image_px += one.numel()
        self.worst_mask = min(self.worst_mask, 1 - different / one.numel())


def pair_detections(expected: Any, found: Any) -> torch.Tensor:
    """Return which detections are the same, pairs of indices (K, 2); the nearest are paired first."""
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
    """A form of the detector (PyTorch, deployed, a file), its agreement with PyTorch and its times."""

    name: str
    test_step: Callable[[Any], Any]
    evaluator: Evaluator
    agreement: Agreement = field(default_factory=Agreement)
    seconds: list[float] = field(default_factory=list)

    def result(self, num_images: int, compared: bool) -> dict[str, Any]:
        """Return the form's entry in a record; the first form is not ``compared`` with itself."""
        scores = self.evaluator.evaluate(num_images)
        return dict(
            name=self.name,
            agreement=asdict(self.agreement) if compared else None,
            scores={name: value for name, value in scores.items() if name.startswith('coco/')},
            median_ms=statistics.median(self.seconds) * 1e3,
        )


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
) -> None:
    """Run a detector in PyTorch, plain and deployed, and exported files on the test images of a config.

    Every image goes through all forms before the next one, so that a busy machine slows all of them down.

    Args:
        config_path: The config.
        checkpoint: The weights from which the files were exported, or ``'random'``.
        files: What ``tools/export.py`` wrote.
        limit: Only the first so many images; None for all.
        threads: How many each form uses.
        data_root: Another folder of the layout that the config expects.
        cfg_options: Changes of single values of the config, as at the export.
        command: The command line, for the record.
        progress: Is called with how far the comparison is, after each image.
        save: Gets the record; after an error that of the images before it.
    """
    torch.set_num_threads(threads)
    config = load_config(config_path, cfg_options)
    if data_root is not None:
        set_data_root(config, data_root)
    models = [open_exported(file, config) for file in dict.fromkeys(files)]
    detector = detector_with_weights(config, config_path, checkpoint)
    task = Detection()
    task.set_metrics(config, detector, ['bbox', 'segm'] if has_masks(detector) else ['bbox'])
    task.check_model(config, detector, ('test',))
    task.check_data(config, detector, ('test',))
    steps = {'PyTorch': detector.test_step}
    if can_be_deployed(detector):
        steps['PyTorch, deployed'] = deploy(detector).test_step
    for model in models:
        name = model.detector.runtime.title
        steps[name if name not in steps else f'{name} ({len(steps)})'] = model.test_step

    with DefaultScope.overwrite_default_scope('mmdet'), torch.no_grad():
        loader = _loader(config, limit)
        forms = [Form(name, step, _evaluator(config, loader)) for name, step in steps.items()]
        shapes: list[tuple[int, ...]] = []
        try:
            run_forms(forms, loader, progress, shapes)
        finally:
            if shapes:
                record = dict(
                    format=FORMAT,
                    command=command,
                    date=datetime.now(timezone.utc).date().isoformat(),
                    environment=describe_environment(torch.device('cpu')),
                    settings=dict(
                        device='cpu',
                        threads=threads,
                        batch=1,
                        shape=None,
                        images=_images(shapes),
                        dtype='float32',
                        channels_last=False,
                        compile=None,
                        mode='predict',
                        config=Path(config_path.rsplit('::', 1)[-1]).name,
                        weights=Path(checkpoint).name,
                        options=dict(cfg_options or {}),
                    ),
                    forms=[form.result(len(shapes), form is not forms[0]) for form in forms],
                )
                save(record)


def run_forms(
    forms: Sequence[Form], loader: Any, progress: Callable[[str], None], shapes: list[tuple[int, ...]]
) -> None:
    """Run all forms on all images; add to ``shapes`` the size of each image that all forms have finished.

    Each form runs on the first image once more before, since a first run also prepares what all later ones use.
    """
    for number, batch in enumerate(loader):
        if number == 0:
            for form in forms:
                form.test_step(copy.deepcopy(batch))
        samples, seconds = [], []
        for form in forms:
            own = copy.deepcopy(batch)
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


def _images(shapes: Sequence[tuple[int, ...]]) -> str:
    """Return how many images there are, and their smallest and largest size."""
    by_area = sorted(shapes, key=np.prod)
    smallest, largest = ('x'.join(map(str, shape)) for shape in (by_area[0], by_area[-1]))
    return f'{len(shapes)} images, {smallest} to {largest}'


def _loader(config: Config, limit: int | None) -> Any:
    settings = dict(config.test_dataloader, batch_size=1, num_workers=0, persistent_workers=False)
    if limit is not None:
        settings['dataset'] = dict(settings['dataset'], indices=limit)
    return Runner.build_dataloader(settings)


def _evaluator(config: Config, loader: Any) -> Evaluator:
    evaluator = Evaluator(config.test_evaluator)
    evaluator.dataset_meta = loader.dataset.metainfo
    return evaluator


def comparison_table(record: Mapping[str, Any]) -> str:
    """Return a record as a Markdown table with a row for each form."""
    plain = record['forms'][0]
    kinds = [kind for kind in ('bbox', 'segm') if f'coco/{kind}_mAP' in plain['scores']]
    names = dict(bbox='box', segm='mask')
    header = ['form', 'detections', 'missing, further', 'box, px', 'score']
    header += ['mask pixels', 'of objects', 'worst mask'] if 'segm' in kinds else []
    header += [f'{names[kind]} AP, AP50' for kind in kinds] + ['ms', 'times faster']
    rows = [header, ['---'] + ['---:'] * (len(header) - 1)]
    for form in record['forms']:
        cells = [form['name'], *_agreement_cells(form['agreement'], 'segm' in kinds)]
        for kind in kinds:
            cells.append(', '.join(f'{form["scores"][f"coco/{kind}_{name}"]:.3f}' for name in ('mAP', 'mAP_50')))
        rows.append([*cells, f'{form["median_ms"]:.0f}', f'{plain["median_ms"] / form["median_ms"]:.2f}'])
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def _agreement_cells(agreement: Mapping[str, Any] | None, masks: bool) -> list[str]:
    if agreement is None:
        return [''] * (7 if masks else 4)
    shares = [
        1 - agreement['mask_px'] / max(agreement['image_px'], 1),
        1 - agreement['mask_px'] / max(agreement['object_px'], 1),
        agreement['worst_mask'],
    ]
    return [
        str(agreement['detections']),
        f'{agreement["missing"]}, {agreement["further"]}',
        f'{agreement["box_px"]:.1g}',
        f'{agreement["score"]:.1g}',
        *(f'{100 * share:.4f} %' for share in shares if masks),
    ]


def comparison_block(record: Any) -> str:
    """Return a record as the documents show it: its command, its config, weights, machine and versions, its table."""
    settings = record['settings']
    options = ''.join(f', {key}={format_value(value)}' for key, value in settings['options'].items())
    subject = f'{settings["config"]}, {settings["weights"]}{options}; {conditions(record)}; {origin(record)}.'
    return f'```sh\n{record["command"]}\n```\n\n{subject}\n\n{comparison_table(record)}'
