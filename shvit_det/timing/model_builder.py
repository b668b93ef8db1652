"""Builds what is timed from the names that the user gives: detectors from configs, backbones from timm or SHViT."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import cv2
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import DefaultScope
from torch import nn

from ..checkpoint import load_checkpoint
from ..common.errors import UsageError
from ..configuration.batches import Batch, copy_containers, synthetic_batch
from ..configuration.detection import class_heads, predicting_part
from ..configuration.random_detector import build_random_detector
from ..configuration.reading import inference_pipeline, load_config, name_of
from ..deployment import deploy, is_deployed
from ..deployment.compilation import runs_own_kernels
from ..models.arch import ARCHS
from ..models.backbone import SHViT
from ..models.batch_norm_folding import fold_batch_norms
from ..models.layers import ConvNorm
from ..models.neck import SHViTFPN
from ..models.zero_init import undo_zero_init
from ..runtimes.packages import require
from .settings import BACKBONE_SOURCES, DEPLOYED, PLAIN, Settings, dtype_name, settings_with, split_prefixes
from .timed_model import BackboneRunner, TimedModel

DETECTOR_SHAPE = (800, 1333)
BACKBONE_SHAPE = (512, 512)
PHOTOGRAPHS = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')
MAX_PHOTOGRAPH_BATCHES = 64
AS_WRITTEN = 'norms and neck computed as written'
REPARAMETERISED = 're-parameterised'


def build_models(
    sources: Sequence[str], settings: Settings, checkpoint: str | None, options: Mapping[str, Any] | None
) -> list[TimedModel]:
    """Build everything that one benchmark compares, on images of the same size; see :func:`.benchmark.benchmark`.

    A backbone that is named by itself gets images of the size that the first model's backbone gets.
    """
    models: list[TimedModel] = []
    for number, named in enumerate(sources):
        prefixes, source = split_prefixes(named)
        own = settings_with(prefixes, settings)
        weights = checkpoint if number == 0 else None
        if source.partition(':')[0] in BACKBONE_SOURCES:
            shape = models[0].input_shape()[-2:] if models else settings.shape or BACKBONE_SHAPE
            model = _named_backbone(source, own, shape, weights)
        else:
            model = _configured(source, own, weights, options if number == 0 else None)
        if DEPLOYED in prefixes and not is_deployed(model.model):
            raise UsageError(f'{named}: {DEPLOYED}: is for what has a SHViT, and {source} has none')
        if PLAIN in prefixes and AS_WRITTEN not in model.prepared:
            raise UsageError(f'{named}: {PLAIN}: is for what has a SHViT, and {source} has none')
        model.source = named
        model.name = f'{named.removesuffix(source)}{model.name}'
        models.append(model)
        repeated = [other.name for other in models].count(model.name)
        if repeated > 1:
            model.name += f' ({repeated})'
    return models


def _named_backbone(source: str, settings: Settings, shape: Sequence[int], checkpoint: str | None) -> TimedModel:
    if settings.images is not None:
        raise UsageError(f'--images need a config with a test pipeline, and {source} is a backbone alone')
    if settings.only not in (None, 'backbone'):
        raise UsageError(f'{source} is a backbone alone: it has no part {settings.only!r}')
    backbone, prepared = build_backbone(source)
    weights = _load(backbone, checkpoint)
    images = [torch.rand(settings.batch, 3, *shape, generator=torch.Generator().manual_seed(0))]
    runner = BackboneRunner(backbone)
    return _in_form(TimedModel(source, source, 'backbone', runner, images, settings, weights, prepared))


def _configured(
    source: str, settings: Settings, checkpoint: str | None, options: Mapping[str, Any] | None
) -> TimedModel:
    config = load_config(source, options)
    detector = build_random_detector(config, source)
    weights = _load(detector, checkpoint)
    detector = detector if settings.train else predicting_part(detector)
    detector.train(settings.train)
    if settings.images is not None:
        batches = photograph_batches(config, settings.images, settings.batch)
    else:
        shape = settings.shape or config_shape(config)
        num_classes = min((head.num_classes for _, head in class_heads(detector)), default=1)
        batches = [synthetic_batch(shape, settings.batch, settings.train, num_classes)]
    name, sha256 = name_of(source), config_hash(config)
    if settings.only == 'backbone':
        images = [detector.data_preprocessor(batch, False)['inputs'] for batch in batches]
        runner = BackboneRunner(detector.backbone)
        return _in_form(TimedModel(name, source, 'backbone', runner, images, settings, weights, [], sha256))
    prepared = [AS_WRITTEN] if settings.plain and compute_as_written(detector) else []
    if settings.deploy and isinstance(detector.backbone, SHViT):
        dtype = settings.dtype if settings.convert else None
        detector = deploy(detector, dtype=dtype, channels_last=settings.channels_last)
    elif settings.fold:
        images = detector.data_preprocessor(copy_containers(batches[0]), False)['inputs']
        detector.backbone, folded = fold_batch_norms(detector.backbone, images)
        prepared += [f'{folded} BN of the backbone folded'] if folded else []
    detector.to(settings.device).to(memory_format=_layout(settings))  # mmengine's models take one argument at a time
    prepared += _backends(detector)
    if settings.dtype is not torch.float32:
        prepared.append(f'{"converted" if settings.convert else "autocast"} to {dtype_name(settings.dtype)}')
    wrapper = _optim_wrapper(detector, config) if settings.train else None
    return TimedModel(name, source, 'detector', detector, batches, settings, weights, prepared, sha256, wrapper)


def _in_form(model: TimedModel) -> TimedModel:
    """Return a backbone in the form that its settings name, on the device."""
    settings, runner, prepared = model.settings, model.model, model.prepared
    runner.train(settings.train)
    if settings.plain and compute_as_written(runner):
        prepared.append(AS_WRITTEN)
    if settings.deploy and isinstance(runner.backbone, SHViT):
        runner.backbone = deploy(runner.backbone, channels_last=settings.channels_last)
    elif settings.fold:
        runner.backbone, folded = fold_batch_norms(runner.backbone, model.batches[0][:1].cpu())
        prepared += [f'{folded} BN folded'] if folded else []
    dtype = settings.dtype if settings.runtime is None else torch.float32  # a runtime converts by itself
    runner.to(settings.device, dtype).to(memory_format=_layout(settings))
    prepared += _backends(runner)
    model.batches = [images.to(settings.device, dtype, memory_format=_layout(settings)) for images in model.batches]
    if dtype is not torch.float32:
        prepared.append(f'converted to {dtype_name(dtype)}')
    if settings.train:
        model.optim_wrapper = OptimWrapper(torch.optim.AdamW(runner.parameters(), lr=1e-4))
    return model


def _load(model: nn.Module, checkpoint: str | None) -> str:
    """Load a checkpoint if there is one, and return what the record calls the weights."""
    if checkpoint is None:
        return 'random'
    load_checkpoint(model, checkpoint)
    return Path(checkpoint).name


def _layout(settings: Settings) -> torch.memory_format:
    return torch.channels_last if settings.channels_last else torch.contiguous_format


def _backends(model: nn.Module) -> list[str]:
    """Return what the record calls a deployed model, on the device that it has been moved to; empty for others."""
    if not is_deployed(model):
        return []
    return ['deployed, own kernels' if runs_own_kernels(model) else 'deployed']


def compute_as_written(model: nn.Module) -> bool:
    """Make SHViT's layers in a model compute what is written in their code, and return whether there are any.

    By default, training folds fixed norms into the weights and composes the neck's finer levels.
    """
    found = False
    for module in model.modules():
        if isinstance(module, ConvNorm):
            module.fold_fixed = False
        elif isinstance(module, SHViTFPN):
            module.compose = False
        found |= isinstance(module, ConvNorm | SHViTFPN)
    return found


def _optim_wrapper(detector: nn.Module, config: Config) -> OptimWrapper:
    """Build the config's optimizer in full precision: ``--dtype`` decides about autocast."""
    settings = config.get('optim_wrapper')
    if settings is None:
        raise UsageError('--train needs an optim_wrapper in the config, and this one has none')
    settings = {key: value for key, value in settings.items() if key not in ('loss_scale', 'dtype', 'use_fp16')}
    wrapper: OptimWrapper = build_optim_wrapper(detector, {**settings, 'type': 'OptimWrapper'})
    return wrapper


