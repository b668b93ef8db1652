"""The kernels as functions of tensors."""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .execution_plan import PlannedMap
from .interface import Level, Step, StepKind
from .memory import new_map, take
from .packed_weights import PackedWeights

TYPES = (torch.float32, torch.bfloat16)
NO_MEMORY = 'not enough memory for the kernels'
WINOGRAD_MEMORY = 14 << 20  # bytes for what a transposed convolution computes at once
# Instruction sets without products of bfloat16, where such numbers are made float32 in the innermost loop: avx2 was
# measured 1.2 times slower than float32, neon never. With the registers of avx512 it is as fast.
SLOW_BFLOAT16 = ('avx2', 'neon')
FEW_CHANNELS = 4  # of an image, which a kernel brings into NHWC: torch takes longer


class Kernels:
    """What a library computes, on as many threads as torch has.

    Inputs are (B, C, H, W), brought into NHWC if they lie otherwise, in one of :attr:`dtypes`; so are the results.
    Given a :class:`PlannedMap` input, a function computes nothing, but adds itself to the plan and returns the planned
    result.

    Attributes:
        instruction_set: Which of those in building.py the library is compiled for.
        sources: What tells one version of its sources from another.
        panel: The width of a panel of packed weights, in output channels.
        dtypes: The data types of its inputs.
        fast_dtypes: Those that take no longer than float32.
    """

    def __init__(self, library: ctypes.CDLL, instruction_set: str) -> None:
        integer, size, pointer = ctypes.c_int, ctypes.c_ssize_t, ctypes.c_void_p
        levels = ctypes.POINTER(Level), size, pointer
        library.shvit_sources.restype = ctypes.c_char_p
        library.shvit_run.argtypes = [ctypes.POINTER(Step), size, pointer, integer]
        library.shvit_roi_align.argtypes = [integer, *levels, pointer, *[size] * 5, integer, integer, pointer, integer]
        library.shvit_paste_masks.argtypes = (pointer, pointer, *[size] * 5, ctypes.c_float, pointer, integer)
        self._library = library
        self.instruction_set = instruction_set
        self.sources = library.shvit_sources().decode()
        self.panel = library.shvit_panel()
        self.dtypes = TYPES
        self.fast_dtypes = TYPES[:1] if instruction_set in SLOW_BFLOAT16 else TYPES

    def run(self, steps: Any, count: int, addresses: Sequence[int | None]) -> None:
        """Compute a step, or an array of ``count`` one after the other, on maps at these addresses."""
        maps = (ctypes.c_void_p * len(addresses))(*addresses)
        if self._library.shvit_run(steps, count, maps, torch.get_num_threads()):
            raise MemoryError(NO_MEMORY)

    def convolve(self, x: Tensor, layer: PackedWeights, kernel: int, stride: int, padding: int, relu: bool) -> Tensor:
        """Convolve, with a bias and maybe a ReLU."""
        if x.dtype is torch.bfloat16 and x.shape[1] % 2:
            x = self._interleave(x, x.shape[1] + 1)
        size = [(side + 2 * padding - kernel) // stride + 1 for side in x.shape[2:]]
        fields = dict(kernel=kernel, stride=stride, padding=padding, relu=relu)
        return self._compute(StepKind.CONVOLVE, x, (layer.out_channels, *size), (layer,), **fields)

    def transposed(self, x: Tensor, layer: PackedWeights, kernel: int, stride: int, padding: int, relu: bool) -> Tensor:
        """Apply a transposed convolution with a bias and maybe a ReLU; ``padding`` is cropped on each side."""
        fields = dict(kernel=kernel, stride=stride, padding=padding, relu=relu)
        return self._compute(StepKind.TRANSPOSED, x, _enlarged(x, layer, fields), (layer,), **fields)

    def transposed_winograd(
        self, x: Tensor, layer: PackedWeights, kernel: int, stride: int, padding: int, relu: bool
    ) -> Tensor:
        """Do as :meth:`transposed` does, with one or two taps for each result along an axis; float32 in between."""
        fields = dict(kernel=kernel, stride=stride, padding=padding, relu=relu, own=3, own_bytes=WINOGRAD_MEMORY)
        return self._compute(StepKind.TRANSPOSED_WINOGRAD, x, _enlarged(x, layer, fields), (layer,), **fields)

    def linear(self, x: Tensor, layer: PackedWeights, relu: bool, residual: Tensor | None = None) -> Tensor:
        """Apply a linear layer to the channels, and add ``residual`` if given."""
        out = layer.out_channels, *x.shape[2:]
        return self._compute(StepKind.LINEAR, x, out, (layer,), residual, relu=relu)

    def feed_forward(self, x: Tensor, expand: PackedWeights, reduce: PackedWeights) -> Tensor:
        """Return ``x + reduce(relu(expand(x)))``, both linear layers of the channels."""
        return self._compute(StepKind.FEED_FORWARD, x, x.shape[1:], (expand, reduce), hidden=expand.out_channels)

    def attention(
        self,
        x: Tensor,
        norm: PackedWeights,
        epsilon: float,
        project_in: PackedWeights,
        project_out: PackedWeights,
        query: int,
    ) -> Tensor:
        """Attend as ``deployment.layers.FusedAttention`` does, with ``query`` channels in a query and in a key."""
        fields = dict(epsilon=epsilon, hidden=norm.out_channels, query=query)
        return self._compute(StepKind.ATTENTION, x, x.shape[1:], (norm, project_in, project_out), **fields)

    def depthwise(self, x: Tensor, layer: PackedWeights, stride: int, relu: bool) -> Tensor:
        """Convolve each channel with its own 3x3 kernel, padding 1 and stride 1 or 2."""
        size = [(side - 1) // stride + 1 for side in x.shape[2:]]
        return self._compute(StepKind.DEPTHWISE, x, (x.shape[1], *size), (layer,), stride=stride, relu=relu)

    def winograd(self, x: Tensor, layer: PackedWeights, relu: bool) -> Tensor:
        """Convolve with kernel 3, stride 1 and padding 1; what is between input and result is float32."""
        return self._compute(StepKind.WINOGRAD, x, (layer.out_channels, *x.shape[2:]), (layer,), relu=relu)

    def squeeze_excite(self, x: Tensor, reduce: PackedWeights, expand: PackedWeights) -> Tensor:
        """Return ``x * sigmoid(expand(relu(reduce(mean of x))))``."""
        return self._compute(StepKind.SQUEEZE_EXCITE, x, x.shape[1:], (reduce, expand), hidden=reduce.out_channels)

    def roi_align(
        self,
        features: Sequence[Tensor],
        rois: Tensor,
        levels: Tensor,
        scales: Sequence[float],
        output_size: tuple[int, int],
        sampling_ratio: int,
        aligned: bool,
        planar: bool = False,
    ) -> Tensor:
        """Return what ``torchvision.ops.roi_align`` does, of regions on several levels; ``planar`` ones lie as NCHW.

        Shapes:
            features (B, C, H, W) of each level, rois (K, 5) in float32, levels (K,), which each region is on
            -> (K, C, *output_size).
        """
        features = [in_nhwc(feature) for feature in features]
        first, rois = features[0], rois.contiguous()
        levels = levels.long().clamp(0, len(features) - 1).contiguous()  # those of NaN are below
        out = new_map(first, len(rois), first.shape[1], *output_size)
        if planar:  # which is the same memory in another order
            out = out.permute(0, 2, 3, 1).view(out.shape)
        maps = (Level * len(features))(
            *(Level(x.data_ptr(), *x.shape[2:], scale) for x, scale in zip(features, scales, strict=True))
        )
        regions = levels.data_ptr(), rois.data_ptr(), len(rois)
        settings = first.shape[1], *output_size, sampling_ratio, aligned, planar
        results = out.data_ptr(), torch.get_num_threads()
        bfloat16 = first.dtype is torch.bfloat16
        if self._library.shvit_roi_align(bfloat16, maps, len(features), *regions, *settings, *results):
            raise MemoryError(NO_MEMORY)
        return out

    def paste_masks(self, samples: Tensor, boxes: Tensor, height: int, width: int, threshold: float) -> Tensor:
        """Return the masks of boxes in the size of their image, as mmdet's ``FCNMaskHead`` pastes them.

        Shapes:
            Samples in each box (K, S, S'), boxes in pixels of the image (K, 4), both of any type
            -> (K, height, width), bool.
        """
        samples, boxes = samples.float().contiguous(), boxes.float().contiguous()
        count = len(samples)
        masks = take(count * height * width)[: count * height * width].view(torch.bool).view(count, height, width)
        sizes = count, *samples.shape[1:], height, width
        results = masks.data_ptr(), torch.get_num_threads()
        if self._library.shvit_paste_masks(samples.data_ptr(), boxes.data_ptr(), *sizes, threshold, *results):
            raise MemoryError(NO_MEMORY)
        return masks

    def _interleave(self, x: Any, channels: int) -> Any:
        """Return an image in NHWC, with channels of zeros after its own."""
        if isinstance(x, PlannedMap):
            planar = x.planar
        elif not (planar := x.is_contiguous()):
            x = in_nhwc(x)
        return self._compute(StepKind.INTERLEAVE, x, (channels, *x.shape[2:]), (), planar=planar)

    def _in_nhwc(self, x: Any) -> Any:
        """Return ``x`` in the order of NHWC, of which images are brought into it by a kernel."""
        if isinstance(x, PlannedMap):
            return self._interleave(x, x.shape[1]) if x.planar else x
        if x.shape[1] <= FEW_CHANNELS and x.is_contiguous() and not x.is_contiguous(memory_format=torch.channels_last):
            return self._interleave(x, x.shape[1])
        return in_nhwc(x)

    def _compute(
        self,
        kind: StepKind,
        x: Any,
        out: Sequence[int],
        layers: tuple[PackedWeights, ...],
        residual: Any = None,
        **fields: Any,
    ) -> Any:
        """Compute or plan a step of a result (C', H', W') of each image; ``fields`` are what only some kinds have."""
        if kind is not StepKind.INTERLEAVE:
            x = self._in_nhwc(x)
        batch, channels, height, width = x.shape
        out_channels, out_height, out_width = out
        weights, biases = ((ctypes.c_void_p * 3)(*(layer.addresses[part] for layer in layers)) for part in (0, 1))
        shapes = dict(batch=batch, channels=channels, height=height, width=width)
        shapes |= dict(out_channels=out_channels, out_height=out_height, out_width=out_width)
        bfloat16 = x.dtype is torch.bfloat16
        step = Step(kind=kind, bfloat16=bfloat16, weights=weights, biases=biases, **shapes, **fields)
        if isinstance(x, PlannedMap):
            return x.plan.add(step, layers, x, residual)
        result = new_map(x, batch, *out)
        own = take(step.own_bytes) if step.own_bytes else None
        maps = x, None if residual is None else in_nhwc(residual), result, own
        step.x, step.residual, step.out = 0, -1 if residual is None else 1, 2
        self.run(step, 1, [None if tensor is None else tensor.data_ptr() for tensor in maps])
        return result


def _enlarged(x: Tensor, layer: PackedWeights, fields: dict[str, int]) -> tuple[int, ...]:
    """Return the shape (C, H, W) of what a transposed convolution makes."""
    longer = fields['kernel'] - fields['stride'] - 2 * fields['padding']
    return layer.out_channels, *(fields['stride'] * side + longer for side in x.shape[2:])


def in_nhwc(x: Tensor) -> Tensor:
    """Return ``x`` with its numbers in the order of NHWC, without a gap."""
    return x.contiguous(memory_format=torch.channels_last)
