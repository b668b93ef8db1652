"""Deployed models compute what the trained ones do."""

import copy
import shutil

import pytest
import torch
from deployed_models import TINY, agree, backbone, deploy_and_compare, detector
from mmdet.models.detectors import BaseDetector, SingleStageDetector
from safetensors.torch import load_file, save_file
from timed import TINY_MASK_RCNN, TINY_RETINANET, settings
from torch import nn
from torchvision.ops import box_iou

from shvit_det import SHViT, SHViTFPN, UsageError, deploy, kernels
from shvit_det.deployment import is_deployed
from shvit_det.deployment.backends import backend_choice as backends
from shvit_det.deployment.backends.deployed_layer import WeightedLayer
from shvit_det.deployment.compilation import compile_parts
from shvit_det.deployment.rpn import ComposedRPNConv
from shvit_det.models.pyramid import FeaturePyramid
from shvit_det.timing.cost import CostCounter
from shvit_det.timing.model_builder import build_models

pytestmark = pytest.mark.slow


@pytest.fixture(params=['own kernels', 'oneDNN'])
def form(request, monkeypatch):
    """Which kernels compute on a CPU."""
    if request.param == 'oneDNN':
        monkeypatch.setattr(kernels, 'load', lambda: None)
    elif kernels.load() is None:
        pytest.skip('there are no kernels for this processor')


@pytest.mark.parametrize('arch', ['s1', 's2', 's3', 's4', TINY])
@pytest.mark.parametrize('size', [(64, 64), (97, 131)])
def test_backbones_agree_in_float64(arch, size):
    trained = backbone(arch, torch.float64)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        agree(trained(x), deploy(trained)(x), 1e-10)


@pytest.mark.parametrize('channels_last', [True, False])
@pytest.mark.parametrize('size', [(96, 64), (101, 75), (30, 100)])
def test_backbones_agree_in_float32(size, channels_last, form):
    trained = backbone('s4')
    x = torch.randn(2, 3, *size)
    deployed = deploy(trained, channels_last=channels_last)
    with torch.no_grad():
        expected = trained(x)
        agree(expected, deployed(x), 1e-4)
        agree(expected, deployed(x[:, :, :, :64].repeat(1, 1, 1, 2)[..., : x.shape[-1]]), 10)  # another size in between
        agree(expected, deployed(x), 1e-4)


def test_fewer_stages_and_one_out_index():
    trained = backbone('s1', torch.float64, out_indices=(1,))
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        agree(trained(x), deploy(trained)(x), 1e-10)


def test_bfloat16_is_close(form):
    trained = backbone('s1')
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        deployed = deploy(trained, dtype=torch.bfloat16)
        found = deployed(x.bfloat16())
        assert found[0].dtype is torch.bfloat16
        agree(trained(x), [out.float() for out in found], 0.1)


@pytest.mark.parametrize(
    'arguments', [{}, dict(num_upsamples=1, add_extra_convs='on_input'), dict(num_upsamples=0, num_outs=4)]
)
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_necks_agree(arguments, dtype, tolerance):
    torch.manual_seed(0)
    trained = SHViTFPN([6, 7, 8], out_channels=16, compose=False, **arguments).to(dtype).eval()
    for parameter in trained.parameters():
        nn.init.normal_(parameter, std=0.3)
    inputs = [torch.randn(2, c, s, s + 2, dtype=dtype) for c, s in zip((6, 7, 8), (9, 5, 3), strict=True)]
    with torch.no_grad():
        agree(trained(inputs), deploy(trained)(inputs), tolerance)


@pytest.mark.parametrize('config', [TINY_MASK_RCNN, TINY_RETINANET])
def test_detectors_find_the_same(config, form):
    deploy_and_compare(detector(config))


def test_the_rpn_is_exact_at_the_border():
    model = detector(TINY_MASK_RCNN).model.double()
    deployed = deploy(model)
    assert isinstance(deployed.rpn_head.rpn_finest, ComposedRPNConv)
    x = torch.randn(2, 3, 96, 128, dtype=torch.float64)
    with torch.no_grad():
        scores, boxes = model.rpn_head(model.extract_feat(x))
        found_scores, found_boxes = deployed.rpn_head(deployed.extract_feat(x))
        agree(scores, found_scores, 1e-10)
        agree(boxes, found_boxes, 1e-10)
        features = [torch.randn_like(feature) for feature in model.extract_feat(x)]
        agree(model.rpn_head(features)[0], deployed.rpn_head(features)[0], 1e-10)  # features of other images


