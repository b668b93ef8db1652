"""Our own kernels compute what torch does, on any shape and number of threads; without them oneDNN is used instead."""

import copy

import pytest
import torch
from kernel_types import BFLOAT16, DTYPES
from norms import randomise_norms
from torch import nn
from torch.nn import functional

from shvit_det import SHViT, deploy, kernels
from shvit_det.deployment.backends import winograd
from shvit_det.deployment.backends.backend_choice import this_processor
from shvit_det.deployment.backends.convolutions import FusedConv, FusedPointwiseConv, FusedTransposedConv
from shvit_det.deployment.backends.deployed_layer import DeployedLayer
from shvit_det.deployment.backends.winograd import WinogradConv, WinogradTransposedConv
from shvit_det.deployment.layers import FusedAttention, FusedSqueezeExcite
from shvit_det.kernels import kernel_functions
from shvit_det.models.layers import SingleHeadAttention, SqueezeExcite

pytestmark = pytest.mark.slow

needs_kernels = pytest.mark.skipif(kernels.load() is None, reason='there are no kernels for this processor')
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def ran(monkeypatch):
    """The names of the kernels that ran."""
    names = []

    def noting(name, original):
        def note(*args, **kwargs):
            names.append(name)
            return original(*args, **kwargs)

        return note

    for name in (
        'convolve',
        'linear',
        'feed_forward',
        'attention',
        'depthwise',
        'winograd',
        'transposed',
        'transposed_winograd',
        'squeeze_excite',
    ):
        monkeypatch.setattr(kernel_functions.Kernels, name, noting(name, getattr(kernel_functions.Kernels, name)))
    return names


def numbers(*shape, dtype=torch.float32):
    return torch.randn(shape).to(dtype)


def assert_close(found, right, times=1):
    assert found.shape == right.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (found.double() - right).abs().max() <= times * TOLERANCE[found.dtype] * right.abs().max().clamp(min=0.1)


def convolved(layer, x, stride, padding, groups=1):
    y = functional.conv2d(x.double(), layer.weight.double(), layer.bias.double(), stride, padding, groups=groups)
    return y.relu() if layer.relu else y


@needs_kernels
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(
    ('batch', 'channels', 'size', 'out_channels', 'kernel', 'stride', 'padding'),
    [
        (2, 4, (17, 23), 28, 3, 2, 1),
        (1, 56, (13, 31), 40, 3, 2, 1),
        (2, 10, (9, 7), 33, 3, 1, 1),
        (1, 6, (2, 1), 5, 3, 2, 1),
        (3, 6, (1, 1), 17, 3, 1, 1),
        (1, 4, (8, 8), 70, 3, 1, 0),
        (1, 4, (30, 5), 16, 5, 3, 2),
        (1, 2, (6, 6), 32, 3, 1, 3),
        (1, 64, (14, 14), 64, 2, 2, 0),
    ],
)
def test_convolutions(ran, threads, dtype, batch, channels, size, out_channels, kernel, stride, padding):
    torch.manual_seed(threads)
    weight = numbers(out_channels, channels, kernel, kernel, dtype=dtype)
    layer = FusedConv(weight, numbers(out_channels, dtype=dtype), stride, padding, relu=threads == 2).eval()
    x = numbers(batch, channels, *size, dtype=dtype)
    assert_close(layer(x), convolved(layer, x, stride, padding))
    assert ran == ['convolve']


@needs_kernels
def test_three_channels_of_an_image(ran):
    layer = FusedConv(numbers(28, 3, 3, 3), None, 2, 1, relu=True).eval()
    x = numbers(1, 3, 37, 50)
    assert_close(layer(x), convolved(layer, x, 2, 1))
    assert ran == ['convolve']


@needs_kernels
@pytest.mark.skipif(not BFLOAT16, reason='our own kernels compute no bfloat16 here')
def test_three_channels_in_bfloat16(ran):  # a channel of zeros makes pairs
    layer = FusedConv(numbers(28, 3, 3, 3), None, 2, 1, relu=True).eval().bfloat16()
    x = numbers(1, 3, 37, 50).bfloat16()
    for images in (x, x.to(memory_format=torch.channels_last)):
        assert_close(layer(images), convolved(layer, x, 2, 1))
    assert ran == ['convolve'] * 2


@needs_kernels
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(
    ('kernel', 'stride', 'padding'),
    [(2, 2, 0), (4, 2, 1), (6, 4, 1), (8, 4, 2), (3, 2, 1), (1, 2, 0), (2, 3, 0), (5, 1, 2)],
)
@pytest.mark.parametrize(('batch', 'channels', 'size'), [(2, 6, (5, 7)), (1, 16, (1, 3)), (3, 34, (13, 2))])
def test_transposed_convolutions(ran, threads, dtype, kernel, stride, padding, batch, channels, size):
    torch.manual_seed(threads)
    out_channels = 40
    weight = numbers(channels, out_channels, kernel, kernel, dtype=dtype)
    layer = FusedTransposedConv(weight, numbers(out_channels, dtype=dtype), stride, padding).eval()
    x = numbers(batch, channels, *size, dtype=dtype)
    assert_close(
        layer(x), functional.conv_transpose2d(x.double(), weight.double(), layer.bias.double(), stride, padding)
    )
    assert ran == ['transposed']


