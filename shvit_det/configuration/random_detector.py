"""Detectors with random weights, for whatever needs a model but no training: timing, and exports made on trial."""

import logging
from typing import Any

import torch
from mmdet.models.detectors import BaseDetector
from mmengine.config import Config
from mmengine.logging import MMLogger

from ..common.errors import UsageError
from ..models.zero_init import undo_zero_init
from .changing import remove_pretrained
from .detection import Detection
from .detector_or_classifier import task_of


def build_random_detector(config: Config, source: str) -> Any:
    """Build the detector of a config with random weights, the same ones each time; nothing is downloaded.

    Pretrained weights are taken out of the config. ``source`` is what the user named it by.
    """
    if 'model' not in config:
        raise UsageError(f'{source} has no model: this times detectors of mmdet')
    if not isinstance(task_of(config), Detection):
        raise UsageError(f'{source} has a classifier, no detector: for its backbone alone name shvit:s1 to shvit:s4')
    remove_pretrained(config, teachers=True)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)
        detector = Detection().build(config)
        if not isinstance(detector, BaseDetector):
            raise UsageError(f'{source} has a {type(detector).__name__}, which is no detector of mmdet')
        logger = MMLogger.get_current_instance()
        level = logger.level
        logger.setLevel(logging.WARNING)  # else mmengine logs a line for every parameter that it initializes
        try:
            detector.init_weights()
        finally:
            logger.setLevel(level)
    undo_zero_init(detector)
    return detector
