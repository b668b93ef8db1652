"""Exported detectors find what mmdet's find, in every runtime, for images of any number and size."""

import ctypes
import importlib
import io
import sys
from functools import cache

import pytest
import torch
from exported import assert_same, by_mmdet, detector, photographs
from mmcv.ops.nms import batched_nms
from mmdet.models.layers.bbox_nms import multiclass_nms
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.models.utils import filter_scores_and_topk
from timed import TINY_MASK_RCNN, TINY_RETINANET

from shvit_det import UsageError
from shvit_det.configuration.detection import Detection
from shvit_det.configuration.reading import load_config
from shvit_det.export.detector_export import class_names, graph_of, onnx_content, write_openvino
from shvit_det.export.detector_graph import best_places, pool_regions, sigmoid
from shvit_det.export.detector_weights import detector_with_weights
from shvit_det.export.mask_pasting import paste_masks
from shvit_det.export.metadata import FORMAT, KEY, Metadata
from shvit_det.export.nms import grouped_nms, grouped_nms_flat
from shvit_det.export.running import ExportedDetector, instances
from shvit_det.runtimes.onnx_file import add_metadata
from shvit_det.runtimes.onnx_runtimes import RUNTIME_OF, RUNTIMES, SignalStack

pytestmark = pytest.mark.slow

TINY_R18 = TINY_MASK_RCNN.replace('tiny_mask_rcnn', 'tiny_r18')
CONFIGS = [TINY_RETINANET, TINY_MASK_RCNN]
# Images, height and width that the detector gets, original height and width.
SIZES = [(2, 96, 128, 96, 128), (1, 101, 147, 211, 307), (3, 90, 67, 45, 33), (2, 30, 70, 30, 70), (1, 9, 300, 9, 300)]


def metadata(outputs):
    return Metadata(FORMAT, '0', 'Tiny', 'tiny.py', 'tiny.pth', ('a', 'b'), 'images', None, outputs)


@cache
def with_dark():
    """Images in which a random network finds more and less: structure, black, noise."""
    noise = torch.randint(0, 256, (1, 3, 96, 128), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return torch.cat((photographs(1, 96, 128), torch.zeros_like(noise), noise))


@cache
def tiny(config, kind):
    """A detector that finds more than its limit in every image, or nothing in one of :func:`with_dark`."""
    if kind == 'many':
        return detector(config)
    best = [found.scores[0].item() for found in by_mmdet(detector(config), with_dark(), (96, 128))]
    return detector(config, score_thr=(min(best) + max(best)) / 2)


@cache
def content(config, kind):
    graph = graph_of(tiny(config, kind))
    return graph.outputs, onnx_content(graph)


@pytest.fixture(scope='module', params=RUNTIME_OF)
def export(request, tmp_path_factory):
    """Return what exports a tiny detector, each once, and opens the file by the runtime for it."""
    for package in RUNTIMES[RUNTIME_OF[request.param]].packages:
        pytest.importorskip(package, reason=f"{package} is not here: pip install '.[runtimes]'")

    @cache
    def made(config, kind):
        outputs, model = content(config, kind)
        described = metadata(outputs)
        path = tmp_path_factory.mktemp('export') / f'tiny{request.param}'
        model = add_metadata(model, {KEY: described.dump()})
        if request.param == '.onnx':
            importlib.import_module('onnx').save(model, path)
        else:
            openvino = importlib.import_module('openvino')
            with pytest.MonkeyPatch.context() as patch:
                if kind == 'few':  # the same without the optimisation at conversion, which takes several seconds
                    patch.setattr(openvino, 'convert_model', openvino.Core().read_model)
                write_openvino(model, described, path)
        return ExportedDetector(path)

    return made


@pytest.mark.parametrize('config', [*CONFIGS, TINY_R18])
def test_the_graph_finds_what_mmdet_finds(config):
    model = detector(config)
    graph = graph_of(model)
    for number, height, width, *original in SIZES:
        images = photographs(number, height, width)
        expected = by_mmdet(model, images, tuple(original))
        with torch.no_grad():
            outs = dict(zip(graph.outputs, graph(images, torch.tensor(original)), strict=True))
        indices = outs.pop('image_indices')
        assert indices.tolist() == sorted(indices.tolist())
        for image, one in enumerate(expected):
            assert len(one) == 30
            found = one.new(bboxes=outs['boxes'][indices == image])
            for name in ('labels', 'scores', 'masks'):
                if name in outs:
                    found[name] = outs[name][indices == image]
            assert_same(one, found)


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='stacks of signals are asked for as on Linux')
def test_a_runtime_leaves_no_stack_for_signals_behind(export):
    """OpenVINO sets one, on which the signals of a loader's workers would then be handled."""
    before, after = SignalStack(), SignalStack()
    ask = ctypes.CDLL(None).sigaltstack
    ask(None, ctypes.byref(before))
    export(CONFIGS[0], 'few')
    ask(None, ctypes.byref(after))
    assert (after.flags, after.size) == (before.flags, before.size)


