"""mmengine's runner with whole checkpoints, channels-last, processes without a GPU, and a readable terminal."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_distributed, is_main_process
from mmengine.hooks import CheckpointHook, Hook, LoggerHook
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner
from torch import distributed, nn
from torch.utils.data import DataLoader

from ..checkpoint import check_checkpoint, load_checkpoint, load_content
from ..errors import RunError, UsageError
from .amp import LossScaleOptimWrapper
from .atomic import part_of, settle
from .checkpoint_hook import SafeCheckpointHook
from .finite import FiniteCheckHook
from .loop import ResumableEpochLoop
from .memory_layout import ContiguousCheckpointHook, fit_state, fused_flags
from .randomness import StepSeedHook, reproducible
from .report import was_evaluated
from .resuming import check_optimizer
from .termination import TerminationHook
from .workers import guard

WITH_LOSS_SCALE = ('AmpOptimWrapper', 'mmengine.AmpOptimWrapper', AmpOptimWrapper)
EPOCH_LOOPS = ('EpochBasedTrainLoop', 'mmengine.EpochBasedTrainLoop', EpochBasedTrainLoop)
DUMPS = ('System environment', 'Config:', 'Hooks will be executed', 'paramwise_options')


def is_for_terminal(record: logging.LogRecord) -> bool:
    """Return False for mmengine's dumps of several hundred lines; the log file has them."""
    return not record.getMessage().strip('\n -').startswith(DUMPS)


@contextmanager
def sentences_of_workers() -> Iterator[None]:
    """Turn what a worker of a data loader has to say back into its sentence: torch hands on a whole traceback."""
    try:
        yield
    except RunError as error:
        text, name = str(error), f'{RunError.__module__}.{RunError.__qualname__}: '
        raise RunError(text.rsplit(name, 1)[-1].strip() if text.startswith('Caught ') else text) from error