@needs_kernels
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(('kernel', 'stride', 'padding'), [(4, 2, 1), (6, 4, 1), (8, 4, 2), (3, 2, 0), (2, 1, 0)])
@pytest.mark.parametrize(
    ('batch', 'channels', 'size', 'out_channels'),
    [(2, 6, (5, 7), 40), (1, 33, (10, 16), 64), (3, 16, (1, 3), 7), (1, 5, (13, 2), 32)],
)
def test_transposed_convolutions_by_winograds_way(
    ran, threads, monkeypatch, dtype, kernel, stride, padding, batch, channels, size, out_channels
):
    monkeypatch.setattr(winograd, 'MIN_CHANNELS', 1)
    monkeypatch.setattr(winograd, 'MIN_PIXELS', 1)
    if threads == 2:  # some tiles at a time
        monkeypatch.setattr(kernel_functions, 'WINOGRAD_MEMORY', 1 << 16)
    torch.manual_seed(threads)
    weight = numbers(channels, out_channels, kernel, kernel, dtype=dtype) / channels**0.5
    layer = WinogradTransposedConv(
        weight, numbers(out_channels, dtype=dtype), stride, padding, relu=threads == 1
    ).eval()
    x = numbers(batch, channels, *size, dtype=dtype)
    right = functional.conv_transpose2d(x.double(), weight.double(), layer.bias.double(), stride, padding)
    assert_close(layer(x), right.relu() if layer.relu else right)
    assert ran == expected(dtype, kernel, stride, channels)


def expected(dtype, kernel, stride, channels):
    if dtype is torch.float32 or kernel == 2 * stride:
        return ['transposed_winograd']
    if channels % 2 == 0:
        return ['transposed']
    # bfloat16 without pairs is left to oneDNN, and computed in float32 where that has no bfloat16
    return [] if dtype in this_processor().onednn else ['transposed_winograd']


@needs_kernels
def test_which_transposed_convolutions_go_winograds_way(ran):
    def run(channels, kernel, stride, size):
        ran.clear()
        layer = WinogradTransposedConv(torch.zeros(channels, channels, kernel, kernel), None, stride).eval()
        layer(torch.zeros(1, channels, *size))
        return list(ran)

    least = winograd.MIN_CHANNELS
    assert run(least, 4, 2, (20, 20)) == ['transposed_winograd']
    assert run(least, 4, 2, (19, 20)) == run(least - 1, 4, 2, (20, 20)) == ['transposed']
    assert run(least, 2, 2, (20, 20)) == run(least, 5, 2, (20, 20)) == ['transposed']  # one tap, three taps


@needs_kernels
def test_wrong_shapes_are_refused_by_torch():
    conv = FusedConv(numbers(8, 6, 3, 3), None, 1, 1).eval()
    for layer in (conv, FusedPointwiseConv(numbers(8, 6, 1, 1), None).eval()):
        with pytest.raises(RuntimeError):
            layer(numbers(1, 5, 9, 9))


@needs_kernels
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(('shape', 'out_channels'), [((1, 24, 5, 7), 50), ((3, 6, 1, 1), 16), ((1, 64, 16, 16), 33)])
def test_linear_layers_with_and_without_a_residual(ran, threads, dtype, shape, out_channels):
    torch.manual_seed(threads)
    weight, bias = numbers(out_channels, shape[1], 1, 1, dtype=dtype), numbers(out_channels, dtype=dtype)
    x, residual = numbers(*shape, dtype=dtype), numbers(shape[0], out_channels, *shape[2:], dtype=dtype)
    for relu in (False, True):
        layer = FusedPointwiseConv(weight, bias, relu).eval()
        assert_close(layer(x), convolved(layer, x, 1, 0))
    layer = FusedPointwiseConv(weight, bias).eval()
    assert_close(layer.add_to(residual, x), convolved(layer, x, 1, 0) + residual.double())
    assert ran == ['linear'] * 3


@needs_kernels
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('shape', [(1, 24, 5, 7), (2, 17, 8, 9), (1, 224, 3, 3), (1, 3, 1, 2)])
@pytest.mark.parametrize('stride', [1, 2])
def test_depthwise_convolutions(ran, threads, dtype, shape, stride):
    torch.manual_seed(threads)
    channels = shape[1]
    weight, bias = numbers(channels, 1, 3, 3, dtype=dtype), numbers(channels, dtype=dtype)
    layer = FusedConv(weight, bias, stride, 1, channels, relu=stride == 2).eval()
    x = numbers(*shape, dtype=dtype)
    assert_close(layer(x), convolved(layer, x, stride, 1, channels))
    assert ran == ['depthwise']


