"""Detections in images and videos: from a checkpoint to drawn pictures and a file in COCO's format."""

from .predictor import Predictor

__all__ = ['Predictor']
