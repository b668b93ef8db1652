"""The backend of a deployed layer follows from the processor, and every data type computes on every processor."""

import os
import subprocess
import sys

import pytest
import torch
from deployed_models import TINY, agree, backbone
from paths import ROOT

from shvit_det import deploy, kernels
from shvit_det.deployment import layer_backends
from shvit_det.deployment.backends import backend_choice as backends
from shvit_det.deployment.backends.backend_choice import (
    OPERATIONS,
    Backend,
    Choice,
    Processor,
    choose_backend,
    this_processor,
)
from shvit_det.deployment.backends.convolutions import FusedConv, FusedLinear
from shvit_det.deployment.backends.winograd import WinogradTransposedConv

FLOAT32, BFLOAT16, FLOAT16, FLOAT64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
ALL = tuple(OPERATIONS)
CONV = ('_convolution_pointwise.default', '_reorder_convolution_weight.default')
TRANSPOSED = ('_convolution_transpose_pointwise.default', '_reorder_convolution_transpose_weight.default')
PROCESSORS = {
    'bfloat16 and kernels': Processor(ALL, (FLOAT32, BFLOAT16), (FLOAT32, BFLOAT16)),
    'AVX-512 without bfloat16': Processor(ALL, (FLOAT32,), (FLOAT32,)),
    'AVX2': Processor(ALL, (FLOAT32,)),
    'Arm with float16, no transposed convolution': Processor(CONV, (FLOAT32, BFLOAT16, FLOAT16)),
    'torch without oneDNN': Processor((), ()),
}


CONVOLUTION = FusedConv(torch.zeros(8, 8, 3, 3), None, 1, 1)
NECK = WinogradTransposedConv(torch.zeros(257, 256, 6, 6), None, 4, 1)  # one channel of ones
UNKNOWN = FusedConv(torch.zeros(8, 2, 3, 3), None, 1, 1, groups=4)  # which our own kernels have not


@pytest.mark.parametrize(
    ('processor', 'dtype', 'layer', 'expected'),
    [
        ('bfloat16 and kernels', FLOAT32, CONVOLUTION, Choice(Backend.KERNELS, FLOAT32)),
        ('bfloat16 and kernels', BFLOAT16, CONVOLUTION, Choice(Backend.KERNELS, BFLOAT16)),
        ('bfloat16 and kernels', FLOAT16, CONVOLUTION, Choice(Backend.KERNELS, FLOAT32)),
        ('bfloat16 and kernels', FLOAT64, CONVOLUTION, Choice(Backend.PLAIN, FLOAT64)),
        ('bfloat16 and kernels', FLOAT32, UNKNOWN, Choice(Backend.ONEDNN, FLOAT32)),
        ('bfloat16 and kernels', FLOAT32, NECK, Choice(Backend.KERNELS, FLOAT32)),
        ('bfloat16 and kernels', BFLOAT16, NECK, Choice(Backend.ONEDNN, BFLOAT16)),  # no pairs of channels
        ('AVX-512 without bfloat16', BFLOAT16, CONVOLUTION, Choice(Backend.KERNELS, FLOAT32)),
        ('AVX2', FLOAT32, CONVOLUTION, Choice(Backend.ONEDNN, FLOAT32)),
        ('AVX2', BFLOAT16, NECK, Choice(Backend.ONEDNN, FLOAT32)),
        ('Arm with float16, no transposed convolution', FLOAT16, CONVOLUTION, Choice(Backend.ONEDNN, FLOAT16)),
        ('Arm with float16, no transposed convolution', FLOAT16, NECK, Choice(Backend.PLAIN, FLOAT16)),
        ('torch without oneDNN', BFLOAT16, CONVOLUTION, Choice(Backend.PLAIN, BFLOAT16)),
    ],
)
def test_what_is_chosen(processor, dtype, layer, expected):
    assert choose_backend(layer, 'cpu', dtype, PROCESSORS[processor]) == expected
    assert choose_backend(layer, 'cuda', dtype, PROCESSORS[processor]) == Choice(Backend.PLAIN, dtype)


@pytest.mark.parametrize(
    ('processor', 'expected'),
    [
        ('bfloat16 and kernels', {'kernels'}),
        ('AVX-512 without bfloat16', {'kernels'}),
        ('AVX2', {'onednn'}),
        ('Arm with float16, no transposed convolution', {'onednn', 'plain'}),
        ('torch without oneDNN', {'plain'}),
    ],
)
def test_layers_of_a_backbone_by_name(processor, expected):
    found = layer_backends(deploy(backbone('s4')), PROCESSORS[processor])
    assert set(found.values()) == expected
    assert found['patch_embed.0'] in ('kernels', 'onednn', 'plain')
    at_once = 'kernels' in expected  # a feed-forward block is one layer there
    assert ('stages.0.1' in found) == at_once and ('stages.0.1.expand' in found) != at_once


