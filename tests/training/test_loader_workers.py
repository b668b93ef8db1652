"""Workers of loaders: signals to all processes of a run, and what becomes of them when the run is killed."""

import multiprocessing
import os
import signal
import time

import pytest
import torch
from kill_and_resume import end_of
from process_groups import Stuck, end_in_group, send_later, send_to_each, send_to_group, wait_for_end
from processes import Running, process_tree, runs
from training_runs import RETINANET, SignalAt

from shvit_det.checkpoint.reading import read_content
from shvit_det.training.resuming import last_checkpoint
from shvit_det.training.runner import SHViTRunner

pytestmark = pytest.mark.slow


CASES = [
    ('before_train_iter', 1, signal.SIGTERM, send_to_group, True, 'fork'),  # before there is any checkpoint
    ('before_train_epoch', 2, signal.SIGTERM, send_to_each, True, 'fork'),
    ('before_train_epoch', 3, signal.SIGHUP, send_to_group, True, 'forkserver'),
    ('after_train_iter', 4, signal.SIGUSR1, send_to_each, False, 'fork'),
    ('before_val_epoch', 2, signal.SIGTERM, send_to_group, True, 'fork'),
    ('before_save_checkpoint', 2, signal.SIGUSR2, send_to_group, True, 'fork'),
]


@pytest.mark.parametrize('moment, count, number, sender, persistent, method', CASES)
def test_a_signal_to_all_processes_ends_a_run_as_one_to_the_main_process(
    moment, count, number, sender, persistent, method, tmp_path
):
    loading = dict(persistent_workers=persistent, multiprocessing_context=method)
    status, errors = end_in_group(tmp_path / 'main', SignalAt(moment, count, number), **loading)
    assert status == 128 + number and errors.strip().endswith('terminated')
    status, errors = end_in_group(tmp_path / 'all', SignalAt(moment, count, number, sender), **loading)
    assert status == 128 + number and 'Traceback' not in errors and errors.strip().endswith('terminated')
    main, all_of_them = (read_content(last_checkpoint(tmp_path / name)) for name in ('main', 'all'))
    assert main['meta']['iter'] == all_of_them['meta']['iter']
    torch.testing.assert_close(main['state_dict'], all_of_them['state_dict'], rtol=0, atol=0)


@pytest.mark.parametrize('sender', [send_to_group, send_to_each])
def test_control_c_in_a_terminal_ends_a_run_in_a_word(sender, tmp_path):
    hook = SignalAt('before_train_iter', 5, signal.SIGINT, sender)
    status, errors = end_in_group(tmp_path / 'run', hook, persistent_workers=True)
    assert status == 130 and errors.strip().splitlines()[-1] == 'interrupted' and 'Traceback' not in errors
    assert last_checkpoint(tmp_path / 'run').name == 'epoch_1.pth'


def test_the_tool_saves_when_all_are_signalled_and_workers_are_just_starting(tmp_path):
    """With ``spawn``, the only way of Windows and macOS, they import everything anew, which takes seconds."""
    loading = dict(num_workers=1, persistent_workers=False, multiprocessing_context='spawn')
    options = [f'train_dataloader.{name}={value}' for name, value in loading.items()]
    folder = tmp_path / 'runs'
    folder.mkdir()
    changes = ('train_cfg.max_epochs=60', 'train_cfg.val_interval=100')
    running = Running('train', RETINANET, '--work-dir', 'run', '--cfg-options', *options, *changes, cwd=folder,
                      environment=dict(GROUP='own'))  # fmt: skip
    running.wait_for(lambda: last_checkpoint(folder / 'run') and len(running.tree()) > 1)
    tree = running.tree()
    running.signal_group(signal.SIGTERM)
    result = running.finish()
    assert result.returncode == 143, result.stderr[-3000:]
    assert 'Traceback' not in result.stderr and 'Error' not in result.stderr
    assert end_of(folder / 'run')
    wait_for_end(tree)


def test_a_worker_that_is_stuck_holds_up_nobody(tmp_path):
    """Nothing but a kill ends it, and that has to come from the process that leaves."""
    hook = SignalAt('before_train', 1, signal.SIGINT, send_later)
    status, errors = end_in_group(tmp_path / 'run', hook, dataset=Stuck())
    assert status == 130 and errors.strip().splitlines()[-1] == 'interrupted' and 'Traceback' not in errors


def load_for_ever(connection) -> None:
    """Load samples that no pipe holds, say who the workers are, and then take no more."""
    loader = SHViTRunner.build_dataloader(
        dict(
            dataset=[bytes(300_000)] * 100,
            sampler=dict(type='DefaultSampler', shuffle=False),
            batch_size=1,
            num_workers=2,
            collate_fn=list,
        ),
        seed=0,
    )
    batches = iter(loader)
    next(batches)
    connection.send(process_tree(os.getpid())[1:])
    time.sleep(600)


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_a_process_that_is_killed(number):
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context('fork').Process(target=load_for_ever, args=(there,))
    process.start()
    assert here.poll(60)
    workers = here.recv()
    assert len(workers) == 2 and all(runs(worker) for worker in workers)
    os.kill(process.pid, number)
    process.join(60)
    wait_for_end(workers)
