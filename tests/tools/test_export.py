"""The tools that export detectors and compare the files, as processes; and what their tables are made of."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from exported import assert_same, by_mmdet, detector, photographs
from mmdet.datasets.transforms import Resize
from mmengine.config import Config
from mmengine.structures import InstanceData
from paths import ROOT
from processes import tool
from timed import TINY_MASK_RCNN, TINY_RETINANET

from shvit_det import UsageError
from shvit_det.configuration.random_detector import build_random_detector
from shvit_det.configuration.reading import load_config
from shvit_det.export.comparison import Agreement, Form, comparison_table, pair_detections, run_forms
from shvit_det.export.detector_export import export_detector
from shvit_det.export.metadata import Metadata, resize_rule, resized
from shvit_det.export.running import ExportedDetector, instances
from shvit_det.export.supported_detectors import check_exportable

pytestmark = pytest.mark.slow

OTHERS = {
    'atss_shvit': 'ATSS cannot be exported: its ATSSHead predicts in another way than a RetinaHead',
    'fcos_shvit': 'FCOS cannot be exported: its FCOSHead predicts in another way than a RetinaHead',
    'cascade_mask_rcnn_shvit': 'CascadeRCNN cannot be exported: its RoI head is a CascadeRoIHead',
}


@pytest.mark.parametrize('name', OTHERS)
def test_other_detectors_are_refused(name):
    path = str(ROOT / 'tests' / 'data' / f'{name}.py')
    with pytest.raises(UsageError, match=OTHERS[name]):
        check_exportable(build_random_detector(load_config(path), path))


@pytest.mark.parametrize(
    'changes, words',
    [
        (dict(score_thr=0.1), None),
        (dict(max_per_img=-1), 'needs a positive max_per_img'),
        (dict(nms=dict(type='soft_nms', iou_threshold=0.5)), 'only plain nms can'),
        (dict(nms=dict(type='nms', iou_threshold=0.5, max_num=3)), 'only plain nms can'),
        (dict(mask_thr_binary=-1), 'mask_thr_binary has to be positive'),
    ],
)
def test_other_settings_are_refused(changes, words):
    model = detector(TINY_MASK_RCNN, **changes)
    if words is None:
        return check_exportable(model)
    with pytest.raises(UsageError, match=words):
        check_exportable(model)


@pytest.mark.parametrize(
    'step, size',
    [
        (dict(scale=(1333, 800), keep_ratio=True), (101, 67)),
        (dict(scale=(192, 192), keep_ratio=False), (67, 101)),
        (dict(scale_factor=1.5, keep_ratio=True), (67, 101)),
        (dict(scale_factor=1.0, keep_ratio=True), (31, 33)),
        (None, (31, 33)),
    ],
)
def test_images_are_resized_as_by_mmdet(step, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    steps = [] if step is None else [dict(type='Resize', **step)]
    rule = resize_rule(Config(dict(test_pipeline=[dict(type='LoadImageFromFile'), *steps, dict(type='PackDetInputs')])))
    rule = json.loads(json.dumps(rule))  # as the file has it
    expected = image if step is None else Resize(**step)(dict(img=image))['img']
    assert np.array_equal(resized(image, rule), expected)


def test_a_pipeline_that_a_file_cannot_tell_is_refused():
    with pytest.raises(UsageError, match='has a Pad, which an exported detector cannot repeat'):
        resize_rule(Config(dict(test_pipeline=[dict(type='Pad', size_divisor=64)])))


@pytest.mark.parametrize('text', [None, '{}', '[]', '{"format": 99}', 'no JSON'])
def test_metadata_of_others_is_refused(text):
    with pytest.raises(UsageError, match=r'a\.onnx is no detector'):
        Metadata.load(text, 'a.onnx')


def found(boxes, labels, scores, masks):
    return InstanceData(
        bboxes=torch.tensor(boxes), labels=torch.tensor(labels), scores=torch.tensor(scores), masks=torch.tensor(masks)
    )


def test_detections_are_paired_by_class_and_place():
    box = [0.0, 0.0, 9.0, 9.0]
    full, half = [[True, True], [True, True]], [[True, True], [False, True]]
    expected = found([box, box, [5.0, 5, 6, 6]], [0, 1, 0], [0.9, 0.8, 0.7], [full, full, full])
    other = found([[0.0, 0, 9, 9.5], box, [5.0, 5, 6, 8]], [1, 0, 0], [0.8, 0.75, 0.7], [half, full, full])
    assert sorted(pair_detections(expected, other).tolist()) == [[0, 1], [1, 0]]
    agreement = Agreement()
    agreement.add(expected, other)
    agreement.add(expected, expected[:0])
    assert (agreement.detections, agreement.missing, agreement.further) == (6, 4, 1)
    assert agreement.box_px == 0.5 and agreement.score == pytest.approx(0.15)
    assert (agreement.mask_px, agreement.object_px, agreement.image_px, agreement.worst_mask) == (1, 8, 8, 0.75)


@pytest.fixture(scope='module')
def work(tmp_path_factory):
    """A folder with a checkpoint, in which the tiny configs draw their data."""
    folder = tmp_path_factory.mktemp('work')
    for name, config in (('mask', TINY_MASK_RCNN), ('retina', TINY_RETINANET)):
        torch.save(dict(state_dict=detector(config).state_dict()), folder / f'{name}.pth')
    return folder


@pytest.fixture(scope='module')
def exported(work):
    """The folder, with the file of the Mask R-CNN in it."""
    pytest.importorskip('onnx', reason="onnx is not here: pip install '.[runtimes]'")
    pytest.importorskip('onnxruntime', reason="onnxruntime is not here: pip install '.[runtimes]'")
    result = tool('export', TINY_MASK_RCNN, 'mask.pth', '--to', 'onnx', cwd=work)
    assert result.returncode == 0, result.stderr[-3000:]
    return work


def test_a_file_takes_an_image_as_it_is_read(exported):
    opened = ExportedDetector(exported / 'mask.onnx')
    assert opened.metadata.classes == ('disc', 'square', 'triangle', 'star', 'cross')
    assert opened.metadata.weights == 'mask.pth' and opened.metadata.config == 'tiny_mask_rcnn.py'
    image = photographs(1, 101, 147)[0].permute(1, 2, 0).numpy()
    small = torch.from_numpy(resized(image, dict(scale=(192, 192), keep_ratio=True))).permute(2, 0, 1)[None]
    assert small.shape == (1, 3, 132, 192)
    (expected,) = by_mmdet(detector(TINY_MASK_RCNN, score_thr=0.05, max_per_img=20), small, (101, 147))
    assert len(expected) > 0
    assert_same(expected, instances(opened(image)))


@pytest.mark.parametrize('num_images', [1, 3])
def test_times_of_a_comparison_have_no_first_run_in_them(num_images):
    calls, found = [], InstanceData(bboxes=torch.zeros(0, 4), scores=torch.zeros(0), labels=torch.zeros(0).long())

    def step(batch):
        calls.append(batch['number'])
        return [SimpleNamespace(pred_instances=found)]

    evaluator = SimpleNamespace(process=lambda data_samples, data_batch: None)
    form = Form('a', step, evaluator)
    images = [dict(inputs=[torch.zeros(3, 8, 8)], number=number) for number in range(num_images)]
    run_forms([form], images, lambda _: None, [])
    assert calls == [0, *range(num_images)]
    assert len(form.seconds) == num_images


def test_an_exported_file_scores_as_its_checkpoint(exported):
    work = exported
    result = tool('compare_export', TINY_MASK_RCNN, 'mask.pth', 'mask.onnx', '--json', 'record.json', cwd=work)
    assert result.returncode == 0, result.stderr[-3000:]
    record = json.loads((work / 'record.json').read_text())
    assert record['command'].startswith('python tools/compare_export.py tiny_mask_rcnn.py mask.pth mask.onnx')
    assert result.stdout.rstrip().endswith(comparison_table(record))
    plain, deployed, exported = record['forms']
    assert plain['agreement'] is None and exported['name'].startswith('ONNX Runtime')
    for form in (deployed, exported):
        agreement = form['agreement']
        assert agreement['detections'] > 0 and agreement['missing'] <= 0.01 * agreement['detections']
        assert agreement['box_px'] <= 0.01 and agreement['score'] <= 1e-3
        assert agreement['mask_px'] <= 1e-3 * agreement['image_px']
        assert set(form['scores']) == set(plain['scores'])
    result = tool('test', TINY_MASK_RCNN, 'mask.onnx', '--eval', 'bbox', 'segm', cwd=work)
    assert result.returncode == 0, result.stderr[-3000:]
    assert 'Test of mask.onnx' in result.stdout + result.stderr


def test_a_file_of_another_config_is_refused(exported):
    result = tool('test', TINY_RETINANET, 'mask.onnx', '--eval', 'bbox', cwd=exported)
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1] == 'error: mask.onnx is a MaskRCNN, but the config has a RetinaNet'


MISTAKES = {
    'no config': ('export', ['nowhere.py', 'mask.pth', '--to', 'onnx'], 'no such config: nowhere.py'),
    'no checkpoint': ('export', [TINY_MASK_RCNN, 'nowhere.pth', '--to', 'onnx'], 'nowhere.pth'),
    'no folder': (
        'export',
        [TINY_MASK_RCNN, 'mask.pth', '--to', 'onnx', '--out', 'no/a.onnx'],
        'there is no such folder for --out: no',
    ),
    'another suffix': (
        'export',
        [TINY_MASK_RCNN, 'mask.pth', '--to', 'onnx', '--out', 'a.xml'],
        'ends in .onnx, but --out is a.xml',
    ),
    'another checkpoint': ('export', [TINY_MASK_RCNN, 'retina.pth', '--to', 'onnx'], 'retina.pth'),
    'no exported file': ('test', [TINY_MASK_RCNN, 'nowhere.onnx', '--eval', 'bbox'], 'no such exported detector'),
    'deployed twice': ('test', [TINY_MASK_RCNN, 'mask.onnx', '--eval', 'bbox', '--deploy'], '--deploy is for checkp'),
    'nothing to compare': ('compare_export', [TINY_MASK_RCNN, 'mask.pth', 'nowhere.onnx'], 'no such exported detector'),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_mistake_ends_in_one_sentence(mistake, work):
    pytest.importorskip('onnx', reason="onnx is not here: pip install '.[runtimes]'")
    name, arguments, words = MISTAKES[mistake]
    before = set(work.rglob('*'))
    result = tool(name, *arguments, cwd=work)
    assert result.returncode == 2, result.stderr[-3000:]
    sentence = result.stderr.strip().splitlines()[-1]
    assert sentence.startswith('error: ') and words in sentence and 'Traceback' not in result.stderr
    assert set(work.rglob('*')) == before


def test_weights_of_openvino_do_not_replace_the_checkpoint(tmp_path):
    (tmp_path / 'mask.bin').write_bytes(b'weights')
    with pytest.raises(UsageError, match=r'mask\.bin is the file to be read, and would be written over'):
        export_detector(str(TINY_MASK_RCNN), str(tmp_path / 'mask.bin'), 'openvino', str(tmp_path / 'mask.xml'))
    assert (tmp_path / 'mask.bin').read_bytes() == b'weights'


@pytest.mark.parametrize('to, package', [('onnx', 'onnx'), ('openvino', 'openvino')])
def test_a_missing_package_is_named(to, package, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnx', sys)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"--to {to}: needs {package}.*pip install 'shvit_det\[runtimes\]'"):
        export_detector(TINY_MASK_RCNN, 'random', to)