def test_the_trained_model_stays_as_it_was():
    trained = detector(TINY_MASK_RCNN).model.train()
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    names = [name for name, _ in trained.named_modules()]
    deploy(trained)
    assert trained.training
    assert all(parameter.requires_grad for parameter in trained.roi_head.parameters())
    assert [name for name, _ in trained.named_modules()] == names
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())


@pytest.mark.parametrize('make', [backbone, lambda: detector(TINY_MASK_RCNN).model])
def test_a_deployed_model_is_neither_trained_nor_deployed_again(make):
    deployed = deploy(make())
    assert is_deployed(deployed)
    assert not any(parameter.requires_grad for parameter in deployed.parameters())
    with pytest.raises(UsageError, match='is deployed already'):
        deploy(deployed)
    with pytest.raises(UsageError, match='cannot be trained'):
        deployed.train()
    assert deployed.eval() is deployed


def test_a_deployed_model_is_saved_and_loaded(tmp_path, form):
    first, second = deploy(backbone('s1')), deploy(SHViT('s1').eval())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        second(x)  # so that weights are packed before others are loaded
        save_file(first.state_dict(), tmp_path / 'deployed.safetensors')
        second.load_state_dict(load_file(tmp_path / 'deployed.safetensors'))
        expected = first(x)
        assert all(torch.equal(one, other) for one, other in zip(expected, second(x), strict=True))
        torch.save(first, tmp_path / 'deployed.pth')
        whole = torch.load(tmp_path / 'deployed.pth', weights_only=False)
        assert all(torch.equal(one, other) for one, other in zip(expected, whole(x), strict=True))
        assert all(torch.equal(one, other) for one, other in zip(expected, copy.deepcopy(first)(x), strict=True))


def test_images_and_features_are_not_written_over(form):
    deployed = deploy(backbone('s1'))
    x = torch.randn(1, 3, 128, 128).to(memory_format=torch.channels_last)
    kept = x.clone()
    with torch.no_grad():
        whole = deployed(x)
        assert torch.equal(x, kept)
        for index in range(3):  # each stage alone, so that no later one can write into its output
            shorter = deploy(backbone('s1', out_indices=(index,)))(x)
            assert torch.equal(shorter[0], whole[index])


def test_gradients_of_the_image_pass_through(form):
    trained = backbone('s1')
    deployed, x = deploy(trained), torch.randn(1, 3, 64, 64)
    gradients = []
    for model in (trained, deployed):
        image = x.clone().requires_grad_()
        sum(out.square().mean() for out in model(image)).backward()
        gradients.append(image.grad)
    agree(gradients[:1], gradients[1:], 1e-3)


def test_without_the_private_operations_the_plain_ones_run(monkeypatch):
    x = torch.randn(1, 3, 64, 80)
    with torch.no_grad():
        expected = backbone('s1')(x)
        monkeypatch.setattr(backends, '_onednn', lambda: ((), ()))
        monkeypatch.setattr(kernels, 'load', lambda: None)
        agree(expected, deploy(backbone('s1'))(x), 1e-4)


def test_packed_operations_run_where_torch_has_them():
    deployed = deploy(backbone('s1'), native=False)
    seen = set()

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if args and isinstance(args[0], torch.Tensor) and args[0].shape[2:].numel() > 1:
                seen.add(function.overloadpacket)
            return function(*args, **(kwargs or {}))

    with torch.no_grad(), Watch():
        deployed(torch.randn(1, 3, 64, 64))
    if not hasattr(torch.ops.mkldnn, '_convolution_pointwise'):
        pytest.skip('this torch has no packed convolutions')
    assert torch.ops.mkldnn._convolution_pointwise in seen
    assert torch.ops.aten.convolution not in seen
    assert torch.ops.aten.native_batch_norm not in seen


def test_grey_images_are_refused_as_by_the_trained_model():
    with pytest.raises(UsageError, match=r'shape \(B, 3, H, W\)'):
        deploy(backbone())(torch.zeros(1, 1, 63, 64))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_no_images(form, dtype):
    trained = backbone(TINY)
    neck = SHViTFPN([16, 24, 32], 8, compose=False).eval()
    x = torch.zeros(0, 3, 64, 96)
    with torch.no_grad():
        features = trained(x)
        found = deploy(trained, dtype=dtype)(x.to(dtype))
        levels = deploy(neck, dtype=dtype)(found)
    for right, others in ((features, found), (neck(features), levels)):
        assert [one.shape for one in right] == [other.shape for other in others]
        assert all(other.dtype is dtype for other in others)


