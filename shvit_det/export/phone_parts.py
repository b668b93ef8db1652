"""The parts of a model that are exported for phones: networks of a fixed size, from pixels to features or classes.

What follows them in a detector (proposals, suppression, masks) depends on the image and is left to the app.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from ..checkpoint import check_checkpoint, load_content
from ..checkpoint.stored_config import stored_classes
from ..common.errors import UsageError
from ..configuration.detection import Detection, predicting_part
from ..configuration.detector_or_classifier import task_of
from ..configuration.reading import inference_pipeline, load_config, name_of
from ..configuration.task import Task
from ..deployment import deploy
from ..models.backbone import SHViT
from ..models.batch_norm_folding import fold_batch_norms
from ..models.neck import SHViTFPN
from ..models.zero_init import undo_zero_init
from ..runtimes.agreement import largest_difference
from .detector_weights import RANDOM
from .phone_attention import replace_attention

PARTS = ('backbone', 'backbone+neck', 'classifier')
DETECTION_SHAPE = (512, 512)  # of the paper's latencies
SIZE_DIVISOR = 32
TOLERANCE = 1e-3  # of the largest magnitude, between a part and the model's own layers


@dataclass(frozen=True)
class Part:
    """A part of a model, ready to be traced."""

    name: str  # one of PARTS
    module: nn.Module  # (1, 3, H, W), float32 from 0 to 255 -> a tuple of tensors; it normalises the image itself
    shape: tuple[int, int]  # H and W, the only ones that the part takes
    output_names: tuple[str, ...]  # stride_16 and so on, or probabilities
    colors: str  # 'RGB' or 'BGR', the order of the channels
    mean: tuple[float, ...]  # the mean of each channel, which the module subtracts
    std: tuple[float, ...]  # the standard deviation of each channel, by which the module divides
    classes: tuple[str, ...] | None  # their names in the order of the probabilities; None if they are not known
    config: str
    weights: str  # the name of the checkpoint, or 'random'

    def example(self) -> Tensor:
        """Return an image of noise, (1, 3, H, W) with whole numbers from 0 to 255; it is the same at every call."""
        return _noise(self.shape)

    def outputs(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of the part in PyTorch."""
        with torch.no_grad():
            outs: tuple[Tensor, ...] = self.module(images)
        return outs


def _noise(shape: tuple[int, int]) -> Tensor:
    return torch.randint(0, 256, (1, 3, *shape), generator=torch.Generator().manual_seed(0)).float()


class FromPixels(nn.Module):
    """A network that normalises its images itself, with the mean and the standard deviation of each channel."""

    mean: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer('mean', torch.tensor(mean)[None, :, None, None])
        self.register_buffer('scale', 1 / torch.tensor(std)[None, :, None, None])

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outs = self.network((images - self.mean) * self.scale)
        return (outs,) if isinstance(outs, Tensor) else tuple(outs)


class Probabilities(nn.Module):
    """A :class:`.models.classifier.SHViTHead` as a linear layer and a softmax: norms folded, two heads averaged.

    Shapes:
        A tuple whose last feature is (B, C, H, W) -> (B, num_classes).
    """

    def __init__(self, head: Any) -> None:
        super().__init__()
        folded = [_fold_before(head.bn, head.l)]
        if head.distillation:
            folded.append(_fold_before(head.distillation_bn, head.distillation_l))
        weight, bias = (torch.stack(values).mean(0).float() for values in zip(*folded, strict=True))
        self.linear = nn.Linear(head.in_channels, head.num_classes)
        self.linear.weight, self.linear.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        pooled = features[-1].mean((2, 3), keepdim=True).flatten(1)  # XNNPACK has no other mean
        return self.linear(pooled).softmax(dim=1)


