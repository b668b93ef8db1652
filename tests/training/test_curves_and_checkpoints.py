"""Curves of runs, a checkpoint that cannot be saved, and training in bfloat16, with a model of one weight."""

import pytest
import torch
from line_model import HOOKS, Line, line_runner
from mmengine.hooks import CheckpointHook

from shvit_det import BFloat16OptimWrapper
from shvit_det.training.curves import loss_curves, plot_curves, score_curves
from shvit_det.training.resuming import last_checkpoint
from shvit_det.training.scores import last_run, read_scores


def evaluations(*scores: dict) -> list[dict]:
    return [dict(epoch=epoch, iter=10 * epoch, scores=each) for epoch, each in enumerate(scores, 1)]


@pytest.mark.parametrize('scores, drawn', [
    ({'coco/bbox_mAP': 0.1, 'coco/bbox_mAP_50': 0.2, 'coco/segm_mAP': 0.3}, ['coco/bbox_mAP', 'coco/segm_mAP']),
    ({'pascal_voc/mAP': 0.1, 'pascal_voc/AP50': 0.2}, ['pascal_voc/mAP']),
    ({'lvis/bbox_AP': 0.1, 'lvis/bbox_APr': 0.2}, ['lvis/bbox_AP']),
    ({'day/coco/bbox_mAP': 0.1, 'night/coco/bbox_mAP': 0.2}, ['day/coco/bbox_mAP', 'night/coco/bbox_mAP']),
    ({'bbox_mAP': 0.1, 'bbox_mAP_s': 0.2}, ['bbox_mAP']),
    ({'coco_panoptic/PQ': 45.2, 'coco_panoptic/SQ': 80.0}, ['coco_panoptic/PQ']),
    ({'accuracy/top1': 71.0, 'accuracy/top5': 90.0}, ['accuracy/top1', 'accuracy/top5']),
    ({'mine/recall': 0.4, 'mine/count': 17.0}, ['mine/recall', 'mine/count']),
])  # fmt: skip
def test_the_scores_that_are_drawn_of_any_metric(scores, drawn, tmp_path):
    found = score_curves(evaluations(scores, scores))
    assert found == {name: {10: scores[name], 20: scores[name]} for name in drawn}
    assert plot_curves(tmp_path, {}, found).read_bytes().startswith(b'\x89PNG')
    assert plot_curves(tmp_path, {}, {}) is None and score_curves([]) == {}


def test_losses_are_drawn_without_any_logger_and_where_there_are_many_as_means(tmp_path):
    runner = line_runner(tmp_path, default_hooks=dict(HOOKS, logger=None))
    runner.train()
    assert list(loss_curves(runner)) == ['loss'] and list(loss_curves(runner)['loss']) == [1, 2, 3, 4]
    for value in range(996):
        runner.message_hub.update_scalar('train/loss', float(value))
    runner.train_loop._iter = 1000
    curve = loss_curves(runner)['loss']
    assert len(curve) == 200 and list(curve)[-1] == 1000 and curve[1000] == 993


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


@pytest.mark.parametrize('content', [b'', b'{"run": "a", "eval', b'[]', b'\xff\xfe'])
def test_a_damaged_file_of_scores_is_named_and_ends_nothing(content, tmp_path, log):
    (tmp_path / 'scores.json').write_bytes(content)
    assert last_run(tmp_path) is None and read_scores([tmp_path], 'a') == []
    assert 'scores.json is damaged' in log.text