def test_no_images_and_no_regions_in_a_detector(form):
    trained = detector(TINY_MASK_RCNN).model
    trained.neck.compose = False
    x = torch.zeros(0, 3, 64, 96)
    with torch.no_grad():
        for dtype in (None, torch.bfloat16):
            deployed = deploy(trained, dtype=dtype)
            for model in (trained, deployed):
                features = model.extract_feat(x)
                scores, _ = model.rpn_head(features)
                assert [len(each) for each in (*features, *scores)] == [0] * 10
                assert model.roi_head.bbox_roi_extractor(features[:4], torch.zeros(0, 5)).shape == (0, 16, 7, 7)
                assert model.roi_head.mask_head(torch.zeros(0, 16, 14, 14)).shape[0] == 0


@pytest.mark.parametrize('context', [lambda: torch.device('meta'), lambda: DefaultDevice('meta')])
def test_another_default_device_does_not_matter(form, context):
    subject = detector(TINY_MASK_RCNN)
    run, x = subject.run(), torch.randn(1, 3, 128, 160)
    with torch.no_grad():
        right = deploy(subject.model).extract_feat(x)
        rois = torch.tensor([(0, 3.0, 4, 60, 40), (0, 10, 2, 90, 70)])
        with context():
            deployed = deploy(subject.model)
            found = deployed.extract_feat(x)
            agree(right, found, 1e-6)
            regions = deployed.roi_head.bbox_roi_extractor(found[:4], rois)
            scores = deployed.rpn_head(found)[0]
    agree(deployed.rpn_head(right)[0], scores, 1e-5)
    agree([deployed.roi_head.bbox_roi_extractor(right[:4], rois)], [regions], 1e-5)
    assert run()


class DefaultDevice:
    """Where tensors are made unless something else is said."""

    def __init__(self, name):
        self.name = name

    def __enter__(self):
        torch.set_default_device(self.name)

    def __exit__(self, *_):
        torch.set_default_device(None)


class Counting:
    """A backend of torch.compile that counts its graphs and their runs, and notes whether weights were frozen."""

    def __init__(self):
        self.runs, self.frozen = [], []

    def __call__(self, graph, _):
        self.frozen.append(torch._inductor.config.freezing)

        def run(*args):
            self.runs.append(graph)
            return graph.forward(*args)

        return run


@pytest.fixture
def compiler():
    torch._dynamo.reset()
    yield Counting()
    torch._dynamo.reset()


def announcements(log):
    return [line for line in log.messages if 'compiling the' in line]


def test_compiled_parts_run_compiled_and_say_so(log, compiler):
    trained = backbone('s1')
    deployed = deploy(trained, compile=dict(backend=compiler))
    assert deployed.state_dict().keys() == deploy(trained).state_dict().keys()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        agree(trained(x), deployed(x), 1e-4)
        agree(trained(x), deployed(x), 1e-4)
    assert len(compiler.runs) == 2 and len(compiler.frozen) == 1
    assert len(announcements(log)) == 1
    assert 'compiling the FusedSHViT for inputs of 1x3x64x64' in announcements(log)[0]


def test_all_sizes_but_the_first_share_one_compiled_graph(log, compiler):
    trained = backbone(TINY, out_indices=(0,))  # torch has further graphs for convolutions of very few elements
    deployed = deploy(trained, compile=dict(backend=compiler))
    with torch.no_grad():
        for height, width in ((640, 640), (640, 832), (832, 640), (640, 640), (704, 1088), (800, 1344)):
            x = torch.randn(1, 3, height, width)
            agree(trained(x), deployed(x), 1e-4)
    assert len(compiler.runs) == 6
    assert len(announcements(log)) == len(compiler.frozen) == 2


def test_changed_weights_are_compiled_anew(compiler):
    first, second = backbone(TINY), backbone(TINY)
    for parameter in second.parameters():
        parameter.data.mul_(0.9)
    deployed = deploy(first, compile=dict(backend=compiler))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        agree(first(x), deployed(x), 1e-4)
        deployed.load_state_dict(deploy(second).state_dict())
        agree(second(x), deployed(x), 1e-4)
        assert len(compiler.frozen) == 2
        other = copy.deepcopy(deployed)
        next(other.parameters()).zero_()
        assert not torch.equal(other(x)[0], deployed(x)[0])


