"""Predictions of a test as a pickle: written whole, and kept when the test ends early."""

import pickle
from pathlib import Path
from typing import Any

from mmengine.evaluator import DumpResults
from mmengine.logging import print_log

from ..common.atomic_files import saving


class WholeDump(DumpResults):
    """A ``DumpResults`` with which a file that is there stays until the new one is whole."""

    def compute_metrics(self, results: list) -> dict:
        save_predictions(results, Path(self.out_file_path))
        print_log(f'Results has been saved to {self.out_file_path}.', 'current')
        return {}


def save_predictions(results: Any, path: Path) -> Path:
    """Write predictions as mmengine does.

    Raises:
        UsageError: If they cannot be written.
    """
    with saving(path) as part:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open('wb') as file:
            pickle.dump(results, file, protocol=2)
    return path


def save_partial(results: Any, path: Path) -> Path:
    """Write the predictions of a test that ended early beside the file that they were for, which stays as it is."""
    return save_predictions(results, path.with_name(f'{path.stem}.partial{path.suffix}'))
