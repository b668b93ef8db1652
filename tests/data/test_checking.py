"""The checks of data in COCO's form: each fault is found, named and repaired in a copy."""

import copy
import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from coco_files import CLASSES, HEIGHT, WIDTH, changed, coco_content, compressed, encoded, num_loaded, write_set
from coco_problems import (
    FAULTS,
    FILE_KINDS,
    FILES,
    SQUARE,
    annotation,
    both,
    by_pil,
    image,
    put,
)
from paths import ROOT
from pycocotools import mask as mask_utils

from shvit_det import UsageError
from shvit_det.data.checking.annotation_file import Use, parse_annotations, read_annotations
from shvit_det.data.checking.cleaning import area_of, clean
from shvit_det.data.checking.content_checks import check_content, check_file
from shvit_det.data.checking.findings import KINDS, Repair, errors_among, short
from shvit_det.data.checking.image_checks import DecodeSettings, check_images, check_presence, inspect_image
from shvit_det.data.checking.mask_checks import counts_of_rle
from shvit_det.data.coco_dataset import ignored_objects

PATH = Path('annotations.json')
USE = Use(masks=True, evaluated=True)


def check(content, use=USE, classes=CLASSES):
    return check_content(content, use, PATH, classes)


def test_nothing_is_found_in_a_good_file():
    assert check(coco_content()) == []


@pytest.mark.parametrize('fault', FAULTS)
def test_a_fault_is_found_and_repaired_in_a_copy(fault, tmp_path):
    kind, change, num_left = FAULTS[fault]
    content = changed(change)
    before = copy.deepcopy(content)
    findings = check(content)
    assert kind in {finding.kind for finding in findings}
    found = next(finding for finding in findings if finding.kind == kind)
    assert len(found.message) < 400 and '\n' not in found.message

    cleaned = clean(content, findings, USE, PATH, CLASSES)
    assert repr(content) == repr(before)
    after = cleaned.content['annotations']
    assert len(content['annotations']) - len(after) == sum(cleaned.removed['annotations'].values())
    assert len(content['images']) - len(cleaned.content['images']) == sum(cleaned.removed['images'].values())
    assert len(after) == num_left
    left = errors_among(cleaned.left)
    assert all(finding.repair == Repair.NONE for finding in left)
    assert not left or kind in ('file', 'classes', 'category_invalid', 'category_id_duplicate')
    if KINDS[kind].repair == Repair.KEEP:
        assert not cleaned.is_changed
    elif KINDS[kind].repair != Repair.NONE:
        assert cleaned.is_changed and kind not in {finding.kind for finding in cleaned.left}
    if not left:
        file = tmp_path / 'cleaned.json'
        file.write_text(json.dumps(cleaned.content))
        assert num_loaded(file) == num_left - sum(ignored_objects(cleaned.content, CLASSES).values())


def test_every_kind_of_fault_is_tried():
    tried = {kind for kind, _, _ in FAULTS.values()}
    assert tried | FILE_KINDS | {'rle_unused', 'evaluator', 'leaked_image'} == set(KINDS)


def test_what_the_config_does_not_use_is_no_fault():
    broken = changed(both(annotation(0, segmentation=...), annotation(1, iscrowd=...), annotation(2, id=0)))
    assert {finding.kind for finding in check(broken)} == {'mask_missing', 'crowd_missing', 'annotation_id_zero'}
    assert check(broken, Use()) == []
    assert [f.kind for f in check(coco_content(), Use(masks=True, polygons_only=True))] == ['rle_unused']
    named = changed(lambda content: [entry.update(id=str(entry['id'])) for entry in content['annotations']])
    assert check(named, Use(masks=True)) == []
    sized = changed(both(image(0, width=float(WIDTH)), image(1, height=float(HEIGHT))))
    assert check(sized) == []
    texts = changed(both(image(0, id='a'), image(1, id='b'), image(2, id='c'), image(3, id='d')))
    assert {finding.kind for finding in check(texts)} == {'image_unknown'}  # ids may be text, but here nothing fits


def test_the_reasons_of_mmdet_are_counted():
    content = changed(
        both(annotation(0, ignore=True), annotation(1, bbox=[1, 1, 0.5, 9]), annotation(2, area=0),
             annotation(4, bbox=[90, 90, 5, 5]))
    )  # fmt: skip
    assert ignored_objects(content, ('cat', 'fox')) == {
        'marked ignore': 1, 'box narrower than a pixel': 1, 'area not positive': 1,
        'box without area or outside the image': 1,
    }  # fmt: skip
    assert ignored_objects(coco_content(), ('cat',)) == {'of a category that is no class of the config': 4}


