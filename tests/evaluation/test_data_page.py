"""The page of data shows images as the pipeline makes them, and counts what the annotations hold."""

import base64
import json
import re
from pathlib import Path

import cv2
import layouts
import numpy as np
import pytest
from paths import MASK_RCNN, ROOT
from processes import tool
from tool_runs import succeeded

from shvit_det.common.errors import RunError, UsageError
from shvit_det.data.sample import draw_sample
from shvit_det.evaluation.data_page import GRID, SIDE_BINS, browse, counts, statistics

LOAD, PACK = dict(type='LoadImageFromFile'), dict(type='PackDetInputs')
BOXES = dict(type='LoadAnnotations', with_bbox=True)
MASKS = BOXES | dict(with_mask=True)


def info(*objects, width=100, height=50):
    instances = [dict(bbox=box, bbox_label=label, ignore_flag=ignored) for box, label, ignored in objects]
    return dict(width=width, height=height, instances=instances)


def test_statistics_of_known_objects():
    found = statistics(
        [
            info(([0, 0, 10, 40], 1, 0), ([90, 40, 100, 50], 0, 0), ([0, 0, 5, 5], 0, 1)),
            info(),
            info(([200, 0, 300, 10], 1, 0), width=100),  # the centre lies outside
        ]
    )
    assert found.num_ignored == 1
    assert found.per_image.tolist() == [2, 0, 1] and found.label.tolist() == [1, 0, 1]
    assert found.side.tolist() == pytest.approx([20, 10, np.sqrt(1000)])
    assert found.ratio.tolist() == pytest.approx([1 / 4, 1, 10])
    places = {tuple(place) for place in np.argwhere(found.positions).tolist()}
    assert places == {(int(GRID * 0.4), 0), (int(GRID * 0.9), int(GRID * 0.95)), (int(GRID * 0.1), GRID - 1)}
    assert found.positions.sum() == 3


def test_statistics_of_nothing():
    found = statistics([])
    assert len(found.per_image) == len(found.side) == found.num_ignored == 0


def test_bins_begin_at_their_first_value():
    assert counts(np.array([0, 7.9, 8, 16, 9999]), dict(a=0, b=8, c=16)) == dict(a=2, b=1, c=2)
    assert counts(np.array([]), dict(a=0, b=8, c=16)) == dict(a=0, b=0, c=0)
    assert all(int(name.split()[0]) == start for name, start in SIDE_BINS.items())


@pytest.fixture
def sample(tmp_path):
    draw_sample(tmp_path / 'data', num_train=5, num_val=3)
    return str(tmp_path / 'data')


def test_a_page_shows_augmented_images_and_counts_all_annotations(sample, tmp_path):
    file = Path(sample, 'annotations', 'instances_train2017.json')
    content = json.loads(file.read_text())
    for category in content['categories']:
        if category['name'] == 'disc':
            category['name'] = '<disc>'
    empty = content['images'][0]['id']
    content['annotations'] = [each for each in content['annotations'] if each['image_id'] != empty]
    file.write_text(json.dumps(content))
    classes = tuple(category['name'] for category in content['categories'])
    options = {'train_dataloader.dataset.metainfo.classes': classes}
    path = browse(str(MASK_RCNN), str(tmp_path / 'page'), number=3, data_root=sample, cfg_options=options)
    text = path.read_text()
    assert path == tmp_path / 'page' / 'index.html' and text.count('<img src="data:image/jpeg;base64,') == 3
    counted = [each for each in content['annotations'] if not each['iscrowd']]
    empty_images = len({each['id'] for each in content['images']} - {each['image_id'] for each in counted})
    assert f'5 images with {len(counted)} objects of 5 classes; {empty_images} images have no object.' in text
    assert '&lt;disc&gt;' in text and '<disc>' not in text and '://' not in text
    again = browse(str(MASK_RCNN), str(tmp_path / 'again'), number=3, data_root=sample, cfg_options=options)
    assert again.read_text() == text


def test_images_are_shown_as_the_pipeline_makes_them(sample, tmp_path):
    options = {
        'train_dataloader.dataset.pipeline': [
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='Resize', scale=(700, 1000), keep_ratio=False),
            dict(type='PackDetInputs'),
        ]
    }
    text = browse(str(MASK_RCNN), str(tmp_path), number=2, data_root=sample, cfg_options=options).read_text()
    assert text.count('.jpg, 700 x 1000, ') == 4  # for each, once in the page and once for those who hear it
    assert re.search(r'width="448" height="640"', text)


