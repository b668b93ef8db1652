"""The checks of data in COCO's form: each fault is found, named and repaired in a copy."""

import copy
import gzip
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
    FORMS,
    SQUARE,
    annotation,
    both,
    by_pil,
    every,
    image,
    put,
    rewritten,
)
from paths import ROOT
from pycocotools import mask as mask_utils

from shvit_det import UsageError
from shvit_det.data.checking.annotation_file import SECTIONS, Use, read_annotations
from shvit_det.data.checking.cleaning import area_of, clean
from shvit_det.data.checking.content_checks import check_content, check_file
from shvit_det.data.checking.findings import KINDS, Repair, errors_among, short
from shvit_det.data.checking.image_checks import DecodeSettings, check_images, inspect_image
from shvit_det.data.checking.image_presence import check_presence
from shvit_det.data.checking.mask_checks import counts_of_rle
from shvit_det.data.checking.object_counts import count_objects

PATH = Path('annotations.json')
USE = Use(masks=True, evaluated=True)


def check(content, use=USE, classes=CLASSES):
    return check_content(content, use, PATH, classes)


def test_an_image_of_more_bits_that_is_nearly_black_when_loaded_is_said_to_be(tmp_path):
    for largest, said in ((4095, True), (65535, False)):
        path = tmp_path / f'{largest}.png'
        path.write_bytes(
            encoded('.png', np.linspace(0, largest, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16))
        )
        ((kind, text),) = inspect_image(path, (WIDTH, HEIGHT), DecodeSettings()).found
        assert kind == 'image_deep' and ('nearly black' in text) == said


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
    beyond_repair = [name for name, each in KINDS.items() if each.repair == Repair.NONE]
    assert not left or kind in (*beyond_repair, 'category_invalid', 'category_id_duplicate')
    if KINDS[kind].repair == Repair.KEEP:
        assert not cleaned.is_changed
    elif KINDS[kind].repair != Repair.NONE:
        assert cleaned.is_changed and kind not in {finding.kind for finding in cleaned.left}
    if not left:
        file = tmp_path / 'cleaned.json'
        file.write_text(json.dumps(cleaned.content))
        assert num_loaded(file) == num_left - sum(count_objects(cleaned.content, CLASSES).ignored.values())


def test_every_kind_of_fault_is_tried():
    tried = {kind for kind, _, _ in (*FAULTS.values(), *FORMS.values())}
    assert tried | FILE_KINDS | {'rle_unused', 'no_images', 'image_backslash', 'evaluator', 'leaked_image'} == set(
        KINDS
    )


@pytest.mark.parametrize('form', FORMS)
def test_what_means_the_same_in_another_form_is_cast_and_nothing_is_lost(form):
    kind, prepare, rewrite = FORMS[form]
    expected = changed(prepare or (lambda content: None))
    content = copy.deepcopy(expected)
    rewrite(content)
    before = copy.deepcopy(content)
    findings = check(content)
    num_changed = sum(
        entry != other for name in SECTIONS for entry, other in zip(content[name], expected[name], strict=True)
    )
    assert kind in {finding.kind for finding in findings} and len(findings) == num_changed > 0
    assert all(finding.repair == Repair.CAST and len(finding.message) < 400 for finding in findings)
    cleaned = clean(content, findings, USE, PATH, CLASSES)
    assert content == before and cleaned.content == expected and cleaned.left == []
    assert not any(cleaned.removed.values()) and sum(cleaned.changed.values()) == num_changed
    assert f'{num_changed} objects or images changed' in cleaned.summary()


def test_names_that_are_numbers_are_cast():
    content = changed(lambda content: [entry.update(name=entry['id']) for entry in content['categories']])
    findings = check(content, classes=('1', '2', '4'))
    assert [finding.kind for finding in findings] == ['category_form'] * 3
    names = [entry['name'] for entry in clean(content, findings, USE, PATH, ('1', '2', '4')).content['categories']]
    assert names == ['1', '2', '4']


def test_what_is_guessed_is_not_cast():
    for values in (
        dict(bbox='1, 2, 3, 4'), dict(bbox=['1,5', 2, 3, 4]), dict(bbox=[[1, 2, 3, 4], [5, 6, 7, 8]]), dict(bbox={}),
        dict(bbox=[1, '0x10', 3, 4]), dict(bbox=[1, '1_0', 3, 4]), dict(bbox=[1, '9' * 5000, 3, 4]),
        dict(image_id='3.5'), dict(image_id='three'), dict(segmentation=SQUARE[:-1]), dict(segmentation=SQUARE[:4]),
        dict(iscrowd='2'), dict(iscrowd=[]), dict(segmentation=['a', *SQUARE[1:]]),
    ):  # fmt: skip
        assert not {f.kind for f in check(changed(annotation(0, **values)))} & {'annotation_form', 'mask_form'}, values
    twice = changed(both(image(0, id='3'), image(1, id=3), annotation(0, image_id='03')))
    assert 'image_form' not in {finding.kind for finding in check(twice)}


