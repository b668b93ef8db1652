"""Layer-wise learning rates for fine-tuning: the nearer to the image, the lower."""

from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from ..common.errors import UsageError
from ..registry import OPTIM_WRAPPER_CONSTRUCTORS, register


@register(OPTIM_WRAPPER_CONSTRUCTORS)
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Multiply the learning rate of the backbone's parameters by ``layer_decay_rate`` for every depth below the top.

    For fine-tuning: pretrained early layers are general and need small steps, while neck and heads are new and get the
    full rate. The backbone's ``get_layer_depth`` gives the depths. It works for detectors and classifiers, whereas
    mmdet's constructor knows two backbones by name, and mmpretrain's needs that method on the model.

    Parameters with equal settings share a group. The other options of ``paramwise_cfg`` are mmengine's:
    ``norm_decay_mult``, ``bias_decay_mult``, ``custom_keys``, ...

    Args:
        optim_wrapper_cfg: The optimizer wrapper's config; its optimizer needs a ``lr``.
        paramwise_cfg: ``layer_decay_rate`` in (0, 1], and mmengine's options.

    Raises:
        UsageError: If the rate or the ``lr`` is missing or out of range, or the backbone has no depths.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: Mapping[str, Any] | None = None) -> None:
        rate = (paramwise_cfg or {}).get('layer_decay_rate')
        if not isinstance(rate, int | float) or not 0 < rate <= 1:
            raise UsageError(
                f'optim_wrapper.paramwise_cfg.layer_decay_rate must be above 0 and at most 1, for instance 0.9, '
                f'but got {rate}'
            )
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        if self.base_lr is None:
            raise UsageError('layer-wise learning rates need optim_wrapper.optimizer.lr, and this config has none')
        self.layer_decay_rate = rate

    def add_params(
        self, params: list[dict], module: nn.Module, prefix: str = '', is_dcn_module: bool | None = None
    ) -> None:
        """Add the groups of ``module`` to ``params``; mmengine calls it for the model and then for every child."""
        super().add_params(params, module, prefix, is_dcn_module)
        if prefix == '':
            params[:] = merge_groups(self._decayed(params, module))

    def _decayed(self, groups: list[dict], model: nn.Module) -> list[dict]:
        backbones: dict[str, Any] = {
            f'{name}.': part for name, part in model.named_modules() if name and hasattr(part, 'get_layer_depth')
        }
        if not backbones:
            raise UsageError(
                f'LayerDecayOptimWrapperConstructor needs a backbone with get_layer_depth, as SHViT has, '
                f'but the {type(model).__name__} has none'
            )
        names = {parameter: name for name, parameter in model.named_parameters()}
        for group in groups:
            (parameter,) = group['params']
            group.setdefault('lr', self.base_lr)
            prefix = next((prefix for prefix in backbones if names[parameter].startswith(prefix)), None)
            if prefix is not None:
                depth, num_depths = backbones[prefix].get_layer_depth(names[parameter], prefix)
                group['lr'] *= self.layer_decay_rate ** (num_depths - 1 - depth)
        rates = [group['lr'] for group in groups]
        print_log(f'Layer-wise learning rates: from {min(rates):.3g} to {max(rates):.3g}', 'current')
        return groups


def merge_groups(groups: list[dict]) -> list[dict]:
    """Return the groups with those of equal settings merged: optimizers are faster with few groups."""
    merged: dict[str, dict] = {}
    for group in groups:
        settings = {key: value for key, value in group.items() if key != 'params'}
        found = merged.setdefault(repr(sorted(settings.items())), dict(settings, params=[]))
        found['params'] += group['params']
    return list(merged.values())
