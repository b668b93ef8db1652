"""Runs that are resumed with other settings than those that their checkpoint was written with."""

import copy
import json

import pytest
import torch
from kill_and_resume import differences, end_of, state_of
from training_runs import Noisy, SignalAt, run

from shvit_det import UsageError
from shvit_det.training.curves import loss_curves, score_curves
from shvit_det.training.hooks.termination import Terminated, listening
from shvit_det.training.resuming import CheckpointLocation, last_checkpoint, newest_resumable
from shvit_det.training.schedules import stretched
from shvit_det.training.scores import last_run, run_of

pytestmark = pytest.mark.slow

SEED = dict(randomness=dict(seed=3))
SGD = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.1))
ADAM = dict(optimizer=dict(type='AdamW', lr=0.01, weight_decay=0.1))
WARM_UP = dict(type='LinearLR', start_factor=0.5, end=5, by_epoch=False)
COSINE = dict(type='CosineAnnealingLR', T_max=2, end=2, convert_to_iter_based=True)


@pytest.fixture
def begun(tmp_path):
    """A folder with a run of two epochs."""
    run(tmp_path / 'run', max_epochs=2, **SEED).train()
    return tmp_path / 'run'


def resumed(folder, max_epochs=4, **settings):
    """Go on with a run until it ends, and return the runner."""
    runner = run(folder, max_epochs=max_epochs, resume=True, load_from=str(last_checkpoint(folder)), **SEED | settings)
    runner.train()
    return runner


def logged(folder) -> str:
    return ''.join(path.read_text() for path in sorted(folder.glob('*/*.log'), key=lambda path: path.stat().st_mtime))


def rates(runner) -> list[float]:
    """Return the learning rate of each iteration of a run, also of those before it was resumed."""
    return list(runner.message_hub.get_scalar('train/lr').data[0])


def whole(folder, **settings):
    runner = run(folder, **SEED | settings)
    runner.train()
    return runner


def test_a_longer_run_ends_as_one_that_was_so_long_from_the_beginning(begun, tmp_path):
    expected = whole(tmp_path / 'whole')
    assert rates(resumed(begun)) == rates(expected)
    assert differences(end_of(tmp_path / 'whole'), end_of(begun)) == []


def test_a_learning_rate_and_a_weight_decay_of_the_config_are_used_and_the_moments_stay(begun):
    moments = torch.load(begun / 'epoch_2.pth', weights_only=False)['optimizer']['state']
    other = dict(optimizer=dict(SGD['optimizer'], lr=0.02, weight_decay=0.3))
    found = {}

    def note(runner) -> None:
        found.update(rate=runner.optim_wrapper.get_lr()['lr'], group=dict(runner.optim_wrapper.param_groups[0]))
        found['moments'] = copy.deepcopy(list(runner.optim_wrapper.optimizer.state.values()))

    runner = run(begun, resume=True, load_from=str(begun / 'epoch_2.pth'), optim_wrapper=other, **SEED)
    runner.register_hook(type('Note', (type(runner.scores),), dict(before_train=lambda self, runner: note(runner)))())
    runner.train()
    assert found['rate'] == pytest.approx([0.002]) and found['group']['weight_decay'] == 0.3
    for state, before in zip(found['moments'], moments.values(), strict=True):
        torch.testing.assert_close(state['momentum_buffer'], before['momentum_buffer'], rtol=0, atol=0)
    text = logged(begun)
    assert 'lr: 0.1 -> 0.02\n' in text and 'weight_decay: 0 -> 0.3\n' in text
    assert 'learning rate at this point: 0.1 -> 0.002' in text and 'moments' not in text


@pytest.mark.parametrize('schedules', [
    [WARM_UP, dict(type='MultiStepLR', milestones=[1, 3])],
    [dict(type='MultiStepLR', milestones=[3])],
    [dict(type='PolyLR', power=2, eta_min=0.01, end=4)],
    [dict(type='LinearLR', start_factor=0.1, end=9, by_epoch=False), dict(COSINE, T_max=4, end=4)],
    dict(type='ConstantLR', factor=0.3, end=3),
    None,
])  # fmt: skip
def test_other_schedules_go_on_as_if_the_run_had_always_had_them(schedules, begun, tmp_path):
    expected = rates(whole(tmp_path / 'whole', param_scheduler=schedules))
    assert rates(resumed(begun, param_scheduler=schedules))[6:] == pytest.approx(expected[6:], rel=1e-9)


