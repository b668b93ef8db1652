"""A model of one line to train in no time."""

import time

import torch
from mmengine.model import BaseModel
from torch import nn

from shvit_det.training.runner import SHViTRunner

HOOKS = dict(
    checkpoint=dict(type='SafeCheckpointHook', interval=1),
    step_seed=dict(type='StepSeedHook'),
    finite_check=dict(type='FiniteCheckHook'),
    termination=dict(type='TerminationHook'),
)  # as configs/_base_/runtime.py names them


class Line(BaseModel):
    """A model of one weight that notes in which type it computed."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, inputs, mode='loss'):
        out = self.layer(inputs)
        self.dtype_seen = out.dtype
        return dict(loss=out.float().square().mean())


def line_runner(work_dir, **settings) -> SHViTRunner:
    data = dict(dataset=[torch.ones(1)] * 4, sampler=dict(type='DefaultSampler', shuffle=False), batch_size=2)
    return SHViTRunner(
        Line(),
        str(work_dir),
        train_dataloader=dict(data, collate_fn=lambda batch: dict(inputs=torch.stack(batch))),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        **dict(
            train_cfg=dict(type='ResumableEpochLoop', max_epochs=2),
            default_hooks=HOOKS,
            experiment_name=f'{work_dir.name}-{time.monotonic_ns()}',
        )
        | settings,
    )