@pytest.mark.parametrize(
    'data',
    [
        b'', b'{', b'[]', b'{"images": {}}', b'\xff\xfe{}', b'\xef\xbb\xbf{}', b'{"images": [], "annotations": []}',
        b'[' * 100_000, b'{"images": ' + b'9' * 5000 + b'}', json.dumps(coco_content()).encode('utf-16'),
    ],
)  # fmt: skip
def test_what_is_not_coco_json_is_refused_in_one_sentence(data):
    with pytest.raises(UsageError, match='is not COCO JSON') as caught:
        parse_annotations(data, PATH)
    assert len(str(caught.value)) < 300


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match=r'no annotation file .*nowhere\.json'):
        read_annotations(tmp_path / 'nowhere.json')
    with pytest.raises(UsageError, match='no image folder'):
        list(check_presence(coco_content(), tmp_path / 'nowhere'))


@pytest.mark.parametrize(
    'classes, words',
    [
        (['wolf'], ['none of the classes', 'wolf', 'cat', 'metainfo']),
        (['cat', 'wolf'], ['1 of the 2 classes', 'wolf']),
        (['dog', 'cat'], ['another order', 'dog, cat', 'cat, dog']),
    ],
)
def test_classes_that_do_not_fit_the_annotations_are_named(classes, words):
    assert not [*check_file(coco_content(), PATH, CLASSES), *check_file(coco_content(), PATH, ['dog'])]
    (finding,) = check_file(coco_content(), PATH, classes)
    assert finding.kind == 'classes'
    for word in words:
        assert word in finding.message


def test_images_may_lie_in_subfolders(tmp_path):
    content = changed(
        both(image(0, file_name='a/1.jpg'), image(1, file_name='a/../a//1.jpg'), image(2, file_name='b/2'))
    )
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a' / '1.jpg').touch()
    content['images'].append(dict(content['images'][3], id=11, file_name='x' * 5000))
    missing = list(check_presence(content, tmp_path))
    assert [finding.index for finding in missing] == [2, 3, 4] and 'b/2 does not exist' in missing[0].message


def test_run_lengths_are_those_of_pycocotools():
    rng = np.random.default_rng(0)
    for _ in range(50):
        mask = np.asfortranarray((rng.random((37, 53)) < rng.uniform(0, 1)).astype(np.uint8))
        if rng.random() < 0.5:
            mask[5:30, 7:50] = 1
        rle = mask_utils.encode(mask)
        counts = counts_of_rle(rle['counts'].decode())
        assert counts.sum() == mask.size and counts[1::2].sum() == mask.sum() == mask_utils.area(rle)
        assert mask_utils.frPyObjects(dict(size=rle['size'], counts=counts.tolist()), 37, 53) == rle
    assert counts_of_rle('') is None and counts_of_rle(7) is None and counts_of_rle('é') is None
    assert counts_of_rle('ooooooooooooooooooooooo0') is None and counts_of_rle('o') is None


def test_an_area_is_that_of_the_mask_or_the_box():
    box = [2, 3, 12, 10]
    assert area_of(dict(bbox=box, segmentation=[SQUARE, [20, 20, 24, 20, 24, 24]])) == 64 + 8
    assert area_of(dict(bbox=box, segmentation=compressed(1, 1, 5, 6))) == 30
    assert area_of(dict(bbox=box)) == area_of(dict(bbox=box, segmentation=[['a'] * 6])) == 120


def test_a_value_in_a_sentence_is_short():
    for value in ('x' * 10_000, ['x' * 100] * 100, {str(number): [[[[1]]]] for number in range(100)}, 10**300):
        assert len(short(value)) < 200


# Files: what their bytes are, and what is found when the annotations say that they are 40 x 30.


