"""Fused layers in training are for CPUs, unless the switch says otherwise."""

import pytest
import torch

from shvit_det import SHViTFPN
from shvit_det.models import training_forms
from shvit_det.models.layers import ConvNorm
from shvit_det.models.pyramid import FeaturePyramid

CPU, GPU = torch.device('cpu'), torch.device('cuda')


@pytest.mark.parametrize('setting, devices', [('', {CPU}), ('0', set()), ('1', {CPU, GPU})])
def test_where_they_are_used(setting, devices, monkeypatch):
    monkeypatch.setattr(training_forms, 'setting', setting)
    assert {device for device in (CPU, GPU) if training_forms.uses_fused_forms(device)} == devices


@pytest.mark.parametrize('setting', ['0', '1'])
def test_the_switch_reaches_backbone_and_neck(setting, monkeypatch):
    monkeypatch.setattr(training_forms, 'setting', setting)
    layer = ConvNorm(3, 4).eval()
    out = layer(torch.randn(1, 3, 8, 8))
    assert ('Convolution' in out.grad_fn.name()) == (setting == '1')
    neck = SHViTFPN([4, 4, 4], 4)
    levels = neck([torch.randn(1, 4, size, size) for size in (32, 16, 8)])
    assert isinstance(levels, FeaturePyramid) == (setting == '1')
