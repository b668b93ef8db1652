"""The counter of costs: multiply-adds by hand, by the papers and by mmengine's tool; bytes, memory, parameters."""

import logging
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.analysis import FlopAnalyzer
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from torch import nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves
from torchvision.models import resnet50
from variants import PAPER, TINY

from shvit_det import ARCHS, SHViT
from shvit_det.timing.ceilings import has_prepacked_operations
from shvit_det.timing.cost import CostCounter, count_parameters

pytestmark = pytest.mark.slow

MODES = [nullcontext, torch.no_grad, torch.inference_mode]
modes = pytest.mark.parametrize('mode', MODES, ids=['grad', 'no_grad', 'inference_mode'])


def cost(function, mode=nullcontext):
    """Return the cost of one call."""
    counter = CostCounter(lambda: 'part')
    with mode(), counter:
        function()
    (row,) = counter.part_costs({'part': 1})
    return row


def macs(function, mode=nullcontext):
    return cost(function, mode)['macs']


# --- multiply-adds


@modes
def test_macs_by_hand(mode):
    image = torch.randn(2, 6, 10, 12)
    assert macs(partial(nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2), image), mode) == 2 * 8 * 5 * 6 * 3 * 9
    assert macs(partial(nn.ConvTranspose2d(6, 4, 2, stride=2), image), mode) == 2 * 10 * 12 * 6 * 4 * 4
    assert macs(partial(nn.Linear(12, 5), image), mode) == 2 * 6 * 10 * 12 * 5
    assert macs(lambda: torch.einsum('bchw,bdhw->bcd', image, image), mode) == 2 * 6 * 6 * 120
    assert macs(lambda: image @ image.transpose(2, 3), mode) == 12 * 10 * 12 * 10


@modes
@pytest.mark.parametrize('value_width', [16, 24])  # unequal widths do not go to the fused kernel
def test_macs_of_attention(mode, value_width):
    query, key = torch.randn(2, 3, 7, 16), torch.randn(2, 3, 9, 16)
    value = torch.randn(2, 3, 9, value_width)
    row = cost(lambda: functional.scaled_dot_product_attention(query, key, value), mode)
    assert row['macs'] == 6 * 7 * 9 * (16 + value_width)
    assert not any('attention' in name for name in row['uncounted'])


def test_macs_of_attention_backward():
    query, key, value = (torch.randn(2, 3, 7, 16, requires_grad=True) for _ in range(3))
    out = functional.scaled_dot_product_attention(query, key, value).sum()
    row = cost(out.backward)
    assert row['macs'] == 5 * 6 * 7 * 7 * 16  # the scores again, and the gradients of scores, values, queries and keys
    assert not any('attention' in name for name in row['uncounted'])


@settings(deadline=None, max_examples=30)
@given(
    groups=st.sampled_from([1, 2, 4]),
    widths=st.tuples(st.sampled_from([4, 8]), st.sampled_from([4, 8, 12])),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    transposed=st.booleans(),
    image_gradient=st.booleans(),
)
def test_macs_of_convolutions_forward_and_backward(groups, widths, kernel, stride, transposed, image_gradient):
    convolution = (nn.ConvTranspose2d if transposed else nn.Conv2d)(*widths, kernel, stride, groups=groups)
    image = torch.randn(2, widths[0], 7, 9, requires_grad=image_gradient)
    out = convolution(image)
    positions = image if transposed else out
    expected = 2 * positions[0, 0].numel() * convolution.weight.numel()
    assert macs(partial(convolution, image)) == expected
    assert macs(out.sum().backward) == expected * (1 + image_gradient)


@pytest.mark.parametrize('variant', PAPER)
def test_macs_of_the_variants_are_the_papers(variant):
    _, million_macs, size = PAPER[variant]
    backbone = SHViT(variant).eval()
    classifier = nn.Linear(ARCHS[variant].embed_dims[-1], 1000)
    image = torch.zeros(1, 3, size, size)
    row = cost(lambda: classifier(backbone(image)[-1].mean((2, 3))), torch.inference_mode)
    assert row['macs'] / 1e6 == pytest.approx(million_macs, rel=0.01)


