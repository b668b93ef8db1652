"""mmengine's runner with whole checkpoints, channels-last, processes without a GPU, and a readable terminal."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_distributed, is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import MMLogger, print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import HOOKS, LOOPS, MODEL_WRAPPERS, OPTIM_WRAPPERS, Registry
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from ..checkpoint import check_checkpoint, load_checkpoint, load_content
from ..common.atomic_files import partial_path, publish
from ..common.errors import RunError, UsageError
from ..configuration.scores import was_evaluated
from ..data.checking.image_checks import is_local
from .hooks.finite_check import FiniteCheckHook
from .hooks.safe_checkpoint import SafeCheckpointHook
from .hooks.step_seed import StepSeedHook, reproducible
from .hooks.termination import TerminationHook
from .loader_workers import guard
from .loop import ResumableEpochLoop
from .memory_layout import ContiguousCheckpointHook, fit_state, fused_flags
from .mixed_precision import LossScaleOptimWrapper
from .resuming import check_optimizer

OF_WORKERS = ('persistent_workers', 'prefetch_factor', 'timeout', 'multiprocessing_context')
MMENGINE_HOOKS = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint')
DUMPS = ('System environment', 'Config:', 'Hooks will be executed', 'paramwise_options')


def class_of(node: dict[str, Any], registry: Registry) -> Any:
    """Return the class that a dict in a config is about, or None where it names none."""
    kind = node.get('type')
    return registry.get(kind) if isinstance(kind, str) else kind


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
    has_begun = False  # everything is built
    optim_wrapper: Any
    _train_dataloader: Any
    _resumed_from: dict[str, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.metrics: dict[str, Any] = {}  # of the last evaluation
        super().__init__(*args, **kwargs)

    def train(self) -> nn.Module:
        with sentences_of_workers():
            return super().train()

    def test(self) -> dict:
        with sentences_of_workers():
            return super().test()

    def setup_env(self, env_cfg: dict) -> None:
        if self.distributed and not is_distributed() and not torch.cuda.is_available():
            # mmengine's own start selects a CUDA device first
            options = dict(env_cfg.get('dist_cfg') or {}, backend='gloo')
            if options.get('timeout') is not None:
                options['timeout'] = timedelta(seconds=options['timeout'])
            options.pop('init_backend', None)
            distributed.init_process_group(**options)
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
        if self.distributed and not torch.cuda.is_available():
            if model_wrapper_cfg is None:
                unused = self.cfg.get('find_unused_parameters', False)
                model_wrapper_cfg = dict(broadcast_buffers=False, find_unused_parameters=unused)  # as mmengine has it
            model_wrapper_cfg.setdefault('type', 'MMDistributedDataParallel')
            kind = MODEL_WRAPPERS.get(model_wrapper_cfg['type'])
            if kind is not None and issubclass(kind, DistributedDataParallel):
                model_wrapper_cfg.setdefault('device_ids', None)  # mmengine's default names a GPU
        return super().wrap_model(model_wrapper_cfg, model)

    def register_hooks(
        self, default_hooks: dict[str, Any] | None = None, custom_hooks: list[Hook | dict] | None = None
    ) -> None:
        super().register_hooks(default_hooks, custom_hooks)
        for hook in (StepSeedHook(), FiniteCheckHook(), TerminationHook(), ContiguousCheckpointHook()):
            self.register_hook(hook)

    def register_default_hooks(self, hooks: dict[str, Any] | None = None) -> None:
        """Register as mmengine does; None also removes a hook that is no default of mmengine's but of the project."""
        super().register_default_hooks(
            {name: hook for name, hook in (hooks or {}).items() if hook is not None or name in MMENGINE_HOOKS}
        )

    def register_hook(self, hook: Hook | dict, priority: Any = None) -> None:
        """Register a hook as mmengine does, ours in the place of every ``CheckpointHook``."""
        if isinstance(hook, dict) and class_of(hook, HOOKS) is CheckpointHook:
            hook = dict(hook, type=SafeCheckpointHook)
        super().register_hook(hook, priority)

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        super().call_hook(fn_name, **kwargs)
        if fn_name in ('before_train', 'before_val', 'before_test'):
            self.has_begun = True
        elif fn_name == 'after_val_epoch':
            self.metrics = dict(kwargs.get('metrics') or {})

    def build_optim_wrapper(self, optim_wrapper: Any) -> Any:
        if isinstance(optim_wrapper, dict) and class_of(optim_wrapper, OPTIM_WRAPPERS) is AmpOptimWrapper:
            optim_wrapper = dict(optim_wrapper, type=LossScaleOptimWrapper)
        return super().build_optim_wrapper(optim_wrapper)

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict, seed: int | None = None, diff_rank_seed: bool = False
    ) -> DataLoader:
        """Build a loader as mmengine does; its workers end with this process, however it ends, and not before.

        Without workers, settings that are theirs alone are left out: torch refuses them then.
        """
        if isinstance(dataloader, dict) and not dataloader.get('num_workers'):
            idle = [name for name in OF_WORKERS if dataloader.get(name)]
            if idle:
                print_log(f'{" and ".join(idle)} of a loader left out, since its num_workers is 0', 'current')
            dataloader = {name: value for name, value in dataloader.items() if name not in idle}
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
        if isinstance(loop, dict):
            if ('type' in loop) == ('by_epoch' in loop):
                raise UsageError('train_cfg says by type or by by_epoch which loop it is for: give one of them')
            if loop.get('by_epoch') or ('type' in loop and class_of(loop, LOOPS) is EpochBasedTrainLoop):
                options = {name: value for name, value in loop.items() if name not in ('type', 'by_epoch', '_scope_')}
                loop = ResumableEpochLoop(self, self._train_dataloader, **options)
        built = super().build_train_loop(loop)
        self._train_dataloader = named  # where mmengine looks up the batch size
        return built

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
            evaluated = first or self.epoch == 0 or was_evaluated(Path(self.work_dir), self.epoch, self.iter)
            loop.resume_at(first, owes_evaluation=not evaluated)

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        """Save under another name first: a file with the final name is always whole.

        Remote storage, of a ``CheckpointHook`` with ``out_dir``, takes files as a whole by itself.
        """
        if is_local(str(out_dir), kwargs.get('backend_args')) and not any(args):
            self._save_whole(Path(out_dir) / filename, **kwargs)
        else:
            super().save_checkpoint(out_dir, filename, *args, **kwargs)
        if kwargs.get('save_optimizer', True) and kwargs.get('meta'):
            self.saved_iter = kwargs['meta'].get('iter', -1)

    def _save_whole(self, path: Path, **kwargs: Any) -> None:
        part = partial_path(path)
        try:
            super().save_checkpoint(str(part.parent), part.name, **kwargs)
            if is_main_process():
                publish(part, path)
        finally:
            if is_main_process():
                part.unlink(missing_ok=True)
