"""The detector to export: with a checkpoint's weights, or with random ones that find something, to try an export."""

from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from torch import nn

from ..checkpoint import check_checkpoint, load_content
from ..configuration.detection import Detection
from ..configuration.random_detector import build_random_detector
from ..configuration.reading import SPLITS

RANDOM = 'random'
"""What a user gives in place of a checkpoint for random weights."""

CLASSIFIERS = ('retina_cls', 'rpn_cls', 'fc_cls', 'conv_logits')
DEVIATION = 2.0
SHAPE = (256, 320)


def detector_with_weights(config: Config, source: str, checkpoint: str) -> Any:
    """Return the detector of a config, in eval mode.

    Args:
        config: The config, without pretrained weights.
        source: What the user called it, for errors.
        checkpoint: A checkpoint, or ``RANDOM``.

    Raises:
        UsageError: If it cannot be built, or the checkpoint does not fit or has other classes.
    """
    if checkpoint == RANDOM:
        detector = build_random_detector(config, source).eval()
        spread_scores(detector)
        return detector
    task = Detection()
    detector = task.build(config)
    content = check_checkpoint(detector, checkpoint)
    task.check_checkpoint_classes(config, content, checkpoint, SPLITS)  # whose names go into the file
    load_content(detector, content, checkpoint)
    return detector.eval()


def spread_scores(detector: Any) -> None:
    """Scale the weights of classifiers until their outputs for an image of noise have the deviation ``DEVIATION``.

    The scores of fresh classifiers are nearly the same everywhere, so that rounding would decide what is found.
    """
    deviations: dict[nn.Module, list[float]] = {}

    def note(layer: nn.Module, inputs: Any, out: torch.Tensor) -> None:
        deviations.setdefault(layer, []).append(float(out.std()))

    layers = [module for name, module in detector.named_modules() if name.rsplit('.', 1)[-1] in CLASSIFIERS]
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, *SHAPE), dtype=np.uint8))
    sample = DetDataSample(metainfo=dict(img_shape=SHAPE, ori_shape=SHAPE, scale_factor=(1.0, 1.0)))
    with ExitStack() as stack, torch.no_grad():
        for layer in layers:
            stack.callback(layer.register_forward_hook(note).remove)
        detector.test_step(dict(inputs=[noise], data_samples=[sample]))
        for layer, found in deviations.items():
            if (deviation := max(found)) > 0:
                layer.weight.mul_(DEVIATION / deviation)  # type: ignore[operator]