def test_masks_that_the_pipeline_forgot_to_scale_are_shown_so(sample, tmp_path):
    """The annotations are half as large as the image, so that all boxes and masks are in a quarter of it."""
    first = dict(type='Resize', scale=(384, 384), keep_ratio=True)
    drawn = []
    for name, load in (('masks', MASKS), ('boxes', BOXES)):
        options = {'train_dataloader.dataset.pipeline': [LOAD, first, load, PACK]}
        page = browse(str(MASK_RCNN), str(tmp_path / name), number=1, data_root=sample, cfg_options=options)
        picture = base64.b64decode(re.search(r'base64,([^"]+)', page.read_text())[1])
        drawn.append(cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR).astype(int))
    different = np.abs(drawn[0] - drawn[1]).max(-1) > 40
    middle = len(different) // 2
    assert different[:middle, :middle].any() and not different[middle + 16 :, middle + 16 :].any()


@pytest.mark.parametrize('steps', [[LOAD, PACK], [LOAD, BOXES | dict(with_label=False), PACK]])
def test_a_pipeline_without_annotations_is_refused(sample, tmp_path, steps):
    options = {'train_dataloader.dataset.pipeline': steps}
    with pytest.raises(UsageError, match='hands over no image with boxes and labels, as LoadAnnotations and'):
        browse(str(MASK_RCNN), str(tmp_path / 'page'), data_root=sample, cfg_options=options)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(number=0), '--number is 0: it takes at least one picture'),
        (dict(seed=-1), '--seed is -1: it takes a whole number from 0 to 4294967295'),
        (dict(cfg_options={'train_dataloader.dataset.ann_file': 'none.json'}), 'none.json'),
    ],
)
def test_a_mistake_leaves_nothing(sample, tmp_path, options, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        browse(str(MASK_RCNN), str(tmp_path / 'page'), data_root=sample, **options)
    assert not (tmp_path / 'page').exists()


@pytest.mark.parametrize(('layout', 'detector'), [('labelme', 'mask_rcnn'), ('voc', 'retinanet')])
def test_a_folder_is_shown_as_the_config_that_init_writes_sees_it(tmp_path, layout, detector):
    folder = getattr(layouts, layout)(tmp_path / 'set')
    files = sorted(folder.rglob('*'))
    text = browse(str(folder), str(tmp_path / 'page'), number=2).read_text()
    assert f'Data set {folder}, as {detector}_shvit_s1_coco sees it.' in text
    assert f'{layout} layout, 2 classes' in text and '<h3>train.json</h3>' in text
    assert text.count('.jpg, 1200 x 800, 2 objects') == 4  # drawn with 120 x 80
    assert sorted(folder.rglob('*')) == files and sorted(tmp_path.iterdir()) == [tmp_path / 'page', folder]


@pytest.mark.parametrize(
    ('maker', 'options', 'message'),
    [
        (Path.mkdir, {}, 'has none of the layouts that are read: COCO '),
        (layouts.yolo, dict(data_root='other'), 'is a folder: name the folder of the data alone'),
    ],
)
def test_a_folder_that_cannot_be_shown_leaves_nothing(tmp_path, maker, options, message):
    maker(tmp_path / 'set')
    with pytest.raises(UsageError, match=message):
        browse(str(tmp_path / 'set'), str(tmp_path / 'page'), **options)
    assert not (tmp_path / 'page').exists()


def test_a_classifier_has_no_boxes_to_show(tmp_path):
    with pytest.raises(UsageError, match='this is a classifier, whose data have none'):
        browse(str(ROOT / 'configs' / 'shvit_s1_imagenet.py'), str(tmp_path / 'page'))
    assert not (tmp_path / 'page').exists()


def test_a_damaged_image_ends_it_with_a_sentence_and_no_page(sample, tmp_path):
    for path in Path(sample, 'train2017').iterdir():
        path.write_bytes(b'no image')
    with pytest.raises(RunError):
        browse(str(MASK_RCNN), str(tmp_path / 'page'), data_root=sample)
    assert not list((tmp_path / 'page').iterdir())


@pytest.mark.slow
def test_the_tool_writes_the_page(trained_once, tmp_path):
    data = ('--data-root', trained_once / 'data' / 'sample')
    output = succeeded(tool('browse', MASK_RCNN, '--out', 'page', '--number', 2, *data, cwd=tmp_path))
    assert output.splitlines()[-1] == 'Page: page/index.html'
    assert [path.name for path in (tmp_path / 'page').iterdir()] == ['index.html']
    result = tool('browse', MASK_RCNN, '--out', 'page/index.html', *data, cwd=tmp_path)
    assert result.returncode == 2 and 'name another one with --out' in result.stderr.splitlines()[-1]
