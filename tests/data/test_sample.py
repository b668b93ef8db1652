"""The drawn sample set: what it holds, that it is drawn alike every time, and whom it spares."""

import contextlib
import io
import json
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import LoadAnnotations
from processes import tool
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from shvit_det.data import sample, sample_images
from shvit_det.data.sample import CATEGORIES, draw_sample, ensure_sample

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]
SIZES = {'num_train': 40, 'num_val': 30}
TINY = {'num_train': 3, 'num_val': 2, 'image_size': 96}


@pytest.fixture(scope='module')
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('data') / 'sample'
    draw_sample(root, **SIZES)
    return root


def read(root: Path, split: str) -> dict[str, Any]:
    return json.loads((root / 'annotations' / f'instances_{split}.json').read_text('utf-8'))


def load(root: Path, split: str) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(root / 'annotations' / f'instances_{split}.json'))


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob('*') if path.is_file()}


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- what a set holds


@pytest.mark.parametrize('split', sample.SPLITS)
def test_layout_is_that_of_coco(drawn: Path, split: str) -> None:
    content = read(drawn, split)
    assert list(content) == ['info', 'licenses', 'images', 'annotations', 'categories']
    assert 'stand-in for COCO' in content['info']['description']
    assert len(content['images']) == SIZES['num_train' if split == 'train2017' else 'num_val']
    assert {category['name']: category['id'] for category in content['categories']} == CATEGORIES
    listed = {image['file_name']: (image['height'], image['width'], 3) for image in content['images']}
    found = {path.name: cv2.imread(str(path)).shape for path in (drawn / split).iterdir()}
    assert found == listed
    for kind in ('images', 'annotations'):
        ids = [entry['id'] for entry in content[kind]]
        assert len(set(ids)) == len(ids) and min(ids) > 0


def test_ids_cannot_be_taken_for_labels() -> None:
    assert list(CATEGORIES) == sample_images.NAMES
    assert not set(np.diff(list(CATEGORIES.values()))) <= {1}


@pytest.mark.parametrize('split', sample.SPLITS)
def test_area_and_box_are_those_of_the_mask(drawn: Path, split: str) -> None:
    coco = load(drawn, split)
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        rows, columns = np.nonzero(mask)
        assert annotation['area'] == mask.sum() > 50
        assert annotation['bbox'] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]


@pytest.mark.parametrize('split', sample.SPLITS)
def test_polygons_are_valid(drawn: Path, split: str) -> None:
    for annotation in read(drawn, split)['annotations']:
        if not annotation['iscrowd']:
            assert annotation['segmentation']
            for polygon in annotation['segmentation']:
                assert len(polygon) >= 6 and len(polygon) % 2 == 0
                assert min(polygon) >= 0 and max(polygon) <= 192


@pytest.mark.parametrize('split', sample.SPLITS)
def test_one_crowd_in_uncompressed_run_lengths(drawn: Path, split: str) -> None:
    crowds = [entry for entry in read(drawn, split)['annotations'] if entry['iscrowd']]
    assert len(crowds) == 1
    assert crowds[0]['segmentation']['size'] == [192, 192]
    assert sum(crowds[0]['segmentation']['counts']) == 192 * 192


def test_run_lengths_begin_with_zeros_down_the_columns() -> None:
    mask = np.array([(True, False, False), (True, True, False)])
    assert sample._uncompressed_rle(mask) == {'size': [2, 3], 'counts': [0, 2, 1, 1, 2]}
    assert sample._uncompressed_rle(~mask) == {'size': [2, 3], 'counts': [2, 1, 1, 2]}


