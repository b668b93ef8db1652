"""Checkpoints saved so that a complete one exists at any moment, in a layout that any program can resume."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner
from torch import Tensor
from torch.utils._pytree import tree_map

from ...common.atomic_files import PART, write_text
from ...common.errors import UsageError
from ...registry import HOOKS, register

POINTER = 'last_checkpoint'
INTERRUPTED = 'interrupted.pth'


def point_at(runner: Runner, checkpoint: str) -> None:
    """Make a checkpoint the one that ``--resume`` takes."""
    write_text(Path(runner.work_dir) / POINTER, checkpoint)


@register(HOOKS)
class SafeCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook`` that saves, then points at the new file, then removes the oldest one.

    mmengine removes first: a full disk or a kill during the save then costs two checkpoints, and all of them with
    ``max_keep_ckpts=1``. Arguments and files are the same. Tensors are saved as NCHW, also those of a run in
    channels-last.
    """

    file_backend: Any

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        if is_main_process() and isinstance(self.file_backend, LocalBackend):
            names = self.filename_tmpl.format('*')
            for name in (names, f'best_*_{names}', INTERRUPTED):
                for part in Path(self.out_dir).glob(name + PART):  # left by a run that was killed during a save
                    part.unlink(missing_ok=True)
        length, unit = (runner.max_epochs, 'epochs') if self.by_epoch else (runner.max_iters, 'iterations')
        if not self.save_last and not 0 < (self.save_begin or self.interval) <= length:
            runner.logger.warning(
                f'This run of {length} {unit} saves no checkpoint to go on from: CheckpointHook has '
                f'interval={self.interval}, save_begin={self.save_begin} and save_last=False'
            )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        for weights in (content for key, content in checkpoint.items() if key.endswith('state_dict')):
            weights.update({name: _contiguous(value) for name, value in weights.items()})
        if 'optimizer' in checkpoint:
            checkpoint['optimizer'] = tree_map(_contiguous, checkpoint['optimizer'])
        if 'param_schedulers' in checkpoint:
            checkpoint['param_schedulers'] = _without_functions(checkpoint['param_schedulers'])

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        keep = getattr(self, 'keep_ckpt_ids', None)
        ids = list(dict.fromkeys((*(keep or ()), step)))
        if keep is not None:
            # The file also lists the checkpoint that is removed next. If the run is killed before that, mmengine's
            # `before_train` of the resumed run removes it.
            runner.message_hub.update_info('keep_ckpt_ids', ids)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            point_at(runner, self.last_ckpt)
            (Path(runner.work_dir) / INTERRUPTED).unlink(missing_ok=True)
        if keep is not None:
            for outdated in ids[: -self.max_keep_ckpts]:
                self._remove(self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(outdated)))
            keep.extend(ids[len(keep) :])
            runner.message_hub.update_info('keep_ckpt_ids', list(keep))

    def _save_best_checkpoint(self, runner: Runner, metrics: Mapping) -> None:
        for name in self.save_best or ():
            if name not in (*metrics, 'auto'):
                raise UsageError(
                    f'save_best of CheckpointHook is {name}, which is not measured: choose from {", ".join(metrics)}'
                )
        outdated: list[str] = []
        self.file_backend.remove = outdated.append  # only lists what is to be removed
        try:
            super()._save_best_checkpoint(runner, metrics)
        finally:
            del self.file_backend.remove  # the method of the class is back
        current = {getattr(self, 'best_ckpt_path', None), *getattr(self, 'best_ckpt_path_dict', {}).values()}
        for path in outdated:
            if path not in current:  # an evaluation that is repeated after a resume writes the same name again
                self._remove(path)

    def _remove(self, path: str) -> None:
        if is_main_process() and self.file_backend.isfile(path):
            self.file_backend.remove(path)


def _contiguous(value: Any) -> Any:
    return value.contiguous() if isinstance(value, Tensor) else value


def _without_functions(states: Any) -> Any:
    """Return the states of schedules without functions, as ``OneCycleLR`` has one: no file with code is read again."""
    if type(states) is dict:
        return {name: _without_functions(value) for name, value in states.items() if not callable(value)}
    return [_without_functions(state) for state in states] if isinstance(states, list) else states
