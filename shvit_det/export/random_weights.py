"""Detectors with random weights that find something: to try an export before, or without, training."""

from contextlib import ExitStack
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

from ..checkpoint import load_checkpoint
from ..configuration.batches import synthetic_batch
from ..configuration.detection import Detection
from ..configuration.random_detector import build_random_detector

RANDOM = 'random'
"""Stands where the name of a checkpoint does."""

CLASSIFIERS = ('retina_cls', 'rpn_cls', 'fc_cls', 'conv_logits')
SPREAD = 2.0
SHAPE = (256, 320)


def load_detector(config: Config, source: str, checkpoint: str) -> Any:
    """Return the detector of a config, in eval mode.

    Args:
        config: The config, without pretrained weights.
        source: What the user named it by.
        checkpoint: A checkpoint, or ``RANDOM``.

    Raises:
        UsageError: If it cannot be built, or the checkpoint does not fit.
    """
    if checkpoint == RANDOM:
        return random_detector(config, source)
    detector: Any = Detection().build(config)
    load_checkpoint(detector, checkpoint)
    return detector.eval()


def random_detector(config: Config, source: str) -> Any:
    """Return a detector with random weights, the same ones each time, whose scores differ from place to place."""
    detector = build_random_detector(config, source).eval()
    spread_scores(detector)
    return detector


def spread_scores(detector: Any) -> None:
    """Scale the weights of classifiers until what they compute for an image of noise deviates by ``SPREAD``.

    The scores of fresh classifiers are nearly the same everywhere, so that rounding would decide what is found.
    """
    deviations: dict[nn.Module, list[float]] = {}

    def note(layer: nn.Module, inputs: Any, out: torch.Tensor) -> None:
        deviations.setdefault(layer, []).append(float(out.std()))

    layers = [module for name, module in detector.named_modules() if name.rsplit('.', 1)[-1] in CLASSIFIERS]
    with ExitStack() as stack, torch.no_grad():
        for layer in layers:
            stack.callback(layer.register_forward_hook(note).remove)
        detector.test_step(synthetic_batch(SHAPE, 1))
        for layer, found in deviations.items():
            if (deviation := max(found)) > 0:
                layer.weight.mul_(SPREAD / deviation)  # type: ignore[operator]
