"""Large pictures in tiles: what covers them, and objects that are found in several tiles."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.structures import InstanceData
from pycocotools import mask as mask_utils

from shvit_det.prediction.drawing import class_colors, draw
from shvit_det.prediction.masks import Crop, CroppedMasks, cropped, rle_of
from shvit_det.prediction.tiling import FoundInTiles, tiles_of


@given(st.integers(1, 500), st.integers(1, 500), st.integers(64, 300))
def test_tiles_cover_a_picture_and_overlap(height, width, side):
    tiles = tiles_of(height, width, side)
    covered = np.zeros((height, width), int)
    for left, top, right, bottom in tiles:
        assert (right - left, bottom - top) == (min(side, width), min(side, height))
        covered[top:bottom, left:right] += 1
    assert covered.min() == 1 and covered.shape == (height, width)
    lefts = sorted({tile.left for tile in tiles})
    assert all(after - before <= 0.8 * side for before, after in pairwise(lefts))


def disc(size, x, y, radius):
    rows, columns = np.mgrid[: size[0], : size[1]]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


def bar(size, left, top, right, bottom):
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


def box_of(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def found_in_tiles(masks, labels, side, with_masks=True, scores=None):
    """Return what a perfect detector finds in the tiles of a picture with some objects, merged."""
    found = FoundInTiles(masks.shape[1:])
    for tile in tiles_of(*masks.shape[1:], side):
        views = masks[:, tile.top : tile.bottom, tile.left : tile.right]
        seen = np.flatnonzero(views.any((1, 2)))
        part = InstanceData(
            bboxes=torch.tensor([box_of(views[index]) for index in seen], dtype=torch.float32).reshape(-1, 4),
            scores=torch.tensor([0.9 if scores is None else scores[index] for index in seen]),
            labels=torch.tensor([labels[index] for index in seen], dtype=torch.int64),
        )
        if with_masks:
            part.masks = torch.from_numpy(views[seen])
        found.add(tile, part)
    return found.merged()


SIZE = (300, 420)
OBJECTS = {
    'a small one in an overlap': disc(SIZE, 100, 60, 9),
    'one as large as a tile': disc(SIZE, 240, 150, 60),
    'one across all tiles': bar(SIZE, 3, 230, 417, 246),
    'its neighbour, one pixel below': bar(SIZE, 3, 247, 417, 262),
    'a hair on the border of a tile': bar(SIZE, 126, 10, 132, 100),
}


@pytest.mark.parametrize('with_masks', [True, False], ids=['masks', 'boxes'])
def test_each_object_is_found_once_and_whole(with_masks):
    masks = np.stack(list(OBJECTS.values()))
    labels, scores = np.arange(len(masks)) % 2, np.linspace(0.5, 0.9, len(masks), dtype=np.float32)
    merged = found_in_tiles(masks, labels, 128, with_masks, scores)
    assert len(merged) == len(masks)
    assert merged.scores.tolist() == scores[::-1].tolist() and merged.labels.tolist() == labels[::-1].tolist()
    assert merged.bboxes.tolist() == [box_of(mask) for mask in masks[::-1]]
    assert ('masks' in merged) == with_masks
    if with_masks:
        assert (np.asarray(merged.masks) == masks[::-1]).all()


def test_objects_that_overlap_in_one_tile_stay_two():
    """A model's own suppression has kept both, and merging boxes by their overlap would lose one."""
    masks = np.stack([disc((100, 100), 50, 50, 40), disc((100, 100), 50, 50, 10)])
    assert len(found_in_tiles(masks, [0, 0], 128)) == 2
    masks = np.stack([disc((100, 420), 200, 50, 30), disc((100, 420), 200, 50, 30)])
    assert len(found_in_tiles(masks, [0, 1], 128)) == 2  # of two classes


def test_a_view_that_is_not_cut_is_not_joined_with_another():
    """The cut one has pixels beside the object, which the whole one lacks."""
    left, right = tiles_of(100, 180, 100)
    found = FoundInTiles((100, 180))
    whole, cut = bar((100, 100), 60, 40, 98 - 5, 60), bar((100, 100), 0, 30, 98 - 80 - 5, 60)
    for tile, mask, score in ((left, whole, 0.6), (right, cut, 0.9)):
        found.add(
            tile,
            InstanceData(
                bboxes=torch.tensor([box_of(mask)], dtype=torch.float32),
                scores=torch.tensor([score]),
                labels=torch.tensor([0]),
                masks=torch.from_numpy(mask[None]),
            ),
        )
    merged = found.merged()
    assert len(merged) == 1 and merged.scores.tolist() == pytest.approx([0.9])
    assert (merged.masks[0][:, :100] == whole).all()


def test_nothing_found_is_an_empty_result():
    merged = found_in_tiles(np.zeros((0, 300, 300), bool), [], 128)
    assert len(merged) == 0 and merged.bboxes.shape == (0, 4) and np.asarray(merged.masks).shape == (0, 300, 300)


def test_cropped_masks_are_the_masks():
    masks = np.stack([*OBJECTS.values(), np.zeros(SIZE, bool)])
    held = CroppedMasks([cropped(mask) for mask in masks], SIZE)
    scores = torch.linspace(0, 1, len(masks))
    found = InstanceData(scores=scores, masks=held)
    for where in (scores > 0.5, scores.sort(descending=True).indices, scores > 2):
        assert (np.asarray(found[where].masks) == masks[where.numpy()]).all()
        assert found[where].numpy().masks.shape == masks[where.numpy()].shape
    boxes = np.array([box_of(mask) for mask in OBJECTS.values()], float)
    drawn = [draw(np.full((*SIZE, 3), 90, np.uint8), boxes, np.arange(5), np.ones(5), each, (), class_colors(None, 5))
             for each in (masks, held)]  # fmt: skip
    assert (drawn[0] == drawn[1]).all() and (drawn[0] != 90).any()


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12))
def test_run_lengths_are_pycocotools(seed, height, width):
    random = np.random.default_rng(seed)
    mask = random.random((height, width)) < random.random()
    expected = mask_utils.encode(np.asfortranarray(mask, np.uint8))
    assert rle_of(cropped(mask), mask.shape) == dict(size=[height, width], counts=expected['counts'].decode())
    empty = Crop(np.zeros((0, 0), bool), 0, 0)
    assert mask_utils.decode(rle_of(empty, (height, width))).sum() == 0
