"""A deployed mask branch computes the masks of the predicted classes, and those only."""

import copy

import pytest
import torch
from deployed_models import detector
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmengine.structures import InstanceData
from timed import TINY_MASK_RCNN
from torch import nn

from shvit_det import deploy, kernels
from shvit_det.deployment.masks import fuse_mask_branch, predict_mask

METAS = [dict(img_shape=(64, 96), ori_shape=(32, 48), scale_factor=(2.0, 2.0)) for _ in range(2)]


REGIONS = torch.tensor([(0, 3.0, 4, 60, 40), (1, 10, 2, 30, 50), (1, 50, 12, 70, 30)])


@pytest.fixture(scope='module')
def heads():
    """The RoI heads of a detector: trained, deployed, and deployed without our own kernels."""
    trained = detector(TINY_MASK_RCNN).model
    torch.manual_seed(0)
    for parameter in trained.roi_head.mask_head.parameters():
        nn.init.normal_(parameter, std=0.1)
    head = trained.roi_head.mask_head
    with torch.no_grad():  # about half of the pixels are in the masks
        logits = head(trained.roi_head.mask_roi_extractor(pyramid(trained.roi_head), REGIONS))
        head.conv_logits.bias -= logits.transpose(0, 1).flatten(1).median(dim=1).values
    return trained.roi_head, deploy(trained).roi_head, deploy(trained, native=False).roi_head


def pyramid(head):
    channels = head.mask_roi_extractor.out_channels
    return tuple(torch.randn(2, channels, 64 // stride, 96 // stride) for stride in (4, 8, 16, 32))


def detections(counts, num_classes):
    found = []
    for count in counts:
        corners = torch.rand(count, 2) * torch.tensor([60.0, 40])
        boxes = torch.cat((corners, corners + 4 + torch.rand(count, 2) * 20), dim=1)
        labels = torch.randint(0, num_classes, (count,))
        found.append(InstanceData(bboxes=boxes, labels=labels, scores=torch.rand(count)))
    return found


def test_logits_of_labels_are_those_of_all_classes(heads):
    trained, deployed, _ = (head.mask_head for head in heads)
    x = torch.randn(5, trained.in_channels, 14, 14)
    labels = torch.randint(0, trained.num_classes, (5,))
    with torch.no_grad():
        right = trained(x)
        everything, some = deployed(x), deployed(x, labels)
    assert everything.shape == right.shape and some.shape == (5, 1, 28, 28)
    assert (everything - right).abs().max() <= 1e-5 * right.abs().max()
    assert (some[:, 0] - right[range(5), labels]).abs().max() <= 1e-5 * right.abs().max()


@pytest.mark.parametrize('counts', [(3, 4), (0, 5), (0, 0)])
@pytest.mark.parametrize('rescale', [True, False])
@pytest.mark.parametrize('by_kernels', [True, False])
def test_masks_are_the_same(heads, counts, rescale, by_kernels, monkeypatch):
    if by_kernels and kernels.load() is None:
        pytest.skip('there are no kernels for this processor')
    mmdets = []
    original = FCNMaskHead._predict_by_feat_single
    monkeypatch.setattr(
        FCNMaskHead, '_predict_by_feat_single', lambda *args, **kwargs: mmdets.append(1) or original(*args, **kwargs)
    )
    torch.manual_seed(1)
    trained, deployed = heads[0], heads[1 if by_kernels else 2]
    features, found = pyramid(trained), detections(counts, trained.mask_head.num_classes)
    with torch.no_grad():
        right = trained.predict_mask(features, METAS, copy.deepcopy(found), rescale)
        mmdets.clear()
        masks = deployed.predict_mask(features, METAS, copy.deepcopy(found), rescale)
    assert bool(mmdets) is (any(counts) and not by_kernels)
    assert deployed.predict_mask.func is predict_mask
    for one, other, count in zip(masks, right, counts, strict=True):
        assert one.masks.shape == other.masks.shape and len(one.masks) == count
        assert torch.equal(one.bboxes, other.bboxes)
        assert count == 0 or (one.masks != other.masks).float().mean() < 1e-3
    assert not sum(counts) or any(one.masks.any() for one in masks)


def test_masks_of_all_classes_are_still_taken(heads):
    trained, deployed, _ = heads
    features, found = pyramid(trained), detections((2, 3), trained.mask_head.num_classes)
    with torch.no_grad():
        logits = torch.randn(5, trained.mask_head.num_classes, 28, 28).split([2, 3])
        arguments = dict(batch_img_metas=METAS, rcnn_test_cfg=trained.test_cfg, rescale=True)
        right = trained.mask_head.predict_by_feat(logits, copy.deepcopy(found), **arguments)
        masks = deployed.mask_head.predict_by_feat(logits, copy.deepcopy(found), **arguments)
    assert features and all(torch.equal(one.masks, other.masks) for one, other in zip(masks, right, strict=True))


@pytest.mark.parametrize('change', ['class_agnostic', 'with_shared_head', 'conv_logits', 'kind'])
def test_other_branches_are_left_alone(change):
    model = detector(TINY_MASK_RCNN).model
    head = model.roi_head.mask_head
    if change == 'class_agnostic':
        head.class_agnostic = True
    elif change == 'with_shared_head':
        model.roi_head.shared_head = nn.Identity()
    elif change == 'conv_logits':
        head.conv_logits = nn.Sequential(head.conv_logits)
    else:
        head.__class__ = type('Other', (type(head),), {})
    deployed = deploy(model)
    assert 'forward' not in vars(deployed.roi_head.mask_head)
    assert 'predict_mask' not in vars(deployed.roi_head)


def test_a_detector_without_masks_has_no_branch():
    fuse_mask_branch(nn.Module())
