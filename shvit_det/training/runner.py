"""The runner of our configs: safe checkpoints, exact resuming, channels-last, processes without a GPU."""

import copy
import io
import logging
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import is_distributed, is_main_process, master_only
from mmengine.hooks import LoggerHook
from mmengine.logging import MMLogger, print_log
from mmengine.optim import OptimWrapperDict
from mmengine.registry import MODEL_WRAPPERS
from mmengine.runner import BaseLoop, Runner
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from ..checkpoint import check_checkpoint, find_checkpoint, load_checkpoint, load_content
from ..checkpoint.loading import without_wrapper
from ..checkpoint.reading import read_content
from ..common.atomic_files import partial_file, publish
from ..common.durations import counted
from ..common.errors import UsageError
from ..configuration.changing import remove_pretrained, use_checked_datasets
from ..configuration.coco_set_checks import draw_sample_set
from ..data.checking.image_presence import is_local
from ..registry import RUNNERS, register
from .hooks.termination import Terminated, listening
from .loader_workers import errors_as_sentences, guard_workers
from .loop import ResumableEpochLoop
from .resumed_settings import restore
from .resuming import check_resumable, check_seed, checkpoint_location, last_checkpoint, take_seed
from .scores import ScoresHook, folders_of, run_of, was_evaluated
from .seeding import with_seeded_samples

WORKER_SETTINGS = ('persistent_workers', 'prefetch_factor', 'timeout', 'multiprocessing_context')
MMENGINE_HOOKS = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint')
LONG_MESSAGES = ('System environment', 'Config:', 'Hooks will be executed', 'paramwise_options')


def is_for_terminal(record: logging.LogRecord) -> bool:
    """Return False for mmengine's messages of several hundred lines, which go to the log file only."""
    return not record.getMessage().strip('\n -').startswith(LONG_MESSAGES)


