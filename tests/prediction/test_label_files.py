"""Results as polygons, and as data sets that our own readers read again."""

import json

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from pycocotools import mask as mask_utils

from shvit_det import UsageError
from shvit_det.data.layouts.reading import read_labels
from shvit_det.prediction.coco_results import ResultsFile
from shvit_det.prediction.masks import CroppedMasks, cropped
from shvit_det.prediction.predict import check_labels, save_labels

SIZE = (120, 160)
CLASSES = ('star', 'disc', 'bar')


def shapes():
    """Return masks: a disc, a bar at the border, a disc with a hole, and one of two parts."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    distance = np.hypot(columns - 50, rows - 60)
    two = np.zeros(SIZE, bool)
    two[10:20, 100:110] = two[10:20, 120:150] = True
    return np.stack([distance < 30, rows >= 100, (distance < 40) & (distance > 10), two])


def results(folder, with_masks=True, polygons=False):
    """Write the results of two pictures and of a frame of a video, and return the file."""
    masks = shapes()
    boxes = [mask_utils.toBbox(mask_utils.encode(np.asfortranarray(mask, np.uint8))) for mask in masks]
    boxes = torch.tensor(np.array([[x, y, x + w, y + h] for x, y, w, h in boxes]), dtype=torch.float32)
    found = InstanceData(bboxes=boxes, scores=torch.ones(4), labels=torch.tensor([1, 2, 1, 0]))
    if with_masks:
        found.masks = CroppedMasks([cropped(mask) for mask in masks], SIZE)
    common = dict(width=SIZE[1], height=SIZE[0])
    with ResultsFile(folder / 'predictions.json', CLASSES, {}, polygons) as file:
        for number in (1, 2):
            path = folder / f'{number}.png'
            cv2.imwrite(str(path), np.full((*SIZE, 3), 60 * number, np.uint8))
            sample = DetDataSample(pred_instances=found[: 4 if number == 1 else 0])
            file.add(dict(id=number, file_name=str(path), **common), sample, 0)
        frame = dict(id=3, file_name='clip.mp4', frame_index=0, **common)
        file.add(frame, DetDataSample(pred_instances=found), 0)
    return folder / 'predictions.json'


def decoded(segmentation):
    is_rle = isinstance(segmentation, dict)
    rle = segmentation if is_rle else mask_utils.merge(mask_utils.frPyObjects(segmentation, *SIZE))
    return mask_utils.decode(rle).astype(bool)


def test_polygons_are_the_outlines_of_masks(tmp_path):
    content = json.loads(results(tmp_path, polygons=True).read_text())
    for mask, annotation in zip(shapes(), content['annotations'], strict=False):
        filled = decoded(annotation['segmentation'])
        assert (mask & ~filled).sum() < 0.03 * mask.sum() and annotation['area'] == mask.sum()
        assert (filled & ~mask).sum() < 0.03 * mask.sum() or (mask == shapes()[2]).all()  # the hole is filled
    assert [len(each['segmentation']) for each in content['annotations'][:4]] == [1, 1, 1, 2]


@pytest.mark.parametrize('with_masks', [True, False], ids=['masks', 'boxes'])
@pytest.mark.parametrize('layout', ['yolo', 'labelme', 'coco'])
def test_labels_are_read_again(layout, with_masks, tmp_path):
    lines = save_labels(results(tmp_path, with_masks), CLASSES, layout)
    assert lines[0].endswith('left out: 1') and lines[-1].startswith('written: 2 pictures, 4 objects')
    read = read_labels(tmp_path / layout)
    split = read.splits['train']
    assert read.layout == layout and read.has_masks == with_masks
    assert [split.path_of(image).name for image in split.content['images']] == ['1.png', '2.png']
    assert {each['image_id'] for each in split.objects} == {1}
    by_name = {(read.classes[each['category_id'] - 1], round(each['bbox'][0])): each for each in split.objects}
    assert sorted(by_name) == [('bar', 0), ('disc', 11), ('disc', 21), ('star', 100)]
    for mask, key in zip(shapes(), [('disc', 21), ('bar', 0), ('disc', 11), ('star', 100)], strict=True):
        box = mask_utils.toBbox(mask_utils.encode(np.asfortranarray(mask, np.uint8)))
        np.testing.assert_allclose(by_name[key]['bbox'], box, atol=0.5)
        if with_masks:
            assert (mask & ~decoded(by_name[key]['segmentation'])).sum() < 0.03 * mask.sum()


def test_labels_of_an_earlier_run_are_not_replaced(tmp_path):
    check_labels('yolo', tmp_path)
    save_labels(results(tmp_path), CLASSES, 'yolo')
    check_labels('labelme', tmp_path)
    with pytest.raises(UsageError, match='yolo exists, and labels in it may be corrected ones'):
        check_labels('yolo', tmp_path)
    with pytest.raises(UsageError, match='--labels is coco, yolo, labelme, but got voc'):
        check_labels('voc', tmp_path)
