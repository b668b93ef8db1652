"""What mmpretrain needs to train and test the same network on ImageNet: the head of the published classifiers."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..common.errors import UsageError
from .mmpretrain_import import require_mmpretrain

require_mmpretrain()

from mmpretrain.models.heads import ClsHead  # noqa: E402  (mmpretrain is optional, the line above says so kindly)


class SHViTHead(ClsHead):
    """Global average pooling, BatchNorm and a linear layer, as in the published ImageNet checkpoints.

    ``registry.py`` registers it by name, so that mmpretrain is imported only where a head is built.

    Loss, predictions and data samples are those of mmpretrain's ``ClsHead``. The names ``bn`` and ``l`` are the
    published state-dict keys.

    Shapes:
        A tuple whose last feature is (B, in_channels, H, W) -> (B, num_classes).

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the last feature, ``backbone.out_channels[-1]``.
        distillation: Add the second classifier of networks that learnt from a teacher; the output is the mean of both.
            There is no teacher here: training fits that mean to the labels.
        init_cfg: mmengine's weight initialisation; by default the authors', linear layers with a deviation of 0.02.
        **kwargs: The other arguments of ``ClsHead``: ``loss``, ``topk``, ``cal_acc``.

    Raises:
        UsageError: If a number is not positive.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        distillation: bool = False,
        init_cfg: Mapping | list[Mapping] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(init_cfg=init_cfg or dict(type='TruncNormal', layer='Linear', std=0.02), **kwargs)
        for name, value in (('num_classes', num_classes), ('in_channels', in_channels)):
            if value < 1:
                raise UsageError(f'{name} of SHViTHead must be positive, but got {value}')
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.distillation = distillation
        self.bn = nn.BatchNorm1d(in_channels)
        self.l = nn.Linear(in_channels, num_classes)
        if distillation:
            self.distillation_bn = nn.BatchNorm1d(in_channels)
            self.distillation_l = nn.Linear(in_channels, num_classes)

    def pre_logits(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Return the pooled last feature, (B, in_channels)."""
        return feats[-1].mean((2, 3))

    def forward(self, feats: tuple[Tensor, ...]) -> Tensor:
        pooled = self.pre_logits(feats)
        logits = self.l(self.bn(pooled))
        if self.distillation:
            logits = (logits + self.distillation_l(self.distillation_bn(pooled))) / 2
        return logits
