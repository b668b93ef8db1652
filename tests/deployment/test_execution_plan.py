"""A deployed backbone runs as one list of steps: with the results of its layers, on every size, and never stale."""

import copy
import threading

import pytest
import torch
from kernel_types import DTYPES
from norms import randomise_norms
from torch import nn

from shvit_det import SHViT, deploy, kernels
from shvit_det.deployment.backbone import FusedSHViT
from shvit_det.deployment.layers import FusedSqueezeExcite
from shvit_det.kernels.execution_plan import ExecutionPlan
from shvit_det.kernels.kernel_functions import Kernels
from shvit_det.kernels.packed_weights import pack_convolution
from shvit_det.models.layers import SqueezeExcite

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(kernels.load() is None, reason='there are no kernels for this processor'),
]


@pytest.fixture
def plans(monkeypatch):
    """The plans that were made, and how often they ran."""
    made, runs = [], []
    make, run = ExecutionPlan.__init__, ExecutionPlan.run

    def making(self, *args):
        make(self, *args)
        made.append(self)

    def running(self, *args):
        runs.append(self)
        return run(self, *args)

    monkeypatch.setattr(ExecutionPlan, '__init__', making)
    monkeypatch.setattr(ExecutionPlan, 'run', running)
    return made, runs


def deployed_backbone(arch='s1', **kwargs):
    torch.manual_seed(0)
    trained = SHViT(arch)
    randomise_norms(trained)
    return deploy(trained.eval(), **kwargs)


def by_layers(deployed, x):
    """The results of the layers one by one, which a hook on any of them asks for."""
    handle = deployed.stages[0][0].register_forward_hook(lambda *_: None)
    try:
        with torch.no_grad():
            return deployed(x)
    finally:
        handle.remove()


def assert_equal(found, right):
    assert len(found) == len(right)
    for one, other in zip(found, right, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype and one.stride() == other.stride()
        tolerance = 1e-5 if one.dtype is torch.float32 else 2e-2
        assert (one.double() - other.double()).abs().max() <= tolerance * other.double().abs().max()


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('arch', ['s1', 's2', 's3', 's4'])
def test_it_computes_what_the_layers_do(plans, arch, dtype):
    made, runs = plans
    deployed = deployed_backbone(arch, dtype=dtype)
    for threads in (1, 3):
        torch.set_num_threads(threads)
        for shape in ((1, 3, 64, 64), (2, 3, 95, 131), (3, 3, 70, 67)):
            x = torch.randn(shape).to(dtype)
            right = by_layers(deployed, x)
            for images in (x, x.to(memory_format=torch.channels_last)):
                before = len(runs)
                with torch.no_grad():
                    assert_equal(deployed(images), right)
                assert len(runs) == before + 1
    assert len(made) == 6  # one for each size and layout
    torch.set_num_threads(1)


def test_results_of_one_image_are_not_those_of_the_next(plans):
    deployed = deployed_backbone()
    first, second = torch.randn(2, 1, 3, 64, 96)
    with torch.no_grad():
        kept = deployed(first)
        copies = [feature.clone() for feature in kept]
        other = deployed(second)
        again = deployed(first)
    assert len(plans[0]) == 1 and len(plans[1]) == 3
    for feature, copied, repeated, another in zip(kept, copies, again, other, strict=True):
        assert torch.equal(feature, copied) and torch.equal(feature, repeated)
        assert not torch.equal(feature, another)


def test_only_the_stages_that_are_asked_for(plans):
    torch.manual_seed(0)
    trained = SHViT('s1', out_indices=(1,)).eval()
    x = torch.randn(1, 3, 64, 80)
    with torch.no_grad():
        (found,), (right,) = deploy(trained)(x), trained(x)
    assert (found - right).abs().max() <= 1e-5 * right.abs().max()
    assert len(plans[1]) == 1


@pytest.mark.parametrize('part', ['', 'stages.1', 'stages.1.0'])
def test_loaded_weights_make_a_new_plan(plans, part):
    deployed, other = deployed_backbone(), deployed_backbone()
    for weight in other.parameters():
        weight.mul_(0.9)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = deployed(x)
        deployed.get_submodule(part).load_state_dict(other.get_submodule(part).state_dict())
        assert_equal(deployed(x), by_layers(copy.deepcopy(deployed), x))
        assert not torch.equal(before[2], deployed(x)[2])
    assert len(plans[0]) == 2


def test_copies_and_files_make_their_own(plans, tmp_path):
    deployed = deployed_backbone()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        right = deployed(x)
        torch.save(deployed, tmp_path / 'deployed.pth')
        loaded = torch.load(tmp_path / 'deployed.pth', weights_only=False)
        assert isinstance(loaded, FusedSHViT)
        for one in (copy.deepcopy(deployed), loaded):
            assert_equal(one(x), right)
    assert len(plans[0]) == 3
    assert len({id(plan) for plan in plans[1]}) == 3


class Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    'of_torch', [lambda x: x[:, ::2], lambda x: 2 * x, lambda x: x.relu(), torch.relu, lambda x: torch.add(1, x)]
)
def test_what_is_not_a_kernel_is_not_planned(plans, of_torch):
    deployed = deployed_backbone()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        right = deployed(x)
        deployed.stages[2].append(Applied(of_torch))
        changed = deployed(x)
    assert_equal(changed, (*right[:2], of_torch(right[2])))
    assert len(plans[1]) == 1


