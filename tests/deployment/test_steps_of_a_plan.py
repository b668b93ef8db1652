"""Which steps a deployed backbone would run on our own kernels, on any processor: the kernels here compute nothing."""

import copy
import pickle

import pytest
import torch
from deployed_models import TINY, backbone

from shvit_det import deploy, kernels
from shvit_det.deployment import layer_backends
from shvit_det.kernels.interface import StepKind
from shvit_det.kernels.kernel_functions import Kernels


@pytest.fixture
def runs(monkeypatch):
    """The kinds of the steps of each call of the kernels."""
    calls = []
    library = object.__new__(Kernels)
    library.panel, library.dtypes = 32, (torch.float32, torch.bfloat16)
    library.fast_dtypes = library.dtypes
    library.run = lambda steps, count, addresses: calls.append(
        [StepKind(step.kind) for step in (steps if count > 1 else [steps])]
    )
    monkeypatch.setattr(kernels, 'load', lambda: library)
    return calls


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_a_backbone_is_one_call(runs, dtype):
    deployed = deploy(backbone(TINY), dtype=dtype)
    assert set(layer_backends(deployed).values()) == {'kernels'}
    with torch.no_grad():
        found = deployed(torch.zeros(1, 3, 64, 96, dtype=dtype))
    assert [out.shape for out in found] == [(1, 16, 4, 6), (1, 24, 2, 3), (1, 32, 1, 2)]
    (kinds,) = runs
    assert kinds[:5] == [StepKind.INTERLEAVE] + [StepKind.CONVOLVE] * 4
    assert kinds.count(StepKind.ATTENTION) == 3 and kinds.count(StepKind.SQUEEZE_EXCITE) == 2


def test_with_a_hook_the_layers_are_called_one_by_one(runs):
    deployed = deploy(backbone(TINY))
    deployed.stages[1][0].register_forward_hook(lambda *_: None)
    with torch.no_grad():
        deployed(torch.zeros(1, 3, 64, 96))
    assert len(runs) > 20 and {len(kinds) for kinds in runs} == {1}


def test_a_foreign_layer_ends_the_plan(runs):
    deployed = deploy(backbone(TINY))
    deployed.stages[1].append(torch.nn.Identity())
    with torch.no_grad():
        deployed(torch.zeros(1, 3, 64, 96))
    assert {len(kinds) for kinds in runs} == {1}


@pytest.mark.parametrize(
    'change', [lambda model: model.load_state_dict(model.state_dict()), lambda model: model.to('cpu')]
)
def test_loading_and_moving_make_a_new_plan(runs, change):
    deployed, x = deploy(backbone(TINY)), torch.zeros(1, 3, 64, 96)
    with torch.no_grad():
        first = deployed._plan_for(x)
        assert first is not None and deployed._plan_for(x) is first
        change(deployed)
        assert deployed._plan_for(x) is not first


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_make_their_own_plans(runs, copied):
    deployed, x = deploy(backbone(TINY)), torch.zeros(1, 3, 64, 96)
    with torch.no_grad():
        plan = deployed._plan_for(x)
        other = copied(deployed)
        assert other._plan_for(x) not in (None, plan) and deployed._plan_for(x) is plan


def test_few_plans_are_kept(runs, monkeypatch):
    monkeypatch.setattr('shvit_det.kernels.execution_plan.MOST', 2)
    deployed = deploy(backbone(TINY))
    images = [torch.zeros(1, 3, 64, width) for width in (64, 80, 96)]
    with torch.no_grad():
        plans = [deployed._plan_for(x) for x in images]
        assert [deployed._plan_for(x) is plan for x, plan in zip(images[1:], plans[1:], strict=True)] == [True, True]
        assert deployed._plan_for(images[0]) is not plans[0]
