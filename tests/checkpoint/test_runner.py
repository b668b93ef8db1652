"""mmengine's own checkpoints in our runner: resumed and started from, with averages of weights, and without danger."""

from collections.abc import Callable

import pytest
import torch
from line_model import Line
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn

from shvit_det import SHViT, UsageError
from shvit_det.configuration.changing import remove_pretrained
from shvit_det.configuration.reading import pretrained_parts
from shvit_det.training.resuming import check_resumable
from shvit_det.training.runner import SHViTRunner


def runner(work_dir, max_epochs: int, kind: type[Runner] = SHViTRunner, **options) -> Runner:
    data = dict(dataset=[torch.ones(1)] * 4, sampler=dict(type='DefaultSampler', shuffle=False), batch_size=2)
    return kind(
        Line(),
        str(work_dir),
        train_dataloader=dict(data, collate_fn=lambda batch: dict(inputs=torch.stack(batch))),
        train_cfg=dict(by_epoch=True, max_epochs=max_epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        param_scheduler=dict(type='LinearLR', start_factor=0.5, end=3),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
        custom_hooks=[dict(type='EMAHook', momentum=0.5)],
        experiment_name=f'{work_dir.name}-{len(list(work_dir.glob("*")))}',
        **options,
    )


@pytest.fixture
def checkpoint(tmp_path):
    runner(tmp_path, 1).train()
    return tmp_path / 'epoch_1.pth'


def logged(work_dir) -> str:
    return ''.join(path.read_text() for path in work_dir.glob('*/*.log'))


def ema_of(run: Runner) -> torch.nn.Module:
    return next(hook for hook in run.hooks if hasattr(hook, 'ema_model')).ema_model.module


def rewrite(path, change: Callable[[dict], object]) -> None:
    content = torch.load(path, weights_only=False)
    change(content)
    torch.save(content, path)


def test_a_run_with_averages_goes_on_from_both_kinds_of_weights(checkpoint, tmp_path):
    saved = torch.load(checkpoint, weights_only=False)
    averaged, raw = saved['state_dict']['layer.weight'], saved['ema_state_dict']['module.layer.weight']
    assert not torch.equal(averaged, raw)
    run = runner(tmp_path, 2, resume=True, load_from=str(checkpoint))
    run.call_hook('before_run')
    run.load_or_resume()
    assert run.iter == 2
    assert torch.equal(run.model.layer.weight, raw) and torch.equal(ema_of(run).layer.weight, averaged)
    assert 'epoch_1.pth: state dict, 2 of 2 layer tensors' in logged(tmp_path)
    run.train()
    assert torch.load(tmp_path / 'epoch_2.pth', weights_only=False)['meta']['epoch'] == 2


def test_a_run_that_starts_from_a_file_takes_the_averages_for_everything(checkpoint, tmp_path):
    averaged = torch.load(checkpoint, weights_only=False)['state_dict']['layer.weight']
    run = runner(tmp_path, 1, load_from=str(checkpoint))
    run.call_hook('before_run')
    run.load_or_resume()
    assert run.iter == 0
    assert torch.equal(run.model.layer.weight, averaged) and torch.equal(ema_of(run).layer.weight, averaged)


def test_mmengines_own_runner_goes_on_from_our_files(checkpoint, tmp_path):
    """As mmdet's own tools do, where a config names this package in custom_imports."""
    runner(tmp_path, 2, Runner, resume=True, load_from=str(checkpoint)).train()
    assert torch.load(tmp_path / 'epoch_2.pth', weights_only=False)['meta']['epoch'] == 2


def test_a_config_in_a_checkpoint_is_not_executed(checkpoint, tmp_path):
    """mmengine runs ``meta['config']`` as Python when it resumes."""
    proof = tmp_path / 'executed'
    rewrite(checkpoint, lambda content: content['meta'].update(config=f'open({str(proof)!r}, "w")'))
    runner(tmp_path, 2, resume=True, load_from=str(checkpoint)).train()
    assert (tmp_path / 'epoch_2.pth').is_file() and not proof.exists()


def test_other_shapes_are_left_and_named_when_a_run_starts(checkpoint, tmp_path):
    rewrite(checkpoint, lambda content: content['state_dict'].update({'layer.weight': torch.zeros(3, 1)}))
    run = runner(tmp_path, 1, load_from=str(checkpoint))
    run.call_hook('before_run')
    before = run.model.layer.weight.clone()
    run.load_or_resume()
    assert torch.equal(run.model.layer.weight, before)
    assert 'of another shape and left at their initial values: layer.weight\n' in logged(tmp_path)
    run = runner(tmp_path, 2, resume=True, load_from=str(checkpoint))
    run.call_hook('before_run')
    with pytest.raises(UsageError, match='another model'):
        run.load_or_resume()


def test_a_file_without_the_state_of_a_run_cannot_be_resumed(checkpoint):
    whole = torch.load(checkpoint, weights_only=False)
    check_resumable(whole, 'a.pth')
    for content, words in (
        (dict(model={}), '(meta, message_hub missing)'),
        (dict(whole, meta={}), 'meta without epoch'),
    ):
        with pytest.raises(UsageError) as caught:
            check_resumable(content, 'a.pth')
        assert words in str(caught.value) and 'load_from=a.pth' in str(caught.value)


def test_parts_with_pretrained_weights_are_found_wherever_they_are():
    def arguments(init_cfg, wrap=lambda part: part):
        return [found for _, found in pretrained_parts(wrap(SHViT('s1', init_cfg=init_cfg)))]

    init_cfg = dict(type='SHViTPretrained', checkpoint='a.pth', sha256='12345678')
    expected = [dict(checkpoint='a.pth', sha256='12345678')]
    assert arguments(init_cfg) == arguments(dict(init_cfg, type='shvit_det.SHViTPretrained')) == expected
    assert arguments([dict(type='Kaiming', layer='Conv2d'), init_cfg]) == expected
    assert arguments(init_cfg, lambda part: nn.ModuleDict(dict(teacher=nn.Sequential(part)))) == expected
    assert arguments(dict(type='Pretrained', checkpoint='a.pth')) == arguments(None) == []


def test_without_pretrained_weights_every_part_starts_from_random_ones_but_no_teacher():
    init_cfg = dict(type='Pretrained', checkpoint='a.pth')
    other = dict(type='Kaiming', layer='Conv2d')
    model = dict(
        detector=dict(backbone=dict(init_cfg=init_cfg), neck=dict(init_cfg=[other, init_cfg])),
        stages=[dict(backbone=dict(init_cfg=[init_cfg])), dict(init_cfg=other)],
        backbone=dict(type='mmpretrain.TIMMBackbone', pretrained=True),
        teacher_config=dict(model=dict(backbone=dict(init_cfg=init_cfg))),
        teacher_backbone=dict(init_cfg=init_cfg),
        init_cfg=init_cfg,
    )
    config = Config(dict(model=model))
    remove_pretrained(config)
    assert config.model.detector == dict(backbone=dict(init_cfg=None), neck=dict(init_cfg=[other]))
    assert config.model.stages == [dict(backbone=dict(init_cfg=None)), dict(init_cfg=other)]
    assert config.model.init_cfg is None and config.model.backbone.pretrained is False
    assert config.model.teacher_backbone.init_cfg == config.model.teacher_config.model.backbone.init_cfg == init_cfg