@needs_kernels
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(
    'shape',
    [
        (2, 64, 17, 23),
        (3, 10, 9, 6),
        (1, 256, 25, 42),
        (1, 130, 3, 2),
        (5, 40, 14, 14),
        (37, 8, 14, 14),
        (10, 6, 1, 2),
        (4, 4, 4, 8),
        (101, 2, 7, 7),
    ],
)
@pytest.mark.parametrize('out_channels', [40, 256, 7])
def test_winograd(ran, threads, dtype, shape, out_channels):
    torch.manual_seed(threads)
    weight = numbers(out_channels, shape[1], 3, 3, dtype=dtype) / shape[1] ** 0.5
    layer = WinogradConv(weight, numbers(out_channels, dtype=dtype), relu=threads == 1).eval()
    x = numbers(*shape, dtype=dtype)
    assert_close(layer(x), convolved(layer, x, 1, 1))
    assert ran == ['winograd']


@needs_kernels
def test_views_and_empty_batches():
    layer = FusedConv(numbers(8, 6, 3, 3), None, 1, 1).eval()
    x = numbers(2, 12, 9, 10).to(memory_format=torch.channels_last)
    for view in (x[:, :6], x[:, 6:, ::2], x[:1, ::2, :, 3:], x[:, :6].contiguous()):
        assert_close(layer(view), convolved(layer, view, 1, 1))
    assert layer(x[:0, :6]).shape == (0, 8, 9, 10)


@needs_kernels
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(('channels', 'attending', 'query'), [(336, 72, 16), (50, 34, 5), (64, 32, 20)])
@pytest.mark.parametrize(('batch', 'size'), [(1, (16, 16)), (2, (5, 7)), (1, (1, 1)), (3, (21, 13))])
def test_attention(ran, threads, dtype, channels, attending, query, batch, size):
    torch.manual_seed(threads)
    source = SingleHeadAttention(channels, attending, query)
    randomise_norms(source)
    nn.init.normal_(source.pre_norm.weight)
    nn.init.normal_(source.pre_norm.bias)
    layer = FusedAttention(source.eval()).to(dtype).eval()
    x = (3 * numbers(batch, channels, *size)).to(dtype)
    with torch.no_grad():
        found = layer(x)
        assert ran == ['attention']
        right = source.double()(x.double()) + x.double()
    assert_close(found, right, 3)  # the weights of `source` were not rounded


@needs_kernels
def test_scores_may_be_large(ran):
    source = SingleHeadAttention(32, 16, 8)
    randomise_norms(source)
    nn.init.constant_(source.qkv.bn.weight, 40)
    x = numbers(1, 32, 9, 9)
    with torch.no_grad():
        found = FusedAttention(source.eval())(x)
        assert ran == ['attention'] and found.isfinite().all()
        assert_close(found, source.double()(x.double()) + x.double(), 1000)  # of scores in the hundreds


@needs_kernels
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(
    'arch, threads', [('s1', 1), ('s1', 2), ('s1', 3), ('s2', 2), ('s3', 1), ('s4', 3)], indirect=['threads']
)
def test_backbones_run_by_them_alone(ran, threads, arch, dtype):
    torch.manual_seed(0)
    trained = SHViT(arch)
    randomise_norms(trained)
    x = torch.randn(3, 3, 97, 131)
    with torch.no_grad():
        right = trained.eval()(x)
        found = deploy(trained, dtype=dtype)(x.to(dtype))
    for one, other in zip(right, found, strict=True):
        assert (one - other).abs().max() <= (1e-4 if dtype is torch.float32 else 0.1) * one.abs().max()
    assert set(ran) == {'convolve', 'linear', 'feed_forward', 'attention', 'depthwise', 'squeeze_excite'}


@needs_kernels
def test_a_result_does_not_depend_on_the_batch():
    deployed = deploy(SHViT('s1').eval())
    x = torch.randn(3, 3, 64, 80)
    with torch.no_grad():
        together = deployed(x)
        alone = [deployed(image[None]) for image in x]
    assert all(
        torch.equal(one[index], each[0])
        for index, image in enumerate(alone)
        for one, each in zip(together, image, strict=True)
    )


@needs_kernels
def test_they_can_be_left_out(ran, monkeypatch):
    x = torch.randn(1, 3, 64, 64)
    deploy(SHViT('s1').eval(), native=False)(x)
    assert not ran
    monkeypatch.setenv(kernels.SWITCH, '0')
    kernels.load.cache_clear()
    try:
        deploy(SHViT('s1').eval())(x)
    finally:
        monkeypatch.delenv(kernels.SWITCH)
        kernels.load.cache_clear()
    assert not ran