@pytest.mark.parametrize('config', CONFIGS)
def test_a_file_finds_what_mmdet_finds(config, export):
    model, exported = tiny(config, 'many'), export(config, 'many')
    for number, height, width, *original in SIZES:
        images = photographs(number, height, width)
        found = exported.detect(images.numpy(), original)
        for one, other in zip(by_mmdet(model, images, tuple(original)), found, strict=True):
            assert len(one) == 30  # cut at max_per_img
            assert_same(one, instances(other))


@pytest.mark.parametrize('config', CONFIGS)
def test_a_file_finds_nothing_where_there_is_nothing(config, export):
    images = with_dark()
    expected = by_mmdet(tiny(config, 'few'), images, (96, 128))
    numbers = [len(found) for found in expected]
    assert min(numbers) == 0 and max(numbers) > 0
    exported = export(config, 'few')
    for one, other in zip(expected, exported.detect(images.numpy(), (96, 128)), strict=True):
        assert_same(one, instances(other))
    empty = numbers.index(0)
    (none,) = exported.detect(images[empty : empty + 1].numpy(), (96, 128))  # and nothing else in the batch
    assert none.boxes.shape == (0, 4) and none.scores.shape == none.labels.shape == (0,)
    assert none.masks is None or none.masks.shape == (0, 96, 128)


def test_a_file_has_standard_operators_and_says_what_it_is():
    onnx = pytest.importorskip('onnx', reason="onnx is not here: pip install '.[runtimes]'")
    outputs, model = content(TINY_MASK_RCNN, 'many')
    described = metadata(outputs)
    loaded = onnx.load_from_string(add_metadata(model, {KEY: described.dump()}).SerializeToString())
    kinds = {node.op_type for node in loaded.graph.node}
    assert {'NonMaxSuppression', 'RoiAlign', 'TopK'} <= kinds
    assert {(entry.domain, entry.version) for entry in loaded.opset_import} == {('', 17)}
    assert [out.name for out in loaded.graph.output] == ['image_indices', 'boxes', 'labels', 'scores', 'masks']
    (entry,) = [entry for entry in loaded.metadata_props if entry.key == KEY]
    assert Metadata.load(entry.value, '') == described
    axes = [axis.dim_param or axis.dim_value for axis in loaded.graph.input[0].type.tensor_type.shape.dim]
    assert axes == ['batch', 3, 'height', 'width']


def test_scores_near_zero_keep_their_order():
    """An RPN that is sure of itself gives most places less than 1e-8, and proposals are the best of those too."""
    pytest.importorskip('onnx', reason="onnx is not here: pip install '.[runtimes]'")
    runtime = pytest.importorskip('onnxruntime', reason="onnxruntime is not here: pip install '.[runtimes]'")

    class Scores(torch.nn.Module):
        def forward(self, x):
            return sigmoid(x)

    logits = torch.linspace(-80, 20, 401)
    file = io.BytesIO()
    torch.onnx.export(Scores(), (logits,), file, dynamo=False, input_names=['x'], opset_version=17)
    session = runtime.InferenceSession(file.getvalue(), providers=['CPUExecutionProvider'])
    (scores,) = session.run(None, {'x': logits.numpy()})
    torch.testing.assert_close(torch.from_numpy(scores), logits.sigmoid(), rtol=1e-5, atol=0)


