"""Backbone, neck and RPN with what torch does to models: devices, data types, layouts, copies, traces, compilers."""

import contextlib
import copy
import pickle

import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval
from norms import norms_of, randomise_norms
from timed import TINY_MASK_RCNN, TINY_RETINANET
from torch import nn
from torch.utils._pytree import tree_leaves

from shvit_det import SHViT, SHViTFPN
from shvit_det.common.dependencies import release
from shvit_det.registry import MODELS
from shvit_det.timing.model_builder import compute_as_written

pytestmark = pytest.mark.slow

TINY = dict(embed_dims=(16, 24, 32), depths=(1, 2, 1), attn_dims=(8, 8, 8), query_key_dim=4)
HEAD = dict(
    type='SHViTRPNHead',
    in_channels=16,
    feat_channels=16,
    anchor_generator=dict(type='AnchorGenerator', scales=[8], ratios=[0.5, 1.0], strides=[4, 8, 16, 32, 64]),
)


class Proposals(nn.Module):
    """What of a detector is ours."""

    def __init__(self, **arguments):
        super().__init__()
        self.backbone = SHViT(TINY, norm_eval=True, **arguments)
        self.neck = SHViTFPN((16, 24, 32), 16)
        self.head = MODELS.build(HEAD)

    def forward(self, x):
        scores, boxes = self.head(self.neck(self.backbone(x)))
        return *scores, *boxes


def make(dtype=torch.float64, train=True, **arguments) -> Proposals:
    torch.manual_seed(0)
    model = Proposals(**arguments)
    randomise_norms(model)
    return model.to(dtype).train(train)


def images(batch=2, height=96, width=128, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, dtype=dtype, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def composed(monkeypatch):
    """Everything is composed, at any size."""
    monkeypatch.setattr('shvit_det.models.neck.composing_levels_pays', lambda *_: True)
    monkeypatch.setattr('shvit_det.models.rpn.composing_conv_pays', lambda _: True)


def outputs_and_gradients(model, x):
    model.zero_grad()
    outs = model(x)
    sum(out.square().mean() if out.numel() else out.sum() for out in outs).backward()
    return list(outs), [parameter.grad for parameter in model.parameters()]


def assert_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@contextlib.contextmanager
def by_default(device=None, dtype=torch.float32):
    torch.set_default_device(device)
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize('setting', [lambda: torch.device('meta'), lambda: by_default('meta')], ids=['context', 'set'])
def test_models_without_storage(setting):
    with setting():
        model = Proposals(drop_path_rate=0.2).train()
        outs, gradients = outputs_and_gradients(model, torch.zeros(2, 3, 96, 128))
    assert {tensor.device.type for tensor in (*model.state_dict().values(), *outs, *gradients)} == {'meta'}
    shapes = [out.shape for out in make(torch.float32)(images(dtype=torch.float32))]
    assert [out.shape for out in outs] == shapes


@pytest.mark.parametrize('config', [TINY_MASK_RCNN, TINY_RETINANET])
def test_whole_detectors_without_storage(config):
    from mmdet.registry import MODELS as MMDET_MODELS
    from mmdet.utils import register_all_modules

    register_all_modules()
    with torch.device('meta'):
        detector = MMDET_MODELS.build(Config.fromfile(config).model)
        levels = detector.extract_feat(torch.zeros(1, 3, 96, 96))
    assert {tensor.device.type for tensor in (*detector.parameters(), *levels)} == {'meta'}


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bfloat16])
def test_a_default_data_type(dtype):
    with by_default(dtype=dtype):
        model = Proposals(drop_path_rate=0.2).train()
        outs, gradients = outputs_and_gradients(model, torch.randn(2, 3, 64, 96))
    assert {tensor.dtype for tensor in (*model.parameters(), *outs, *gradients)} == {dtype}


def test_the_drop_path_rate_grows_linearly_to_its_full_value():
    arch = dict(embed_dims=(16, 24, 32), depths=(2, 2, 1), attn_dims=(8, 8, 8))
    backbone = SHViT(arch, drop_path_rate=0.4)
    blocks = [block for stage in backbone.stages for block in stage.blocks]
    rates = [getattr(block.ffn.drop_path, 'drop_prob', 0) for block in blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize('train', [True, False])
def test_a_batch_of_no_images(train, monkeypatch):
    monkeypatch.undo()  # whether composing pays is asked too
    outs, gradients = outputs_and_gradients(make(train=train), images(batch=0))
    assert [tuple(out.shape[:1]) for out in outs] == [(0,)] * 10
    assert [tuple(out.shape[2:]) for out in outs[:5]] == [(24, 32), (12, 16), (6, 8), (3, 4), (2, 2)]
    assert not any(gradient.any() for gradient in gradients)


INPUTS = {
    'smallest': images(height=64, width=64),
    'odd': images(height=65, width=97),
    'channels last': images().to(memory_format=torch.channels_last),
    'transposed': images(height=128, width=96).transpose(2, 3),
    'expanded': images(batch=1).expand(3, -1, -1, -1),
    'every second pixel': images(height=128, width=192)[:, :, ::2, ::2],
    'every second channel': images(batch=4).reshape(2, 6, 96, 128)[:, ::2],
}


@pytest.mark.parametrize('case', [*INPUTS, 'recomputed stages', 'synchronised'])
def test_training_is_as_it_is_written(case):
    model = make(with_cp=case == 'recomputed stages')
    x = INPUTS.get(case, images())
    if case == 'channels last':
        model.to(memory_format=torch.channels_last)
    elif case == 'synchronised':
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model).train()
        assert not any(norm.training for norm in norms_of(model))
    written_out = copy.deepcopy(model)
    compute_as_written(written_out)
    for found, expected in zip(
        outputs_and_gradients(model, x), outputs_and_gradients(written_out, x.contiguous()), strict=True
    ):
        assert_close(found, expected)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('autocast', [True, False], ids=['autocast', 'cast'])
