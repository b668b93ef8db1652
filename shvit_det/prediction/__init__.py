"""From a checkpoint to what it finds in pictures and videos."""

from .predictor import Predictor

__all__ = ['Predictor']
