"""From what the user names, a config or a backbone, to something that can be timed."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmdet.models.detectors import BaseDetector
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper, build_optim_wrapper
from torch import nn

from ..checkpoint import load_checkpoint
from ..common.errors import UsageError
from ..configuration.detection import Detection
from ..configuration.detector_or_classifier import task_of
from ..configuration.reading import load_config, name_of
from ..deployment import deploy, is_deployed
from ..deployment.compilation import runs_own_kernels
from ..models.backbone import SHViT
from ..models.batch_norm_folding import fold_batch_norms
from .forms import BACKBONES, DEPLOYED, PLAIN, settings_in, split_forms
from .inputs import config_shape, fresh, num_classes_of, photograph_batches, synthetic_batch
from .peers import build_backbone, open_branches
from .plain_models import write_out
from .settings import Settings
from .subjects import BackboneRunner, Subject

PAPER_SHAPE = (512, 512)
AS_WRITTEN = 'norms and neck computed as written'
MAX_PHOTOGRAPH_BATCHES = 64


def build_subjects(
    sources: Sequence[str], settings: Settings, checkpoint: str | None, options: Mapping[str, Any] | None
) -> list[Subject]:
    """Build everything that one benchmark compares, on images of the same size.

    A backbone that is named by itself gets images as large as those that the first config's backbone gets.

    Args:
        sources: Configs, ``mmdet::a/config.py``, ``timm:NAME`` or ``shvit:ARCH``; the first is the one to compare with.
            Prefixes name its form, see :mod:`shvit_det.timing.forms`.
        settings: How they are run.
        checkpoint: Weights of the first one, None for random ones.
        options: ``--cfg-options``, for the first one.

    Raises:
        UsageError: If one of them cannot be built.
    """
    subjects: list[Subject] = []
    for number, named in enumerate(sources):
        first = number == 0
        forms, source = split_forms(named)
        own = settings_in(forms, settings)
        if source.partition(':')[0] in BACKBONES:
            shape = subjects[0].input_shape()[-2:] if subjects else settings.shape or PAPER_SHAPE
            subjects.append(_peer(source, own, shape, checkpoint if first else None))
        else:
            subjects.append(_configured(source, own, checkpoint if first else None, options if first else None))
        if DEPLOYED in forms and not is_deployed(subjects[-1].model):
            raise UsageError(f'{named}: {DEPLOYED}: is for what has a SHViT, and {source} has none')
        if PLAIN in forms and AS_WRITTEN not in subjects[-1].prepared:
            raise UsageError(f'{named}: {PLAIN}: is for what has a SHViT, and {source} has none')
        subjects[-1].source = named
        subjects[-1].name = f'{named.removesuffix(source)}{subjects[-1].name}'
        repeated = [subject.name for subject in subjects].count(subjects[-1].name)
        if repeated > 1:
            subjects[-1].name += f' ({repeated})'
    return subjects


def _peer(source: str, settings: Settings, shape: Sequence[int], checkpoint: str | None) -> Subject:
    if settings.images is not None:
        raise UsageError(f'--images need a config with a test pipeline, and {source} is a backbone alone')
    if settings.only not in (None, 'backbone'):
        raise UsageError(f'{source} is a backbone alone: it has no part {settings.only!r}')
    backbone, prepared = build_backbone(source)
    weights = 'random'
    if checkpoint is not None:
        load_checkpoint(backbone, checkpoint)
        weights = Path(checkpoint).name
    images = [torch.rand(settings.batch, 3, *shape, generator=torch.Generator().manual_seed(0))]
    return _backbone_subject(source, source, backbone, images, settings, None, weights, prepared)


def _configured(source: str, settings: Settings, checkpoint: str | None, options: Mapping[str, Any] | None) -> Subject:
    config = load_config(source, options)
    detector = build_detector(config, source)
    weights = 'random'
    if checkpoint is not None:
        load_checkpoint(detector, checkpoint)
        weights = Path(checkpoint).name
    detector.train(settings.train)
    shape = settings.shape or config_shape(config)
    if settings.images is not None:
        batches = photograph_batches(config, settings.images, settings.batch, MAX_PHOTOGRAPH_BATCHES)
    else:
        batches = [synthetic_batch(shape, settings.batch, settings.train, num_classes_of(detector))]
    name = name_of(source)
    sha256 = config_hash(config)
    if settings.only == 'backbone':
        images = [detector.data_preprocessor(batch, False)['inputs'] for batch in batches]
        return _backbone_subject(name, source, detector.backbone, images, settings, sha256, weights, [])
    prepared: list[str] = [AS_WRITTEN] if settings.plain and write_out(detector) else []
    if settings.deploy and isinstance(detector.backbone, SHViT):
        dtype = settings.dtype if settings.convert else None
        detector = deploy(detector, dtype=dtype, channels_last=settings.channels_last)
        prepared.append(_deployed(detector))
    elif settings.fold:
        images = detector.data_preprocessor(fresh(batches[0]), False)['inputs']
        detector.backbone, folded = fold_batch_norms(detector.backbone, images)
        prepared += [f'{folded} BN of the backbone folded'] if folded else []
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    detector.to(settings.device).to(memory_format=layout)  # mmengine's models take one argument at a time
    if settings.dtype is not torch.float32:
        prepared.append(f'{"converted" if settings.convert else "autocast"} to {_dtype_name(settings)}')
    return Subject(
        name=name,
        source=source,
        kind='detector',
        model=detector,
        batches=batches,
        settings=settings,
        optim_wrapper=_optim_wrapper(detector, config) if settings.train else None,
        config_sha256=sha256,
        weights=weights,
        prepared=prepared,
    )


def _deployed(model: nn.Module) -> str:
    return 'deployed, own kernels' if runs_own_kernels(model) else 'deployed'


def _backbone_subject(
    name: str,
    source: str,
    backbone: nn.Module,
    images: Sequence[torch.Tensor],
    settings: Settings,
    sha256: str | None,
    weights: str,
    prepared: list[str],
) -> Subject:
    backbone.train(settings.train)
    prepared += [AS_WRITTEN] if settings.plain and write_out(backbone) else []
    if settings.deploy and isinstance(backbone, SHViT):
        backbone = deploy(backbone, channels_last=settings.channels_last)
        prepared.append(_deployed(backbone))
    elif settings.fold:
        backbone, folded = fold_batch_norms(backbone, images[0][:1].cpu())
        prepared += [f'{folded} BN folded'] if folded else []
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    dtype = settings.dtype if settings.runtime is None else torch.float32  # a runtime converts by itself
    model = BackboneRunner(backbone)
    model.to(device=settings.device, dtype=dtype)
    model.to(memory_format=layout)  # type: ignore[call-overload]  # torch's annotations lack it
    batches = [image.to(settings.device, dtype, memory_format=layout) for image in images]
    if dtype is not torch.float32:
        prepared.append(f'converted to {_dtype_name(settings)}')
    wrapper = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=1e-4)) if settings.train else None
    return Subject(name, source, 'backbone', model, batches, settings, wrapper, sha256, weights, prepared)


def _dtype_name(settings: Settings) -> str:
    return str(settings.dtype).removeprefix('torch.')


def build_detector(config: Config, source: str) -> Any:
    """Build the detector of a config with random weights, the same ones each time; nothing is downloaded.

    Raises:
        UsageError: If the config has no mmdet detector, or it cannot be built.
    """
    if 'model' not in config:
        raise UsageError(f'{source} has no model: this times detectors of mmdet')
    if not isinstance(task_of(config), Detection):
        raise UsageError(f'{source} has a classifier, no detector: for its backbone alone name shvit:s1 to shvit:s4')
    _remove_pretrained(config.model)
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        detector = Detection().build(config)
        if not isinstance(detector, BaseDetector):
            raise UsageError(f'{source} has a {type(detector).__name__}, which is no detector of mmdet')
        with _quiet():
            detector.init_weights()
    open_branches(detector)
    return detector


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep mmengine from logging a line for every parameter that it initializes."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _remove_pretrained(node: Any) -> None:
    """Take out what would load weights while the model is built, or fetch them."""
    if isinstance(node, dict):
        init_cfg = node.get('init_cfg')
        if isinstance(init_cfg, dict) and 'checkpoint' in init_cfg:
            node['init_cfg'] = None
        if isinstance(node.get('pretrained'), str):
            node['pretrained'] = None
    values = node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else ()
    for value in values:
        _remove_pretrained(value)


def _optim_wrapper(detector: nn.Module, config: Config) -> OptimWrapper:
    """The config's own optimizer, in full precision: the benchmark's ``--dtype`` decides about autocast."""
    settings = config.get('optim_wrapper')
    if settings is None:
        raise UsageError('--train needs an optim_wrapper in the config, and this one has none')
    plain = {key: value for key, value in settings.items() if key not in ('loss_scale', 'dtype', 'use_fp16')}
    wrapper: OptimWrapper = build_optim_wrapper(detector, {**plain, 'type': 'OptimWrapper'})
    return wrapper


def config_hash(config: Config) -> str:
    """Return the SHA-256 of what a config says, whatever its files are called."""
    text = json.dumps(config.to_dict(), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
