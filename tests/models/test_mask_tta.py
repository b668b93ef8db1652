"""Test-time augmentation: how views are made and how what is found in them is merged."""

import numpy as np
import pytest
import torch
from mmdet.models.test_time_augs import DetTTAModel
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.structures import InstanceData
from paths import MASK_RCNN, ROOT
from torch import nn

from shvit_det import UsageError
from shvit_det.configuration.detection import Detection
from shvit_det.configuration.test_time_augmentation import tta_pipeline, with_tta
from shvit_det.models.mask_tta import MaskTTAModel

IMAGENET = ROOT / 'tests' / 'data' / 'tiny_imagenet.py'
SIZE = (40, 60)
SETTINGS = ConfigDict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=3)


class Found(nn.Module):
    """Finds objects as they were given for each view."""

    def test_step(self, batch):
        return batch['data_samples']


def view(boxes, scores, masks, direction):
    """Return objects, given in the coordinates of the image, as they are found in a flipped view of it."""
    height, width = SIZE
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    if direction in ('horizontal', 'diagonal'):
        boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
    if direction in ('vertical', 'diagonal'):
        boxes = torch.stack([boxes[:, 0], height - boxes[:, 3], boxes[:, 2], height - boxes[:, 1]], 1)
    found = InstanceData(bboxes=boxes, scores=torch.tensor(scores), labels=torch.zeros(len(boxes), dtype=torch.long))
    if masks:
        found.masks = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
        for mask, (left, top, right, bottom) in zip(found.masks, boxes.int().tolist(), strict=True):
            mask[top:bottom, left:right] = True
    meta = dict(ori_shape=SIZE, flip=direction is not None, flip_direction=direction)
    return DetDataSample(metainfo=meta, pred_instances=found)


def views(masks, direction):
    return [
        [view([(2, 3, 20, 15), (30, 5, 50, 30)], [0.9, 0.4], masks, None)],
        [view([(3, 3, 20, 15), (31, 5, 50, 30), (0, 30, 8, 38)], [0.5, 0.8, 0.3], masks, direction)],
    ]


@pytest.mark.parametrize('direction', ['horizontal', 'vertical', 'diagonal'])
def test_each_object_is_kept_once_with_its_own_mask(direction):
    model = MaskTTAModel(module=Found(), tta_cfg=SETTINGS)
    (merged,) = model.test_step(dict(data_samples=views(True, direction)))
    found = merged.pred_instances
    assert found.bboxes.tolist() == [[2, 3, 20, 15], [31, 5, 50, 30], [0, 30, 8, 38]]
    assert found.scores.tolist() == pytest.approx([0.9, 0.8, 0.3])
    for mask, (left, top, right, bottom) in zip(found.masks, found.bboxes.int().tolist(), strict=True):
        assert mask[top:bottom, left:right].all() and mask.sum() == (bottom - top) * (right - left)


@pytest.mark.parametrize('direction', ['horizontal', 'vertical', 'diagonal'])
def test_without_masks_results_are_mmdets(direction):
    results = [
        kind(module=Found(), tta_cfg=SETTINGS).test_step(dict(data_samples=views(False, direction)))[0].pred_instances
        for kind in (MaskTTAModel, DetTTAModel)
    ]
    for name in ('bboxes', 'scores', 'labels'):
        assert torch.equal(results[0][name], results[1][name])


def test_nothing_found_is_an_empty_result():
    model = MaskTTAModel(module=Found(), tta_cfg=SETTINGS)
    (merged,) = model.test_step(dict(data_samples=[[view([], [], True, None)], [view([], [], True, 'horizontal')]]))
    assert len(merged.pred_instances) == 0 and merged.pred_instances.masks.shape == (0, *SIZE)


def steps(*names, **last):
    found = [dict(type=name) for name in names]
    found[-1].update(last)
    return Config(dict(test_pipeline=found))


def test_a_flip_comes_before_padding():
    pipeline = tta_pipeline(steps('LoadImageFromFile', 'Resize', 'Pad', 'PackDetInputs', meta_keys=('img_id',)))
    assert [step['type'] for step in pipeline] == ['LoadImageFromFile', 'Resize', 'TestTimeAug']
    flips, *later = pipeline[-1]['transforms']
    assert [flip['prob'] for flip in flips] == [0, 1]  # the first view is the image, whose sample is kept
    assert [[step['type'] for step in each] for each in later] == [['Pad'], ['PackDetInputs']]
    assert later[-1][0]['meta_keys'] == ('img_id', 'flip', 'flip_direction')
    with pytest.raises(UsageError, match='ends in Collect: write tta_pipeline'):
        tta_pipeline(steps('LoadImageFromFile', 'Collect'))


def test_a_config_says_how_views_are_made_and_merged():
    Detection().register()
    config = Config(dict(tta_pipeline=[dict(type='Own')], tta_model=dict(type='DetTTAModel', tta_cfg=SETTINGS)))
    assert tta_pipeline(config) == [dict(type='Own')]
    assert with_tta(config, Found()).tta_cfg['max_per_img'] == 3
    model = Found()
    model.test_cfg = ConfigDict(rpn=dict(max_per_img=7), rcnn=dict(score_thr=0.1, max_per_img=300))
    settings = with_tta(Config(dict()), model).tta_cfg
    assert isinstance(with_tta(Config(dict()), model), MaskTTAModel)
    assert settings['max_per_img'] == 300 and settings['nms'] == dict(type='nms', iou_threshold=0.5)
    with pytest.raises(UsageError, match='tta_model'):
        with_tta(Config(dict(tta_model=dict(type='DetTTAModle'))), model)


def test_views_of_an_image_are_itself_and_its_mirror_image(tmp_path):
    from PIL import Image

    from shvit_det.prediction.image_reader import ImageReader

    Detection().register()
    picture = np.random.default_rng(0).integers(0, 255, (30, 50, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / 'a.png')
    config = steps('LoadImageFromFile', 'LoadAnnotations', 'PackDetInputs')
    for image in (tmp_path / 'a.png', picture[..., ::-1]):
        _, item = ImageReader(config, tta=True)(image)
        first, second = item['inputs']
        assert torch.equal(second.flip(-1), first) and (first.permute(1, 2, 0).numpy() == picture[..., ::-1]).all()
        assert [sample.flip for sample in item['data_samples']] == [False, True]


@pytest.mark.parametrize(
    ('config', 'checkpoint', 'sentence'),
    [(MASK_RCNN, 'a.onnx', 'is for checkpoints, and a.onnx'), (IMAGENET, 'a.pth', 'is for detectors, and this is a')],
    ids=['exported', 'classifier'],
)
def test_what_has_no_views_is_refused(config, checkpoint, sentence, tmp_path):
    from shvit_det.evaluation.evaluate import evaluate

    with pytest.raises(UsageError, match=f'--tta {sentence}'):
        evaluate(str(config), checkpoint, tta=True, work_dir=str(tmp_path / 'run'))
    assert not (tmp_path / 'run').exists()
