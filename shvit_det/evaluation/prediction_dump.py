"""All predictions of a test in a pickle file, which replaces an older one only when it is complete."""

import pickle
from pathlib import Path
from typing import Any

from mmengine.evaluator import DumpResults
from mmengine.logging import print_log

from ..common.atomic_files import saving


def prediction_dump(kind: type[DumpResults], path: str) -> DumpResults:
    """Return an evaluator of mmengine's or mmdet's that writes the predictions of a test into ``path``."""

    class SafeDump(kind):  # type: ignore[misc, valid-type]
        def compute_metrics(self, results: list) -> dict:
            save_predictions(results, Path(path))
            print_log(f'Results has been saved to {path}.', 'current')
            return {}

    return SafeDump(out_file_path=path)


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
    """Write the predictions of a test that ended early into ``NAME.partial.pkl`` beside ``path``, which stays."""
    return save_predictions(results, path.with_name(f'{path.stem}.partial{path.suffix}'))
