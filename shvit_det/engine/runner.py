"""mmengine's runner with whole checkpoints, channels-last, processes without a GPU, and a readable terminal."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_distributed, is_main_process
from mmengine.hooks import LoggerHook
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner
from torch import distributed, nn

from ..checkpoint import check_checkpoint, load_checkpoint, load_content
from ..errors import UsageError
from .memory_layout import ContiguousCheckpointHook, fit_state, fused_flags

DUMPS = ('System environment', 'Config:', 'Hooks will be executed', 'paramwise_options')


def is_for_terminal(record: logging.LogRecord) -> bool:
    """Return False for mmengine's dumps of several hundred lines; the log file has them."""
    return not record.getMessage().strip('\n -').startswith(DUMPS)


@contextmanager
def sentences_of_workers() -> Iterator[None]:
    """Turn a mistake that a worker of a data loader found back into its sentence: torch hands on a whole traceback."""
    try:
        yield
    except UsageError as error:
        text, name = str(error), f'{UsageError.__module__}.{UsageError.__qualname__}: '
        raise UsageError(text.rsplit(name, 1)[-1].strip() if text.startswith('Caught ') else text) from error


class SHViTRunner(Runner):
    """The runner of our tools. Its arguments, its files and its results are those of mmengine's.

    ``channels_last=True`` in the config lays the weights out as NHWC in memory, and with them all feature maps.
    """

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

    def register_hooks(self, *args: Any, **kwargs: Any) -> None:
        super().register_hooks(*args, **kwargs)
        self.register_hook(ContiguousCheckpointHook())

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

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        built = super().build_train_loop(loop)
        if len(built.dataloader) == 0:
            raise UsageError(
                f'the {len(built.dataloader.dataset)} training images make no whole batch of '
                f'{built.dataloader.batch_size}: lower train_dataloader.batch_size'
            )
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

    def resume(self, *args: Any, **kwargs: Any) -> None:
        """Go on from a checkpoint, also of a run with another memory layout or other kernels of the optimizer."""
        wrapper = self.optim_wrapper
        fused = fused_flags(wrapper.optimizer) if isinstance(wrapper, OptimWrapper) else []
        super().resume(*args, **kwargs)
        if isinstance(wrapper, OptimWrapper):
            fit_state(wrapper.optimizer, fused)

    def load_checkpoint(
        self, filename: str, map_location: Any = 'cpu', strict: bool = False, revise_keys: Any = ()
    ) -> dict[str, Any]:
        """Load by way of :mod:`shvit_det.checkpoint`, to resume or to start from; always safely and in full.

        A file to start from may have heads for another number of classes; the log names their tensors.
        """
        if self._resume:
            content = check_checkpoint(self.model, filename)
            content['meta'].pop('config', None)  # mmengine would run it as Python
            self.call_hook('after_load_checkpoint', checkpoint=content)
            load_content(self.model, content, filename)
        else:
            load_checkpoint(self.model, filename, new_classes=True)
            model = self.model.module if is_model_wrapper(self.model) else self.model
            content = dict(state_dict=model.state_dict())
            self.call_hook('after_load_checkpoint', checkpoint=content)  # averages of weights start from these
        self._has_loaded = True
        return content

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        """Save under another name first: a file with the final name is always whole."""
        part = f'{filename}.part'
        try:
            super().save_checkpoint(out_dir, part, *args, **kwargs)
            if is_main_process():
                (Path(out_dir) / part).replace(Path(out_dir) / filename)
        finally:
            if is_main_process():
                (Path(out_dir) / part).unlink(missing_ok=True)