def config_hash(config: Config) -> str:
    """Return the SHA-256 of a config's content; the names of its files do not matter."""
    text = json.dumps(config.to_dict(), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def config_shape(config: Config) -> tuple[int, int]:
    """Return the height and width of landscape images after a config's test pipeline; 800x1333 if it has no resize."""
    for step in inference_pipeline(config, needed=False):
        scale = step.get('scale')
        if isinstance(scale, tuple | list) and len(scale) == 2:
            return min(scale), max(scale)
    return DETECTOR_SHAPE


def photograph_batches(config: Config, folder: str, size: int) -> list[Batch]:
    """Return batches of the first photographs of a folder, through the config's test pipeline.

    Raises:
        UsageError: If the folder has too few images for one batch, or the pipeline cannot read one.
    """
    if not Path(folder).is_dir():
        raise UsageError(f'no such folder of photographs: {folder}')
    paths = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in PHOTOGRAPHS)
    if len(paths) < size:
        raise UsageError(f'{folder} has {len(paths)} images ({", ".join(PHOTOGRAPHS)}), but --batch is {size}')
    steps = [step for step in inference_pipeline(config) if 'Annotations' not in step['type']]
    with DefaultScope.overwrite_default_scope('mmdet'):
        pipeline = Compose(steps)
    batches = []
    for start in range(0, len(paths) - size + 1, size)[:MAX_PHOTOGRAPH_BATCHES]:
        items = []
        for number, path in enumerate(paths[start : start + size], start):
            try:
                items.append(pipeline(dict(img_path=str(path), img_id=number)))
            except (OSError, ValueError, TypeError, KeyError, AssertionError, cv2.error) as error:
                raise UsageError(f"the config's test pipeline fails on {path}: {error}") from error
        batches.append({key: [item[key] for item in items] for key in items[0]})
    return batches