def test_layers_may_be_replaced(plans):
    deployed = deployed_backbone()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = deployed(x)
        other = copy.deepcopy(deployed.stages[2][-1])
        other.reduce.weight.mul_(3)
        deployed.stages[2][-1] = other
        assert_equal(deployed(x), by_layers(deployed, x))
        assert not torch.equal(deployed(x)[2], before[2])
    assert len(plans[0]) == 2


def test_who_watches_sees_the_layers(plans):
    deployed = deployed_backbone()
    seen = []
    for module in deployed.modules():
        if module is not deployed:
            module.register_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    with torch.no_grad():
        deployed(torch.randn(1, 3, 64, 64))
    assert {'FusedConv', 'FusedFeedForward', 'FusedAttention', 'FusedSqueezeExcite'} <= set(seen)
    assert plans == ([], [])


def test_another_forward_of_a_layer_is_called(plans):
    deployed = deployed_backbone()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        right = deployed(x)
        last = deployed.stages[2][-1]
        last.forward = lambda x: 2 * type(last).forward(last, x)
        assert_equal(deployed(x), (*right[:2], 2 * right[2]))
        del last.forward
        assert_equal(deployed(x), right)
    assert len(plans[1]) == 2


def test_hooks_of_the_backbone_itself_do_not_matter(plans):
    deployed = deployed_backbone()
    outputs = []
    deployed.register_forward_hook(lambda *args: outputs.append(args[-1]))
    with torch.no_grad():
        found = deployed(torch.randn(1, 3, 64, 64))
    assert outputs == [found] and len(plans[1]) == 1


def test_without_kernels_the_layers_run(plans):
    deployed = deployed_backbone(native=False)
    with torch.no_grad():
        deployed(torch.randn(1, 3, 64, 64))
    assert plans == ([], [])


def test_a_part_of_an_image_that_is_not_whole_in_memory(plans):
    deployed = deployed_backbone()
    x = torch.randn(1, 3, 100, 140)[:, :, 10:80, 20:120]
    with torch.no_grad():
        assert_equal(deployed(x), deployed(x.contiguous()))
    assert len(plans[1]) == 1  # the part is left to the layers


def test_few_plans_are_kept(monkeypatch, plans):
    monkeypatch.setattr('shvit_det.kernels.execution_plan.MOST', 2)
    deployed = deployed_backbone()
    with torch.no_grad():
        for width in (64, 80, 96, 96, 80, 64):
            deployed(torch.randn(1, 3, 64, width))
    assert len(plans[0]) == 4  # of 64 only the first was dropped


def test_threads_share_a_plan(plans):
    deployed = deployed_backbone()
    images = torch.randn(4, 1, 3, 96, 96)
    with torch.no_grad():
        right = [deployed(image) for image in images]
    found = {}

    def work(index):
        with torch.no_grad():
            found[index] = [deployed(images[index]) for _ in range(5)]

    workers = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for index, results in found.items():
        for result in results:
            for one, other in zip(result, right[index], strict=True):
                assert torch.equal(one, other)
    assert sorted(found) == [0, 1, 2, 3] and len(plans[1]) == 24


def test_maps_in_use_at_the_same_time_do_not_share_memory():
    deployed = deployed_backbone('s4')
    plan = ExecutionPlan(deployed._outputs, torch.zeros(1, 3, 128, 128))
    ends = [offset + planned.nbytes() for offset, planned in zip(plan._offsets, plan._maps, strict=True)]
    results = {result.index for result in plan._results}
    group = 0
    born, read = {}, {}
    for step in plan._steps:
        read[step.x] = group
        born.setdefault(step.out, group)
        group += not step.joined
    joined = {step.out for step in plan._steps if step.joined}
    kept = [index for index in born if index not in joined | results]
    for one in kept:
        assert ends[one] <= plan._bytes
        for other in kept:
            together = born[one] <= read[other] and born[other] <= read[one]
            apart = ends[one] <= plan._offsets[other] or ends[other] <= plan._offsets[one]
            assert one == other or not together or apart
    assert len(kept) > 10 and sum(plan._maps[index].nbytes() for index in kept) > 2 * plan._bytes


def test_too_little_memory_is_an_error():
    x = torch.randn(1, 32, 4, 4).to(memory_format=torch.channels_last)
    layer = pack_convolution(torch.randn(32, 32, 1, 1), torch.zeros(32), kernels.load().panel)
    layer.out_channels = 1 << 56
    with pytest.raises(MemoryError, match='not enough memory'):
        kernels.load().feed_forward(x, layer, layer)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('shape', [(1, 64, 7, 9), (3, 130, 5, 5), (2, 32, 1, 1)])
def test_squeeze_excite(monkeypatch, dtype, shape):
    torch.manual_seed(0)
    source = SqueezeExcite(shape[1]).eval()
    fused = FusedSqueezeExcite(source).eval().to(dtype)
    x = torch.randn(shape)
    calls = []
    original = Kernels.squeeze_excite
    monkeypatch.setattr(Kernels, 'squeeze_excite', lambda *args: calls.append(1) or original(*args))
    with torch.no_grad():
        right = source.double()(x.to(dtype).double())
        found = fused(x.to(dtype))
    assert calls == [1]
    assert (found.double() - right).abs().max() <= (1e-6 if dtype is torch.float32 else 2e-2) * right.abs().max()


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(('channels', 'width'), [(1, 5), (2, 16), (3, 33), (4, 40), (7, 19), (9, 3)])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_images_in_the_order_of_the_kernels(dtype, channels, width, memory_format):
    x = torch.randn(2, channels, 3, width).to(dtype).contiguous(memory_format=memory_format)
    for more in (0, 1):
        found = kernels.load()._interleave(x, channels + more)
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(found[:, :channels], x) and not found[:, channels:].any()
