"""Small models to deploy, and the comparison of what they compute before and after."""

import torch
from norms import randomise_norms
from timed import settings
from torch import nn

from shvit_det import SHViT, deploy
from shvit_det.timing.model_builder import build_models

TINY = dict(embed_dims=(16, 24, 32), depths=(1, 2, 1), attn_dims=(8, 8, 16))


def backbone(arch='s1', dtype=torch.float32, **arguments) -> SHViT:
    torch.manual_seed(0)
    made = SHViT(arch, **arguments).to(dtype)
    randomise_norms(made)
    return made.eval()


def agree(expected, found, tolerance):
    assert len(expected) == len(found)
    for one, other in zip(expected, found, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= tolerance * one.abs().max()


def detector(config):
    (subject,) = build_models([config], settings(detections=20, batch=2, shape=(90, 117)), None, None)
    torch.manual_seed(0)
    randomise_norms(subject.model)
    for name, parameter in subject.model.named_parameters():
        if name.endswith('bias'):
            nn.init.normal_(parameter, std=0.05)
    subject.fix_detections()
    return subject


def deploy_and_compare(subject):
    """Replace a subject's detector by the deployed one, which has to find the same."""
    with torch.no_grad():
        expected = [sample.pred_instances for sample in subject.run()()]
        subject.model = deploy(subject.model)
        found = [sample.pred_instances for sample in subject.run()()]
    for one, other in zip(expected, found, strict=True):
        assert len(one) == len(other) == 20
        assert torch.equal(one.labels, other.labels)
        torch.testing.assert_close(one.scores, other.scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.bboxes, other.bboxes, rtol=1e-4, atol=1e-2)
        if 'masks' in one:
            assert (one.masks != other.masks).float().mean() < 1e-3
