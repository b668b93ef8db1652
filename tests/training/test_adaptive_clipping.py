"""Adaptive gradient clipping, the function and the hook in a run."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from torch import nn

from shvit_det import AdaptiveGradientClippingHook, UsageError
from shvit_det.training.hooks.adaptive_clipping import clip_adaptively
from shvit_det.training.runner import SHViTRunner


def test_every_unit_is_clipped_by_its_own_norm():
    weight = nn.Parameter(torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]]))
    weight.grad = torch.tensor([[0.03, 0.04], [3.0, 4.0], [3.0, 4.0]])
    clip_adaptively([weight], clip_factor=0.1)
    expected = torch.tensor([[0.03, 0.04], [0.03, 0.04], [0.00006, 0.00008]])  # as it was; to 0.1 of 0.5; of 0.001
    assert torch.allclose(weight.grad, expected, rtol=1e-5)


def test_a_kernel_has_units_a_vector_is_one_and_a_missing_gradient_is_none():
    kernel, bias, unused = (
        nn.Parameter(torch.ones(2, 3, 2, 2)),
        nn.Parameter(torch.ones(4)),
        nn.Parameter(torch.ones(1)),
    )
    kernel.grad = torch.stack([torch.full((3, 2, 2), 5.0), torch.full((3, 2, 2), 1e-3)])
    bias.grad = torch.tensor([8.0, 0.0, 0.0, 6.0])
    clip_adaptively([kernel, bias, unused], clip_factor=0.02)
    assert torch.allclose(kernel.grad[0], torch.tensor(0.02)) and torch.allclose(kernel.grad[1], torch.tensor(1e-3))
    assert torch.allclose(bias.grad, torch.tensor([0.032, 0.0, 0.0, 0.024])) and unused.grad is None


class Steep(BaseModel):
    """One weight of 2 whose gradient is 100."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[2.0]]))

    def forward(self, inputs, mode='loss'):
        return dict(loss=100 * self.weight.sum() + 0 * inputs.sum())


@pytest.mark.parametrize('accumulated', [1, 2])
@pytest.mark.parametrize('kind', ['OptimWrapper', 'BFloat16OptimWrapper'])
def test_the_hook_clips_before_the_step(tmp_path, kind, accumulated):
    model = Steep()
    data = dict(dataset=[torch.ones(1)] * 2, sampler=dict(type='DefaultSampler', shuffle=False), batch_size=1)
    SHViTRunner(
        model,
        str(tmp_path),
        train_dataloader=data,
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(type=kind, optimizer=dict(type='SGD', lr=1.0), accumulative_counts=accumulated),
        custom_hooks=[dict(type='AdaptiveGradientClippingHook', clip_factor=0.1)],
    ).train()
    assert model.weight.item() == pytest.approx(2 * 0.9 ** (2 // accumulated))


def test_the_scale_of_a_loss_is_taken_off_before():
    model = Steep()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    hook = AdaptiveGradientClippingHook(clip_factor=100.0)  # the gradient of 100 passes, one of 6400 would be cut
    hook.before_train(SimpleNamespace(optim_wrapper=OptimWrapper(optimizer)))
    scaler = torch.amp.GradScaler('cpu', init_scale=64.0)
    scaler.scale(model(torch.ones(1))['loss']).backward()
    assert model.weight.grad.item() == 6400
    scaler.step(optimizer)
    assert model.weight.item() == pytest.approx(2 - 100)


@pytest.mark.parametrize('factor', [0, -0.02])
def test_the_factor_must_be_positive(factor):
    with pytest.raises(UsageError, match=f'clip_factor .* got {factor}'):
        AdaptiveGradientClippingHook(factor)
