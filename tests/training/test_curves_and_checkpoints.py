"""Curves of logged runs, a checkpoint that cannot be saved, and training in bfloat16, with a model of one weight."""

import json

import pytest
import torch
from line_model import Line, line_runner
from mmengine.hooks import CheckpointHook

from shvit_det import BFloat16OptimWrapper
from shvit_det.training.curves import plot_curves, read_curves
from shvit_det.training.resuming import last_checkpoint


def write_log(work_dir, run: str, *records: dict) -> None:
    folder = work_dir / run / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text('\n'.join(json.dumps(record) for record in records))


def test_curves_go_on_after_a_resume_and_start_anew_with_a_new_run(tmp_path):
    write_log(
        tmp_path,
        '1',
        dict(loss=3, step=10),
        dict(loss=2, step=20),
        {'coco/bbox_mAP': 0.1, 'step': 1},
        dict(loss=9, step=30),
    )
    write_log(
        tmp_path, '2', dict(loss=1, loss_cls=0.5, step=30), {'coco/bbox_mAP': 0.2, 'coco/bbox_mAP_50': 0.4, 'step': 2}
    )
    assert read_curves(tmp_path) == {
        'loss': {10: 3, 20: 2, 30: 1}, 'loss_cls': {30: 0.5}, 'coco/bbox_mAP': {20: 0.1, 30: 0.2}
    }  # fmt: skip
    write_log(tmp_path, '3', dict(loss=7, step=5))
    (tmp_path / '3' / 'vis_data' / 'scalars.json').open('a').write('\n{"loss": 6, "st')
    assert read_curves(tmp_path) == {'loss': {5: 7}}
    assert plot_curves(tmp_path).read_bytes().startswith(b'\x89PNG')
    assert plot_curves(tmp_path / 'empty') is None


def test_a_cpu_trains_in_bfloat16_with_weights_in_float32():
    model = Line()
    wrapper = BFloat16OptimWrapper(optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    before = model.layer.weight.item()
    model.train_step(dict(inputs=torch.ones(4, 1)), wrapper)
    assert model.dtype_seen == torch.bfloat16
    assert model.layer.weight.dtype == torch.float32 and model.layer.weight.item() != before


def test_a_save_that_fails_leaves_the_checkpoint_before_it(tmp_path, monkeypatch):
    runner = line_runner(tmp_path)
    save, saved = torch.save, []

    def failing_save(*args, **kwargs):
        if saved:
            args[1].write(b'half of it')
            raise OSError('No space left on device')
        saved.append(True)
        save(*args, **kwargs)

    monkeypatch.setattr('torch.save', failing_save)
    with pytest.raises(OSError, match='No space left'):
        runner.train()
    assert last_checkpoint(tmp_path) == tmp_path / 'epoch_1.pth'
    assert torch.load(tmp_path / 'epoch_1.pth', weights_only=False)['meta']['epoch'] == 1
    assert sorted(path.name for path in tmp_path.glob('*.pth*')) == ['epoch_1.pth']
    assert any(isinstance(hook, CheckpointHook) for hook in runner.hooks)


def test_the_last_checkpoint_is_found_where_the_folder_was_moved_to(tmp_path):
    assert last_checkpoint(tmp_path) is None
    (tmp_path / 'last_checkpoint').write_text('/gone/run/epoch_3.pth')
    assert last_checkpoint(tmp_path) is None
    (tmp_path / 'epoch_3.pth').touch()
    assert last_checkpoint(tmp_path) == tmp_path / 'epoch_3.pth'
