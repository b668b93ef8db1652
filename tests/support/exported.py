"""What the tests of exports share: tiny detectors whose scores lie well apart, and what mmdet makes of images."""

import copy
from functools import cache

import numpy as np
import torch
from mmdet.structures import DetDataSample
from norms import randomise_norms
from torch import nn

from shvit_det.configuration.reading import load_config
from shvit_det.export.random_weights import spread_scores
from shvit_det.timing.building import build_detector


def detector(config: str, **test_cfg):
    """Return a detector with random weights; ``test_cfg`` changes that of its last stage."""
    model = copy.deepcopy(_random(config))
    settings = model.roi_head.test_cfg if hasattr(model, 'roi_head') else model.bbox_head.test_cfg
    settings.update({'score_thr': 1e-3, 'max_per_img': 30, **test_cfg})
    return model


@cache
def _random(config: str):
    model = build_detector(load_config(config), config).eval()
    generator = torch.Generator().manual_seed(0)
    randomise_norms(model)
    for name, parameter in model.named_parameters():
        if name.endswith('bias'):
            nn.init.normal_(parameter, std=0.05, generator=generator)
    spread_scores(model)
    return model


def photographs(number: int, height: int, width: int) -> torch.Tensor:
    """Return images with structure of several sizes, (number, 3, height, width) uint8."""
    random = np.random.default_rng(height)
    small = torch.from_numpy(random.uniform(0, 255, (number, 3, height // 9 + 1, width // 9 + 1)))
    large = nn.functional.interpolate(small, size=(height, width), mode='bilinear')
    return (large + torch.from_numpy(random.normal(0, 20, large.shape))).clamp(0, 255).to(torch.uint8)


def by_mmdet(model, images: torch.Tensor, original_size: tuple[int, int]):
    """Return mmdet's ``InstanceData`` for every image of a batch."""
    height, width = images.shape[-2:]
    scale = (width / original_size[1], height / original_size[0])
    info = dict(img_shape=(height, width), ori_shape=original_size, scale_factor=scale)
    samples = [DetDataSample(metainfo=info) for _ in images]
    with torch.no_grad():
        found = model.test_step(dict(inputs=list(images), data_samples=samples))
    return [sample.pred_instances for sample in found]


def assert_same(expected, found) -> None:
    """Compare two ``InstanceData`` of one image, detection by detection."""
    assert len(expected) == len(found)
    assert torch.equal(expected.labels, found.labels)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.bboxes, expected.bboxes, rtol=0, atol=1e-2)
    assert ('masks' in expected) == ('masks' in found)
    if 'masks' in expected and len(expected):
        assert expected.masks.shape == found.masks.shape
        assert (expected.masks == found.masks).float().mean((1, 2)).min() >= 0.999