@pytest.mark.parametrize('case', FILES)
def test_a_bad_image_is_found(case, tmp_path):
    data, kinds = FILES[case]
    content = coco_content()
    write_set(tmp_path)
    put(tmp_path / 'images' / '5.jpg', data)
    findings, sizes = check_images(content, tmp_path / 'images', DecodeSettings(), workers=2)
    assert [finding.kind for finding in findings] == kinds
    assert all('5.jpg' in finding.message and finding.image_id == 5 for finding in findings)
    assert sizes[0] == (WIDTH, HEIGHT)
    cleaned = clean(content, findings, USE, PATH, CLASSES, sizes)
    gone = any(finding.severity == 'error' for finding in findings)
    assert len(cleaned.content['images']) == 4 - gone and len(cleaned.content['annotations']) == 6 - 2 * gone
    assert sum(cleaned.removed['annotations'].values()) == 2 * gone


def test_every_kind_of_bad_image_is_tried():
    assert {kind for _, kinds in FILES.values() for kind in kinds} == FILE_KINDS


def table_rows() -> list[str]:
    """Return the rows of the table of faults in docs/checking_data.md."""
    return [f'| `{name}` | {kind.meaning} | {kind.severity} | {kind.repair} |' for name, kind in KINDS.items()]


def test_the_page_lists_every_kind_of_fault():
    page = (ROOT / 'docs' / 'checking_data.md').read_text()
    assert [line for line in page.splitlines() if line.startswith('| `') and line.count('|') == 5] == table_rows()


def test_headers_alone_show_sizes_but_nothing_behind_them(tmp_path):
    content = coco_content()
    write_set(tmp_path)
    put(tmp_path / 'images' / '3.jpg', FILES['truncated JPEG'][0])
    put(tmp_path / 'images' / '5.jpg', FILES['EXIF turned'][0])
    put(tmp_path / 'images' / '8.jpg', FILES['grey'][0])
    findings, sizes = check_images(content, tmp_path / 'images', DecodeSettings(), headers_only=True)
    assert [(finding.index, finding.kind) for finding in findings] == [(1, 'image_rotated'), (2, 'image_grey')]
    assert sizes == {0: (WIDTH, HEIGHT), 1: (HEIGHT, WIDTH), 2: (WIDTH, HEIGHT), 3: (WIDTH, HEIGHT)}


def test_an_image_is_judged_as_the_pipeline_loads_it(tmp_path):
    path = tmp_path / 'a.jpg'
    path.write_bytes(by_pil(orientation=6))
    listed = (WIDTH, HEIGHT)
    assert [kind for kind, _ in inspect_image(path, listed, DecodeSettings()).found] == ['image_rotated']
    assert "color_type='color_ignore_orientation'" in inspect_image(path, listed, DecodeSettings()).found[0][1]
    assert inspect_image(path, listed, DecodeSettings('color_ignore_orientation')).found == []
    assert inspect_image(path, listed, DecodeSettings('unchanged')).found == []
    assert [kind for kind, _ in inspect_image(path, listed, DecodeSettings(backend='pillow')).found] == [
        'image_rotated'
    ]


def test_a_size_that_is_not_listed_is_taken_from_the_file(tmp_path):
    content = changed(both(image(0, width=None), image(1, height='30')))
    write_set(tmp_path)
    (tmp_path / 'images' / '5.jpg').unlink()
    findings, sizes = check_images(content, tmp_path / 'images', DecodeSettings())
    cleaned = clean(content, check(content) + findings, USE, PATH, CLASSES, sizes)
    assert cleaned.content['images'][0] == dict(content['images'][0], width=WIDTH, height=HEIGHT)
    assert [entry['id'] for entry in cleaned.content['images']] == [3, 8, 9]
    assert cleaned.changed == {'image_size_invalid': 1} and sum(cleaned.removed['annotations'].values()) == 2


def test_a_header_that_claims_too_much_is_not_decoded(tmp_path):
    header = bytearray(encoded('.png'))
    header[16:24] = (60_000).to_bytes(4, 'big') * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, 'big')
    path = tmp_path / 'a.png'
    path.write_bytes(header)
    assert only_finding(path, width=WIDTH, height=HEIGHT).kind == 'image_size_differs'
    assert 'claims 60000 x 60000 pixels' in only_finding(path).message


def only_finding(path: Path, **size):
    content = dict(images=[dict(id=1, file_name=path.name, **size)], annotations=[], categories=[])
    (finding,), _ = check_images(content, path.parent, DecodeSettings())
    return finding


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='this system has no named pipes')
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'a.jpg')
    assert 'is no file' in only_finding(tmp_path / 'a.jpg').message