def test_lower_precision_is_rounded_no_worse_than_as_written(dtype, autocast):
    def errors(write):
        model = make(torch.float32)
        if write:
            compute_as_written(model)
        expected = model(images(dtype=torch.float32))
        if not autocast:
            model.to(dtype)
        with torch.autocast('cpu', dtype, enabled=autocast):
            found, gradients = outputs_and_gradients(model, images(dtype=torch.float32 if autocast else dtype))
        assert {out.dtype for out in found} == {dtype}
        assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)
        return [((one - other).norm() / other.norm()).item() for one, other in zip(found, expected, strict=True)]

    for error, as_written in zip(errors(write=False), errors(write=True), strict=True):
        assert error < 2 * as_written


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_compute_the_same(copied):
    model = make()
    twin = copied(model)
    for found, expected in zip(
        outputs_and_gradients(twin, images()), outputs_and_gradients(model, images()), strict=True
    ):
        assert all(map(torch.equal, found, expected))


def test_parameters_given_at_the_call():
    model = make()
    expected, gradients = outputs_and_gradients(model, images())
    model.zero_grad()
    parameters = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()

    def loss(parameters):
        outs = torch.func.functional_call(model, parameters, (images(),))
        return sum(out.square().mean() for out in outs), outs

    found, outs = torch.func.grad(loss, has_aux=True)(parameters)
    assert_close(outs, expected)
    assert_close(found.values(), gradients)


def test_gradients_of_gradients():
    model, x = make(), images(1, 64, 64).requires_grad_()
    written_out = copy.deepcopy(model)
    compute_as_written(written_out)
    results = []
    for form in (model, written_out):
        (gradient,) = torch.autograd.grad(sum(out.square().mean() for out in form(x)), x, create_graph=True)
        results.append(torch.autograd.grad(gradient.square().sum(), [x, *form.neck.parameters()], allow_unused=True))
    assert_close(*([value for value in result if value is not None] for result in results))


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@pytest.mark.parametrize('train', [True, False])
def test_traces(train):
    model = make(train=train)
    traced = torch.jit.trace(model, images(1))  # which compares with a second trace, without gradients
    for x in (images(1), images(3)):
        for found, expected in zip(outputs_and_gradients(traced, x), outputs_and_gradients(model, x), strict=True):
            assert_close(found, expected)


HEAD_OF_OLD_TORCH = pytest.mark.skipif(
    release(torch.__version__) < (2, 7), reason='a tuple of another class breaks the graph'
)


@pytest.mark.parametrize('name', ['backbone', 'neck', pytest.param('head', marks=HEAD_OF_OLD_TORCH)])
def test_compiled_without_a_break(name):
    found, expected = compiled_and_not(make(), name)
    assert_close(found, expected)


@pytest.mark.parametrize(
    'name, layer',
    [
        ('backbone.patch_embed', '0.c'),
        ('neck', 'extra_fpn_convs.0.conv'),
        pytest.param('head', 'rpn_conv', marks=HEAD_OF_OLD_TORCH),
    ],
)
def test_compilers_see_hooks_where_layers_would_be_folded_or_composed(name, layer):
    model = make()
    expected, _ = compiled_and_not(model, name)
    model.get_submodule(f'{name}.{layer}').register_forward_hook(lambda module, args, out: 2 * out)
    found, hooked = compiled_and_not(model, name)
    assert_close(found, hooked)
    assert not torch.allclose(found[0], expected[0])


def compiled_and_not(model, name):
    """Return what a part of the model makes of what the parts before it return, compiled and as it is."""
    torch.compiler.reset()
    x = images(1, 64, 64)
    with torch.no_grad():
        for earlier in {'neck': ['backbone'], 'head': ['backbone', 'neck']}.get(name, []):
            x = model.get_submodule(earlier)(x)
    part = model.get_submodule(name)
    compiled = torch.compile(part, fullgraph=True, backend='eager')
    return tree_leaves(compiled(x)), tree_leaves(part(x))


def test_symbolic_traces_and_the_folding_of_mmengine():
    model = make()
    expected = model(images())
    traced = torch.fx.symbolic_trace(model.backbone)
    assert_close(traced(images()), model.backbone(images()))
    assert_close(traced(images(height=32)), model.backbone(images(height=32)))
    with pytest.raises(ValueError, match=r'shape \(B, 3, H, W\)'):
        traced(images()[:, :1])
    turn_on_efficient_conv_bn_eval(model, 'backbone')
    assert_close(model(images()), expected)


def test_norms_synchronised_and_back():
    model = make()
    expected = outputs_and_gradients(model, images())
    reverted = revert_sync_batchnorm(nn.SyncBatchNorm.convert_sync_batchnorm(model)).train()
    for found, wanted in zip(outputs_and_gradients(reverted, images()), expected, strict=True):
        assert_close(found, wanted)
