"""The scores of a run's evaluations: in memory for its table and curves, and in ``scores.json`` of its work dir.

The file tells a resumed run which evaluations its checkpoint has had, since a checkpoint is written before them. It
names the run, so that nothing is taken from another one that used the same work dir.
"""

import json
from collections.abc import Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..common.atomic_files import write_text
from ..common.log import warn

FILE = 'scores.json'
RUN = 'experiment_name'  # mmengine's name of a run and its start; runs that continue it keep it in their checkpoints


def run_of(content: Mapping[str, Any]) -> str | None:
    """Return the name of the run that wrote a checkpoint, of which this is the content."""
    name = content['message_hub'].get('runtime_info', {}).get(RUN)
    return name if isinstance(name, str) else None


def last_run(folder: Path) -> str | None:
    """Return the name of the run that began last in a work dir, or None if that is not known."""
    return _read(folder).get('run')


def read_scores(folders: Iterable[Path], run: str | None) -> list[dict[str, Any]]:
    """Return the evaluations of a run, as the first of the folders that knows it has them."""
    records = (record for folder in folders if (record := _read(folder)).get('run') == run and run is not None)
    return next((record['evaluations'] for record in records), [])


def was_evaluated(folders: Iterable[Path], run: str | None, iteration: int) -> bool:
    """Tell whether a run evaluated the weights that it had at an iteration."""
    return any(each['iter'] == iteration for each in read_scores(folders, run))


def _read(folder: Path) -> dict[str, Any]:
    path = folder / FILE
    if not path.is_file():
        return {}
    try:
        record: Any = json.loads(path.read_text(encoding='utf-8'))
    except ValueError:
        record = None
    if not isinstance(record, dict):
        warn(f'{path} is damaged: the scores of earlier evaluations are not known')
        return {}
    return record


def folders_of(runner: Runner) -> list[Path]:
    """Return the folders that may have the scores of a run that is resumed: the work dir and the checkpoint's."""
    return [Path(runner.work_dir), *([Path(runner._load_from).parent] if runner._load_from else [])]


def earlier_evaluations(runner: Runner) -> list[dict[str, Any]]:
    """Return the evaluations before the position of a run that is resumed; none of a run that starts."""
    if not runner._resume:
        return []
    found = read_scores(folders_of(runner), runner.message_hub.get_info(RUN))
    by_epoch = runner.epoch > 0  # the number of iterations in an epoch may have changed
    return [each for each in found if (each['epoch'] <= runner.epoch if by_epoch else each['iter'] <= runner.iter)]


class ScoresHook(Hook):
    """Keeps the scores of all evaluations of a run, also of those before it was resumed.

    Our runner calls it after all hooks; to mmengine's own runner the train tool adds it.
    """

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.evaluations: list[dict[str, Any]] = []

    def before_train(self, runner: Runner) -> None:
        self.evaluations = earlier_evaluations(runner)
        self._write(runner)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, Any] | None = None) -> None:
        scores = {name: float(value) for name, value in (metrics or {}).items() if isinstance(value, Real)}
        now = (runner.epoch, runner.iter)
        earlier = [each for each in self.evaluations if (each['epoch'], each['iter']) < now]
        self.evaluations = [*earlier, dict(epoch=runner.epoch, iter=runner.iter, scores=scores)]
        self._write(runner)

    def _write(self, runner: Runner) -> None:
        if is_main_process():
            record = dict(run=runner.message_hub.get_info(RUN), evaluations=self.evaluations)
            write_text(Path(runner.work_dir) / FILE, json.dumps(record, indent=1) + '\n')