def test_files_of_others_are_refused(tmp_path):
    onnx = pytest.importorskip('onnx', reason="onnx is not here: pip install '.[runtimes]'")
    pytest.importorskip('onnxruntime', reason="onnxruntime is not here: pip install '.[runtimes]'")
    value = onnx.helper.make_tensor_value_info('x', 1, [1])
    node = onnx.helper.make_node('Relu', ['x'], ['y'])
    graph = onnx.helper.make_graph([node], 'other', [value], [onnx.helper.make_tensor_value_info('y', 1, [1])])
    onnx.save(
        onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid('', 17)]),
        tmp_path / 'other.onnx',
    )
    (tmp_path / 'broken.onnx').write_bytes(b'no model')
    for name, words in (
        ('other.onnx', r'other\.onnx is no detector that tools/export\.py'),
        ('broken.onnx', r'broken\.onnx cannot be read by onnxruntime'),
        ('missing.onnx', 'no such exported detector'),
        ('broken.pth', 'no such exported detector'),
    ):
        with pytest.raises(UsageError, match=words):
            ExportedDetector(tmp_path / name)


def test_names_of_classes_are_those_that_the_checkpoint_was_trained_on(tmp_path):
    config = load_config(TINY_RETINANET)
    names = list(config.metainfo.classes)
    model = Detection().build(config)
    for name, classes in (('a.pth', names), ('b.pth', names[::-1])):
        torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=classes))), tmp_path / name)
    assert class_names(config, detector_with_weights(config, 'a', str(tmp_path / 'a.pth'))) == tuple(names)
    with pytest.raises(UsageError, match=r"class 0 is 'cross' in .*b\.pth and 'disc' in the"):
        detector_with_weights(config, 'b', str(tmp_path / 'b.pth'))


def random_boxes(number, side, generator):
    corners = torch.rand(number, 2, 2, generator=generator) * side
    return torch.cat((corners.amin(1), corners.amax(1)), 1)


@pytest.mark.parametrize('agnostic', [False, True])
def test_suppression_is_mmdets(agnostic):
    generator = torch.Generator().manual_seed(0)
    number, classes, limit = 200, 5, 40
    boxes = torch.stack([random_boxes(number, 60, generator) for _ in range(2)])
    scores = torch.rand(2, number, generator=generator).mul(50).round() / 50  # with ties
    groups = torch.randint(0, classes, (2, number), generator=generator)
    valid = scores > 0.3
    images, places = grouped_nms(boxes, scores, groups * (not agnostic), valid, 0.5, limit)
    flat = valid.flatten()
    owners = torch.arange(2).repeat_interleave(number)[flat]
    joined = (boxes.flatten(0, 1)[flat], scores.flatten()[flat], (groups * (not agnostic)).flatten()[flat], owners)
    flat_images, flat_places = grouped_nms_flat(*joined, 2, 0.5, limit)
    for image in range(2):
        own = valid[image].nonzero().flatten()
        _, kept = batched_nms(
            boxes[image, own], scores[image, own], groups[image, own], dict(type='nms', iou_threshold=0.5), agnostic
        )
        assert len(kept) > limit / 2
        assert torch.equal(places[images == image], own[kept[:limit]])
        assert torch.equal(joined[0][flat_places[flat_images == image]], boxes[image, own[kept[:limit]]])


def test_suppression_of_nothing_is_empty():
    nothing = torch.zeros(0)
    images, places = grouped_nms_flat(torch.zeros(0, 4), nothing, nothing.long(), nothing.long(), 2, 0.5, 10)
    assert len(images) == len(places) == 0


