"""SHViT as a backbone of multi-scale features."""

from collections.abc import Mapping, Sequence

from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # the base of BatchNorm1d to 3d and SyncBatchNorm; has no public name
from torch.utils.checkpoint import checkpoint

from ..common.errors import UsageError
from ..registry import MODELS, register
from .arch import Arch, make_arch
from .layers import Block, Downsample, PatchEmbed, Stage


@register(MODELS)
class SHViT(BaseModule):
    """Single-Head Vision Transformer (CVPR 2024, arXiv 2401.16456) without its classifier.

    The stem divides the resolution by 16 at once, so the features have strides 16, 32 and 64 and not the 4 to 32 of
    other backbones: a neck that needs finer levels has to make them (:class:`shvit_det.SHViTFPN`). The features are the
    raw residual stream; no norm follows the last block of a stage.

    State-dict keys are those of timm's port, so that published checkpoints load after a renaming at most.

    Shapes:
        (B, 3, H, W), any H and W -> a tuple of (B, out_channels[i], ceil(H / out_strides[i]),
        ceil(W / out_strides[i])).

    Args:
        arch: ``'s1'`` to ``'s4'``, or a dict with the fields of :class:`shvit_det.Arch`.
        out_indices: The stages whose outputs are returned, increasing. Stages above the last one are not built.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n stages. Frozen modules stay in eval
            mode whatever ``train()`` says.
        norm_eval: Keep the statistics of every BatchNorm fixed while training (the affine parameters still train), as
            the authors did for detection.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0 at the first.
        with_cp: Recompute each stage in the backward pass, to save memory for time. BatchNorm statistics that are not
            fixed are then updated twice a step.
        init_cfg: mmengine's weight initialisation, ``dict(type='SHViTPretrained', checkpoint=...)`` for instance.

    Raises:
        UsageError: If an argument is out of range, or an input has not three channels.
    """

    def __init__(
        self,
        arch: str | Mapping | Arch = 's4',
        out_indices: Sequence[int] = (0, 1, 2),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.arch = make_arch(arch)
        self.out_indices = check_out_indices(out_indices, self.arch.num_stages)
        num_stages = self.out_indices[-1] + 1
        if frozen_stages not in range(-1, num_stages + 1):
            raise UsageError(
                f'frozen_stages must be between -1 (nothing) and {num_stages} (all that is built), '
                f'but got {frozen_stages}'
            )
        if not 0 <= drop_path_rate < 1:
            raise UsageError(f'drop_path_rate must be in [0, 1), but got {drop_path_rate}')
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp
        self.out_channels = tuple(self.arch.embed_dims[i] for i in self.out_indices)
        self.out_strides = tuple(16 * 2**i for i in self.out_indices)

        self.patch_embed = PatchEmbed(self.arch.embed_dims[0])
        self.stages = nn.ModuleList(make_stages(self.arch, drop_path_rate)[:num_stages])
        self._freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.patch_embed(x)
        outs = []
        for index, stage in enumerate(self.stages):
            x = checkpoint(stage, x, use_reentrant=False) if self.with_cp and self.training else stage(x)
            if index in self.out_indices:
                outs.append(x)
        return tuple(outs)

    def train(self, mode: bool = True) -> 'SHViT':
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Return the depth of a parameter and the number of depths, for layer-wise learning rates.

        The stem is 0, every block and every downsampling is a depth of its own, and the last one is for the parts
        after the backbone, where ``param_name`` does not start with ``prefix``.

        Args:
            param_name: The name of the parameter in the whole model.
            prefix: What the names of the backbone's parameters start with, ``'backbone.'`` in a detector.
        """
        layers = ['patch_embed.']
        for index in range(len(self.stages)):
            layers += [f'stages.{index}.downsample.'] if index else []
            layers += [f'stages.{index}.blocks.{block}.' for block in range(self.arch.depths[index])]
        if param_name.startswith(prefix):
            for depth, layer in enumerate(layers):
                if param_name.startswith(prefix + layer):
                    return depth, len(layers) + 1
        return len(layers), len(layers) + 1

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        for module in (self.patch_embed, *self.stages[: self.frozen_stages]):
            module.eval()
            module.requires_grad_(False)


def check_out_indices(out_indices: Sequence[int], num_stages: int) -> tuple[int, ...]:
    """Return the indices as a tuple, or raise ``UsageError`` if they do not name stages in increasing order."""
    indices = tuple(out_indices) if isinstance(out_indices, Sequence) else (out_indices,)
    if not indices or any(index not in range(num_stages) for index in indices) or list(indices) != sorted(set(indices)):
        raise UsageError(
            f'out_indices must be increasing numbers from 0 to {num_stages - 1}, one for each stage to return, '
            f'but got {out_indices}'
        )
    return indices


def make_stages(arch: Arch, drop_path_rate: float) -> list[Stage]:
    """Return all stages of ``arch``, the drop-path rate growing linearly over their blocks."""
    num_blocks = sum(arch.depths)
    rates = [drop_path_rate * block / max(1, num_blocks - 1) for block in range(num_blocks)]
    stages = []
    for index, channels in enumerate(arch.embed_dims):
        stage_rates = [rates.pop(0) for _ in range(arch.depths[index])]
        downsample = Downsample(arch.embed_dims[index - 1], channels, stage_rates[0]) if index else nn.Identity()
        blocks = [
            Block(channels, arch.block_kinds[index], arch.attn_dims[index], arch.query_key_dim, rate)
            for rate in stage_rates
        ]
        stages.append(Stage(downsample, blocks))
    return stages