def test_a_schedule_that_was_added_later(tmp_path):
    whole(tmp_path / 'run', max_epochs=2, param_scheduler=None)
    schedules = [dict(type='MultiStepLR', milestones=[1, 3])]
    expected = rates(whole(tmp_path / 'whole', param_scheduler=schedules))
    assert rates(resumed(tmp_path / 'run', param_scheduler=schedules))[6:] == expected[6:]


@pytest.mark.parametrize('schedule', [
    COSINE,
    dict(COSINE, end=None),
    dict(type='CosineAnnealingLR', T_max=1, begin=1, end=2),
    dict(type='PolyLR', power=1, end=2),
    dict(type='LinearLR', start_factor=1, end_factor=0.1, end=6, by_epoch=False),
    dict(type='OneCycleLR', eta_max=0.1, total_steps=6, by_epoch=False),
])  # fmt: skip
def test_schedules_that_ended_with_the_run_end_with_the_longer_one(schedule, tmp_path):
    """The second time the same command has to go on in the same way."""
    schedule = {name: value for name, value in schedule.items() if value is not None}
    longer = {name: value * 2 if name in ('end', 'total_steps') else value for name, value in schedule.items()}
    if 'T_max' in schedule:
        longer['T_max'] = 4 - schedule.get('begin', 0)
    expected = rates(whole(tmp_path / 'whole', param_scheduler=longer))
    whole(tmp_path / 'run', max_epochs=2, param_scheduler=schedule)
    runner = resumed(tmp_path / 'run', param_scheduler=schedule)
    assert rates(runner)[6:] == pytest.approx(expected[6:])
    assert 'to end with the run' in logged(tmp_path / 'run')
    (tmp_path / 'run' / 'last_checkpoint').write_text(str(tmp_path / 'run' / 'epoch_3.pth'))
    assert rates(resumed(tmp_path / 'run', param_scheduler=schedule))[9:] == pytest.approx(expected[9:])


def test_schedules_that_were_written_for_the_longer_run_stay():
    schedules = [dict(type='LinearLR', end=12), dict(type='CosineAnnealingLR', begin=12, T_max=12, end=24)]
    former, length = dict(epochs=[12], iterations=[120]), dict(epochs=24, iterations=240)
    assert stretched(schedules, former, length) == (schedules, [])
    assert stretched(schedules[0], former, length)[0] == [dict(type='LinearLR', end=24)]
    assert stretched(schedules[0], dict(former, epochs=[6]), length) == ([schedules[0]], [])
    assert stretched(None, former, length) == ([], [])


@pytest.mark.parametrize('other, words', [
    (ADAM, 'another optimizer than AdamW'),
    (dict(SGD, paramwise_cfg=dict(bias_decay_mult=0)), '2 parameters in 1 groups, and this run trains'),
])  # fmt: skip
def test_an_optimizer_or_groups_of_another_kind_start_with_new_moments(other, words, begun):
    runner = resumed(begun, optim_wrapper=other)
    assert f'the moments of the optimizer start anew: they are of {words}' in logged(begun)
    assert runner.optim_wrapper.optimizer.param_groups[0]['lr'] == pytest.approx(other['optimizer']['lr'] / 10)


def test_moments_that_an_optimizer_would_miss_start_anew(tmp_path):
    whole(tmp_path, max_epochs=2, optim_wrapper=ADAM)
    resumed(tmp_path, optim_wrapper=dict(optimizer=dict(ADAM['optimizer'], amsgrad=True)))
    assert 'the moments of the optimizer start anew' in logged(tmp_path)


