"""Runs that are interrupted, and what they leave."""

import contextlib
import errno
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from kill_and_resume import CONFIG, differences, disturb, end_of, state_of, undisturbed
from mmengine.config import Config
from processes import Running, tool
from torch import distributed, nn
from training_runs import RETINANET, Noisy, SignalAt, run

from shvit_det import UsageError
from shvit_det.common.atomic_files import write_text
from shvit_det.training.hooks.termination import Terminated, listening, signal_group
from shvit_det.training.optimizer_state import check_optimizer
from shvit_det.training.resuming import (
    CheckpointLocation,
    check_resumable,
    checkpoints_of,
    last_checkpoint,
    newest_resumable,
    take_seed,
)

pytestmark = pytest.mark.slow

SHORT = ['--cfg-options', 'train_cfg.max_epochs=4']


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """A folder with a run that nobody disturbed, the state it ended in and how much it did."""
    folder = tmp_path_factory.mktemp('resuming') / 'runs'
    folder.mkdir()
    return folder, *undisturbed(folder, SHORT)


def test_a_run_in_mixed_precision_and_another_layout_that_is_killed_ends_as_one_that_was_not(runs):
    folder, plain, _ = runs
    options = ['--fast', '--amp', '--cfg-options', 'train_cfg.max_epochs=2']
    expected, length = undisturbed(folder, options, 'whole-fast')
    assert '.state_dict.backbone.patch_embed.0.c.weight' in differences(expected, plain)
    assert disturb(folder, 'fast', 1, signal.SIGKILL, random.Random(1), length // 2, options).total() == 1
    assert differences(expected, end_of(folder / 'fast')) == []


@pytest.mark.parametrize('kind', ['SIGKILL', 'SIGTERM'])
def test_a_run_that_is_killed_and_resumed_ends_as_one_that_was_not(runs, kind):
    """Once each; ``kill_and_resume.py`` does it as often as wanted."""
    folder, expected, length = runs
    draw = random.Random(kind)
    phases = disturb(folder, kind, 1, signal.Signals[kind], draw, length // 2, SHORT)
    assert phases.total() >= 1
    assert differences(expected, end_of(folder / kind)) == []


def test_a_full_disk_ends_a_run_in_a_sentence_and_leaves_the_checkpoint_before(runs):
    folder, _, _ = runs
    shutil.copytree(folder / 'whole', folder / 'full')
    size = (folder / 'full' / 'epoch_4.pth').stat().st_size
    options = ('--work-dir', 'full', '--resume', '--cfg-options', 'train_cfg.max_epochs=5')
    result = Running('train', CONFIG, *options, cwd=folder, environment=dict(FILE_LIMIT=str(size // 2))).finish()
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    sentence = result.stderr.strip().splitlines()[-1]
    assert sentence.startswith('error: cannot write into ') and 'epoch_4.pth: go on with --resume' in sentence
    assert sorted(path.name for path in (folder / 'full').glob('*.p*t*')) == ['epoch_3.pth', 'epoch_4.pth']
    assert state_of(folder / 'full' / 'epoch_4.pth')['.meta.epoch'] == 4


def on_a_disk(options: str, folder: Path, status: int, *arguments: object) -> str:
    """Train into a disk of its own and return the one sentence in which that has to end."""
    if not shutil.which('unshare') or subprocess.run(['unshare', '-m', 'true'], capture_output=True).returncode:
        pytest.skip('disks can be mounted by root only, and not in every container')
    (folder / 'run').mkdir()
    result = Running('train', RETINANET, *arguments, cwd=folder, environment=dict(DISK=options)).finish()
    assert result.returncode == status
    *others, sentence = result.stderr.strip().splitlines()
    assert not any('Traceback' in line or 'rror' in line for line in others), result.stderr
    return sentence


def test_a_disk_that_fills_up(tmp_path):
    changes = ('train_cfg.max_epochs=60', 'default_hooks.checkpoint.max_keep_ckpts=-1')
    sentence = on_a_disk('size=4m', tmp_path, 1, '--work-dir', 'run', '--cfg-options', *changes)
    assert '(No space left on device); the last checkpoint is ' in sentence
    assert re.search(r'/run/epoch_[1-9]\.pth: go on with --resume$', sentence)


def test_a_disk_that_is_read_only(tmp_path):
    sentence = on_a_disk('ro', tmp_path, 2, '--work-dir', 'run')
    assert 'cannot write into the work dir' in sentence and '(Read-only file system)' in sentence


def test_a_work_dir_that_cannot_be_written_is_found_before_the_start(runs):
    folder, _, _ = runs
    (folder / 'file').touch()
    result = tool('train', CONFIG, '--work-dir', 'file/run', cwd=folder)
    assert result.returncode == 2 and 'Traceback' not in result.stderr
    assert 'error: cannot write into the work dir' in result.stderr and '--work-dir' in result.stderr


# The same with a model of two weights, where the moment can be chosen.


MOMENTS = {
    'after a step': ('after_train_iter', 5, {}),
    'after the last step of an epoch': ('after_train_iter', 6, {}),
    'while a batch is loaded': ('before_train_iter', 8, {}),
    'in an evaluation': ('after_val_iter', 4, {}),
    'in an evaluation without a checkpoint before it': ('after_val_iter', 4, dict(interval=3)),
    'as an epoch begins': ('before_train_epoch', 2, {}),
}


@pytest.mark.parametrize('moment', MOMENTS)
def test_a_terminated_run_goes_on_where_it_was(moment, tmp_path):
    hook, count, checkpoint = MOMENTS[moment]
    run(tmp_path / 'other', checkpoint=checkpoint, randomness=dict(seed=4)).train()
    seed = dict(randomness=dict(seed=3))
    run(tmp_path / 'whole', checkpoint=checkpoint, **seed).train()
    expected = state_of(last_checkpoint(tmp_path / 'whole'))
    assert '.state_dict.layer.weight' in differences(expected, end_of(tmp_path / 'other'))
    folder = tmp_path / 'ended'
    with pytest.raises(Terminated), listening():
        run(folder, [SignalAt(hook, count)], checkpoint=checkpoint, **seed).train()
    last = last_checkpoint(folder)
    saved = torch.load(last, weights_only=False)['meta']['iter']
    assert saved == {'after_train_iter': count, 'before_train_iter': count}.get(hook, saved)
    with listening():
        resumed = run(folder, checkpoint=checkpoint, resume=True, load_from=str(last), **seed)
        resumed.train()
    assert differences(expected, end_of(folder)) == []
    assert not (folder / 'interrupted.pth').exists() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_run_by_iterations_goes_on_where_it_was(tmp_path):
    options = dict(iterations=True, checkpoint=dict(interval=4, by_epoch=False), randomness=dict(seed=3))
    run(tmp_path / 'whole', **options).train()
    with pytest.raises(Terminated), listening():
        run(tmp_path / 'ended', [SignalAt('after_train_iter', 5)], **options).train()
    last = last_checkpoint(tmp_path / 'ended')
    assert last.name == 'interrupted.pth'
    run(tmp_path / 'ended', resume=True, load_from=str(last), **options).train()
    assert differences(state_of(tmp_path / 'whole' / 'iter_12.pth'), end_of(tmp_path / 'ended')) == []


def test_an_owed_evaluation_is_made_up_for(tmp_path):
    with pytest.raises(Terminated), listening():
        run(tmp_path, [SignalAt('after_val_iter', 4)], max_epochs=2).train()
    records = ''.join(path.read_text() for path in tmp_path.glob('*/*.log'))
    assert 'Epoch(val) [2][3/3]' not in records
    run(tmp_path, max_epochs=2, resume=True, load_from=str(last_checkpoint(tmp_path))).train()
    assert 'Epoch(val) [2][3/3]' in ''.join(path.read_text() for path in tmp_path.glob('*/*.log'))


def test_an_interrupted_epoch_cannot_go_on_with_other_batches(tmp_path):
    with pytest.raises(Terminated), listening():
        run(tmp_path, [SignalAt('after_train_iter', 5)]).train()
    other = run(tmp_path, resume=True, load_from=str(last_checkpoint(tmp_path)))
    other._train_dataloader['batch_size'] = 3
    with pytest.raises(UsageError, match='within an epoch of 3 batches, and now an epoch has 2'):
        other.train()


def test_a_request_before_the_training_ends_it_there():
    with pytest.raises(Terminated), listening():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)


def status_of(function) -> int:
    """Call a function in a fork of this process and return the status with which it ends, 0 if it returns."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(Exception):
            function()
            os._exit(0)
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize('second, after_s, status', [
    (signal.SIGTERM, 0, 0),  # slurm and what it started both hand on one request
    (signal.SIGTERM, 60, 143),
    (signal.SIGUSR1, 60, 0),  # another warning of the same event
])  # fmt: skip
def test_a_second_request_to_end_is_followed_at_once_if_it_is_meant(second, after_s, status, monkeypatch):
    """A run that saves goes on with that until the same signal comes again, some time later."""
    now = 0.0
    monkeypatch.setattr('time.monotonic', lambda: now)

    def save() -> None:
        nonlocal now
        with listening() as signals:
            signals.can_save = True
            os.kill(os.getpid(), signal.SIGTERM)
            now += after_s
            os.kill(os.getpid(), second)
            assert signals.first == signal.SIGTERM

    assert status_of(save) == status


def test_processes_that_are_forked_meanwhile_end_as_others_do():
    with listening() as signals:
        assert status_of(lambda: os.kill(os.getpid(), signal.SIGTERM)) == -signal.SIGTERM
        assert not signals.first


@pytest.mark.parametrize('number', [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_what_is_ignored_or_used_otherwise_stays_so(number):
    def use(*arguments) -> None:
        raise AssertionError('not called')

    original = signal.getsignal(number)  # SIGHUP is ignored under nohup
    try:
        for handler in (signal.SIG_IGN, use):
            signal.signal(number, handler)
            with listening():
                assert signal.getsignal(number) == handler
        signal.signal(number, signal.SIG_DFL)
        with listening() as outer, listening() as inner:
            inner.can_save = True
            os.kill(os.getpid(), number)
            assert inner.first == number and not outer.first
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, original)


@pytest.mark.parametrize('keep', [1, 2])
def test_the_oldest_is_removed_after_the_newest_is_there(keep, tmp_path, monkeypatch):
    present = []
    save = torch.save

    def watching_save(*args, **kwargs):
        present.append(sorted(path.name for path in tmp_path.glob('*.pth')))
        save(*args, **kwargs)

    monkeypatch.setattr('torch.save', watching_save)
    run(tmp_path, checkpoint=dict(max_keep_ckpts=keep)).train()
    names = [f'epoch_{epoch}.pth' for epoch in range(1, 5)]
    assert present == [names[max(0, i - keep) : i] for i in range(4)]
    assert sorted(path.name for path in tmp_path.glob('*.pth*')) == names[-keep:]


def test_a_failed_save_keeps_the_only_checkpoint(tmp_path, monkeypatch):
    save = torch.save

    def failing_save(content, file, *args, **kwargs):
        if content['meta']['epoch'] == 3:
            raise OSError(errno.ENOSPC, 'No space left on device')
        save(content, file, *args, **kwargs)

    monkeypatch.setattr('torch.save', failing_save)
    with pytest.raises(OSError, match='No space left'):
        run(tmp_path, checkpoint=dict(max_keep_ckpts=1)).train()
    assert [path.name for path in tmp_path.glob('*.pth*')] == ['epoch_2.pth']
    monkeypatch.undo()
    (tmp_path / 'epoch_3.pth.part').write_bytes(b'of a run that was killed')
    run(tmp_path, checkpoint=dict(max_keep_ckpts=1), resume=True, load_from=str(last_checkpoint(tmp_path))).train()
    assert [path.name for path in tmp_path.glob('*.pth*')] == ['epoch_4.pth']


def test_the_best_checkpoint_is_replaced_after_the_better_one_is_there(tmp_path, monkeypatch):
    present = []
    save = torch.save

    def watching_save(*args, **kwargs):
        present.append([path.name for path in tmp_path.glob('best*.pth')])
        save(*args, **kwargs)

    monkeypatch.setattr('torch.save', watching_save)
    run(tmp_path, checkpoint=dict(save_best='value', rule='less')).train()
    best = [path.name for path in tmp_path.glob('best*')]
    assert len(best) == 1
    first = next(i for i, names in enumerate(present) if names)
    assert all(names for names in present[first:])


def test_text_is_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / 'last_checkpoint'
    write_text(path, 'one')

    def fail(*args):
        raise OSError(errno.EIO, 'Input/output error')

    monkeypatch.setattr('os.fsync', fail)
    with pytest.raises(OSError, match='Input'):
        write_text(path, 'two')
    assert path.read_text() == 'one' and list(tmp_path.iterdir()) == [path]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize('damage', [cut, flip, Path.unlink, lambda path: path.write_bytes(b'')])
def test_a_damaged_checkpoint_is_passed_over_and_named(damage, tmp_path):
    run(tmp_path).train()
    model = Noisy()
    assert newest_resumable(CheckpointLocation(tmp_path, tmp_path), model)[0].name == 'epoch_4.pth'
    damage(tmp_path / 'epoch_4.pth')
    path, content = newest_resumable(CheckpointLocation(tmp_path, tmp_path), model)
    assert path.name == 'epoch_3.pth' and content['meta']['epoch'] == 3
    if damage is not Path.unlink:
        logged = ''.join(file.read_text() for file in tmp_path.glob('*/*.log'))
        assert 'epoch_4.pth cannot be read' in logged and f'going back to the checkpoint before it, {path}' in logged
    for path in tmp_path.glob('*.pth'):
        path.write_bytes(b'')
    with pytest.raises(UsageError, match=r'epoch_\d\.pth cannot be read as a checkpoint: it is empty'):
        newest_resumable(CheckpointLocation(tmp_path, tmp_path), model)


def test_the_order_in_which_checkpoints_are_tried(tmp_path):
    assert list(checkpoints_of(CheckpointLocation(tmp_path, tmp_path))) == []
    for seconds, name in enumerate(('epoch_9.pth', 'epoch_10.pth', 'interrupted.pth', 'epoch_1.pth', 'mine.pth')):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (seconds, seconds))
    (tmp_path / 'last_checkpoint').write_text('/elsewhere/epoch_10.pth')
    names = [path.name for path in checkpoints_of(CheckpointLocation(tmp_path, tmp_path))]
    assert names == ['epoch_10.pth', 'epoch_1.pth', 'interrupted.pth', 'epoch_9.pth']
    for damaged in ('', '\0' * 30, 'epoch_77.pth'):
        (tmp_path / 'last_checkpoint').write_text(damaged)
        assert last_checkpoint(tmp_path) is None
        assert next(checkpoints_of(CheckpointLocation(tmp_path, tmp_path))).name == 'epoch_1.pth'


def test_a_run_keeps_its_seed():
    config = Config(dict(model={}))
    take_seed(config, 77, Path('a.pth'))
    take_seed(config, 77, Path('a.pth'))
    assert config.randomness.seed == 77
    with pytest.raises(UsageError, match='seed 78, but the seed given is 77'):
        take_seed(config, 78, Path('a.pth'))


def test_a_random_seed_goes_on(tmp_path):
    run(tmp_path, max_epochs=1).train()
    last = last_checkpoint(tmp_path)
    content = torch.load(last, weights_only=False)
    assert isinstance(content['meta']['seed'], int)
    check_resumable(content, last)


@pytest.mark.parametrize('name, value', [('epoch', '3'), ('iter', -1), ('batch', None), ('epoch', 2.5)])
def test_positions_that_are_none_are_refused(name, value):
    content = dict(message_hub={}, meta={'epoch': 1, 'iter': 2, name: value})
    with pytest.raises(UsageError, match=f'its {name} is'):
        check_resumable(content, 'a.pth')


def adam(*shapes: tuple[int, ...]) -> torch.optim.Optimizer:
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def test_an_optimizer_of_other_parameters_is_refused():
    own = adam((2, 3), (4,))
    check_optimizer(own.state_dict(), own, 'a.pth')
    spoilt = own.state_dict()
    spoilt['state'][1]['exp_avg'] = torch.full((4,), torch.nan)
    reason = check_optimizer(adam((2, 3)).state_dict(), own, 'a.pth')
    assert reason == 'they are of 1 parameters in 1 groups, and this run trains 2 parameters in 1 groups'
    for saved, words in (
        (adam((2, 3), (5,)).state_dict(), r'another shape than its parameter, \(4,\)'),
        (spoilt, 'exp_avg in its optimizer holds NaN'),
        ({}, 'no usable state of the optimizer'),
        ([1, 2], 'no usable state of the optimizer'),
        (dict(param_groups=[1], state={}), 'no usable state of the optimizer'),
        (dict(param_groups=[dict(params=[[0], [1]])], state={}), 'no usable state of the optimizer'),
    ):
        with pytest.raises(UsageError, match=f'a.pth cannot be resumed: .*{words}'):
            check_optimizer(saved, own, 'a.pth')


def test_signals_are_passed_on_where_gloo_cannot_be_had(monkeypatch, tmp_path, log):
    distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        group, device = signal_group(torch.device('meta'))
        assert group is not distributed.group.WORLD and device.type == 'cpu'

        def fails(backend):
            raise RuntimeError(f'{backend}: Unable to find address for: eth9')

        monkeypatch.setattr(distributed, 'new_group', fails)
        group, device = signal_group(torch.device('meta'))
        assert group is distributed.group.WORLD and device.type == 'meta'
        assert 'gloo fails (gloo: Unable to find address for: eth9)' in log.messages[-1]
    finally:
        distributed.destroy_process_group()
