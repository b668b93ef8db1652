"""The data set that loses nothing silently: bad data is refused with a sentence, or passed over and reported once."""

import json
import subprocess
import sys

import cv2
import mmcv
import numpy as np
import pytest
import torch
from coco_files import HEIGHT, WIDTH, changed, coco_content, coco_dataset, encoded, picture, write_set
from coco_problems import FILE_KINDS, FILES, annotation, both, category, image, put
from mmdet.datasets import CocoDataset
from mmengine.dataset import Compose
from paths import ROOT

from shvit_det import UsageError
from shvit_det.common.errors import RunError
from shvit_det.data.checking.findings import KINDS
from shvit_det.data.coco_dataset import CheckedCocoDataset

PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='mmdet.LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='mmdet.PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape')),
]


def checked(file, **arguments) -> CheckedCocoDataset:
    return coco_dataset(file, CheckedCocoDataset, pipeline=PIPELINE, **arguments)


def ids_of(dataset) -> list[int]:
    return [dataset[index]['data_samples'].img_id for index in range(len(dataset))]


def test_good_data_is_loaded_as_mmdet_loads_it(tmp_path, log):
    file = write_set(tmp_path)
    for arguments in (dict(filter_cfg=dict(filter_empty_gt=True)), dict(test_mode=True), dict(indices=2)):
        ours = checked(file, **arguments)
        theirs = coco_dataset(file, CocoDataset, pipeline=PIPELINE, **arguments)
        assert len(ours) == len(theirs) and ours.metainfo == theirs.metainfo
        for index in range(len(ours)):
            assert torch.equal(ours[index]['inputs'], theirs[index]['inputs'])
            first, second = ours[index]['data_samples'], theirs[index]['data_samples']
            assert first.metainfo == second.metainfo
            for name in ('gt_instances', 'ignored_instances'):
                assert torch.equal(first.get(name).bboxes.tensor, second.get(name).bboxes.tensor)
                assert np.array_equal(first.get(name).masks.masks, second.get(name).masks.masks)
    assert '5 of 6 objects are trained on (not: 1 crowd (iscrowd=1))' in log.text
    assert '5 of 6 objects are scored (not: 1 crowd (iscrowd=1))' in log.text
    assert 'leaves out 1 of 4 images (1 without objects of the classes), and 0 objects with them' in log.text


def test_sizes_may_be_written_with_a_point(tmp_path):
    file = write_set(tmp_path, changed(both(*(image(number, width=40.0, height=30.0) for number in range(4)))))
    assert ids_of(checked(file)) == [3, 5, 8, 9]
    (tmp_path / 'images' / '5.jpg').unlink()
    assert checked(file, test_mode=True, bad_data='skip')[1]['inputs'].shape == (3, HEIGHT, WIDTH)


@pytest.mark.slow
def test_it_is_found_by_its_name_but_not_imported_before():
    """Users of backbones may not have mmdet."""
    code = (
        'import sys, shvit_det; assert "shvit_det.data.coco_dataset" not in sys.modules; '
        'from mmdet.registry import DATASETS; print(DATASETS.get("shvit_det.CheckedCocoDataset").__name__)'
    )
    result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split()[-1] == 'CheckedCocoDataset'


def test_what_mmdet_leaves_out_is_counted(tmp_path, log):
    content = changed(
        both(annotation(0, bbox=[1, 1, 0.5, 9]), annotation(2, area=0), annotation(3, ignore=True),
             image(2, width=20, height=20), category(0, name='dog'), category(1, name='cat'))
    )  # fmt: skip
    content['annotations'][5]['segmentation'] = [[1, 1, 9, 1, 9, 9]]
    checked(
        write_set(tmp_path, content),
        metainfo=dict(classes=('dog', 'cat')),
        filter_cfg=dict(filter_empty_gt=True, min_size=25),
    )
    assert (
        '1 of 6 objects are trained on (not: 1 box narrower than a pixel, 1 area not positive, 1 marked ignore, '
        '1 in an image smaller than 25 pixels, 1 of a category that is no class of the config)'
    ) in log.text
    assert 'warnings: 1 box_thin, 1 area_not_positive' in log.text
    assert 'leaves out 2 of 4 images (1 smaller than 25 pixels, 1 without objects of the classes)' in log.text
    assert 'and 1 objects with them' in log.text


def test_errors_in_annotations_are_refused_or_repaired_in_memory(tmp_path, log):
    file = write_set(tmp_path, changed(both(annotation(0, bbox=None), annotation(1, image_id=77))))
    before = file.read_bytes()
    with pytest.raises(UsageError) as caught:
        checked(file)
    for words in (str(file), '1 image_unknown, 1 box_invalid', 'annotation 101 of image 77', 'check-data', '--fix'):
        assert words in str(caught.value)
    dataset = checked(file, bad_data='skip')
    assert sum(len(dataset.get_data_info(index)['instances']) for index in range(len(dataset))) == 4
    assert '2 objects removed (1 image_unknown, 1 box_invalid)' in log.text
    assert '3 of 4 objects are trained on (not: 1 crowd (iscrowd=1))' in log.text
    assert file.read_bytes() == before
    with pytest.raises(UsageError, match='box_invalid'):  # the evaluator would read it as it is
        checked(file, bad_data='skip', test_mode=True)