def test_several_polygons_of_one_object_are_one_finding():
    content = changed(annotation(0, segmentation=[SQUARE[:4]] * 9 + [SQUARE] + [[1]] * 2))
    findings = check(content)
    assert [finding.kind for finding in findings] == ['polygon_invalid', 'polygon_short']
    cleaned = clean(content, findings, USE, PATH, CLASSES)
    assert cleaned.content['annotations'][0]['segmentation'] == [SQUARE]


def test_a_split_without_an_object_to_use_is_refused():
    (finding,) = check(changed(every('annotations', iscrowd=1)))
    assert '0 of 6 objects' in finding.message and '6 crowd (iscrowd=1)' in finding.message
    assert 'set iscrowd to 0' in finding.message
    (finding,) = check(changed(every('annotations', ignore=1)))
    assert '6 marked ignore' in finding.message and 'set iscrowd' not in finding.message
    (finding,) = check(coco_content(), Use(masks=True, min_size=HEIGHT + 1))
    assert f'6 in an image smaller than {HEIGHT + 1} pixels' in finding.message
    assert check(coco_content(), Use(masks=True, min_size=HEIGHT)) == []
    empty = changed(lambda content: content.update(annotations=[]))
    assert check(empty) == []  # images without objects, beside other data sets
    assert [finding.kind for finding in check(empty, Use(needs_objects=True))] == ['no_objects']


def test_a_category_that_no_object_has_is_named():
    """As the first one of a known export, which is the supercategory of the others."""
    content = changed(rewritten('categories', 'name', write=lambda name: name))
    content['categories'] = [
        dict(id=0, name='animals', supercategory='none'),
        *(dict(entry, supercategory='animals') for entry in content['categories']),
    ]
    assert check(content) == []  # it is no class of the config
    (finding,) = check(content, classes=('animals', *CLASSES))
    assert finding.kind == 'category_unused' and finding.severity == 'warning'
    assert "'animals', which is the supercategory of 3 others: leave it out" in finding.message


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
    counts = count_objects(content, ('cat', 'fox'))
    assert counts.ignored == {
        'marked ignore': 1, 'box narrower than a pixel': 1, 'area not positive': 1,
        'box without area or outside the image': 1,
    }  # fmt: skip
    assert (counts.total, counts.crowd, counts.used) == (6, 1, 1)
    assert count_objects(coco_content(), ('cat',)).ignored == {'of a category that is no class of the config': 4}
    assert (
        count_objects(coco_content(), None).as_phrase('scored')
        == '5 of 6 objects are scored (not: 1 crowd (iscrowd=1))'
    )


@pytest.mark.parametrize(
    'data',
    [
        b'', b'{', b'[]', b'{"images": {}}', b'\xff\xfe{}', b'\xef\xbb\xbf{}', b'{"images": [], "annotations": []}',
        b'[' * 100_000, b'{"images": ' + b'9' * 5000 + b'}', json.dumps(coco_content()).encode('utf-16'),
    ],
)  # fmt: skip
def test_what_is_not_coco_json_is_refused_in_one_sentence(data, tmp_path):
    (tmp_path / 'a.json').write_bytes(data)
    with pytest.raises(UsageError, match='is not COCO JSON') as caught:
        read_annotations(tmp_path / 'a.json')
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
        (['cat', 'wolf'], ['1 of the 2 classes', 'wolf', 'add them to its categories']),
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


def test_what_is_no_file_is_missing(tmp_path):
    content = coco_content()
    write_set(tmp_path)
    names = [entry['file_name'] for entry in content['images']]
    for name in names[:2]:
        (tmp_path / 'images' / name).unlink()
    (tmp_path / 'images' / names[0]).mkdir()
    (tmp_path / 'images' / names[1]).symlink_to(tmp_path / 'elsewhere.jpg')
    (tmp_path / 'linked.jpg').touch()
    (tmp_path / 'images' / names[2]).unlink()
    (tmp_path / 'images' / names[2]).symlink_to(tmp_path / 'linked.jpg')
    messages = [finding.message for finding in check_presence(content, tmp_path / 'images')]
    assert [message.split(' is ')[1] for message in messages] == ['a folder', 'a link to nothing']


