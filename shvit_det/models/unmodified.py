"""Whether a module computes nothing but what its class does, so that an equal formula may replace a call of it.

A formula in place of a call skips whatever a user has added to the call: hooks, and with them pruning, spectral norm
and quantisation; parametrisations, adapters, a method replaced on the instance. Code that leaves out a call asks first.
"""

from torch import Tensor, nn
from torch.nn.modules import module as torch_module  # the hooks for all modules are there; they have no public names

CALLED_METHODS = ('forward', '_conv_forward', '_output_padding', '_check_input_dim', '_call_impl')
ORDINARY_TENSORS = (nn.Parameter, Tensor, type(None))  # those of other classes may redefine operations


def has_any_global_hook() -> bool:
    """Return whether hooks for all modules are registered."""
    return bool(
        torch_module._global_forward_pre_hooks
        or torch_module._global_forward_hooks
        or torch_module._global_backward_pre_hooks
        or torch_module._global_backward_hooks
    )


def is_unmodified(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Return whether a call of ``module`` is no more and no less than the ``forward`` of one of these classes.

    True for a module that is of exactly one of the classes, without hooks of its own or for all modules, without
    methods replaced on the instance, and with parameters and buffers that are ordinary tensors. Children are not looked
    at. It is cheap enough to be asked at each call.
    """
    return (
        type(module) in kinds
        and not (
            module._forward_pre_hooks
            or module._forward_hooks
            or module._backward_pre_hooks
            or module._backward_hooks
            or has_any_global_hook()
        )
        and not any(name in module.__dict__ for name in CALLED_METHODS)
        and all(type(tensor) in ORDINARY_TENSORS for tensor in module._parameters.values())
        and all(type(tensor) in ORDINARY_TENSORS for tensor in module._buffers.values())
    )
