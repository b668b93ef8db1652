"""The metadata in an exported detector's file: its classes, the resizing of its images, its config and weights."""

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from mmengine.config import Config

from ..common.errors import UsageError
from ..configuration.reading import inference_pipeline, type_of

KEY = 'shvit_det'
FORMAT = 1
LOADING_STEPS = ('LoadImageFromFile', 'LoadAnnotations', 'PackDetInputs')


@dataclass(frozen=True)
class Metadata:
    """The metadata of an exported detector, which its file has as JSON under the key ``shvit_det``."""

    format: int
    version: str  # of this package
    detector: str  # its class
    config: str
    weights: str
    classes: tuple[str, ...]  # the names of the classes by label
    images: str  # what the input images has to be, for a reader
    resize: dict[str, Any] | None  # the arguments of the config's Resize; None if it has none
    outputs: tuple[str, ...]  # the names of the outputs, in order

    def dump(self) -> str:
        """Return the metadata as JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def load(text: str | None, path: str) -> 'Metadata':
        """Return the metadata that :meth:`dump` wrote; ``path`` is the file that has them, for errors."""
        try:
            content = json.loads(text or 'null')
        except ValueError:
            content = None
        if not isinstance(content, dict) or content.get('format') != FORMAT:
            raise UsageError(f'{path} is no detector that tools/export.py of this version wrote')
        return Metadata(**{**content, 'classes': tuple(content['classes']), 'outputs': tuple(content['outputs'])})


def resize_rule(config: Config) -> dict[str, Any] | None:
    """Return how a config's test pipeline resizes images: the arguments of its ``Resize``, None if it has none.

    Raises:
        UsageError: If the pipeline does anything else to images, which the metadata could not tell.
    """
    rule: dict[str, Any] | None = None
    for step in inference_pipeline(config, needed=False):
        kind = type_of(step)
        if kind == 'Resize' and rule is None:
            rule = {key: value for key, value in step.items() if key != 'type'}
        elif kind not in LOADING_STEPS:
            raise UsageError(f"the config's test pipeline has a {kind}, which an exported detector cannot repeat")
    return rule


def resized(image: np.ndarray, rule: dict[str, Any] | None) -> np.ndarray:
    """Return an image as the config's test pipeline would resize it, by mmdet's rule.

    Shapes:
        (H, W, 3) -> (H', W', 3).
    """
    if rule is None:
        return image
    from mmdet.datasets.transforms import Resize  # which takes a second to import

    # JSON has turned tuples into lists
    arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in rule.items()}
    out: np.ndarray = Resize(**arguments)(dict(img=image))['img']
    return out