@pytest.mark.parametrize(
    'data, words',
    [
        (b'\xef\xbb\xbf{}', 'it begins with a byte-order mark'),
        ('{}'.encode('utf-16'), 'it is text in UTF-16'),
        (gzip.compress(b'{}', mtime=0), 'it is compressed'),
        (b'version https://git-lfs.github.com/spec/v1', 'it is a pointer of Git LFS'),
        (b'\n<!DOCTYPE html><html>', 'it is a web page'),
    ],
    ids=['BOM', 'UTF-16', 'gzip', 'LFS', 'web page'],
)
def test_files_of_other_kinds_are_named(data, words, tmp_path):
    (tmp_path / 'a.json').write_bytes(data)
    with pytest.raises(UsageError, match=f'a.json is not COCO JSON: {words}'):
        read_annotations(tmp_path / 'a.json')


def test_boxes_that_are_fractions_are_named():
    content = changed(lambda content: [entry.update(bbox=[0.1, 0.2, 0.3, 0.4]) for entry in content['annotations']])
    assert any('seem to be fractions of the width' in finding.message for finding in check(content))


def test_boxes_that_reach_far_out_of_small_pieces_of_images_stay_as_they_are():
    """As cut-out pieces of large images have them: not all would be right by another convention."""

    def cut(content):
        for number, entry in enumerate(content['annotations']):
            entry['bbox'] = [0.7 * WIDTH, 0.7 * HEIGHT, WIDTH, HEIGHT] if number % 2 else [20, 15, 5, 5]

    kinds = {finding.kind for finding in check(changed(cut), Use())}
    assert 'box_overhanging' in kinds and 'box_layout' not in kinds


@pytest.mark.parametrize(
    'prefix, folder, words',
    [
        ('images/', 'images', ['images/3.jpg', 'set data_prefix.img to {root}']),
        ('/home/anna/data/', 'images', ['{root}/images/3.jpg', "take '/home/anna/data/' off each file_name"]),
        ('C:\\data\\', 'images', ['{root}/images/3.jpg', 'take', 'with slashes in place of its backslashes']),
        ('', '.', ['3.jpg', 'set data_prefix.img to {root}/images']),
        ('a-', 'images', ['not one of the 4 images is in {root}/images', 'a-3.jpg', 'holds']),
    ],
)
@pytest.mark.parametrize('look', [check_presence, lambda *arguments: check_images(*arguments, DecodeSettings())[0]])
def test_where_images_are_is_said_if_not_one_is_found(look, prefix, folder, words, tmp_path):
    content = coco_content()
    write_set(tmp_path)
    rewritten('images', 'file_name', write=lambda name: prefix + name)(content)
    (finding,) = look(content, tmp_path / folder)
    assert finding.kind == 'no_images' and finding.repair == Repair.NONE
    for word in words:
        assert word.format(root=tmp_path) in finding.message


def test_another_extension_and_an_empty_folder_are_named(tmp_path):
    content = changed(rewritten('images', 'file_name', write=lambda name: name.replace('jpg', 'png')))
    write_set(tmp_path)
    (finding,) = check_presence(content, tmp_path / 'images')
    assert '3.jpg there, with another extension' in finding.message
    (finding,) = check_presence(changed(rewritten('images', 'file_name', write='{} '.format)), tmp_path / 'images')
    assert "'3.jpg ' begins or ends with a space, and the file '3.jpg' does not" in finding.message
    (tmp_path / 'empty').mkdir()
    (finding,) = check_presence(content, tmp_path / 'empty')
    assert 'is empty' in finding.message


@pytest.mark.skipif(os.sep == '\\', reason='there backslashes separate folders')
def test_backslashes_become_slashes_where_that_is_the_file(tmp_path):
    content = changed(rewritten('images', 'file_name', write='images\\{}'.format))
    write_set(tmp_path)
    findings = check_presence(content, tmp_path)
    assert [finding.kind for finding in findings] == ['image_backslash'] * 4
    found, sizes = check_images(content, tmp_path, DecodeSettings())
    assert [finding.kind for finding in found] == ['image_backslash'] * 4 and sizes[0] == (WIDTH, HEIGHT)
    cleaned = clean(content, findings, USE, PATH, CLASSES)
    assert [entry['file_name'] for entry in cleaned.content['images']][:2] == ['images/3.jpg', 'images/5.jpg']
    assert len(cleaned.content['annotations']) == 6 and cleaned.changed == {'image_backslash': 4}


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
    content = changed(both(image(0, width=None), image(1, height='30 px')))
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
