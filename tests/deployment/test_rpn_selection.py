"""A deployed RPN takes the best positions of a level without sorting all of them, and proposes the same."""

import pytest
import torch
from deployed_models import detector
from timed import TINY_MASK_RCNN

from shvit_det.deployment.rpn import best_in_order, select_before_sorting


@pytest.mark.parametrize('num_values', [3, 40, 10_000])  # many equal scores, or hardly any
def test_the_best_are_those_of_a_stable_sort(num_values):
    torch.manual_seed(num_values)
    scores = torch.randint(num_values, (5000,)) / num_values
    right = scores.argsort(descending=True, stable=True)
    for count in (1, 100, 4999):
        assert best_in_order(scores, count).equal(right[:count].sort().values)
    scores[17] = torch.nan
    assert 17 in best_in_order(scores, 100)


@pytest.mark.slow
@pytest.mark.parametrize('most', [7, 50, 1000, -1])
def test_proposals_are_the_same(most):
    head = detector(TINY_MASK_RCNN).model.rpn_head.eval()
    torch.manual_seed(0)
    sizes = [(24, 32), (12, 16), (3, 4)]
    scores = [torch.randn(1, head.num_base_priors, *size) for size in sizes]
    boxes = [torch.randn(1, 4 * head.num_base_priors, *size) * 0.3 for size in sizes]
    levels = len(sizes)
    head.prior_generator.strides = head.prior_generator.strides[:levels]
    head.prior_generator.base_anchors = head.prior_generator.base_anchors[:levels]
    cfg = head.test_cfg.copy()
    cfg.update(nms_pre=most)
    arguments = dict(batch_img_metas=[dict(img_shape=(96, 128))], cfg=cfg)
    with torch.no_grad():
        (right,) = head.predict_by_feat(scores, boxes, **arguments)
        head._predict_by_feat_single = lambda **keywords: select_before_sorting(head, **keywords)
        (found,) = head.predict_by_feat(scores, boxes, **arguments)
    torch.testing.assert_close(found.bboxes, right.bboxes)
    torch.testing.assert_close(found.scores, right.scores)