def test_macs_of_resnet50_are_the_known_ones():
    row = cost(partial(resnet50().eval(), torch.zeros(1, 3, 224, 224)), torch.inference_mode)
    assert row['macs'] / 1e9 == pytest.approx(4.09, rel=0.005)
    assert row['uncounted']['aten.native_batch_norm'] == 53


@pytest.fixture(scope='module')
def mask_rcnn():
    """Mask R-CNN R-50 with few proposals, and its ``tensor`` pass over one small image, as mmdet's tool takes it."""
    from mmdet.registry import MODELS
    from mmdet.structures import DetDataSample

    config = get_config('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py').model
    config.backbone.init_cfg = None
    config.test_cfg.rpn.max_per_img = 10
    init_default_scope('mmdet')
    model = MODELS.build(config).eval()
    model.forward = partial(model.forward, data_samples=[DetDataSample(metainfo=dict(img_shape=(256, 320)))])
    return model, torch.randn(1, 3, 256, 320)


def count_by_part(model, parts, run):
    running = ['other']

    def enter(name, *_):
        running.append(name)

    def leave(*_):
        running.pop()

    handles = []
    for name in parts:
        module = model.get_submodule(name)
        handles += [module.register_forward_pre_hook(partial(enter, name)), module.register_forward_hook(leave)]
    counter = CostCounter(lambda: running[-1])
    with counter:
        run()
    for handle in handles:
        handle.remove()
    return counter.part_costs(count_parameters({name: [model.get_submodule(name)] for name in parts}))


def test_macs_agree_with_the_tool_of_mmdet(mask_rcnn):
    """mmdet's ``get_flops.py`` (mmengine's analyzer) calls one multiply-add one flop, as we call it one MAC.

    Convolutions, transposed ones too, and linear layers agree to the last digit. Beyond them the tool adds, to the
    same sum, 2 per element of a BatchNorm, 5 of a GroupNorm or LayerNorm and 1 to 4 of an upsampling, so that its
    totals are higher (0.5 percent for this backbone); it leaves out biases, activations, sums, pooling, NMS and
    RoIAlign, as we do. It counts no ``scaled_dot_product_attention``: for transformers its total can be too low. For a
    whole two-stage detector it takes the ``tensor`` pass, in which the mask head sees the first 100 proposals, however
    many detections there are.
    """
    model, image = mask_rcnn
    parts = ['backbone', 'neck', 'rpn_head.rpn_conv', 'roi_head.bbox_head', 'roi_head.mask_head']
    with torch.inference_mode():
        ours = count_by_part(model, parts, lambda: model(image))
    logging.disable(logging.WARNING)
    analysis = FlopAnalyzer(model, (image,))
    theirs = analysis.by_module_and_operator()
    logging.disable(logging.NOTSET)

    rows = {row['name']: row for row in ours}
    assert list(rows) == ['backbone', 'neck', 'rpn_head.rpn_conv', 'other', 'roi_head.bbox_head', 'roi_head.mask_head']
    for part in parts:
        assert rows[part]['macs'] == theirs[part]['conv'] + theirs[part]['linear'] > 0
        assert sum(theirs[part].values()) == pytest.approx(rows[part]['macs'], rel=0.01)
    assert set(theirs['']) == {'conv', 'linear', 'batch_norm', 'upsample_nearest2d'}
    assert 'torchvision.nms' in rows['other']['uncounted']
    assert rows['backbone']['parameters'] == sum(p.numel() for p in model.backbone.parameters())