def _fold_before(norm: Any, linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Return weight and bias of ``linear(norm(x))`` as one linear layer, in float64."""
    scale = norm.weight.double() * torch.rsqrt(norm.running_var.double() + norm.eps)
    weight = linear.weight.detach().double()
    shift = norm.bias.double() - norm.running_mean.double() * scale
    return (weight * scale).detach(), (linear.bias.detach().double() + weight @ shift).detach()


def build_part(
    config_path: str, checkpoint: str | None = None, name: str | None = None, shape: tuple[int, int] | None = None
) -> Part:
    """Build the model of a config and return a part of it, in its deployed form by plain operations of torch.

    The arguments are those of :func:`.phone_export.export_part`. Of other backbones than SHViT, BatchNorms are folded.

    Raises:
        UsageError: If the model cannot be built, has no such part, or does not take images of this size.
    """
    config = load_config(config_path)
    if 'model' not in config:
        raise UsageError(f'{config_path} has no model: name the config of a detector or a classifier')
    task = task_of(config)
    detector = isinstance(task, Detection)
    name = name or ('backbone' if detector else 'classifier')
    if name not in PARTS:
        raise UsageError(f'no part {name!r} for a phone: choose from {", ".join(PARTS)}')
    if name == ('classifier' if detector else 'backbone+neck'):
        raise UsageError(f'{config_path} has a {task.noun}, which has no part {name!r}: choose another one with --part')
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        model: Any = task.build(config)
    content = None
    if checkpoint is None:
        undo_zero_init(model)
    else:
        content = check_checkpoint(model, checkpoint)
        load_content(model, content, checkpoint)
    if detector:
        model = predicting_part(model)
    model.eval()
    preprocessor = model.data_preprocessor
    shape = shape or (DETECTION_SHAPE if detector else _crop(config))
    _check_shape(shape, preprocessor)
    mean, std = _normalisation(preprocessor)
    module = FromPixels(_network(model, name, shape, config_path), mean, std).eval().requires_grad_(False)
    converts = getattr(preprocessor, '_channel_conversion', None)  # mmdet's, by mmengine
    swapped = getattr(preprocessor, 'to_rgb', False) if converts is None else converts  # mmpretrain's
    example = _noise(shape)
    with torch.no_grad():
        outs, expected = module(example), _trained_outputs(model, name, (example - module.mean) * module.scale)
    worst = largest_difference(expected, outs)
    assert worst <= TOLERANCE, f'the part differs from the model by {worst:.2g}'
    return Part(
        name=name,
        module=module,
        shape=shape,
        output_names=_output_names(name, shape, outs),
        colors='RGB' if swapped else 'BGR',  # the pipelines read images as BGR
        mean=mean,
        std=std,
        classes=_classes(config, task, model, content) if name == 'classifier' else None,
        config=name_of(config_path),
        weights=RANDOM if checkpoint is None else Path(checkpoint).name,
    )


def _network(model: Any, name: str, shape: tuple[int, int], config_path: str) -> nn.Module:
    backbone = _plain_backbone(model.backbone, shape)
    if name == 'backbone':
        return backbone
    if name == 'classifier':
        from ..models.classifier import SHViTHead  # which needs mmpretrain

        if not isinstance(model.head, SHViTHead) or model.with_neck:
            raise UsageError(f'{config_path} has a {type(model.head).__name__}: only a SHViTHead can be exported')
        return nn.Sequential(backbone, Probabilities(model.head))
    if not model.with_neck:
        raise UsageError(f'{config_path} has no neck: use --part backbone')
    neck = deploy(model.neck, channels_last=False) if isinstance(model.neck, SHViTFPN) else model.neck
    return nn.Sequential(backbone, neck)


def _plain_backbone(backbone: nn.Module, shape: tuple[int, int]) -> nn.Module:
    if not isinstance(backbone, SHViT):
        folded, _ = fold_batch_norms(backbone, torch.zeros(1, 3, *shape))
        return folded
    deployed: nn.Module = deploy(backbone, channels_last=False)
    replace_attention(deployed)
    return deployed


def _trained_outputs(model: Any, name: str, images: Tensor) -> tuple[Tensor, ...]:
    """Return the outputs of the trained layers for normalised images."""
    features = model.backbone(images)
    if name == 'backbone+neck':
        return tuple(model.neck(features))
    return tuple(features) if name == 'backbone' else (model.head(features).softmax(dim=1),)


def _check_shape(shape: tuple[int, int], preprocessor: Any) -> None:
    divisor = math.lcm(SIZE_DIVISOR, getattr(preprocessor, 'pad_size_divisor', 1))
    if min(shape) < 64 or any(size % divisor for size in shape):
        raise UsageError(
            f'--shape {shape[0]} {shape[1]}: height and width must be at least 64 and multiples of {divisor}, as the '
            f'images of training are'
        )


def _crop(config: Config) -> tuple[int, int]:
    """Return the size to which a classifier's test pipeline crops, or resizes to a square without cropping."""
    for step in reversed(inference_pipeline(config, needed=False)):
        crop = step.get('crop_size', step.get('scale') if isinstance(step.get('scale'), int) else None)
        if crop is not None:
            return (crop, crop) if isinstance(crop, int) else (crop[0], crop[1])
    raise UsageError('the test pipeline of this config crops to no size: name one with --shape H W')


def _normalisation(preprocessor: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel; zeros and ones where images are taken as they are."""
    mean, std = getattr(preprocessor, 'mean', None), getattr(preprocessor, 'std', None)
    if mean is None or std is None:
        return (0.0,) * 3, (1.0,) * 3
    # as they stand in the config, without the rounding to float32
    mean, std = (tuple(round(value, 4) for value in buffer.flatten().tolist()) for buffer in (mean, std))
    return mean, std


def _classes(config: Config, task: Task, model: Any, content: Any) -> tuple[str, ...] | None:
    """Return the names of the classes, the checkpoint's or the config's test data's; None if neither has them all."""
    found = [stored_classes(content), *(names for _, names in task.stated_classes(config, ('test', 'val')))]
    return next((distinct(names) for names in found if names and len(names) == model.head.num_classes), None)


def distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    """Add its index to every name that several classes have, as ``crane`` in ImageNet.

    Runtimes return probabilities by name and would lose all but one of them.
    """
    return tuple(f'{name} ({index})' if names.count(name) > 1 else name for index, name in enumerate(names))


def _output_names(name: str, shape: tuple[int, int], outs: tuple[Tensor, ...]) -> tuple[str, ...]:
    if name == 'classifier':
        return ('probabilities',)
    strides: list[int] = []
    for out in outs:  # fine to coarse; odd sizes are rounded up, so the stride is the nearest power of two
        stride = 2 ** round(math.log2(shape[0] / out.shape[2]))
        strides.append(max(stride, 2 * strides[-1]) if strides else stride)  # several levels may have one pixel
    return tuple(f'stride_{stride}' for stride in strides)