def test_the_backends_of_this_processor_are_told_and_logged(log):
    deployed = deploy(backbone(TINY), native=False)
    found = layer_backends(deployed)
    assert found == layer_backends(deployed, this_processor(with_kernels=False))
    (line,) = [record.getMessage() for record in log.records if record.getMessage().startswith('deployed: ')]
    assert sum(int(word) for word in line.split() if word.isdigit()) == len(found)


def test_a_backend_is_chosen_anew_for_another_data_type_and_after_moving():
    layer = FusedLinear(torch.randn(4, 6), None)
    x = torch.randn(3, 6)
    before = layer(x)
    assert layer.cached_choice('cpu', FLOAT32).dtype is FLOAT32
    moved = layer.double()
    assert moved.choice_for_input(x.double()) == Choice(Backend.PLAIN, FLOAT64)
    torch.testing.assert_close(moved(x.double()).float(), before)
    assert layer.choice_for_input(x.double().requires_grad_()).backend is Backend.PLAIN


def test_operations_with_other_arguments_are_left_out(monkeypatch):
    monkeypatch.setitem(OPERATIONS, '_linear_pointwise.default', 7)
    monkeypatch.setitem(OPERATIONS, '_no_such_operation.default', 1)
    backends._onednn.cache_clear()
    try:
        found = this_processor().operations
    finally:
        backends._onednn.cache_clear()
    assert set(ALL) - set(found) == {'_linear_pointwise.default'}


@pytest.fixture(params=PROCESSORS)
def processor(request, monkeypatch):
    """Pretends that torch runs on another processor, which may do less than this one."""
    here, there = this_processor(), PROCESSORS[request.param]
    if not set(there.onednn) <= set(here.onednn) or not set(there.kernels) <= set(here.kernels):
        pytest.skip('this machine computes less')
    library = kernels.load()
    monkeypatch.setattr(backends, '_onednn', lambda: (there.operations, there.onednn))
    if there.kernels:
        monkeypatch.setattr(library, 'dtypes', there.kernels)
    else:
        monkeypatch.setattr(kernels, 'load', lambda: None)
    return there


@pytest.mark.parametrize(('dtype', 'tolerance'), [(FLOAT32, 1e-4), (BFLOAT16, 0.1), (FLOAT16, 0.01)])
def test_every_data_type_on_every_processor(processor, dtype, tolerance):
    trained = backbone('s1')
    x = torch.randn(2, 3, 70, 90)
    with torch.no_grad():
        found = deploy(trained, dtype=dtype)(x.to(dtype))
        assert all(out.dtype is dtype for out in found)
        agree(trained(x), [out.float() for out in found], tolerance)


def test_the_log_says_once_what_is_slow(monkeypatch, log):
    monkeypatch.setattr(backends, '_onednn', lambda: (ALL, (FLOAT32,)))
    monkeypatch.setattr(kernels, 'load', lambda: None)
    backends.say_if_slow.cache_clear()
    trained, x = backbone(TINY), torch.zeros(1, 3, 64, 64)
    with torch.no_grad():
        for dtype in (None, BFLOAT16, BFLOAT16, FLOAT16):
            deploy(trained, dtype=dtype)(x.to(dtype))
    backends.say_if_slow.cache_clear()
    lines = [record.getMessage() for record in log.records if 'does not compute in' in record.getMessage()]
    assert len(lines) == 2
    assert 'torch.bfloat16' in lines[0] and 'torch.float16' in lines[1]


SCRIPT = """
import torch
from shvit_det import SHViT, deploy
torch.manual_seed(0)
trained = SHViT({arch}).eval()
x = torch.randn(1, 3, 64, 64)
with torch.no_grad():
    for dtype in (torch.bfloat16, torch.float16):
        for right, found in zip(trained(x), deploy(trained, dtype=dtype)(x.to(dtype)), strict=True):
            assert found.dtype is dtype
            assert (right - found.float()).abs().max() <= 0.1 * right.abs().max()
print(torch.ops.mkldnn._is_mkldnn_bf16_supported())
"""


@pytest.mark.skipif(not hasattr(torch.ops.mkldnn, '_is_mkldnn_bf16_supported'), reason='this torch has no oneDNN')
@pytest.mark.slow
def test_on_a_processor_without_avx512():
    environment = dict(
        os.environ,
        ONEDNN_MAX_CPU_ISA='AVX2',
        ATEN_CPU_CAPABILITY='avx2',
        PYTHONPATH=str(ROOT),
        OMP_NUM_THREADS='1',
        **{kernels.SWITCH: '0'},
    )
    done = subprocess.run(
        [sys.executable, '-c', SCRIPT.format(arch=TINY)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == 'False'
    assert done.stderr.count('does not compute in') + done.stdout.count('does not compute in') == 2
