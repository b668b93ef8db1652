"""Broken data of every kind: each is found, nothing hangs, no object is lost without being counted.

Random changes of a tiny made-up data set, and of parts of real ones where they are there. The environment variable
SHVIT_DET_FUZZ_TIMES multiplies the number of cases; with it they are others each time.
"""

import contextlib
import copy
import faulthandler
import functools
import io
import json
import math
import os
import re
from collections import Counter
from pathlib import Path

import pytest
from coco_files import CLASSES, HEIGHT, WIDTH, coco_content, coco_dataset, encoded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmcv.transforms import LoadImageFromFile
from paths import ROOT, photographs
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.cocoeval import COCOeval
from torch import zeros

from shvit_det import UsageError
from shvit_det.common.errors import RunError
from shvit_det.data.checking.annotation_file import Use, read_annotations
from shvit_det.data.checking.cleaning import clean
from shvit_det.data.checking.content_checks import check_content
from shvit_det.data.checking.findings import Repair, errors_among
from shvit_det.data.checking.image_checks import DecodeSettings, check_images
from shvit_det.data.checking.object_counts import count_objects
from shvit_det.data.coco_dataset import BAD_DATA, CheckedCocoDataset, CheckedLoading, indexed

pytestmark = pytest.mark.slow

NUM_CONTENTS, NUM_BYTES, NUM_IMAGES = 1000, 400, 600
NUM_REAL_CONTENTS, NUM_REAL_BYTES, NUM_REAL_IMAGES = 100, 50, 100  # of each data set; they are larger
TIMES = int(os.environ.get('SHVIT_DET_FUZZ_TIMES', '1'))
HUNG_S = 300 * TIMES  # a hang in C code ends only with the process
REAL = {'coco_mini': 'instances_val2017.json', 'nuclei': 'instances_val.json'}
LARGEST_DECODED = 1000  # pixels a side


def fuzzed(num_cases: int, **strategies):
    """Run a test on random cases: the same ones every time, unless more are asked for."""
    options = settings(
        max_examples=num_cases * TIMES,
        derandomize=TIMES == 1,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    return lambda test: options(given(**strategies)(test))


USES = [
    Use(masks=True, evaluated=True),
    Use(masks=True),
    Use(masks=True, polygons_only=True),
    Use(),
    Use(False, False, True),
]


@pytest.fixture(autouse=True)
def no_hang():
    faulthandler.dump_traceback_later(HUNG_S, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


# Numbers that software trips over, and those that annotations are made of.
numbers = st.sampled_from(
    [0, 1, -1, 2, 3, 5, 8, 100, 105, 0.5, 1.0, -0.0, 39.5, 40, 41.5, 1e-300, 1e9, -1e9, 1e300, 2**31, 2**53, 2**63,
     -(2**63), 2**64, 10**30, 10**400, math.nan, math.inf, -math.inf]
) | st.integers(-50, 50) | st.floats(-50, 50)  # fmt: skip
texts = st.sampled_from(['', 'a', 'cat', 'fox', '3', '3.jpg', '\0', '\ud800', 'é', '../x', '0' * 500, 'nan'])
scalars = numbers | texts | st.none() | st.booleans()
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(['id', 'size', 'counts', 'x']), inner),
    max_leaves=6,
)


@st.composite
def places(draw, content):
    """Draw the way to something in one of the lists: a section, an entry, mostly one of its keys, and further down."""
    section = draw(st.sampled_from(['annotations', 'annotations', 'annotations', 'images', 'categories']))
    path, node = [section], content[section]
    while isinstance(node, dict | list) and node and (len(path) < 2 or draw(st.integers(0, 3))):
        key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        path.append(key)
        node = node[key]
    return path


def at(content, path):
    for key in path:
        content = content[key]
    return content


