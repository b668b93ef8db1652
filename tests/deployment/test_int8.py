"""Layers in 8-bit integers compute the same as in float64 from the same integers, and detectors nearly the same."""

import copy
import pickle

import pytest
import torch
from deployed_models import TINY, backbone
from norms import randomise_norms
from timed import TINY_MASK_RCNN, settings

from shvit_det import UsageError, deploy
from shvit_det.configuration.batches import copy_containers
from shvit_det.deployment import layer_backends
from shvit_det.deployment.backends.backend_choice import (
    INT8_OPERATIONS,
    Backend,
    Choice,
    InputRange,
    Processor,
    choose_backend,
    this_processor,
)
from shvit_det.deployment.backends.convolutions import FusedConv, FusedLinear, FusedTransposedConv
from shvit_det.deployment.backends.winograd import WinogradConv, WinogradTransposedConv
from shvit_det.timing.model_builder import build_models

pytestmark = pytest.mark.skipif(not this_processor().int8, reason='this processor has no VNNI for AVX-512')
WIDE = {  # layers of enough channels
    'model.neck.out_channels': 128,
    'model.rpn_head.in_channels': 128,
    'model.rpn_head.feat_channels': 128,
    **{f'model.roi_head.{part}_roi_extractor.out_channels': 128 for part in ('bbox', 'mask')},
    **{f'model.roi_head.{part}_head.in_channels': 128 for part in ('bbox', 'mask')},
    **{f'model.roi_head.{part}_head.conv_out_channels': 128 for part in ('bbox', 'mask')},
    'model.roi_head.bbox_head.fc_out_channels': 64,
}
RANGE = InputRange(-128 / 64, 127 / 64)  # in steps of 1/64, the integers from -128 to 127


def integers(low, high, *shape):
    return torch.randint(low, high + 1, shape).float()


def weight(*shape):
    """Weights that are exact in 8-bit integers, since the largest of each output channel and tap is 127."""
    made = integers(-127, 127, *shape)
    made[0] = made[:, 0] = 127
    return made / 1024


def inputs(*shape):
    return integers(-128, 127, *shape) / 64


def check(layer, x):
    """Compare a layer, in which nothing is rounded but the sums' results, with torch in float64."""
    layer.input_range = RANGE
    layer.drop_constants()
    assert layer.supports_int8()
    assert layer.choice_for_input(x) == Choice(Backend.INT8, torch.float32)
    found = layer(x)
    expected = copy.deepcopy(layer).double()(x.double())
    assert found.dtype is torch.float32
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert found.ndim == 2 or found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('shape', [(2, 9, 14), (60, 5, 4), (1, 1, 1)])
def test_a_convolution(shape, relu):
    batch, height, width = shape
    layer = WinogradConv(weight(136, 130, 3, 3), torch.randn(136), relu)
    check(layer, inputs(batch, 130, height, width))


@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('with_ones', [False, True])
@pytest.mark.parametrize('size', [(9, 14), (1, 1), (1, 6), (5, 2)])
@pytest.mark.parametrize('geometry', [(8, 4, 2), (6, 4, 1), (4, 2, 1), (2, 2, 0), (3, 3, 0)])
def test_a_transposed_convolution(geometry, size, with_ones, relu):
    kernel, stride, padding = geometry
    weights = weight(129 + with_ones, 128, kernel, kernel)
    x = inputs(2, 129 + with_ones, *size)
    if with_ones:  # whose weights are biases, and not rounded
        weights[-1], x[:, -1] = torch.randn(128, kernel, kernel), 1
    layer = WinogradTransposedConv(weights, torch.randn(128), stride, padding, relu)
    layer.with_ones = with_ones
    check(layer, x)


def test_many_regions_of_a_transposed_convolution():
    check(FusedTransposedConv(weight(128, 128, 2, 2), torch.randn(128), 2, 0, True), inputs(51, 128, 3, 4))


def test_a_linear_layer():
    check(FusedLinear(weight(512, 600), torch.randn(512)), inputs(30, 600))
    check(FusedLinear(weight(512, 600), torch.randn(512)), inputs(600, 30).t())


def test_inputs_outside_of_the_range_become_its_ends():
    layer = FusedLinear(weight(512, 600), None)
    layer.input_range = RANGE
    x = torch.randn(3, 600) * 10
    assert torch.equal(layer(x), layer(x.clamp(*RANGE)))


@pytest.mark.parametrize('inputs', [InputRange(0, 0), InputRange(-3, 0), InputRange(0, 7), InputRange(-1, 3)])
def test_zero_is_one_of_the_integers(inputs):
    assert 0 <= inputs.zero <= 255
    assert abs(inputs.lowest + inputs.zero * inputs.step) <= inputs.step / 2


@pytest.mark.parametrize(
    'layer',
    [
        FusedConv(torch.zeros(128, 128, 3, 3), None, 2, 1),
        FusedConv(torch.zeros(128, 128, 3, 3), None),
        FusedConv(torch.zeros(128, 127, 3, 3), None, 1, 1),
        FusedConv(torch.zeros(128, 1, 3, 3), None, 1, 1, 128),
        FusedConv(torch.zeros(128, 128, 1, 1), None),
        FusedLinear(torch.zeros(81, 1024), None),
        FusedTransposedConv(torch.zeros(128, 127, 2, 2), None, 2),
        FusedTransposedConv(torch.zeros(128, 128, 4, 4), None, 2),
        FusedTransposedConv(torch.zeros(128, 128, 9, 9), None, 3, 3),
        FusedTransposedConv(torch.zeros(128, 128, 1, 1), None, 2),
    ],
)
def test_other_layers_stay_in_float32(layer):
    assert not layer.supports_int8()


