"""Test-time augmentation, ``--tta``: an image is predicted in several views, and the results are merged.

As in mmdet, ``tta_pipeline`` of a config makes the views and ``tta_model`` merges them. A config without these has two
views, the image as its test pipeline makes it and the same flipped.
"""

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS
from torch import nn

from ..common.errors import UsageError
from .build_errors import build_from_config
from .reading import dataset_places, inference_pipeline, type_of

FLIPS = (dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0))
FLIP_KEYS = ('flip', 'flip_direction')  # by which boxes and masks are turned back
SUPPRESSION: dict[str, Any] = dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)


def tta_pipeline(config: Config) -> list[Mapping[str, Any]]:
    """Return the steps that make the views of an image."""
    if config.get('tta_pipeline'):
        return list(config.tta_pipeline)
    *steps, last = inference_pipeline(config)
    if type_of(last) != 'PackDetInputs':
        raise UsageError(
            f'--tta adds a flip to a test pipeline that ends in PackDetInputs, and this one ends in {type_of(last)}: '
            f'write tta_pipeline=[...] into the config'
        )
    if 'meta_keys' in last:
        last = {**last, 'meta_keys': tuple(dict.fromkeys((*last['meta_keys'], *FLIP_KEYS)))}
    kinds = [type_of(step) for step in steps]
    place = kinds.index('Pad') if 'Pad' in kinds else len(steps)  # on what is padded, a flip would move the image
    views = dict(type='TestTimeAug', transforms=[list(FLIPS), *([step] for step in (*steps[place:], last))])
    return [*steps[:place], views]


def set_tta_pipeline(config: Config) -> None:
    """Make the test data sets give the views of each image."""
    pipeline = tta_pipeline(config)
    for _, dataset in dataset_places(config, 'test'):
        dataset['pipeline'] = pipeline


def with_tta(config: Config, model: nn.Module) -> nn.Module:
    """Return a model that predicts the views of images and merges what a detector finds in them.

    ``tta_model`` of the config says how; without it, boxes are suppressed as in the detector.
    """
    settings = {'type': 'DetTTAModel', **(config.get('tta_model') or {})}
    if not settings.get('tta_cfg'):
        settings['tta_cfg'] = ConfigDict({**SUPPRESSION, **suppression_of(model)})
    if type_of(settings) == 'DetTTAModel':
        settings['type'] = 'shvit_det.MaskTTAModel'
    beginning = 'cannot build tta_model of this config: '
    built: nn.Module = build_from_config(MODELS, {**settings, 'module': model}, config, 'tta_model', 'mmdet', beginning)
    return built.eval()


def suppression_of(model: Any) -> dict[str, Any]:
    """Return how a detector suppresses boxes, as far as its ``test_cfg`` says it."""
    settings = getattr(model, 'test_cfg', None) or {}
    settings = settings.get('rcnn') or settings
    return {key: settings[key] for key in SUPPRESSION if settings.get(key)}