@pytest.mark.parametrize('limit', [1, 7, 50, 1000])
def test_the_best_pairs_are_at_thebest_places(limit):
    generator = torch.Generator().manual_seed(limit)
    scores = torch.rand(1, 60, 4, generator=generator)
    places = best_places(scores, limit)
    expected, labels, kept, _ = filter_scores_and_topk(scores[0], -1, limit)
    among = scores[0, places[0]].flatten()
    values, pairs = among.sort(descending=True, stable=True)
    values, pairs = values[:limit], pairs[:limit]
    assert torch.equal(values, expected)
    assert torch.equal(places[0, pairs // 4], kept) and torch.equal(pairs % 4, labels)


def test_regions_are_pooled_as_by_mmdets_extractor():
    layer = dict(type='RoIAlign', output_size=7, sampling_ratio=0)
    extractor = SingleRoIExtractor(layer, out_channels=3, featmap_strides=[4, 8, 16, 32])
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(2, 3, 512 // stride, 512 // stride, generator=generator) for stride in (4, 8, 16, 32)]
    borders = torch.tensor([[1, 0.0, 0, side, side] for side in (1, 56, 112, 223.9999, 224, 448, 512)])
    indices = torch.randint(0, 2, (30, 1), generator=generator)
    several = torch.cat((torch.cat((indices, random_boxes(30, 512, generator)), 1), borders))
    small = torch.tensor([[0, 3.0, 4, 9, 8]])  # all other levels have none
    for regions in (several, small):
        torch.testing.assert_close(
            pool_regions(extractor, features, regions), extractor(features, regions), rtol=0, atol=1e-4
        )


def test_masks_are_pasted_as_by_mmdet():
    generator = torch.Generator().manual_seed(0)
    boxes = random_boxes(20, 47, generator)
    boxes = torch.cat((boxes, torch.tensor([[0, 0, 61.0, 47], [5, 5, 5, 9], [59.5, 40, 61, 47], [3.2, 4, 3.9, 4.6]])))
    probabilities = torch.rand(len(boxes), 28, 28, generator=generator)
    for threshold in (0.2, 0.5):
        masks = paste_masks(probabilities, boxes, 47, 61, threshold)
        for number in range(len(boxes)):
            one = slice(number, number + 1)
            values, where = _do_paste_mask(probabilities[one, None], boxes[one], 47, 61)
            expected = torch.zeros(1, 47, 61, dtype=torch.bool)
            expected[(slice(None), *where)] = values >= threshold
            assert (masks[one] != expected).sum() <= 1  # rounding
        assert masks.any((1, 2)).sum() > len(boxes) / 2


def test_a_second_stage_is_suppressed_by_class():
    """What the graph computes of boxes and scores is mmdet's ``multiclass_nms``."""
    generator = torch.Generator().manual_seed(0)
    boxes = torch.stack([random_boxes(60, 50, generator) for _ in range(3)], 1)
    scores = torch.rand(60, 4, generator=generator)
    nms = dict(type='nms', iou_threshold=0.5)
    expected, labels = multiclass_nms(boxes.flatten(1), scores, 0.2, nms, 25)
    region, label = (scores[:, :-1] > 0.2).nonzero().unbind(1)
    chosen, own = boxes[region, label], scores[region, label]
    _, places = grouped_nms_flat(chosen, own, label, torch.zeros_like(label), 1, 0.5, 25)
    assert torch.equal(chosen[places], expected[:, :4]) and torch.equal(own[places], expected[:, 4])
    assert torch.equal(label[places], labels)


def test_float_images_serve_too():
    graph = graph_of(detector(TINY_RETINANET))
    images = photographs(1, 64, 96)
    with torch.no_grad():
        found = [graph(own, torch.tensor([64, 96])) for own in (images, images.float())]
    assert len(found[0][0]) > 0
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