def test_the_tool_of_mmdet_counts_no_attention():
    class Attention(nn.Module):
        def forward(self, tokens):
            return functional.scaled_dot_product_attention(tokens, tokens, tokens)

    tokens = torch.randn(1, 2, 5, 8)
    assert FlopAnalyzer(Attention(), (tokens,)).unsupported_ops_warnings(False).total() == 0
    assert macs(partial(Attention(), tokens)) == 2 * 2 * 5 * 5 * 8


# --- results stay as they are


@pytest.mark.parametrize('mode', MODES[1:], ids=['no_grad', 'inference_mode'])
def test_results_of_a_detector_stay_the_same_bits(mask_rcnn, mode):
    model, image = mask_rcnn
    with mode():
        plain = tree_leaves(model(image))
        with CostCounter(lambda: 'part'):
            counted = tree_leaves(model(image))
    assert len(plain) == len(counted) > 2
    assert all(torch.equal(a, b) for a, b in zip(plain, counted, strict=True))


def test_gradients_stay_the_same_bits():
    torch.manual_seed(0)
    backbone, image = SHViT(TINY).train(), torch.randn(2, 3, 64, 96)
    gradients = []
    for counter in (nullcontext(), CostCounter(lambda: 'part')):
        with counter:
            sum(out.square().mean() for out in backbone(image)).backward()
        gradients.append([p.grad for p in backbone.parameters()])
        backbone.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@modes
def test_all_modes_count_the_same(mode):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(8, 8, 1)).eval()
    image = torch.randn(1, 3, 64, 96)
    expected = cost(partial(model, image), torch.no_grad)
    row = cost(partial(model, image), mode)
    for key in ('macs', 'moved_bytes', 'uncounted'):
        assert row[key] == expected[key]


@modes
def test_the_counter_is_gone_after_an_exception(mode):
    counter = CostCounter(lambda: 'part')
    linear = nn.Linear(3, 4)
    with pytest.raises(RuntimeError), mode(), counter:
        linear(torch.randn(2, 5))
    before = counter.part_costs({})
    linear(torch.randn(2, 3))
    assert torch._C._len_torch_dispatch_stack() == 0
    assert counter.part_costs({}) == before


# --- parts, bytes and memory


def test_parts_are_told_apart_and_stand_in_the_order_in_which_they_ran():
    part = ''
    counter = CostCounter(lambda: part)
    a = torch.randn(4, 4)
    with torch.inference_mode(), counter:
        for name in ('second', 'first', 'second'):
            part = name
            functional.gelu(a @ a)
    rows = counter.part_costs({'first': 7, 'idle': 3, 'nothing': 0})
    assert [(row['name'], row['parameters'], row['macs']) for row in rows] == [
        ('second', 0, 128),
        ('first', 7, 64),
        ('idle', 3, 0),
    ]
    assert rows[0]['uncounted'] == {'aten.gelu': 2} and rows[1]['uncounted'] == {'aten.gelu': 1}


@modes
def test_moved_bytes_by_hand(mode):
    a, b = torch.randn(10, 10), torch.randn(10, 10)  # 400 bytes each
    rows, mask = torch.tensor([1, 3]), torch.zeros(10, dtype=torch.bool)
    cases = {
        lambda: a @ b: 1200,
        lambda: a + b: 1200,
        lambda: a + b[:, :1]: 840,
        lambda: a.add(b.new_empty(1).expand(10, 10)): 804,  # what is repeated is read once
        lambda: a.add_(b): 1200,
        lambda: a.relu_(): 800,
        lambda: a.zero_(): 400,
        lambda: a.copy_(b): 800,
        lambda: torch.add(a, b, out=b): 1200,  # b is read as an operand, not for being written
        lambda: a.half(): 600,
        lambda: torch.cat([a, b]): 1600,
        lambda: torch.ones(10): 40,
        lambda: a[rows]: 2 * 8 + 80 + 80,
        lambda: a[mask]: 10,
        lambda: a.index_put_((rows,), b[:2]): 2 * 8 + 80 + 80,
        lambda: a.sum(): 404,
        lambda: a.t(): 0,
        lambda: a.view(5, 20)[1:].transpose(0, 1): 0,
        lambda: a.flatten(): 0,
        lambda: a.contiguous().float().reshape(-1).detach(): 0,
        lambda: torch.empty(1000): 0,
        lambda: functional.dropout(a, training=False): 0,
    }
    for function, expected in cases.items():
        assert cost(function, mode)['moved_bytes'] == expected