@st.composite
def broken(draw, content):
    """Draw a copy of a data set with one to four things wrong."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 4))):
        path = draw(places(content))
        parent, key = at(content, path[:-1]), path[-1]
        action = draw(st.sampled_from(['replace', 'replace', 'remove', 'repeat', 'move', 'scale', 'rewrite']))
        value = at(content, path)
        if len(path) == 1:  # an emptied list
            continue
        if action == 'remove':
            del parent[key]
        elif action == 'repeat' and isinstance(parent, list):
            parent.insert(draw(st.integers(0, len(parent))), copy.deepcopy(value))
        elif action == 'move':
            parent[key] = copy.deepcopy(at(content, draw(places(content))))
        elif action == 'rewrite':
            parent[key] = draw(st.sampled_from([str(value), [value], json.dumps(value, default=str)]))
        elif action == 'scale' and isinstance(value, int | float) and abs(value) < 2**63:
            parent[key] = value * draw(st.sampled_from([-1, 0, 0.01, 10, 1e6]))
        else:
            parent[key] = draw(numbers if isinstance(value, int | float) and draw(st.booleans()) else values)
    return content


def must_survive(data: bytes, use: Use, folder: Path, classes=CLASSES) -> None:
    """Check, clean and load what the bytes of an annotation file hold, and count its objects."""
    path = folder / 'annotations.json'
    path.write_bytes(data)
    try:
        content = read_annotations(path)
    except UsageError as error:
        assert 'is not COCO JSON' in str(error)
        return
    before = repr(content)
    findings = check_content(content, use, path, classes)
    assert all(finding.message and len(finding.message) < 1000 for finding in findings)
    if not errors_among(findings):
        must_be_usable(path, content, use, classes)

    cleaned = clean(content, findings, use, path, classes)
    assert repr(content) == before
    for section, removed in cleaned.removed.items():
        assert len(content[section]) - len(cleaned.content[section]) == sum(removed.values())
    must_be_refused_or_counted(path, findings, cleaned, use, classes)
    left = errors_among(cleaned.left)
    assert all(finding.repair == Repair.NONE for finding in left)
    if not errors_among(findings):
        assert not left
    if not left:
        path.write_text(json.dumps(cleaned.content))
        must_be_usable(path, read_annotations(path), use, classes)


def sized(results):
    """Stand for the loading of an image that is as large as its entry says."""
    return {**results, 'ori_shape': (int(results['height']), int(results['width']))}


def must_be_refused_or_counted(path: Path, findings, cleaned, use: Use, classes) -> None:
    """Let a run take the file as it is, under both choices of ``bad_data``: a sentence, or as many objects as said."""
    loading = dict(type='mmdet.LoadAnnotations', with_bbox=True, with_mask=use.masks, poly2mask=not use.polygons_only)
    for bad_data in BAD_DATA:
        repaired = bad_data == 'skip' and not use.evaluated
        refused = bool(errors_among(cleaned.left if repaired else findings))
        options = dict(bad_data=bad_data, pipeline=[sized, loading], test_mode=use.evaluated)
        try:
            dataset = coco_dataset(path, CheckedCocoDataset, metainfo=dict(classes=classes), **options)
        except UsageError as error:
            assert refused and '\n' not in str(error) and len(str(error)) < 2000
            continue
        assert not refused
        # where there is no error nothing is repaired, whatever the warnings are
        content = cleaned.content if errors_among(findings) else json.loads(path.read_bytes())
        num_objects = sum(len(dataset.get_data_info(index)['instances']) for index in range(len(dataset)))
        assert num_objects == len(content['annotations']) - sum(count_objects(content, classes).ignored.values())
        for index in range(len(dataset)):
            info = dataset.get_data_info(index)
            if max(info['width'], info['height']) <= LARGEST_DECODED:
                assert len(dataset[index]['gt_bboxes']) == len(info['instances'])


def must_be_usable(path: Path, content, use: Use, classes) -> None:
    """Let mmdet and pycocotools do with an annotation file without errors what a run does."""
    images = coco_dataset(path, metainfo=dict(classes=classes)).data_list
    instances = [instance for image in images for instance in image['instances']]
    assert len(images) == len(content['images'])
    assert len(instances) == len(content['annotations']) - sum(count_objects(content, classes).ignored.values())
    assert all(math.isfinite(number) for instance in instances for number in instance['bbox'])
    assert all(0 <= instance['bbox_label'] < len(classes) for instance in instances)
    if use.masks:
        assert all('mask' in instance for instance in instances)
        masks_must_decode(content)
    if use.evaluated and instances:
        must_evaluate(copy.deepcopy(content))


def must_evaluate(content) -> None:
    """Score the first object as if it had been detected."""
    found = dict(content['annotations'][0], score=1.0)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = indexed(content)
        evaluation = COCOeval(truth, truth.loadRes([found]), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()


def masks_must_decode(content) -> None:
    sizes = {image['id']: (image['height'], image['width']) for image in content['images']}
    for annotation in content['annotations']:
        size, mask = sizes[annotation['image_id']], annotation.get('segmentation')
        if not mask or max(size) > LARGEST_DECODED:
            continue
        if isinstance(mask, list):
            mask = mask_utils.merge(mask_utils.frPyObjects(mask, *size))
        elif isinstance(mask['counts'], list):
            mask = mask_utils.frPyObjects(mask, *size)
        assert mask_utils.decode(mask).shape == size


def survives(content, use: Use, folder: Path, classes=CLASSES) -> None:
    try:
        data = json.dumps(content).encode()
    except ValueError:  # Python writes no integer of more than 4300 digits
        return
    must_survive(data, use, folder, classes)


@fuzzed(NUM_CONTENTS, content=broken(coco_content()), use=st.sampled_from(USES))
def test_broken_annotations_are_found_and_counted(content, use, tmp_path):
    survives(content, use, tmp_path)


byte_changes = dict(
    start=st.floats(0, 1), length=st.integers(0, 3), patch=st.binary(max_size=3), keep=st.floats(0.3, 3),
    use=st.sampled_from(USES),
)  # fmt: skip


def patched(data: bytes, start: float, length: int, patch: bytes, keep: float) -> bytes:
    """Return the bytes with some of them exchanged, and mostly cut off behind."""
    place = int(start * (len(data) - 1))
    return (data[:place] + patch + data[place + length :])[: int(keep * len(data))]


@fuzzed(NUM_BYTES, **byte_changes)
def test_broken_bytes_are_refused_or_checked(use, tmp_path, **changes):
    must_survive(patched(json.dumps(coco_content()).encode(), **changes), use, tmp_path)


@functools.cache
def real_content(name: str):
    """Return a part of a real annotation file: a few images, every form of a mask that occurs, all classes."""
    content = json.loads((photographs(name) / 'annotations' / REAL[name]).read_text())
    num_objects = Counter(entry['image_id'] for entry in content['annotations'])
    with_crowds = {entry['image_id'] for entry in content['annotations'] if entry['iscrowd']}
    by_objects = sorted(num_objects, key=lambda image_id: num_objects[image_id])
    crowded = [image_id for image_id in by_objects if image_id in with_crowds]
    kept = {*by_objects[len(by_objects) // 3 :][:4], *crowded[:1]}
    for section, key in (('images', 'id'), ('annotations', 'image_id')):
        content[section] = [entry for entry in content[section] if entry[key] in kept]
    return content


@pytest.mark.parametrize('name', REAL)
@fuzzed(NUM_REAL_CONTENTS, data=st.data(), use=st.sampled_from(USES))
def test_broken_real_annotations_are_found_and_counted(name, data, use, tmp_path):
    content = real_content(name)
    classes = tuple(category['name'] for category in content['categories'])
    survives(data.draw(broken(content)), use, tmp_path, classes)


@pytest.mark.parametrize('name', REAL)
@fuzzed(NUM_REAL_BYTES, **byte_changes)
def test_broken_bytes_of_real_annotations_are_refused_or_checked(name, use, tmp_path, **changes):
    content = real_content(name)
    classes = tuple(category['name'] for category in content['categories'])
    must_survive(patched(json.dumps(content).encode(), **changes), use, tmp_path, classes)


byte_flips = dict(
    keep=st.sampled_from([0, 1, 8, 100]) | st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), max_size=3),
    headers_only=st.booleans(),
)


def flipped(picture: bytes, keep: float, flips) -> bytes:
    """Return the bytes of an image file cut off and with some of them changed."""
    data = bytearray(picture[: keep if isinstance(keep, int) and keep > 1 else int(keep * len(picture))])
    for place, flip in flips:
        if data:
            data[min(int(place * len(data)), len(data) - 1)] ^= flip
    return bytes(data)


def must_be_found(data: bytes, size: tuple[int, int], headers_only: bool, folder: Path) -> None:
    """Check an image file of a size (width, height), load it as training does, and compare."""
    path, (width, height) = folder / 'a', size
    path.write_bytes(data)
    content = dict(images=[dict(id=1, file_name='a', width=width, height=height)], annotations=[], categories=[])
    findings, _ = check_images(content, folder, DecodeSettings(), headers_only=headers_only)
    errors = errors_among(findings)
    assert all(finding.index == 0 and str(path) in finding.message for finding in findings)
    assert errors or data

    load = CheckedLoading(LoadImageFromFile(), 'refuse', False, zeros(1, dtype=bool))
    try:
        loaded = load(dict(img_path=str(path), width=width, height=height, sample_idx=0))
    except RunError as error:
        assert str(path) in str(error) and '\n' not in str(error)
        assert errors or headers_only
    else:  # PIL may refuse what OpenCV takes, for a broken comment for instance
        assert loaded['img'].shape == (height, width, 3)


PICTURES = [encoded('.jpg'), encoded('.png'), encoded('.webp'), encoded('.bmp')]


@fuzzed(NUM_IMAGES, picture=st.sampled_from(PICTURES), **byte_flips)
def test_broken_images_are_found_before_or_while_training(picture, keep, flips, headers_only, tmp_path):
    must_be_found(flipped(picture, keep, flips), (WIDTH, HEIGHT), headers_only, tmp_path)


@functools.cache
def real_picture(name: str) -> tuple[bytes, tuple[int, int]]:
    """Return the smallest file of a data set of photographs, and its width and height."""
    data = min((path.read_bytes() for path in photographs(name).rglob('*.jpg')), key=len)
    return data, Image.open(io.BytesIO(data)).size


@pytest.mark.parametrize('name', REAL)
@fuzzed(NUM_REAL_IMAGES, **byte_flips)
def test_broken_photographs_are_found_before_or_while_training(name, keep, flips, headers_only, tmp_path):
    picture, size = real_picture(name)
    must_be_found(flipped(picture, keep, flips), size, headers_only, tmp_path)


def test_the_page_says_how_often():
    page = ' '.join((ROOT / 'docs' / 'dev' / 'reliability_tests.md').read_text().split())
    words = re.search(
        r'in (\d+) ways, .*? (\d+) times one to four .*? (\d+) times bytes .*? (\d+) times those .*? '
        r'(\d+), (\d+) and (\d+) times of each', page,
    )  # fmt: skip
    assert tuple(map(int, words.groups())) == (
        NUM_CONTENTS + NUM_BYTES + NUM_IMAGES, NUM_CONTENTS, NUM_BYTES, NUM_IMAGES,
        NUM_REAL_CONTENTS, NUM_REAL_BYTES, NUM_REAL_IMAGES,
    )  # fmt: skip