@register(RUNNERS)
class SHViTRunner(Runner):
    """mmengine's runner for runs that may be interrupted: ``runner_type='SHViTRunner'``.

    Arguments, files and results are those of mmengine's. It adds:

    - a checkpoint has its final name only when it is complete;
    - checkpoints are read by :mod:`shvit_det.checkpoint`, and resumed within an epoch by ``ResumableEpochLoop``;
    - a resumed run has the settings of its config, and the log says where the checkpoint's were others;
    - a resumed run has the seed of the run that it continues;
    - mmdet's ``CocoDataset`` in the config becomes ``CheckedCocoDataset``, which checks data as ``bad_data`` says;
    - scores of evaluations are kept in the work dir (:mod:`.scores`);
    - training images have seeds of their own (:mod:`.seeding`), so that a resumed run sees the same ones;
    - SIGTERM and its like end a run after ``TerminationHook`` has saved it;
    - ``channels_last=True`` in the config lays out weights, and with them feature maps, as NHWC;
    - several processes can train without a GPU.
    """

    saved_iter = -1  # iterations that the newest checkpoint contains
    ran_first_hooks = False  # whether the hooks before training, validation or testing have run: all is built by then
    optim_wrapper: Any
    param_schedulers: Any
    _train_dataloader: Any
    _resumed_content: dict[str, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.scores = ScoresHook()
        super().__init__(*args, **kwargs)
        self._schedules = self.param_schedulers  # as the config names them

    @classmethod
    def from_cfg(cls, cfg: Any) -> Runner:
        config = copy.deepcopy(cfg) if isinstance(cfg, Config) else Config(cfg)
        cls.prepare(config)
        return super().from_cfg(config)

    @staticmethod
    def prepare(config: Config) -> None:
        """Change a config as its data and the checkpoint that it names want it, before anything is built.

        Raises:
            UsageError: If the checkpoint to resume from is unreadable, or holds no state of a run.
        """
        draw_sample_set(config)
        use_checked_datasets(config)
        if config.get('resume') and not config.get('load_from'):
            location = checkpoint_location(config)
            last = last_checkpoint(location.work_dir, location.folder)
            config.load_from = last and str(last)
        if not config.get('load_from'):
            return
        remove_pretrained(config)  # the checkpoint has these weights too
        if config.get('resume') and (config.get('randomness') or {}).get('seed') is None:
            path = find_checkpoint(config.load_from)
            content = read_content(path)
            check_resumable(content, path)
            take_seed(config, content['meta'].get('seed'), path)

    def dump_config(self) -> None:
        """Write the whole config into the work dir, unless the file that was read stands there under that name."""
        read = self.cfg.filename
        if not (read and Path(read).resolve() == Path(self.work_dir, Path(read).name).resolve()):
            super().dump_config()

    def train(self) -> nn.Module:
        """Train as mmengine does.

        Raises:
            Terminated: After a signal to end; what there was to save has been saved.
        """
        with errors_as_sentences(), listening() as signals:
            model = super().train()
            if signals.first:
                raise Terminated(signals.first)  # it came in or after the last evaluation, when all is saved
        return model

    def test(self) -> dict:
        for hook in self._hooks:
            if isinstance(hook, LoggerHook):  # in every process, mmengine's would write the same file of scores
                hook.after_test_epoch = master_only(hook.after_test_epoch)  # type: ignore[method-assign]
        with errors_as_sentences():
            return super().test()

    def setup_env(self, env_cfg: dict) -> None:
        if self.distributed and not is_distributed() and not torch.cuda.is_available():
            # mmengine would select a CUDA device first
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
            elif isinstance(handler.stream, io.TextIOWrapper):  # mmengine's has the encoding of the locale
                handler.stream.reconfigure(encoding='utf-8')
        return logger

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        if self.cfg.get('channels_last'):
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's annotations lack it
        if self.distributed and not torch.cuda.is_available():
            if model_wrapper_cfg is None:
                unused = self.cfg.get('find_unused_parameters', False)
                model_wrapper_cfg = dict(broadcast_buffers=False, find_unused_parameters=unused)  # mmengine's defaults
            model_wrapper_cfg.setdefault('type', 'MMDistributedDataParallel')
            kind = MODEL_WRAPPERS.get(model_wrapper_cfg['type'])
            if kind is not None and issubclass(kind, DistributedDataParallel):
                model_wrapper_cfg.setdefault('device_ids', None)  # mmengine's default names a GPU
        return super().wrap_model(model_wrapper_cfg, model)

    def register_default_hooks(self, hooks: dict[str, Any] | None = None) -> None:
        """Register hooks as mmengine does; None drops any of them, and not only mmengine's own six."""
        super().register_default_hooks(
            {name: hook for name, hook in (hooks or {}).items() if hook is not None or name in MMENGINE_HOOKS}
        )

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        super().call_hook(fn_name, **kwargs)
        if fn_name in ('before_train', 'before_val', 'before_test'):
            self.ran_first_hooks = True
        if fn_name in ('before_train', 'after_val_epoch'):
            getattr(self.scores, fn_name)(self, **kwargs)  # an evaluation counts when all hooks have seen its scores

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict, seed: int | None = None, diff_rank_seed: bool = False
    ) -> DataLoader:
        """Build a loader as mmengine does, with workers that end with this process and not before it.

        Without workers, their settings are left out: torch would refuse them.
        """
        if isinstance(dataloader, dict) and not dataloader.get('num_workers'):
            unused = [name for name in WORKER_SETTINGS if dataloader.get(name)]
            if unused:
                print_log(f'{" and ".join(unused)} of a loader left out, since its num_workers is 0', 'current')
            dataloader = {name: value for name, value in dataloader.items() if name not in unused}
        loader = Runner.build_dataloader(dataloader, seed, diff_rank_seed)
        guard_workers(loader)
        return loader

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        config = self._train_dataloader
        per_process = self._randomness_cfg.get('diff_rank_seed', False)
        loader: Any = self.build_dataloader(config, seed=self.seed, diff_rank_seed=per_process)
        if len(loader) == 0:
            images, size = len(loader.dataset), getattr(loader.batch_sampler, 'batch_size', loader.batch_size)
            if not images:
                raise UsageError('train_dataloader has no image: look at times, indices and the like of its data sets')
            raise UsageError(
                f'{counted(images, "training image")} make no whole batch of {size}: lower '
                f'train_dataloader.batch_size, or leave drop_last out'
            )
        if isinstance(loop, dict) and ('type' in loop) == ('by_epoch' in loop):
            raise UsageError('train_cfg says by type or by by_epoch which loop it is for: give one of them')
        self._train_dataloader = with_seeded_samples(loader, self.seed)
        built = super().build_train_loop(loop)
        self._train_dataloader = config  # where mmengine looks up the batch size
        return built

    def load_checkpoint(
        self, filename: str, map_location: Any = 'cpu', strict: bool = False, revise_keys: Any = ()
    ) -> dict[str, Any]:
        """Load a checkpoint with :mod:`shvit_det.checkpoint`, to resume a run or to start one from its weights.

        To start from, a file may have heads for another number of classes, which the log names.

        Raises:
            UsageError: If the file cannot be read, or its tensors are not those of the model.
        """
        if self._resume:
            content = check_checkpoint(self.model, filename)
            check_seed(self._randomness_cfg.get('seed'), content['meta'].get('seed'), filename)
            content['meta'].pop('config', None)  # mmengine would execute it as Python
            self._resumed_content = content
            self.call_hook('after_load_checkpoint', checkpoint=content)
            load_content(self.model, content, filename)
        else:
            load_checkpoint(self.model, filename, new_classes=True)
            model = without_wrapper(self.model)
            content = dict(state_dict=model.state_dict())
            self.call_hook('after_load_checkpoint', checkpoint=content)  # EMAHook copies the weights from here
        self._has_loaded = True
        return content

    def resume(
        self,
        filename: str,
        resume_optimizer: bool = True,
        resume_param_scheduler: bool = True,
        map_location: Any = 'default',
    ) -> None:
        """Resume from a checkpoint: its weights, moments and position, with the settings of this config.

        The log says in which settings the run of the checkpoint differed. Several optimizers go on with those of the
        checkpoint, as in mmengine.

        Raises:
            UsageError: If its state is not that of this run.
        """
        wrapper = self.optim_wrapper = self.build_optim_wrapper(self.optim_wrapper)
        several = isinstance(wrapper, OptimWrapperDict)
        try:
            super().resume(filename, resume_optimizer and several, resume_param_scheduler and several, map_location)
            content = self._resumed_content
            if not several:
                lines = restore(self, self._schedules, content, filename, resume_optimizer, resume_param_scheduler)
                if lines:
                    print_log('\n  '.join([f'{filename} -> this run, whose settings are used:', *lines]), 'current')
        except UsageError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            raise UsageError(
                f'{filename} cannot be resumed: this run cannot use its state of the optimizer, '
                f'the schedule or the log ({type(error).__name__}: {error})'
            ) from error
        loop, meta = self.train_loop, content['meta']
        if isinstance(loop, ResumableEpochLoop):
            first, count = meta.get('batch', 0), len(loop.dataloader)
            if first and meta.get('num_batches') != count:
                raise UsageError(
                    f'{filename} was written within an epoch of {meta.get("num_batches")} batches, and '
                    f'now an epoch has {count}: resume with the same data, batch size and number of processes, or '
                    f'from the checkpoint before it'
                )
            evaluated = first or self.epoch == 0 or was_evaluated(folders_of(self), run_of(content), meta['iter'])
            loop.resume_at(first, owes_evaluation=not evaluated)

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        """Save a checkpoint under another name, and rename it when it is complete.

        Remote storage, the ``out_dir`` of a ``CheckpointHook``, takes only complete files by itself.
        """
        if is_local(str(out_dir), kwargs.get('backend_args')) and not any(args) and is_main_process():
            path = Path(out_dir) / filename
            with partial_file(path) as part:
                super().save_checkpoint(str(part.parent), part.name, **kwargs)
                publish(part, path)
        else:  # in other processes mmengine does nothing
            super().save_checkpoint(out_dir, filename, *args, **kwargs)
        if kwargs.get('save_optimizer', True) and kwargs.get('meta'):
            self.saved_iter = kwargs['meta'].get('iter', -1)
