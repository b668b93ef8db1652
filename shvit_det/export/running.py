"""Exported detectors, run on NumPy arrays by ONNX Runtime or OpenVINO, or in place of mmdet's detector in a test."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import nn

from ..common.errors import UsageError, first_line
from ..configuration.detection import Detection
from ..configuration.reading import type_of
from ..runtimes.onnx_runtimes import RUNTIME_OF, RUNTIMES, is_exported
from .metadata import KEY, Metadata, resized


class Detections(NamedTuple):
    """The detections of one image, from the highest score; boxes and masks are in pixels of the original image.

    Shapes:
        boxes: (M, 4), left, top, right, bottom.
        labels: (M,), indices into the names of the classes.
        scores: (M,), 0 to 1.
        masks: (M, height, width), bool; None of a detector without masks.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    masks: np.ndarray | None


class ExportedDetector:
    """A file that ``tools/export.py`` wrote, ready to run.

    Args:
        path: ``FILE.onnx``, which ONNX Runtime runs, or ``FILE.xml``, which OpenVINO runs.
        threads: How many the runtime uses.

    Raises:
        UsageError: If the file is missing or no exported detector, or its runtime is not installed.
    """

    def __init__(self, path: str | Path, threads: int = 1) -> None:
        path = str(path)
        if not Path(path).is_file():
            raise UsageError(f'no such exported detector: {path}')
        if not is_exported(path):
            raise UsageError(f'an exported detector ends in {" or ".join(RUNTIME_OF)}, but this is {path}')
        name = RUNTIME_OF[Path(path).suffix]
        RUNTIMES[name].check_installed(name)
        try:
            self.runtime = RUNTIMES[name](path, threads)
        except Exception as error:  # each runtime has many kinds of errors
            raise UsageError(f'{path} cannot be read by {name}: {first_line(error)}') from error
        self.metadata = Metadata.load(self.runtime.metadata(KEY), path)

    def __call__(self, image: np.ndarray) -> Detections:
        """Return the detections of one image, (H, W, 3) uint8 in BGR as OpenCV reads it; it is resized first."""
        small = resized(image, self.metadata.resize)
        images = np.ascontiguousarray(small.transpose(2, 0, 1)[None])
        return self.detect(images, image.shape[:2])[0]

    def detect(self, images: np.ndarray, original_size: Sequence[int]) -> list[Detections]:
        """Return the detections of each image of a batch.

        Args:
            images: (B, 3, H, W), uint8, resized.
            original_size: Height and width of the images before they were resized, for boxes and masks.
        """
        outs = self.runtime.test_step(images, np.array(original_size, dtype=np.int64))
        named = dict(zip(self.metadata.outputs, outs, strict=True))
        found = []
        for number in range(len(images)):
            own = named['image_indices'] == number
            masks = named['masks'][own] if 'masks' in named else None  # copies: the runtime may reuse its memory
            found.append(Detections(named['boxes'][own], named['labels'][own], named['scores'][own], masks))
        return found


class ExportedModel(nn.Module):
    """An exported detector with mmdet's ``test_step``, for test loops: batches in, data samples out."""

    def __init__(self, detector: ExportedDetector) -> None:
        super().__init__()
        self.detector = detector

    def test_step(self, data: dict[str, list[Any]]) -> list[DetDataSample]:
        """Return the data samples of a batch with their predictions; images of one size are run at once."""
        inputs, samples = data['inputs'], data['data_samples']
        groups: dict[Any, list[int]] = {}
        for number, (image, sample) in enumerate(zip(inputs, samples, strict=True)):
            groups.setdefault((tuple(image.shape), tuple(sample.ori_shape[:2])), []).append(number)
        for (_, original_size), numbers in groups.items():
            images = np.stack([inputs[number].numpy() for number in numbers])
            for number, found in zip(numbers, self.detector.detect(images, original_size), strict=True):
                samples[number].pred_instances = instances(found)
        return samples


def instances(found: Detections) -> InstanceData:
    """Return detections as mmdet's ``InstanceData``."""
    data = InstanceData(
        bboxes=torch.from_numpy(found.boxes),
        scores=torch.from_numpy(found.scores),
        labels=torch.from_numpy(found.labels.astype(np.int64)),
    )
    if found.masks is not None:
        data.masks = torch.from_numpy(found.masks.astype(bool))
    return data


def open_exported(path: str, config: Config) -> ExportedModel:
    """Return the model of an exported file for a test by a config.

    Raises:
        UsageError: If the file cannot be opened, or its detector or its classes are not those of the config.
    """
    detector = ExportedDetector(path, torch.get_num_threads())
    metadata = detector.metadata
    for split, classes in Detection().stated_classes(config, ('test',)):
        if classes != metadata.classes:
            raise UsageError(f'{path} has other classes than the {split} data set: it was made of {metadata.config}')
    own = type_of(config.model.get('detector', config.model))  # that of a semi-supervised detector
    if metadata.detector != own:
        raise UsageError(f'{path} is a {metadata.detector}, but the config has a {own}')
    return ExportedModel(detector)
