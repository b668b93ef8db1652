"""Short training runs in this process."""

import os
import signal
import time
from pathlib import Path

import torch
from line_model import HOOKS
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from processes import ROOT
from torch import nn

from shvit_det.training.runner import SHViTRunner

RETINANET = ROOT / 'tests' / 'data' / 'tiny_retinanet.py'


class Noisy(BaseModel):
    """A model with random numbers in its forward pass and a buffer that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.register_buffer('seen', torch.zeros(()))

    def forward(self, inputs, mode='loss'):
        if mode != 'loss':
            return [dict(value=self.layer(inputs).sum().item())]
        self.seen += 1
        return dict(loss=(self.layer(inputs) + torch.rand(())).square().mean())


class LastValue(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.extend(data_samples)

    def compute_metrics(self, results):
        return dict(value=results[-1]['value'])


class SignalAt(Hook):
    """Sends a signal to its own process, or what ``send`` does, at a chosen moment."""

    def __init__(self, moment: str, count: int, number: int = signal.SIGTERM, send=os.kill) -> None:
        self.left, self.number, self.send = count, number, send
        setattr(self, moment, self.act)

    def act(self, *args, **kwargs) -> None:
        self.left -= 1
        if self.left == 0:
            self.send(os.getpid(), self.number)


def stacked(batch: list[torch.Tensor]) -> dict:
    return dict(inputs=torch.stack(batch))


def run(
    work_dir: Path, hooks=(), max_epochs=4, checkpoint=None, iterations=False, loading=None, **options
) -> SHViTRunner:
    data = dict(
        dict(
            dataset=[torch.full((1,), float(i)) for i in range(6)],
            batch_size=2,
            collate_fn=stacked,
        ),
        **(loading or {}),
    )
    sampler = 'InfiniteSampler' if iterations else 'DefaultSampler'
    torch.manual_seed(0)
    settings = dict(
        custom_hooks=[dict(type='EMAHook', momentum=0.5), *hooks],
        train_cfg=dict(by_epoch=False, max_iters=12)
        if iterations
        else dict(type='ResumableEpochLoop', max_epochs=max_epochs),
        val_dataloader=dict(data, sampler=dict(type='DefaultSampler', shuffle=False)),
        val_cfg=dict(),
        val_evaluator=[LastValue()],
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.5, end=5, by_epoch=False),
            dict(type='MultiStepLR', milestones=[2], by_epoch=not iterations),
        ],
    )
    return SHViTRunner(
        Noisy(),
        str(work_dir),
        train_dataloader=dict(data, sampler=dict(type=sampler, shuffle=True)),
        default_hooks=dict(HOOKS, checkpoint=dict(HOOKS['checkpoint'], **(checkpoint or {}))),
        experiment_name=f'{work_dir.name}-{len(list(work_dir.glob("*")))}-{time.monotonic_ns()}',
        **settings | options,
    )
