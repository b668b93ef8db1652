"""What ``--amp`` and ``--fast`` choose, and runs that change their memory layout in between."""

import pytest
import torch
from line_model import HOOKS
from mmengine.config import Config
from mmengine.model import BaseModel
from paths import ROOT
from torch import nn

from shvit_det import UsageError
from shvit_det.configuration.reading import load_config
from shvit_det.training.fast_options import enable_amp, enable_fast, native_bfloat16
from shvit_det.training.runner import SHViTRunner

pytestmark = pytest.mark.slow

CONFIGS = sorted((ROOT / 'configs').glob('*.py'))


def config(kind='OptimWrapper', optimizer=None, **wrapper) -> Config:
    optimizer = optimizer or dict(type='AdamW', lr=0.1)
    return Config(dict(optim_wrapper=dict(type=kind, optimizer=optimizer, **wrapper), train_dataloader=dict()))


@pytest.fixture
def hardware(monkeypatch):
    """Sets what the machine seems to be: whether there is a GPU, and whether that or the CPU has bfloat16."""

    def pretend(gpu: bool, bfloat16: bool) -> None:
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpu)
        monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation: bfloat16)
        monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'Abacus')
        monkeypatch.setattr(torch.cpu, '_is_amx_tile_supported', lambda: False, raising=False)
        monkeypatch.setattr(torch.cpu, '_is_avx512_bf16_supported', lambda: bfloat16, raising=False)

    return pretend


@pytest.mark.parametrize(
    ('gpu', 'bfloat16', 'kind', 'words'),
    [
        (False, True, 'BFloat16OptimWrapper', 'bfloat16 autocast, since this CPU has AVX512-BF16'),
        (False, False, 'BFloat16OptimWrapper', 'bfloat16 autocast, though slowly: this CPU is not known'),
        (True, True, 'BFloat16OptimWrapper', 'bfloat16 autocast, since this Abacus has bfloat16'),
        (True, False, 'LossScaleOptimWrapper', 'float16 with scaled losses, since this Abacus lacks bfloat16'),
    ],
)
def test_mixed_precision_by_hardware(gpu, bfloat16, kind, words, hardware):
    hardware(gpu, bfloat16)
    changed = config()
    assert enable_amp(changed).startswith(words)
    assert changed.optim_wrapper.type == kind


def test_mixed_precision_of_the_config_stays_on_a_gpu_and_becomes_bfloat16_on_a_cpu(hardware):
    for gpu, kind in ((True, 'AmpOptimWrapper'), (False, 'BFloat16OptimWrapper')):
        hardware(gpu, True)
        changed = config('AmpOptimWrapper', loss_scale=512.0)
        enable_amp(changed)
        assert changed.optim_wrapper.type == kind
        assert ('loss_scale' in changed.optim_wrapper) == gpu


def test_a_wrapper_of_another_kind_is_not_replaced(hardware):
    with pytest.raises(UsageError, match="but this config has 'ApexOptimWrapper'"):
        enable_amp(config('ApexOptimWrapper'))
    hardware(gpu=False, bfloat16=True)
    changed = config('ApexOptimWrapper')
    assert enable_fast(changed) == 'channels-last, precision as it is set, fused AdamW'
    assert changed.optim_wrapper.type == 'ApexOptimWrapper'


@pytest.mark.parametrize(
    ('gpu', 'bfloat16', 'kind', 'chosen'),
    [
        (False, True, 'BFloat16OptimWrapper', 'channels-last, bfloat16 autocast, since this CPU has AVX512-BF16, '),
        (False, False, 'OptimWrapper', 'channels-last, float32, since this CPU is not known to have AVX512-BF16 '),
        (True, True, 'BFloat16OptimWrapper', 'channels-last, bfloat16 autocast, since this Abacus has bfloat16, '),
        (True, False, 'OptimWrapper', 'channels-last, float32, since this Abacus lacks bfloat16, '),
    ],
)
def test_fast_takes_bfloat16_only_where_it_is_native(gpu, bfloat16, kind, chosen, hardware):
    hardware(gpu, bfloat16)
    changed = config()
    sentence = enable_fast(changed)
    assert sentence.startswith(chosen) and 'fused AdamW' in sentence
    assert changed.channels_last and changed.optim_wrapper.optimizer.fused
    assert changed.optim_wrapper.type == kind
    assert changed.train_dataloader.get('pin_memory', False) == gpu == sentence.endswith('pinned memory')


@pytest.mark.parametrize(
    'optimizer', [dict(type='AdamW', foreach=False), dict(type='AdamW', fused=False), dict(type='Rprop'), dict(type=nn)]
)
def test_optimizers_that_cannot_or_shall_not_be_fused_stay(optimizer):
    changed = config(optimizer=optimizer)
    assert 'fused' not in enable_fast(changed)
    assert changed.optim_wrapper.optimizer.to_dict() == optimizer


def test_a_torch_that_does_not_tell_of_its_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    for name in ('_is_amx_tile_supported', '_is_avx512_bf16_supported'):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert not native_bfloat16()[0]


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_loaders_keep_their_workers_and_these_their_one_thread(path):
    loaded = load_config(str(path))
    for split in ('train', 'val', 'test'):
        loader = loaded[f'{split}_dataloader']
        assert loader.num_workers > 0 and loader.persistent_workers
    assert loaded.env_cfg.mp_cfg == dict(mp_start_method='fork', opencv_num_threads=0)


class Convolutions(BaseModel):
    """A small model whose gradients depend on every weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))

    def forward(self, inputs, mode='loss'):
        out = self.layers(inputs)
        self.out_is_channels_last = out.is_contiguous(memory_format=torch.channels_last)
        return dict(loss=out.square().mean())


def run(work_dir, epochs: int, quick: bool, resume: bool = False) -> SHViTRunner:
    generator = torch.Generator().manual_seed(0)
    data = dict(
        dataset=[torch.randn(3, 6, 7, generator=generator) for _ in range(4)],
        sampler=dict(type='DefaultSampler', shuffle=False),
        batch_size=2,
        collate_fn=lambda batch: dict(inputs=torch.stack(batch)),
    )
    runner = SHViTRunner(
        Convolutions(),
        str(work_dir),
        train_dataloader=data,
        train_cfg=dict(type='ResumableEpochLoop', max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1, fused=quick)),
        default_hooks=HOOKS,
        load_from=str(work_dir / 'epoch_2.pth') if resume else None,
        resume=resume,
        cfg=dict(channels_last=quick),
        experiment_name=f'{work_dir.parent.name}_{work_dir.name}_{epochs}',
    )
    runner.train()
    return runner


@pytest.mark.parametrize('first', [False, True])
@pytest.mark.parametrize('then', [False, True])
def test_a_run_goes_on_in_another_layout_as_if_there_were_one(first, then, tmp_path):
    expected = run(tmp_path / 'through', 4, quick=False).model.state_dict()
    run(tmp_path / 'resumed', 2, quick=first)
    saved = torch.load(tmp_path / 'resumed' / 'epoch_2.pth', weights_only=False)
    moments = [value for state in saved['optimizer']['state'].values() for value in state.values()]
    assert all(value.is_contiguous() for value in (*saved['state_dict'].values(), *moments))

    runner = run(tmp_path / 'resumed', 4, quick=then, resume=True)
    for name, value in runner.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=name)
    assert runner.model.out_is_channels_last == then
    optimizer = runner.optim_wrapper.optimizer
    assert optimizer.param_groups[0]['fused'] == then
    for parameter, state in optimizer.state.items():
        assert state['exp_avg'].stride() == state['exp_avg_sq'].stride() == parameter.stride()