class SHViTRunner(Runner):
    """The runner of our tools. Its arguments, its files and its results are those of mmengine's.

    ``channels_last=True`` in the config lays the weights out as NHWC in memory, and with them all feature maps.

    What it adds is there in every run: checkpoints that are whole (:mod:`.atomic`, :mod:`.checkpoint_hook`), random
    numbers that a resumed run draws again (:mod:`.randomness`), resuming within an epoch (:mod:`.loop`), SIGTERM
    (:mod:`.termination`), and a look at every loss and gradient (:mod:`.finite`).
    """

    saved_iter = -1  # iterations that the newest checkpoint has behind it
    optim_wrapper: Any
    _train_dataloader: Any
    _resumed_from: dict[str, Any]

    def train(self) -> nn.Module:
        with sentences_of_workers():
            return super().train()

    def test(self) -> dict:
        with sentences_of_workers():
            return super().test()

    def setup_env(self, env_cfg: dict) -> None:
        if self.distributed and not is_distributed() and not torch.cuda.is_available():
            distributed.init_process_group(backend='gloo')  # mmengine's own start selects a CUDA device first
        super().setup_env(env_cfg)

    def build_logger(self, log_level: int | str = 'INFO', log_file: str | None = None, **kwargs: Any) -> MMLogger:
        logger = super().build_logger(log_level, log_file, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.addFilter(is_for_terminal)
        return logger

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        if self.cfg.get('channels_last'):
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's annotations lack it
        if self.distributed and model_wrapper_cfg is None and not torch.cuda.is_available():
            model_wrapper_cfg = dict(
                type='MMDistributedDataParallel',
                device_ids=None,  # mmengine's default names a GPU
                broadcast_buffers=False,
                find_unused_parameters=self.cfg.get('find_unused_parameters', False),
            )
        return super().wrap_model(model_wrapper_cfg, model)

    def register_hooks(
        self, default_hooks: dict[str, Any] | None = None, custom_hooks: list[Hook | dict] | None = None
    ) -> None:
        hooks: dict[str, Any] = dict(default_hooks or {})
        checkpoint = hooks.setdefault('checkpoint', dict(type='CheckpointHook', interval=1))
        if isinstance(checkpoint, dict) and checkpoint['type'] in (
            'CheckpointHook',
            'mmengine.CheckpointHook',
            CheckpointHook,
        ):
            hooks['checkpoint'] = dict(checkpoint, type=SafeCheckpointHook)
        super().register_hooks(hooks, custom_hooks)
        for hook in (StepSeedHook(), FiniteCheckHook(), TerminationHook(), ContiguousCheckpointHook()):
            self.register_hook(hook)

    def build_optim_wrapper(self, optim_wrapper: Any) -> Any:
        if isinstance(optim_wrapper, dict) and optim_wrapper.get('type') in WITH_LOSS_SCALE:
            optim_wrapper = dict(optim_wrapper, type=LossScaleOptimWrapper)
        return super().build_optim_wrapper(optim_wrapper)

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict, seed: int | None = None, diff_rank_seed: bool = False
    ) -> DataLoader:
        """Build a loader as mmengine does; its workers end with this process, however it ends, and not before."""
        loader = Runner.build_dataloader(dataloader, seed, diff_rank_seed)
        guard(loader)
        return loader

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        named = self._train_dataloader
        per_process = self._randomness_cfg.get('diff_rank_seed', False)
        loader: Any = self.build_dataloader(named, seed=self.seed, diff_rank_seed=per_process)
        if len(loader) == 0:
            raise UsageError(
                f'the {len(loader.dataset)} training images make no whole batch of '
                f'{loader.batch_size}: lower train_dataloader.batch_size'
            )
        self._train_dataloader = reproducible(loader, self.seed)
        if isinstance(loop, dict) and (loop.get('type') in EPOCH_LOOPS or loop.get('by_epoch')):
            options = {name: value for name, value in loop.items() if name not in ('type', 'by_epoch', '_scope_')}
            loop = ResumableEpochLoop(self, self._train_dataloader, **options)
        built = super().build_train_loop(loop)
        self._train_dataloader = named  # where mmengine looks up the batch size
        self._log_ten_times(len(built.dataloader) if isinstance(built, EpochBasedTrainLoop) else built.max_iters)
        return built

    def build_test_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        built = super().build_test_loop(loop)
        self._log_ten_times(len(built.dataloader))
        return built

    def _log_ten_times(self, num_batches: int) -> None:
        """Shorten the interval of the log so that a short epoch shows its progress too."""
        for hook in self.hooks:
            if isinstance(hook, LoggerHook):
                hook.interval = max(1, min(hook.interval, num_batches // 10))

    def load_checkpoint(
        self, filename: str, map_location: Any = 'cpu', strict: bool = False, revise_keys: Any = ()
    ) -> dict[str, Any]:
        """Load by way of :mod:`shvit_det.checkpoint`, to resume or to start from; always safely and in full.

        A file to start from may have heads for another number of classes; the log names their tensors.
        """
        if self._resume:
            content = check_checkpoint(self.model, filename)
            content['meta'].pop('config', None)  # mmengine would run it as Python
            self._resumed_from = content['meta']
            if 'optimizer' in content and isinstance(self.optim_wrapper, OptimWrapper):
                check_optimizer(content['optimizer'], self.optim_wrapper.optimizer, filename)
            self.call_hook('after_load_checkpoint', checkpoint=content)
            load_content(self.model, content, filename)
        else:
            load_checkpoint(self.model, filename, new_classes=True)
            model = self.model.module if is_model_wrapper(self.model) else self.model
            content = dict(state_dict=model.state_dict())
            self.call_hook('after_load_checkpoint', checkpoint=content)  # averages of weights start from these
        self._has_loaded = True
        return content

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Go on from a checkpoint, also of a run with another memory layout or other kernels of the optimizer.

        Raises:
            UsageError: If its state does not fit this run.
        """
        wrapper = self.optim_wrapper = self.build_optim_wrapper(self.optim_wrapper)
        fused = fused_flags(wrapper.optimizer) if isinstance(wrapper, OptimWrapper) else []
        try:
            super().resume(filename, *args, **kwargs)
        except UsageError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            raise UsageError(
                f'{filename} cannot be resumed: its state of the optimizer, the schedule or the log is none that this '
                f'run can take ({type(error).__name__}: {error})'
            ) from error
        if isinstance(wrapper, OptimWrapper):
            fit_state(wrapper.optimizer, fused)
        loop = self.train_loop
        if isinstance(loop, ResumableEpochLoop):
            first, count = self._resumed_from.get('batch', 0), len(loop.dataloader)
            if first and self._resumed_from.get('num_batches') != count:
                raise UsageError(
                    f'{filename} was written within an epoch of {self._resumed_from.get("num_batches")} batches, and '
                    f'now an epoch has {count}: resume with the same data, batch size and number of processes, or '
                    f'from the checkpoint before it'
                )
            evaluated = first or self.epoch == 0 or was_evaluated(Path(self.work_dir), self.epoch)
            loop.resume_at(first, owes_evaluation=not evaluated)

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        """Save under another name first: a file with the final name is always whole."""
        path = Path(out_dir) / filename
        try:
            super().save_checkpoint(out_dir, part_of(path).name, *args, **kwargs)
            if is_main_process():
                settle(path)
        finally:
            if is_main_process():
                part_of(path).unlink(missing_ok=True)
        if kwargs.get('save_optimizer', True) and kwargs.get('meta'):
            self.saved_iter = kwargs['meta'].get('iter', -1)
