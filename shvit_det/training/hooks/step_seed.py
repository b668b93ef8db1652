"""A seed for every iteration, so that a resumed run draws the random numbers of an uninterrupted one."""

from mmengine.hooks import Hook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.runner import Runner

from ...registry import HOOKS, register
from ..seeding import STEP, seed_everything


@register(HOOKS)
class StepSeedHook(Hook):
    """Seed Python, numpy and torch before each training iteration, from the run's seed, the iteration and the rank."""

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None) -> None:
        seed_everything(runner.seed, STEP, runner.iter, runner.rank, devices=True)
