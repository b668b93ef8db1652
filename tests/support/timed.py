"""What the tests of the timing tool share: a clock that they set, small settings, tiny detectors."""

from pathlib import Path

import torch

from shvit_det.timing.clocks import CPUClock
from shvit_det.timing.settings import Settings

TINY_MASK_RCNN = str(Path(__file__).parents[1] / 'data' / 'tiny_mask_rcnn.py')
TINY_RETINANET = str(Path(__file__).parents[1] / 'data' / 'tiny_retinanet.py')


class SteppedClock(CPUClock):
    """Stands still, but for what a test adds."""

    def __init__(self) -> None:
        self.now = 0.0

    def mark(self) -> float:
        return self.now

    def delay(self, function, seconds: float):
        """Return ``function`` with a call that takes ``seconds`` on this clock."""

        def delayed(*args, **kwargs):
            self.now += seconds
            return function(*args, **kwargs)

        return delayed


def settings(**changes) -> Settings:
    return Settings(**{'device': torch.device('cpu'), 'threads': 1, 'shape': (96, 128), 'runs': 2, **changes})