def test_parts_of_a_detector_run_compiled(log, compiler):
    subject = detector(TINY_RETINANET)
    expected = subject.run()()[0].pred_instances
    subject.model = deploy(subject.model, compile=dict(backend=compiler))
    found = subject.run()()[0].pred_instances
    assert len(compiler.runs) == 1
    assert 'compiling the backbone' in announcements(log)[0]
    torch.testing.assert_close(expected.scores, found.scores, rtol=1e-4, atol=1e-5)


def test_the_neck_runs_compiled_and_hands_over_what_it_knows(compiler):
    trained = detector(TINY_MASK_RCNN).model
    deployed, x = deploy(trained), torch.randn(1, 3, 96, 128)
    compile_parts(deployed.neck, dict(backend=compiler))
    with torch.no_grad():
        for _ in range(2):
            features = deployed.extract_feat(x)
            assert isinstance(features, FeaturePyramid)
            agree(trained.rpn_head(trained.extract_feat(x))[0], deployed.rpn_head(features)[0], 1e-4)
        deployed.neck.load_state_dict(deployed.neck.state_dict())
        deployed.extract_feat(x)
    assert len(compiler.runs) == 3 and len(compiler.frozen) == 2


@pytest.mark.skipif(shutil.which('g++') is None, reason='inductor needs a C++ compiler')
def test_inductor_freezes_and_lays_out_the_weights(compiler):
    trained = backbone(TINY, out_indices=(0,))
    deployed = deploy(trained, compile=True, native=False)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        agree(trained(x), deployed(x), 1e-4)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            deployed(x)
    ran = {event.key for event in profile.key_averages()}
    assert 'mkldnn::_convolution_pointwise' in ran
    assert not ran & {'aten::convolution', 'aten::linear', 'aten::addmm'}


@pytest.mark.parametrize('config', [TINY_MASK_RCNN, TINY_RETINANET])
def test_detectors_compute_in_bfloat16(config):
    subject = detector(config)
    expected = subject.run()()
    subject.model = deploy(subject.model, dtype=torch.bfloat16)
    computed = set()
    for layer in subject.model.modules():
        if isinstance(layer, WeightedLayer):
            layer.register_forward_hook(lambda _, inputs, output: computed.add((inputs[0].dtype, output.dtype)))
    found = subject.run()()
    assert computed == {(torch.bfloat16, torch.bfloat16)}
    for one, other in zip(expected, found, strict=True):
        one, other = one.pred_instances, other.pred_instances
        assert other.scores.dtype is other.bboxes.dtype is torch.float32
        overlaps = box_iou(one.bboxes, other.bboxes)
        near = (overlaps > 0.9) & ((one.scores[:, None] - other.scores).abs() < 0.03)
        assert near.any(dim=1).float().mean() > 0.6  # rounding moves some over the threshold


def test_a_data_type_is_refused_for_kinds_of_detectors_that_are_not_known():
    subject = detector(TINY_RETINANET)
    subject.model.__class__ = type('Other', (BaseDetector,), dict(vars(SingleStageDetector)))
    with pytest.raises(UsageError, match='not for a Other'):
        deploy(subject.model, dtype=torch.bfloat16)


def test_benchmarks_take_the_deployed_form():
    plain, deployed = build_models([TINY_MASK_RCNN, f'deployed:{TINY_MASK_RCNN}'], settings(detections=5), None, None)
    assert (plain.name, deployed.name) == ('tiny_mask_rcnn', 'deployed:tiny_mask_rcnn')
    assert not is_deployed(plain.model) and is_deployed(deployed.model)
    assert deployed.prepared[0].split(',')[0] == 'deployed'
    deployed.fix_detections()
    assert deployed.counts()['detections'] == [5]


def test_packed_operations_are_counted_like_plain_ones():
    plain, deployed = build_models(['shvit:s1', 'deployed:shvit:s1'], settings(shape=(64, 96)), None, None)
    macs = []
    for subject in (plain, deployed):
        counter = CostCounter(lambda: 'part')
        run = subject.run()
        with counter:
            run()
        macs.append(counter.part_costs({})[0]['macs'])
    assert macs[0] == macs[1] > 0


def test_other_models_are_refused():
    with pytest.raises(UsageError, match='not a Linear'):
        deploy(nn.Linear(2, 2))
