"""Whole detectors train alike in the faster form and written out: the same losses, the same gradients."""

import pytest
import torch
from norms import norms_of, randomise_norms
from timed import TINY_MASK_RCNN, TINY_RETINANET, settings
from torch import nn

from shvit_det import SHViTFPN
from shvit_det.models import rpn
from shvit_det.timing.model_builder import build_models, compute_as_written

BATCH, SHAPE = 2, (160, 256)  # large enough for everything to be composed


def make_detector(config):
    """A detector in float64 as the recipe trains it, with fixed norms, none of them near the identity, and a batch."""
    recipe = {'model.backbone.norm_eval': True}
    (subject,) = build_models([config], settings(train=True, batch=BATCH, shape=SHAPE), None, recipe)
    model = subject.model
    torch.manual_seed(0)
    randomise_norms(model)
    for name, parameter in model.named_parameters():
        if name.endswith('bias'):
            nn.init.normal_(parameter, std=0.05)
    return model.double().train(), subject.batches[0]


def losses_and_gradients(model, batch):
    torch.manual_seed(1)  # regions are sampled
    model.zero_grad()
    data = model.data_preprocessor(batch, True)
    losses = model(**data, mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    return losses, {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.fixture
def calls(monkeypatch):
    """How often the neck and the RPN composed their weights, and how many norms ran on activations."""
    counted = dict(neck=0, rpn=0, norms=0)
    composed, conv, norm = SHViTFPN.composed, rpn.compose_conv, nn.BatchNorm2d.forward

    def counting_composed(self):
        counted['neck'] += 1
        return composed(self)

    def counting_conv(first, further):
        counted['rpn'] += 1
        return conv(first, further)

    def counting_norm(self, x):
        counted['norms'] += 1
        return norm(self, x)

    monkeypatch.setattr(SHViTFPN, 'composed', counting_composed)
    monkeypatch.setattr(rpn, 'compose_conv', counting_conv)
    monkeypatch.setattr(nn.BatchNorm2d, 'forward', counting_norm)
    return counted


@pytest.mark.parametrize('config', [TINY_MASK_RCNN, TINY_RETINANET])
def test_losses_and_gradients_are_those_of_the_written_out_form(config, calls):
    model, batch = make_detector(config)
    calls.update(neck=0, rpn=0, norms=0)  # the check of a new detector calls its neck as well
    statistics = {name: value.clone() for name, value in model.named_buffers()}
    losses, gradients = losses_and_gradients(model, batch)
    has_rpn = int(config == TINY_MASK_RCNN)
    assert calls == dict(neck=1, rpn=has_rpn, norms=0)

    assert compute_as_written(model)
    expected_losses, expected = losses_and_gradients(model, batch)
    assert calls == dict(neck=1, rpn=has_rpn, norms=len(norms_of(model.backbone)))

    assert losses.keys() == expected_losses.keys()
    for name in losses:
        torch.testing.assert_close(losses[name], expected_losses[name], rtol=1e-10, atol=1e-12, msg=name)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        scale = expected[name].abs().max()
        assert scale > 0, name
        assert (gradient - expected[name]).abs().max() <= 1e-9 * scale, name
    assert all(torch.equal(value, statistics[name]) for name, value in model.named_buffers())
