"""BatchNorms folded into the layers before them: of one layer, or of all in a model.

Neither names nor the order of a model's children say what follows what, so the model is run on an example and watched:
a norm can be folded into a layer if its only inputs are that layer's outputs and nothing else uses those outputs,
however often the two are called. Each fold is then checked in float64, since a subclass may compute something else.
"""

import copy
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Size, Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # the base of BatchNorm1d to 3d and SyncBatchNorm; has no public name
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd  # the bases of all convolutions; neither has a public name
from torch.utils._python_dispatch import TorchDispatchMode  # the base of FlopCounterMode; has no public name
from torch.utils._pytree import tree_leaves  # which knows tuples; has no public name
from torch.utils.weak import WeakTensorKeyDictionary

FoldableLayer = _ConvNd | nn.Linear

TOLERANCE = 1e-3  # between the outputs of both models, relative to the largest; rounding reaches 1e-4 in deep ones
PROOF_TOLERANCE = 1e-10  # between a folded layer and layer and norm, in float64
PROOF_EXTENT = 8  # pixels on a side of the input for that, unless the kernel is larger


def folded_weights(layer: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a layer that computes what the layer and the BatchNorm in eval mode after it do.

    The layer is a convolution, transposed convolution or linear layer. Gradients reach the parameters of both.
    """
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = norm.weight * scale
    bias = -norm.running_mean * scale
    if norm.bias is not None:
        bias = norm.bias + bias
    if layer.bias is not None:
        bias = bias + layer.bias * scale
    weight = layer.weight
    if isinstance(layer, _ConvTransposeNd):  # (in, out / groups, ...), groups one after the other
        scales = scale.view(layer.groups, 1, -1, *[1] * (weight.dim() - 2))
        return (weight.unflatten(0, (layer.groups, -1)) * scales).flatten(0, 1), bias
    return weight * scale.view(-1, *[1] * (weight.dim() - 1)), bias


def fold_batch_norms(model: nn.Module, *example_inputs: Any) -> tuple[nn.Module, int]:
    """Return a copy of a model with BatchNorms folded into the layers before them, and how many were folded.

    The layers are convolutions, transposed convolutions and linear ones. An activation inside a norm (timm's
    ``BatchNormAct2d``) stays in its place. Norms in training mode or without running statistics stay, and so do those
    that the example does not reach, and layers and norms whose parameters are used elsewhere. The model itself is
    neither run nor changed.

    The copy is for inference. Fold in float32 or float64 and on the CPU, then cast and move it: half precision and TF32
    round more coarsely than the closing comparison allows.

    Args:
        model: A model in eval mode. It must not select by scores, as a detector does: rounding can change which of two
            nearly equal scores is higher, and then all later outputs differ.
        example_inputs: What to call the model with.

    Raises:
        ValueError: If the model is in training mode.
        RuntimeError: If the outputs of the copy on the example are not those of the model, or hold no tensors.
    """
    if model.training:
        raise ValueError('only a model in eval mode can be folded: call eval() first')

    def outputs(subject: nn.Module) -> list[Tensor]:
        return _tensors(subject(*copy.deepcopy(example_inputs)))

    folded = copy.deepcopy(model)
    watched = copy.deepcopy(model)  # a run may change buffers, so only copies run
    twins: dict[nn.Module, Any] = dict(zip(watched.modules(), folded.modules(), strict=True))
    replacements = {}
    with torch.no_grad():
        with _Watch(watched) as watch:
            expected = outputs(watched)
        for watched_layer, watched_norm in watch.pairs(expected):
            layer, norm = twins[watched_layer], twins[watched_norm]
            if _fold(layer, norm, watch.input_sizes[watched_layer]):
                replacements[norm] = _without_norm(norm)
        for name, module in list(folded.named_modules(remove_duplicate=False)):
            if module in replacements:
                folded.set_submodule(name, replacements[module])
        found = outputs(copy.deepcopy(folded))
    if not expected:
        raise RuntimeError('the folded model cannot be checked: its outputs on the example hold no tensors')
    if len(found) != len(expected) or not all(map(_agree, expected, found)):
        raise RuntimeError(
            f'folding {len(replacements)} BatchNorms changed an output on the example by more than {TOLERANCE} of its '
            f'largest magnitude: something in this model uses them in a way that could not be seen'
        )
    return folded, len(replacements)


class _Watch(TorchDispatchMode):
    """Records which norms and layers use the outputs and parameters of which layers, while a model runs under it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.input_sizes: dict[nn.Module, Size] = {}  # of layers
        self._running: list[nn.Module] = []
        self._makers = WeakTensorKeyDictionary()  # output -> the layer that computed it
        self._owners: dict[int, set[nn.Module]] = defaultdict(set)  # id of a parameter or buffer -> layers and norms
        self._sources: dict[_BatchNorm, set[Any]] = defaultdict(set)  # norm -> the makers of its inputs
        self._users: dict[nn.Module, set[nn.Module | None]] = defaultdict(set)  # whose outputs or parameters -> by whom
        for module in model.modules():
            if isinstance(module, FoldableLayer | _BatchNorm):
                module.register_forward_pre_hook(self._enter, with_kwargs=True)
                module.register_forward_hook(self._leave, prepend=True)  # before other hooks get to use the output
                for tensor in chain(module.parameters(recurse=False), module.buffers(recurse=False)):
                    self._owners[id(tensor)].add(module)

    def pairs(self, outputs: list[Tensor]) -> Iterator[tuple[FoldableLayer, _BatchNorm]]:
        """Yield each layer and norm that nothing else uses; ``outputs`` are those of the model."""
        for output in outputs:
            self._note_use(output, None)
        for norm, sources in self._sources.items():
            (layer, *others) = sources
            if layer is not None and not others and self._users[layer] == {norm} and not self._users[norm]:
                yield layer, norm

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        user = self._running[-1] if self._running else None
        for tensor in _tensors([args, kwargs]):
            self._note_use(tensor, user)
        return func(*args, **(kwargs or {}))

    def _note_use(self, tensor: Tensor, user: nn.Module | None) -> None:
        maker = self._makers.get(tensor)
        if maker is not None:
            self._users[maker].add(user)
        for owner in self._owners.get(id(tensor), set()) - {user}:
            self._users[owner].add(None)

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._running.append(module)
        taken = _tensors([args, kwargs])[0]
        if isinstance(module, _BatchNorm):
            self._sources[module].add(self._makers.get(taken))
        else:
            self.input_sizes[module] = taken.shape

    def _leave(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        self._running.pop()
        if isinstance(module, FoldableLayer):
            self._makers[output] = module


def _fold(layer: FoldableLayer, norm: _BatchNorm, input_size: Size) -> bool:
    """Fold a norm into the weights of a layer if that is exact; return whether it was."""
    if norm.training or norm.running_mean is None or not isinstance(layer.weight, nn.Parameter):
        return False  # a weight that is no parameter is computed from others (weight norm)
    if len(input_size) != layer.weight.dim():
        return False  # the norm's channels are dim 1, the layer's are only with one batch dimension and no other before
    separate, separate_norm = copy.deepcopy(layer).double(), copy.deepcopy(norm).double()
    fused = copy.deepcopy(separate)
    fused.weight, fused.bias = map(nn.Parameter, folded_weights(separate, separate_norm))
    example = torch.randn(_proof_size(layer, input_size), generator=torch.Generator().manual_seed(0)).to(fused.weight)
    # forward() and not a call, which would run the hooks that the modules may have
    wanted = separate_norm.forward(separate.forward(example))
    if not _agree(wanted, _without_norm(separate_norm)(fused.forward(example)), PROOF_TOLERANCE):
        return False
    layer.weight, layer.bias = (nn.Parameter(p.to(layer.weight.dtype), False) for p in (fused.weight, fused.bias))
    return True


def _proof_size(layer: FoldableLayer, input_size: Size) -> list[int]:
    """Return the size of a small input that the layer takes, on which a fold shows itself as well as on a large one."""
    if isinstance(layer, nn.Linear):
        return list(input_size)
    extents = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    sizes = [min(n, max(e, PROOF_EXTENT)) for n, e in zip(input_size[2:], extents, strict=True)]
    return [1, input_size[1], *sizes]


def _without_norm(norm: _BatchNorm) -> nn.Module:
    """Return what is left of a norm when it is folded: the activation that it may hold."""
    children = [child for child in norm.children() if not isinstance(child, nn.Identity)]
    if len(children) > 1:
        return nn.Sequential(*children).eval()
    return children[0] if children else nn.Identity().eval()


def _agree(expected: Tensor, found: Tensor, tolerance: float = TOLERANCE) -> bool:
    if expected.shape != found.shape or not expected.numel():
        return expected.shape == found.shape
    expected, found = expected.double(), found.double()
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def _tensors(value: Any) -> list[Tensor]:
    """Return the tensors in nested sequences and mappings."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