def test_views_and_allocations_are_no_operations():
    a = torch.randn(10, 10)
    row = cost(lambda: (a.t(), a.view(-1), a[1:], torch.empty(3), a.new_empty(2), a.unsqueeze(0).squeeze_(0)))
    assert (row['uncounted'], row['moved_bytes']) == ({}, 0)


@pytest.mark.skipif(not has_prepacked_operations(), reason='this torch has no prepacked operations of oneDNN')
def test_packed_weights_have_no_storage_and_count_as_moved():
    operations, image = torch.ops.mkldnn, torch.randn(4, 8)
    with torch.no_grad():
        packed = operations._reorder_linear_weight(torch.randn(6, 8), 4)
        row = cost(lambda: operations._linear_pointwise(image, packed, None, 'none', [], ''))
    assert (row['moved_bytes'], row['peak_memory_bytes']) == (4 * (32 + 48 + 24), 4 * 24)
    assert row['macs'] == 4 * 6 * 8


def test_memory_of_a_chain():
    given_before = torch.zeros(250)

    def chain():
        a = given_before + 1  # 1000 bytes
        b = torch.cat([a, a])  # 3000
        view = b[:10].view(2, 5)
        del a  # 2000
        b.relu_()
        del b  # the view holds it
        c = torch.zeros(200)  # 2800
        del view  # 800
        d = torch.empty(400)  # 2400: an allocation is memory
        given_before.add_(1)
        return c, d

    assert cost(chain)['peak_memory_bytes'] == 3000


def test_memory_of_a_part_includes_what_earlier_parts_left():
    part = 'first'
    counter = CostCounter(lambda: part)
    with counter:
        a = torch.zeros(1000)
        b = torch.zeros(500)
        del a
        part = 'second'
        b.view(-1)
        part = 'third'
        c = torch.zeros(100)
    del b, c
    peaks = [row['peak_memory_bytes'] for row in counter.part_costs({})]
    assert peaks == [6000, 2000, 2400]


def test_memory_of_activations_that_the_backward_pass_needs():
    weight, image = torch.randn(1, 100, requires_grad=True), torch.randn(1, 100)

    def step():
        out = weight
        for _ in range(5):
            out = out * image  # only the image is kept: the outputs go as soon as they are used
        del out
        kept = image * 1
        for _ in range(5):
            kept = kept * weight  # every product is kept for the gradient of the weight
        return kept

    assert cost(step)['peak_memory_bytes'] == 6 * 400


@settings(deadline=None)
@given(st.lists(st.one_of(st.integers(1, 100), st.integers(-8, -1)), max_size=30))
def test_memory_of_any_sequence_of_allocations(steps):
    """A positive step allocates that many floats, a negative one frees one of the tensors that are alive."""
    counter = CostCounter(lambda: 'part')
    alive, peak = [], 0
    with counter:
        for step in steps:
            if step > 0:
                alive.append(torch.zeros(step))
                peak = max(peak, sum(tensor.nbytes for tensor in alive))
            elif alive:
                del alive[step % len(alive)]
    assert [row['peak_memory_bytes'] for row in counter.part_costs({})] == ([peak] if peak else [])


def test_shared_parameters_are_the_first_parts():
    trunk, head = nn.Linear(3, 4), nn.Linear(4, 4, bias=False)
    tied = nn.Linear(4, 4)
    tied.weight = head.weight
    counts = count_parameters({'trunk': [trunk], 'head': [head, trunk], 'tied': [tied, head], 'none': []})
    assert counts == {'trunk': 16, 'head': 16, 'tied': 4, 'none': 0}