def build_backbone(source: str) -> tuple[nn.Module, list[str]]:
    """Return a backbone in eval mode, (B, 3, H, W) -> feature maps, and the list of changes to it.

    Its weights are random and the same at every call; the caller's random state is kept. timm's models are
    re-parameterised if they offer it: several branches become one convolution, with or without their BatchNorms.

    Raises:
        UsageError: If there is no such source, or timm is not installed.
    """
    kind, _, name = source.partition(':')
    builders = {'timm': _build_timm, 'shvit': _build_shvit}
    if kind not in builders or not name:
        raise UsageError(f'no backbone {source!r}: name one as timm:NAME or shvit:ARCH, shvit:s4 for example')
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)  # torch.manual_seed would seed the GPUs' generators too
        return builders[kind](name)


def _build_shvit(arch: str) -> tuple[nn.Module, list[str]]:
    if arch.lower() not in ARCHS:
        raise UsageError(f'no SHViT {arch!r}: choose one of {", ".join(ARCHS)}')
    backbone = SHViT(arch).eval()
    undo_zero_init(backbone)
    return backbone, []


def _build_timm(name: str) -> tuple[nn.Module, list[str]]:
    timm, utils = (require(module, f'timm:{name}', 'peers') for module in ('timm', 'timm.utils'))
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models())
        raise UsageError(
            f'timm {timm.__version__} has no model {name!r}: '
            + (f'did you mean {" or ".join(near)}?' if near else 'timm.list_models() names all')
        )
    try:
        model = timm.create_model(name, pretrained=False, features_only=True).eval()
    except RuntimeError as error:  # if a model does not support features_only, or the tag after its name is wrong
        raise UsageError(f'timm cannot build {name} as a backbone of feature maps: {error}') from error
    undo_zero_init(model)
    reparameterised = utils.reparameterize_model(model).eval()
    changed = len(list(reparameterised.modules())) != len(list(model.modules()))
    return reparameterised, [REPARAMETERISED] if changed else []
