"""The detector to export: with a checkpoint's weights, or with random ones that find something, to try an export."""

from contextlib import ExitStack
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

from ..checkpoint import check_checkpoint, load_content
from ..configuration.batches import synthetic_batch
from ..configuration.changing import remove_pretrained
from ..configuration.detection import Detection, predicting_part
from ..configuration.random_detector import build_random_detector
from ..configuration.reading import SPLITS
from .supported_detectors import check_exportable

RANDOM = 'random'
"""What a user gives in place of a checkpoint for random weights."""

CLASSIFIERS = ('retina_cls', 'rpn_cls', 'fc_cls', 'conv_logits')
DEVIATION = 2.0
SHAPE = (256, 320)


def detector_with_weights(config: Config, source: str, checkpoint: str) -> Any:
    """Return the detector of a config, in eval mode, with the weights of a checkpoint or ``RANDOM`` ones.

    Of a semi-supervised detector it is the part that predicts. Pretrained weights are taken out of the config.

    Raises:
        UsageError: If it cannot be built, which names ``source``, or cannot be exported, or the checkpoint does not fit
            or has other classes.
    """
    if checkpoint == RANDOM:
        detector = predicting_part(build_random_detector(config, source)).eval()
        check_exportable(detector)
        spread_scores(detector)
        return detector
    task = Detection()
    remove_pretrained(config)
    whole = task.build(config)
    detector = predicting_part(whole).eval()
    check_exportable(detector)
    content = check_checkpoint(whole, checkpoint)
    task.check_checkpoint_classes(config, content, checkpoint, SPLITS)  # whose names go into the file
    load_content(whole, content, checkpoint)
    return detector


def spread_scores(detector: Any) -> None:
    """Scale the weights of classifiers until their outputs for an image of noise have the deviation ``DEVIATION``.

    The scores of fresh classifiers are nearly the same everywhere, so that rounding would decide what is found.
    """
    deviations: dict[nn.Module, list[float]] = {}

    def note(layer: nn.Module, inputs: Any, out: torch.Tensor) -> None:
        deviations.setdefault(layer, []).append(float(out.std()))

    layers = [module for name, module in detector.named_modules() if name.rsplit('.', 1)[-1] in CLASSIFIERS]
    with ExitStack() as stack, torch.no_grad():
        for layer in layers:
            stack.callback(layer.register_forward_hook(note).remove)
        detector.test_step(synthetic_batch(SHAPE, size=1))
        for layer, found in deviations.items():
            if (deviation := max(found)) > 0:
                layer.weight.mul_(DEVIATION / deviation)  # type: ignore[operator]