def test_who_computes_a_layer_with_a_range():
    layer = FusedLinear(torch.zeros(512, 600), None)
    layer.input_range = RANGE
    fast, slow = Processor((), (), (), True), Processor((), ())
    assert choose_backend(layer, 'cpu', torch.float32, fast).backend is Backend.INT8
    assert choose_backend(layer, 'cpu', torch.float32, slow).backend is Backend.PLAIN
    assert choose_backend(layer, 'cpu', torch.bfloat16, fast).backend is Backend.PLAIN
    assert choose_backend(layer, 'cuda', torch.float32, fast).backend is Backend.PLAIN


def test_operations_with_other_arguments_are_not_used(monkeypatch):
    from shvit_det.deployment.backends import backend_choice

    monkeypatch.setitem(INT8_OPERATIONS, 'qlinear_prepack.default', 3)
    backend_choice._has_int8.cache_clear()
    try:
        assert not this_processor().int8
    finally:
        backend_choice._has_int8.cache_clear()


@pytest.fixture(scope='module')
def subject():
    (made,) = build_models([TINY_MASK_RCNN], settings(detections=20, shape=(90, 117)), None, WIDE)
    torch.manual_seed(0)
    randomise_norms(made.model)
    made.fix_detections()
    return made


def batches(subject, count=2):
    return [copy_containers(subject.batches[0]) for _ in range(count)]


def test_a_detector_computes_nearly_the_same(subject, log):
    exact = deploy(subject.model)
    found = deploy(subject.model, dtype='int8', calibration=iter(batches(subject)))
    in_int8 = {name for name, backend in layer_backends(found).items() if backend == 'int8'}
    assert {'neck.finer_convs.0', 'rpn_head.rpn_finest.hidden', 'rpn_head.rpn_conv.conv'} <= in_int8
    assert {'roi_head.bbox_head.shared_fcs.0', 'roi_head.mask_head.upsample'} <= in_int8
    assert not any(name.startswith('backbone') for name in in_int8)
    assert f'{len(in_int8)} layers by oneDNN in int8' in log.text
    images = subject.model.data_preprocessor(batches(subject)[0], False)['inputs']
    with torch.no_grad():
        results = [(model, model.extract_feat(images)) for model in (exact, found)]
        (levels, scores), (int8_levels, int8_scores) = (([*x.peek()], model.rpn_head(x)[0]) for model, x in results)
    for one, other in zip((*levels, *scores), (*int8_levels, *int8_scores), strict=True):
        assert 0 < (one - other).square().mean() <= 0.03**2 * one.square().mean()


def test_a_calibrated_detector_is_copied_stored_and_moved(subject):
    made = deploy(subject.model, dtype='int8', calibration=batches(subject))
    images = subject.model.data_preprocessor(batches(subject)[0], False)['inputs']
    with torch.no_grad():
        expected = made.extract_feat(images)[0]
        for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
            assert torch.equal(other.extract_feat(images)[0], expected)
            assert 'int8' in layer_backends(other).values()
        made.bfloat16().test_step(*batches(subject, 1))
    assert 'int8' not in layer_backends(made).values()
    assert 'int8' in layer_backends(made.float()).values()


def test_a_layer_that_no_image_reaches_is_named_and_stays_in_float32(subject, log):
    trained = copy.deepcopy(subject.model)
    trained.roi_head.test_cfg.score_thr = 1.0  # no detection
    found = deploy(trained, dtype='int8', calibration=batches(subject))
    assert layer_backends(found)['roi_head.mask_head.upsample'] != 'int8'
    (line,) = [record.getMessage() for record in log.records if 'no calibration image' in record.getMessage()]
    assert 'roi_head.mask_head.upsample' in line
    assert 'neck' not in line


def test_what_cannot_be_quantised_is_refused(subject):
    with pytest.raises(UsageError, match='need each other'):
        deploy(subject.model, dtype='int8')
    with pytest.raises(UsageError, match='need each other'):
        deploy(subject.model, calibration=batches(subject))
    with pytest.raises(UsageError, match='no batch'):
        deploy(subject.model, dtype='int8', calibration=[])
    with pytest.raises(UsageError, match="must be 'int8' or a data type of torch"):
        deploy(subject.model, dtype='bfloat16')
    broken = copy.deepcopy(subject.model)
    torch.nn.init.constant_(broken.neck.lateral_convs[0].conv.bias, float('nan'))
    with pytest.raises(UsageError, match=r'the input of neck\.\S+ is not finite'):
        deploy(broken, dtype='int8', calibration=batches(subject))
    with pytest.raises(UsageError, match=r'for detectors in float32 on a CPU, not for a SHViT'):
        deploy(backbone(TINY), dtype='int8', calibration=batches(subject))
    with pytest.raises(UsageError, match=r'torch\.bfloat16'):
        deploy(copy.deepcopy(subject.model).bfloat16(), dtype='int8', calibration=batches(subject))