def without_kernels(layer):
    layer.native = False
    if isinstance(layer, DeployedLayer):
        layer.drop_constants()


def with_values(x, values):
    """Put some values at positions of their own into the first image."""
    for index, value in enumerate(values):
        x[0, :, index, index] = value
    return x


LAYERS = {
    'convolution': lambda dtype: FusedConv(numbers(40, 6, 3, 3), numbers(40), 1, 1, relu=True),
    'of an image': lambda dtype: FusedConv(numbers(40, 3, 3, 3), numbers(40), 2, 1, relu=True),
    'pointwise': lambda dtype: FusedPointwiseConv(numbers(40, 6, 1, 1), numbers(40), relu=True),
    'depthwise': lambda dtype: FusedConv(numbers(6, 1, 3, 3), numbers(6), 1, 1, 6, relu=True),
    'transposed': lambda dtype: FusedTransposedConv(numbers(6, 40, 2, 2), numbers(40), 2, relu=True),
    'Winograd': lambda dtype: WinogradConv(numbers(40, 6, 3, 3), numbers(40), relu=True),
    'transposed Winograd': lambda dtype: WinogradTransposedConv(numbers(6, 40, 4, 4), numbers(40), 2, 1, relu=True),
}


@pytest.mark.parametrize('native_kernels', [pytest.param(True, marks=needs_kernels), False])
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('values', [(float('nan'),), (float('inf'),), (float('nan'), 0.0, 0.0, 0.0, float('-inf'))])
@pytest.mark.parametrize('name', LAYERS)
def test_what_is_not_finite_is_not_hidden(monkeypatch, name, dtype, values, native_kernels):
    monkeypatch.setattr(winograd, 'MIN_CHANNELS', 1)
    monkeypatch.setattr(winograd, 'MIN_PIXELS', 1)
    torch.manual_seed(0)
    layer = LAYERS[name](dtype).eval().to(dtype)
    layer.native = native_kernels
    channels = 3 if name == 'of an image' else 6
    x = with_values(numbers(1, channels, 12, 12, dtype=dtype), values)
    right = copy.deepcopy(layer).double()(x.double())
    found = layer(x)
    assert right.isnan().any() or right.isinf().any()
    assert not found[right.isnan()].isfinite().any()
    assert not found[right.isinf()].isfinite().any()
    if values == (float('nan'),) and 'Winograd' not in name:
        assert torch.equal(found.isnan(), right.isnan())  # Winograd's tiles spread it to their neighbours


@needs_kernels
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('value', [float('nan'), float('inf'), float('-inf')])
def test_attention_and_squeeze_excite_do_not_hide_nan(dtype, value):
    torch.manual_seed(0)
    attention = SingleHeadAttention(64, 32, 16)
    randomise_norms(attention)
    for source, fused in ((attention, FusedAttention), (SqueezeExcite(64), FusedSqueezeExcite)):
        layer = fused(source.eval()).eval().to(dtype)
        x = with_values(numbers(2, 64, 5, 7, dtype=dtype), (value,))
        with torch.no_grad():
            found = layer(x)
            layer.apply(without_kernels)
            right = layer(x)
        assert not found[right.isnan()].isfinite().any() and not right[0].isfinite().all()
        assert found[1].isfinite().all()


@needs_kernels
def test_masks_are_pasted_as_mmdet_pastes_them(threads):
    from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask

    torch.manual_seed(0)
    height, width = 90, 120
    corners = torch.rand(60, 2, 2) * torch.tensor([width + 40.0, height + 40]) - 20
    boxes = torch.cat((corners.amin(1), corners.amax(1)), dim=1).clamp(min=0)
    boxes = boxes.minimum(torch.tensor([width, height, width, height]))
    boxes[:20] = boxes[:20].round()
    boxes[:5, 2] = boxes[:5, 0]  # without area
    boxes[5] = torch.tensor([0.0, 0, width, height])
    for shape in ((28, 28), (14, 7)):
        samples = torch.rand(len(boxes), *shape)
        pasted = kernels.load().paste_masks(samples, boxes, height, width, 0.5)
        right = torch.zeros_like(pasted)
        for number in range(len(boxes)):
            some, place = _do_paste_mask(samples[number, None, None], boxes[number, None], height, width)
            right[(number, *place)] = some[0] >= 0.5
        assert pasted.dtype is torch.bool and pasted.any(dim=(1, 2)).sum() > 50
        assert torch.equal(pasted, right)
    assert kernels.load().paste_masks(samples[:0], boxes[:0], height, width, 0.5).shape == (0, height, width)
    nowhere = kernels.load().paste_masks(samples[:2], torch.full((2, 4), torch.nan), height, width, 0.0)
    assert not nowhere.any()