def test_adam_goes_on_with_the_moments_of_adamw_and_its_own_decay(tmp_path):
    whole(tmp_path, max_epochs=2, optim_wrapper=ADAM)
    runner = resumed(tmp_path, optim_wrapper=dict(optimizer=dict(ADAM['optimizer'], type='Adam')))
    assert 'start anew' not in logged(tmp_path)
    assert runner.optim_wrapper.optimizer.state[next(iter(runner.model.parameters()))]['step'] == 12
    assert not runner.optim_wrapper.param_groups[0].get('decoupled_weight_decay')


def test_the_rate_after_a_plateau_is_scaled(tmp_path):
    plateau = dict(type='ReduceOnPlateauLR', monitor='value', rule='greater', factor=0.5, patience=0)
    before = whole(tmp_path, max_epochs=4, param_scheduler=plateau).optim_wrapper.param_groups[0]['lr']
    assert before < 0.1
    other = dict(optimizer=dict(type='SGD', lr=0.2, momentum=0.9))
    runner = run(
        tmp_path, max_epochs=5, param_scheduler=plateau, optim_wrapper=other, resume=True,
        load_from=str(tmp_path / 'epoch_4.pth'), **SEED,
    )  # fmt: skip
    runner.train()
    saved = torch.load(tmp_path / 'epoch_4.pth', weights_only=False)['optimizer']['param_groups'][0]['lr']
    assert rates(runner)[12] == pytest.approx(2 * saved)


def test_epochs_of_another_length_are_counted_as_such(begun):
    runner = resumed(begun, loading=dict(batch_size=3), param_scheduler=COSINE)
    assert runner.iter == 8
    assert 'iterations of an epoch: 3 -> 2, so that 6 iterations count as 4' in logged(begun)
    assert list(loss_curves(runner)['loss'])[-1] == 8


def test_a_checkpoint_without_the_states_of_optimizer_and_schedule(begun, tmp_path):
    whole(tmp_path / 'bare', max_epochs=2, checkpoint=dict(save_optimizer=False, save_param_scheduler=False))
    assert rates(resumed(tmp_path / 'bare')) == rates(whole(tmp_path / 'whole'))
    assert 'the moments of the optimizer start anew: they are not in it' in logged(tmp_path / 'bare')


def test_nothing_is_said_where_nothing_differs(begun):
    state = state_of(begun / 'epoch_2.pth')
    resumed(begun, max_epochs=2)
    assert 'whose settings are used' not in logged(begun) and state_of(begun / 'epoch_2.pth') == state


def test_scores_go_on_after_a_resume_and_are_not_those_of_an_earlier_run(begun, tmp_path):
    runner = resumed(begun)
    assert [each['epoch'] for each in runner.scores.evaluations] == [1, 2, 3, 4]
    assert list(score_curves(runner.scores.evaluations)['value']) == [3, 6, 9, 12]
    assert list(loss_curves(runner)['loss']) == list(range(1, 13))
    elsewhere = run(tmp_path / 'other', max_epochs=3, resume=True, load_from=str(begun / 'epoch_2.pth'), **SEED)
    elsewhere.train()
    assert [each['epoch'] for each in elsewhere.scores.evaluations] == [1, 2, 3]
    anew = run(begun, max_epochs=1, val_cfg=None, val_dataloader=None, val_evaluator=None)
    anew.train()
    assert anew.scores.evaluations == [] and list(loss_curves(anew)['loss']) == [1, 2, 3]
    assert json.loads((begun / 'scores.json').read_text()) == dict(run=last_run(begun), evaluations=[])


def test_checkpoints_of_an_earlier_run_in_the_work_dir_are_not_resumed_by_chance(begun):
    location = CheckpointLocation(begun, begun)
    assert newest_resumable(location, Noisy())[0] == begun / 'epoch_2.pth'
    with pytest.raises(Terminated), listening():
        run(begun, [SignalAt('before_train_epoch', 1)], checkpoint=dict(interval=-1, save_last=False)).train()
    path, content = newest_resumable(location, Noisy())
    assert path.name == 'interrupted.pth' and run_of(content) == last_run(begun)
    path.unlink()
    with pytest.raises(UsageError, match=r'epoch_2.pth is of an earlier run .* by --resume .*/epoch_2.pth, or start'):
        newest_resumable(location, Noisy())
