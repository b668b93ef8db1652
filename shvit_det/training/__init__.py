"""Training: the runner and its loop, the optimizer wrappers, and the run behind tools/train.py; hooks have a folder.

Importing this package registers every class of it that a config can name.
"""

from .hooks.adaptive_clipping import AdaptiveGradientClippingHook
from .hooks.early_stopping import ResumableEarlyStoppingHook
from .hooks.finite_check import FiniteCheckHook
from .hooks.run_summary import RunSummaryHook
from .hooks.safe_checkpoint import SafeCheckpointHook
from .hooks.step_seed import StepSeedHook
from .hooks.termination import TerminationHook
from .hooks.validation_loss import ValidationLossHook
from .layer_decay import LayerDecayOptimWrapperConstructor
from .loop import ResumableEpochLoop
from .mixed_precision import BFloat16OptimWrapper, LossScaleOptimWrapper
from .runner import SHViTRunner

__all__ = [
    'AdaptiveGradientClippingHook',
    'BFloat16OptimWrapper',
    'FiniteCheckHook',
    'LayerDecayOptimWrapperConstructor',
    'LossScaleOptimWrapper',
    'ResumableEarlyStoppingHook',
    'ResumableEpochLoop',
    'RunSummaryHook',
    'SHViTRunner',
    'SafeCheckpointHook',
    'StepSeedHook',
    'TerminationHook',
    'ValidationLossHook',
]