def test_variety(drawn: Path) -> None:
    contents_of = [read(drawn, split) for split in sample.SPLITS]
    objects = [[entry for entry in content['annotations'] if not entry['iscrowd']] for content in contents_of]
    for entries_of in objects:
        assert {entry['category_id'] for entry in entries_of} == set(CATEGORIES.values())
    areas = np.array([entry['area'] for entry in chain(*objects)])
    shares = np.histogram(areas, (0, 32**2, 96**2, np.inf))[0] / len(areas)
    assert shares[0] > 0.05 and shares[1] > 0.4 and shares[2] > 0, shares
    per_image = [sum(entry['image_id'] == image['id'] for entry in chain(*objects))
                 for content in contents_of for image in content['images']]  # fmt: skip
    assert set(per_image) == {0, 1, 2, 3, 4}
    assert max(len(entry['segmentation']) for entry in chain(*objects)) > 1, 'no object in several parts'


def test_splits_differ(drawn: Path) -> None:
    train, val = (read(drawn, split) for split in sample.SPLITS)
    for kind in ('images', 'annotations'):
        assert not {entry['id'] for entry in train[kind]} & {entry['id'] for entry in val[kind]}
    first = [
        (drawn / split / content['images'][1]['file_name']).read_bytes()
        for split, content in zip(sample.SPLITS, (train, val), strict=True)
    ]
    assert first[0] != first[1]


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_ground_truth_as_predictions_is_perfect(drawn: Path, kind: str) -> None:
    coco = load(drawn, 'val2017')
    predictions = [
        {**annotation, 'segmentation': coco.annToRLE(annotation), 'score': 1.0}
        for annotation in coco.anns.values()
        if not annotation['iscrowd']
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco, coco.loadRes(predictions), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[:6] == pytest.approx(1.0)


@pytest.mark.parametrize('poly2mask', [False, True])
@pytest.mark.parametrize('split', sample.SPLITS)
def test_mmdet_reads_every_annotation(drawn: Path, split: str, poly2mask: bool) -> None:
    coco = load(drawn, split)
    dataset = CocoDataset(
        ann_file=f'annotations/instances_{split}.json',
        data_root=str(drawn),
        data_prefix={'img': split},
        metainfo={'classes': tuple(CATEGORIES)},
        test_mode=True,
        pipeline=[LoadImageFromFile(), LoadAnnotations(with_bbox=True, with_mask=True, poly2mask=poly2mask)],
    )
    assert len(dataset) == len(coco.imgs)
    for results in dataset:
        annotations = coco.imgToAnns[results['img_id']]
        assert results['gt_ignore_flags'].tolist() == [bool(a['iscrowd']) for a in annotations]
        labels = [list(CATEGORIES.values()).index(a['category_id']) for a in annotations]
        assert results['gt_bboxes_labels'].tolist() == labels
        for flag, mask, annotation in zip(
            results['gt_ignore_flags'], results['gt_masks'].to_ndarray(), annotations, strict=True
        ):
            assert flag or mask.sum() == annotation['area']


# --- scenes


def scenes(count: int) -> list[list[sample_images.Item]]:
    return [sample_images.compose_image(np.random.default_rng([7, index]), 192, index) for index in range(count)]


def test_masks_are_the_visible_parts() -> None:
    hidden = 0
    for items in scenes(25):
        owner = np.zeros((192 * sample_images.SUPERSAMPLING,) * 2, int)
        for number, item in enumerate(items, start=1):
            owner[item.shape] = number  # what is painted later hides what was there
        for number, item in enumerate(items, start=1):
            assert np.array_equal(item.visible, owner == number)
            assert item.visible.sum() >= sample_images.MIN_VISIBLE * item.shape.sum()
            hidden += item.visible.sum() < 0.9 * item.shape.sum()
    assert hidden >= 10


def test_polygons_follow_the_visible_parts() -> None:
    for items in scenes(25):
        for item in items:
            if not item.is_crowd:
                assert not sample_images.has_hole(item.visible)
                traced = np.zeros(item.visible.shape, np.uint8)
                for polygon in sample_images.trace_polygons(item.visible):
                    points = np.reshape(polygon, (-1, 2)) * sample_images.SUPERSAMPLING - 0.5
                    cv2.fillPoly(traced, [np.rint(points).astype(np.int32)], 1)
                both, either = traced & item.visible, traced | item.visible
                assert both.sum() > 0.93 * either.sum()


def test_holes_are_seen() -> None:
    mask = np.zeros((40, 40), bool)
    mask[5:30, 5:30] = True
    assert not sample_images.has_hole(mask)
    mask[10:20, 20:40] = False
    assert not sample_images.has_hole(mask)
    mask[22:26, 10:14] = False
    assert sample_images.has_hole(mask)


@pytest.mark.parametrize('is_crowd', [False, True])
def test_objects_must_show_enough_and_no_hole(is_crowd: bool) -> None:
    shape = np.ones((10, 10), bool)
    item = sample_images.Item('square', [], shape, shape, 100.0, is_crowd)
    holed, cut, hidden = shape.copy(), shape.copy(), shape.copy()
    holed[4:6, 4:6] = cut[:4] = hidden[:5] = False
    answers = [item.may_be_left_with(mask) for mask in (shape, cut, hidden, holed)]
    assert answers == [True, True, False, is_crowd]


@pytest.mark.parametrize('name', sample_images.NAMES)
def test_painting_stays_within_the_shape_and_its_shadow(name: str) -> None:
    outline = sample_images.place_outline(name, (120, 60), 40, 0.3)
    canvas = np.full((192, 192, 3), 128, np.float32)
    sample_images.paint_shape(np.random.default_rng(0), canvas, outline, 120.0)
    cover = sample_images.coverage(sample_images.fill_outline(outline, 192, 192))
    colored = np.ptp(canvas, axis=2) > 4  # a shadow on grey is grey
    assert colored[cover == 1].mean() > 0.95 and not colored[cover == 0].any()
    changed = np.abs(canvas - 128).max(2) > 0.5
    changed[25:100, 85:160] = False
    assert not changed.any()


# --- determinism


def test_same_seed_draws_the_same_files(drawn: Path, tmp_path: Path) -> None:
    np.random.seed(5)
    cv2.setRNGSeed(5)
    draw_sample(tmp_path / 'again', **SIZES)
    assert contents(tmp_path / 'again') == contents(drawn)


def test_an_image_depends_on_seed_and_place_only(tmp_path: Path) -> None:
    draw_sample(tmp_path / 'small', **TINY)
    draw_sample(tmp_path / 'large', num_train=5, num_val=3, image_size=96)
    draw_sample(tmp_path / 'other', **TINY, seed=1)
    small, large, other = (contents(tmp_path / name) for name in ('small', 'large', 'other'))
    images = [name for name in small if name.endswith('.jpg')]
    assert len(images) == 5
    assert all(small[name] == large[name] != other[name] for name in images)


def test_drawing_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    np.random.seed(11)
    expected = np.random.random(4)
    np.random.seed(11)
    draw_sample(tmp_path / 'sample', **TINY)
    assert np.array_equal(np.random.random(4), expected)


# --- folders


def interrupt_at(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Make the composition of the scene number `call` end as if the user had pressed Ctrl-C."""
    compose, calls = sample_images.compose_image, iter(range(1, 100))

    def compose_or_interrupt(*args: Any) -> list[sample_images.Item]:
        if next(calls) == call:
            raise KeyboardInterrupt
        return compose(*args)

    monkeypatch.setattr(sample_images, 'compose_image', compose_or_interrupt)


def test_ensure_draws_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / 'data' / 'sample'
    assert ensure_sample(root, **TINY) is True
    monkeypatch.setattr(sample, '_draw', lambda *args, **options: pytest.fail('drawn again'))
    assert ensure_sample(str(root), **TINY) is False
    assert entries(root.parent) == ['sample']


@pytest.mark.parametrize(
    'foreign',
    [
        {'notes.txt': 'mine'},
        {'sample.json': '{"mine": 1}', 'train2017/a.jpg': ''},
        {'sample.json': '[1, 2'},
        {},
    ],
)
@pytest.mark.parametrize(
    'call',
    [
        lambda root: draw_sample(root, **TINY),
        lambda root: draw_sample(root, **TINY, force=True),
        lambda root: ensure_sample(root, **TINY),
    ],
    ids=['draw', 'force', 'ensure'],
)
def test_foreign_folder_is_refused_and_untouched(tmp_path: Path, foreign: dict[str, str], call: Any) -> None:
    root = tmp_path / 'mine'
    root.mkdir()
    for name, text in foreign.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    with pytest.raises(ValueError, match=r'mine exists and is not a sample set .* choose another'):
        call(root)
    assert contents(root) == {name: text.encode() for name, text in foreign.items()}
    assert entries(tmp_path) == ['mine']


def test_other_parameters_need_force(tmp_path: Path) -> None:
    root = tmp_path / 'sample'
    draw_sample(root, **TINY)
    before = contents(root)
    for call in (draw_sample, ensure_sample):
        with pytest.raises(ValueError, match=r'drawn with seed=0 and not 4.*force=True'):
            call(root, **TINY, seed=4)
    assert contents(root) == before
    draw_sample(root, **TINY, seed=4, force=True)
    assert read(root, 'val2017')['info']['seed'] == 4
    assert not contents(root).keys() ^ before.keys()
    assert entries(tmp_path) == ['sample']


def test_older_generator_needs_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / 'sample'
    draw_sample(root, **TINY)
    newer = sample.GENERATOR_VERSION + 1
    monkeypatch.setattr(sample, 'GENERATOR_VERSION', newer)
    with pytest.raises(ValueError, match=f'generator_version={newer - 1} and not {newer}'):
        ensure_sample(root, **TINY)
    draw_sample(root, **TINY, force=True)
    assert ensure_sample(root, **TINY) is False


def test_same_set_is_drawn_anew_and_repaired(tmp_path: Path) -> None:
    root = tmp_path / 'sample'
    draw_sample(root, **TINY)
    before = contents(root)
    next((root / 'val2017').iterdir()).unlink()
    draw_sample(root, **TINY)
    assert contents(root) == before


@pytest.mark.parametrize('name', ['notes.txt', 'train2017/mine.png', 'annotations/mine.json'])
def test_a_set_with_other_files_is_not_replaced(tmp_path: Path, name: str) -> None:
    root = tmp_path / 'sample'
    draw_sample(root, **TINY)
    (root / name).write_text('mine')
    before = contents(root)
    with pytest.raises(ValueError, match=f"holds '{name}', which is not part of the sample set"):
        draw_sample(root, **TINY, force=True)
    assert contents(root) == before


def test_interrupted_drawing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_at(monkeypatch, call=4)
    with pytest.raises(KeyboardInterrupt):
        draw_sample(tmp_path / 'sample', **TINY)
    assert entries(tmp_path) == []


def test_interrupted_replacement_keeps_the_old_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / 'sample'
    draw_sample(root, **TINY)
    before = contents(root)
    interrupt_at(monkeypatch, call=4)
    with pytest.raises(KeyboardInterrupt):
        draw_sample(root, **TINY, seed=2, force=True)
    assert contents(root) == before and entries(tmp_path) == ['sample']


def be_overtaken(monkeypatch: pytest.MonkeyPatch, root: Path, **winner: int) -> None:
    """Let another process put its set at `root` while the next one is being drawn."""
    draw_split = sample._draw_split

    def draw_split_late(*args: Any) -> None:
        monkeypatch.setattr(sample, '_draw_split', draw_split)
        assert ensure_sample(root, **winner)
        draw_split(*args)

    monkeypatch.setattr(sample, '_draw_split', draw_split_late)


def test_losing_the_race_keeps_the_winners_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / 'sample'
    be_overtaken(monkeypatch, root, **TINY)
    assert ensure_sample(root, **TINY) is False
    assert read(root, 'val2017') and entries(tmp_path) == ['sample']


def test_losing_the_race_to_a_different_set_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / 'sample'
    be_overtaken(monkeypatch, root, **TINY, seed=9)
    with pytest.raises(OSError):
        ensure_sample(root, **TINY)
    assert read(root, 'val2017')['info']['seed'] == 9 and entries(tmp_path) == ['sample']


def test_two_processes_at_the_same_moment(drawn: Path, tmp_path: Path) -> None:
    root = tmp_path / 'sample'
    package = REPOSITORY / 'shvit_det'  # without its __init__: drawing needs no detector
    code = (
        'import sys, types; module = types.ModuleType("shvit_det"); '
        f'module.__path__ = [{str(package)!r}]; sys.modules["shvit_det"] = module; '
        'from shvit_det.data.sample import ensure_sample; '
        'print("ready", flush=True); sys.stdin.readline(); '
        f'print(ensure_sample({str(root)!r}, **{SIZES!r}))'
    )
    processes = [
        subprocess.Popen([sys.executable, '-c', code], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    assert [process.stdout.readline() for process in processes] == ['ready\n'] * 2
    for process in processes:
        process.stdin.write('go\n')
        process.stdin.flush()
    answers = [process.communicate()[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(answers) == ['False', 'True']
    assert contents(root) == contents(drawn) and entries(tmp_path) == ['sample']


# --- the tool


def test_tool_as_process(tmp_path: Path) -> None:
    arguments = ('--num-train', '3', '--num-val', '2', '--image-size', '96')
    done = tool('make_sample', *arguments, '--preview', 'preview.png', cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, '')
    assert 'Drew 3 train and 2 val images of 96 x 96 pixels in data/sample in ' in done.stdout
    assert 'stand-in for COCO' in done.stdout
    assert ensure_sample(tmp_path / 'data' / 'sample', **TINY) is False
    assert cv2.imread(str(tmp_path / 'preview.png')).shape == (192, 6 * 192, 3)


def test_tool_reports_a_mistake_as_process(tmp_path: Path) -> None:
    done = tool('make_sample', '--num-train', '0', cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr == 'error: num_train=0 draws no image; it must be 1 or more\n'
    assert entries(tmp_path) == []


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--num-val', '-1'], 'num_val=-1 draws no image; it must be 1 or more'),
        (['--image-size', '95'], 'image_size=95 is out of range; choose 96 to 1024 pixels'),
        (['--image-size', '-5'], 'image_size=-5 is out of range; choose 96 to 1024 pixels'),
        (['--image-size', '1025'], 'image_size=1025 is out of range; choose 96 to 1024 pixels'),
        (['--seed', '-1'], 'seed=-1 is negative; it must be 0 or more'),
        (['--out', 'mine'], 'mine exists and is not a sample set'),
        (['--out', 'mine', '--force'], 'mine exists and is not a sample set'),
        (['--out', 'mine/file'], 'file exists and is not a sample set'),
        (['--out', 'mine/file/sample'], 'cannot write'),
        (
            ['--num-train', '1', '--num-val', '1', '--preview', 'no/preview.png'],
            'cannot write no/preview.png: there is no such folder for --preview: no',
        ),
    ],
)
def test_tool_explains_mistakes(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'file').write_text('mine')
    done = tool('make_sample', *arguments, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith('error: ') and done.stderr.count('\n') == 1
    assert message in done.stderr and not done.stdout
    assert contents(tmp_path / 'mine') == {'file': b'mine'}


def test_tool_keeps_and_forces(tmp_path: Path) -> None:
    tiny = ('--num-train', '1', '--num-val', '1', '--image-size', '96')
    first, second = (tool('make_sample', *tiny, cwd=tmp_path) for _ in range(2))
    assert (first.returncode, second.returncode) == (0, 0)
    assert 'Drew 1 train' in first.stdout and 'Kept 1 train' in second.stdout
    assert tool('make_sample', *tiny, '--seed', '3', cwd=tmp_path).returncode == 2
    assert tool('make_sample', *tiny, '--seed', '3', '--force', cwd=tmp_path).returncode == 0
    assert read(tmp_path / 'data' / 'sample', 'train2017')['info']['seed'] == 3
