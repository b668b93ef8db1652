"""All predictions of a test in a pickle file, which replaces an older one only when it is complete."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.evaluator import DumpResults, Evaluator
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


class DumpingEvaluator(Evaluator):
    """A dump with an evaluator of any kind behind it: predictions are written before anything is computed of them.

    Args:
        dump: What writes the predictions.
        scorer: The evaluator of the config.
    """

    def __init__(self, dump: DumpResults, scorer: Evaluator) -> None:
        super().__init__(dump)
        self.scorer = scorer

    def process(self, data_samples: Sequence[Any], data_batch: Any = None) -> None:
        super().process(data_samples, data_batch)
        self.scorer.process(data_samples, data_batch)

    def evaluate(self, size: int) -> dict[str, Any]:
        super().evaluate(size)
        scores: dict[str, Any] = self.scorer.evaluate(size)
        return scores


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