def test_what_no_repair_helps_is_always_refused(tmp_path):
    with pytest.raises(UsageError, match='none of the classes'):
        checked(write_set(tmp_path), bad_data='skip', metainfo=dict(classes=('wolf',)))
    file = write_set(tmp_path, changed(lambda content: content.update(annotations=[])))
    with pytest.raises(UsageError, match='has no annotations, and a detector needs objects'):
        checked(file, bad_data='skip', filter_cfg=dict(filter_empty_gt=True))
    with pytest.raises(UsageError, match='no image to use'):
        checked(file, bad_data='skip', filter_cfg=dict(min_size=HEIGHT + 1))
    with pytest.raises(UsageError, match="bad_data is 'maybe': choose from refuse, skip"):
        checked(file, bad_data='maybe')
    file.write_text(json.dumps(coco_content())[:100])
    with pytest.raises(UsageError, match='is not COCO JSON'):
        checked(file, bad_data='skip')


BAD_KINDS = {kind for kind in FILE_KINDS if KINDS[kind].severity == 'error'}
BAD = [name for name, (_, kinds) in FILES.items() if BAD_KINDS.intersection(kinds)]


@pytest.mark.parametrize('case', FILES)
def test_a_bad_image_is_refused_or_another_taken(case, tmp_path, log):
    file = write_set(tmp_path)
    path = tmp_path / 'images' / '5.jpg'
    put(path, FILES[case][0])
    if case not in BAD:
        assert ids_of(checked(file)) == [3, 5, 8, 9]
        return
    with pytest.raises(RunError) as caught:
        ids_of(checked(file))
    for words in (f'the image {path} ', 'check-data', '--cfg-options bad_data=skip'):
        assert words in str(caught.value)
    assert '\n' not in str(caught.value)

    dataset = checked(file, bad_data='skip')
    for _ in range(3):
        ids = ids_of(dataset)
        assert len(ids) == 4 and 5 not in ids
    assert log.text.count(str(path)) == 1 and 'another image is taken' in log.text


def test_a_cut_off_image_is_bad_though_opencv_decodes_it(tmp_path, monkeypatch):
    """As OpenCV 4 does, without a word."""
    file = write_set(tmp_path)
    path = tmp_path / 'images' / '5.jpg'
    path.write_bytes(encoded()[:-100])
    decode = mmcv.imfrombytes
    monkeypatch.setattr(mmcv, 'imfrombytes', lambda content, **kwargs: decode(encoded(), **kwargs))
    with pytest.raises(RunError, match=r'5\.jpg is cut off'):
        ids_of(checked(file))


def test_a_bad_image_that_is_scored_is_black(tmp_path, log):
    file = write_set(tmp_path)
    (tmp_path / 'images' / '5.jpg').write_bytes(b'')
    with pytest.raises(RunError, match=r'images/5\.jpg'):
        ids_of(checked(file, test_mode=True))
    dataset = checked(file, test_mode=True, bad_data='skip')
    assert ids_of(dataset) == [3, 5, 8, 9] == ids_of(dataset)
    item = dataset[1]
    assert item['inputs'].shape == (3, HEIGHT, WIDTH) and not item['inputs'].any()
    assert len(item['data_samples'].gt_instances) == 2
    assert log.text.count('5.jpg') == 1 and 'scored as a black picture' in log.text


@pytest.mark.parametrize('test_mode', [False, True])
def test_with_no_good_image_the_run_ends(test_mode, tmp_path):
    file = write_set(tmp_path)
    for path in (tmp_path / 'images').iterdir():
        path.write_bytes(encoded()[:-100])
    with pytest.raises(RunError, match='not one of the 4 images can be used'):
        ids_of(checked(file, bad_data='skip', test_mode=test_mode))


def test_a_pipeline_that_makes_nothing_of_images_ends_the_run(tmp_path):
    """mmengine tries another image a thousand times, and then raises an exception without a name."""
    outcomes = iter([False, False, True, False, False, False])
    pipeline = [*PIPELINE, lambda results: results if next(outcomes) else None]
    dataset = coco_dataset(write_set(tmp_path), CheckedCocoDataset, pipeline=pipeline)
    dataset.max_refetch = 2
    assert dataset[0] is not None
    with pytest.raises(RunError, match=r'nothing for 3 images in a row, the last is .*\.jpg'):
        dataset[0]


def test_an_image_on_which_the_pipeline_fails_is_named(tmp_path):
    content = changed(image(1, width=900, height=2))
    file = write_set(tmp_path, content)
    (tmp_path / 'images' / '5.jpg').write_bytes(encoded('.jpg', picture(900, 2)))

    def resize(results):
        results['img'] = cv2.resize(results['img'], (64, results['img'].shape[0] // 3))
        return results

    pipeline = [*PIPELINE[:1], resize, *PIPELINE[2:]]
    dataset = coco_dataset(file, CheckedCocoDataset, pipeline=pipeline, test_mode=True)
    assert dataset[0] is not None
    with pytest.raises(RuntimeError, match=r'the pipeline fails on the image .*/5\.jpg \(error: .*resize'):
        dataset[1]


def test_a_pipeline_that_a_hook_exchanges_is_checked_too(tmp_path):
    file = write_set(tmp_path)
    dataset = checked(file)
    assert dataset[1]['data_samples'].img_id == 5
    dataset.pipeline = Compose(PIPELINE)
    (tmp_path / 'images' / '5.jpg').unlink()
    with pytest.raises(RunError, match=r'5\.jpg does not exist'):
        dataset[1]


def test_an_image_that_mmdet_would_pass_over_without_a_word_is_bad(tmp_path):
    file = write_set(tmp_path)
    (tmp_path / 'images' / '5.jpg').unlink()
    pipeline = [dict(type='LoadImageFromFile', ignore_empty=True), *PIPELINE[1:]]
    dataset = coco_dataset(file, CheckedCocoDataset, pipeline=pipeline)
    with pytest.raises(RunError, match=r'5\.jpg does not exist'):
        dataset[1]
    assert WIDTH != HEIGHT  # or a turned image would not be seen
