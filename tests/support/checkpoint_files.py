"""Every form in which SHViT weights are published, written from the reference's keys and their fill."""

import argparse
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import golden
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from shvit_det import UsageError

TINY = dict(embed_dims=(16, 24, 32), depths=(1, 2, 1), attn_dims=(8, 8, 8))
NAME = 'stages.1.blocks.0.mixer.m.qkv.c.weight'

# The names and shapes of mmdet 2.25's heads for COCO, as its files have them.
HEADS = {
    'mask_rcnn': {
        **{f'rpn_head.{name}.weight': shape for name, shape in
           dict(rpn_conv=[256, 256, 3, 3], rpn_cls=[3, 256, 1, 1], rpn_reg=[12, 256, 1, 1]).items()},
        **{f'roi_head.bbox_head.{name}.weight': shape for name, shape in
           {'fc_cls': [81, 1024], 'fc_reg': [320, 1024], 'shared_fcs.0': [1024, 12544], 'shared_fcs.1': [1024, 1024]}
           .items()},
        **{f'roi_head.mask_head.convs.{index}.conv.weight': [256, 256, 3, 3] for index in range(4)},
        'roi_head.mask_head.upsample.weight': [256, 256, 2, 2],
        'roi_head.mask_head.conv_logits.weight': [80, 256, 1, 1],
    },
    'retinanet': {
        **{f'bbox_head.{kind}_convs.{index}.conv.weight': [256, 256, 3, 3]
           for kind in ('cls', 'reg') for index in range(4)},
        'bbox_head.retina_cls.weight': [720, 256, 3, 3],
        'bbox_head.retina_reg.weight': [36, 256, 3, 3],
    },
}  # fmt: skip


def with_biases(weights: Mapping[str, list[int]]) -> dict[str, list[int]]:
    shapes = {}
    for name, shape in weights.items():
        shapes[name] = shape
        shapes[name.removesuffix('weight') + 'bias'] = shape[:1]
    return shapes


def heads(form: str) -> dict[str, Tensor]:
    """Return filled heads of an official detector; zeros where the values do not matter and would take long."""
    return {
        name: golden.entry(name, shape) if np.prod(shape) < 1e6 else torch.zeros(shape)
        for name, shape in with_biases(HEADS[form]).items()
    }


def official_detector(variant: str, form: str) -> dict[str, Tensor]:
    """Return the state dict of the authors' detector: the reference's fill for its backbone and neck."""
    backbone = golden.load(f'shvit_{variant}')['official_keys']
    neck = golden.load(f'neck_{form}_{variant}')['official_keys']
    state = {f'backbone.{key}': golden.entry(key, shape) for key, shape in backbone.items() if key[:5] != 'head.'}
    state |= {f'neck.{key}': golden.entry(key, shape) for key, shape in neck.items()}
    return state | heads(form)


def without_head(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith('head.')}


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def features_only(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return timm's names as its feature extractor flattens them: the first dot becomes an underscore."""
    return {name.replace('.', '_', 1): value for name, value in without_head(state).items()}


def training_arguments() -> argparse.Namespace:
    return argparse.Namespace(model='shvit', lr=1e-3, opt_betas=None, output_dir=Path('out').name, distributed=True)


def official_release(state: Mapping[str, Tensor]) -> dict:
    """Return what the authors' training writes."""
    average = {name: torch.zeros_like(value) for name, value in state.items()}
    optimizer = dict(state={0: dict(step=1, exp_avg=torch.ones(3))}, param_groups=[dict(lr=1e-3, params=[0])])
    scheduler = dict(base_values=[1e-3], t_initial=300, noise_range_t=None)
    return dict(
        model=OrderedDict(state), optimizer=optimizer, lr_scheduler=scheduler, epoch=299, model_ema=average,
        scaler=dict(scale=65536.0, growth_factor=2.0), args=training_arguments(),
    )  # fmt: skip


def mmdet2(state: Mapping[str, Tensor]) -> dict:
    """Return what mmcv 1.x writes: the weights, the optimizer, and meta with the best score as a number of numpy."""
    meta = dict(
        env_info='sys.platform: linux', config="model = dict(type='MaskRCNN')", seed=0, exp_name='config.py', epoch=12,
        iter=87960, mmcv_version='1.5.0', time='', hook_msgs=dict(best_score=np.float64(0.39)),
        mmdet_version='2.25.0', CLASSES=('person', 'bicycle'), PALETTE=[(220, 20, 60)],
    )  # fmt: skip
    optimizer = dict(state={}, param_groups=[dict(lr=1e-6, params=[0])])
    return dict(meta=meta, state_dict=OrderedDict(state), optimizer=optimizer)


def mmengine(state: Mapping[str, Tensor]) -> dict:
    """Return what mmengine writes with its EMA hook: the averages as ``state_dict``, the others beside them."""
    raw = {f'module.{name}': torch.zeros_like(value) for name, value in state.items()}
    meta = dict(cfg='', epoch=3, iter=12, dataset_meta=dict(classes=('disc',)), mmengine_version='0.10.7')
    return dict(meta=meta, state_dict=dict(state), message_hub={}, ema_state_dict=dict(raw, steps=torch.tensor(12)))


# How a classifier, given as the reference's state dict under the names of the kind, becomes a file.
Writer = Callable[[Mapping[str, Tensor], Path], object]
CLASSIFIER_FILES: dict[str, tuple[str, str, Writer, str]] = {
    'official release': (
        'official', '.pth', lambda s, p: torch.save(official_release(s), p), 'official classification'
    ),
    'official, weights only': (
        'official', '.pth', lambda s, p: torch.save(dict(model=s), p), 'official classification'
    ),
    'official, saved by an old torch': (
        'official', '.pth',
        lambda s, p: torch.save(official_release(s), p, _use_new_zipfile_serialization=False),
        'official classification',
    ),
    'official, averages only': (
        'official', '.pth', lambda s, p: torch.save(dict(model_ema=s), p), 'official classification'
    ),
    'official, distributed': (
        'official', '.pth', lambda s, p: torch.save(prefixed('module.', s), p), 'official classification'
    ),
    'official, backbone': ('official', '.pth', lambda s, p: torch.save(without_head(s), p), 'official backbone'),
    'timm safetensors': ('timm', '.safetensors', lambda s, p: save_file(dict(s), p), 'timm classification'),
    'timm bin': ('timm', '.bin', lambda s, p: torch.save(s, p), 'timm classification'),
    'timm training': (
        'timm', '.pth.tar',
        lambda s, p: torch.save(
            dict(epoch=1, arch='shvit_s1', state_dict=s, state_dict_ema=s, args=training_arguments()), p
        ),
        'timm classification',
    ),
    'timm features': ('timm', '.safetensors', lambda s, p: save_file(features_only(s), p), 'timm features'),
    'backbone': ('timm', '.pth', lambda s, p: torch.save(without_head(s), p), 'backbone'),
    'compiled': ('timm', '.pth', lambda s, p: torch.save(prefixed('_orig_mod.', s), p), 'timm classification'),
    'mmpretrain': (
        'timm', '.pth',
        lambda s, p: torch.save(
            mmengine({k if k.startswith('head.') else f'backbone.{k}': v for k, v in s.items()}), p
        ),
        'mmpretrain classifier',
    ),
}  # fmt: skip


def refusal(call, *arguments, **options) -> str:
    """Return the one sentence in which a call ends."""
    with pytest.raises(UsageError) as caught:
        call(*arguments, **options)
    sentence = str(caught.value)
    assert '\n' not in sentence and '\x1b' not in sentence and len(sentence) < 500
    return sentence
