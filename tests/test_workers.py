"""Workers of loaders when the process they work for is killed."""

import multiprocessing
import os
import signal
import time

import pytest
from processes import process_tree, runs

from shvit_det.engine.runner import SHViTRunner


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
    deadline = time.monotonic() + 60
    while (alive := [worker for worker in workers if runs(worker)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid, _ in alive:
        os.kill(pid, signal.SIGKILL)
    assert not alive
