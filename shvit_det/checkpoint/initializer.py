"""``SHViTPretrained``: the weights of a checkpoint as mmengine's initialisation of a backbone."""

from mmengine.model import update_init_info
from torch import nn

from ..registry import WEIGHT_INITIALIZERS, register
from .loading import load_checkpoint


@register(WEIGHT_INITIALIZERS)
class SHViTPretrained:
    """``init_cfg=dict(type='SHViTPretrained', checkpoint=PATH_OR_URL)`` of the backbone: all its weights or an error.

    Args:
        checkpoint: Any file or URL that :func:`shvit_det.load_checkpoint` takes; of a detector or a classifier, the
            backbone is used.
        sha256: The hash that the file must have, in full or its first digits.
        strict: False loads what fits and logs the rest.
    """

    def __init__(self, checkpoint: str, sha256: str | None = None, strict: bool = True) -> None:
        self.checkpoint = checkpoint
        self.sha256 = sha256
        self.strict = strict

    def __call__(self, module: nn.Module) -> None:
        load_checkpoint(module, self.checkpoint, strict=self.strict, sha256=self.sha256)
        if hasattr(module, '_params_init_info'):  # absent where the initialiser is called by itself
            update_init_info(module, init_info=f'loaded from {self.checkpoint}')
