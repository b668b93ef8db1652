"""Images read by the test pipeline of a config, and the errors of single images as a reason in a few words."""

import re
import traceback
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from numpy.typing import NDArray

from ..common.errors import UsageError
from ..common.image_files import find_fault
from .drawing import Picture

SELF_EXPLAINING = (UsageError, OSError, AssertionError, cv2.error)  # errors whose message is enough
NO_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|insufficient memory|bad_alloc|ALLOC_FAILED", re.IGNORECASE
)


class ImageReader:
    """The test pipeline of a config without its annotations, for files and for arrays.

    Args:
        config: A config whose test loader has a pipeline.

    Raises:
        UsageError: If the config has no pipeline, or one that cannot be built.
    """

    def __init__(self, config: Config) -> None:
        from mmcv.transforms import Compose
        from mmdet.utils import get_test_pipeline_cfg

        try:
            steps = [step for step in get_test_pipeline_cfg(config) if 'Annotations' not in step['type']]
            loader = dict(steps[0])
            of_arrays = {key: loader[key] for key in ('to_float32',) if key in loader}
            with DefaultScope.overwrite_default_scope('mmdet'):
                self.of_files = Compose(steps).transforms
                self.of_arrays = Compose([dict(type='LoadImageFromNDArray', **of_arrays), *steps[1:]]).transforms
        except (RuntimeError, KeyError, AttributeError, TypeError, IndexError) as error:
            raise UsageError(f'the config has no test pipeline that can be built: {error}') from error

    def __call__(self, image: str | Path | Picture, number: int = 0) -> tuple[Picture, dict[str, Any]]:
        """Return the pixels that the pipeline loads, and the item that the whole pipeline makes of them.

        Results are in the coordinates of these pixels: mmcv turns an image upright by its EXIF orientation, unless the
        config says otherwise.

        Raises:
            UsageError: If the image cannot be read completely; the sentence does not name it.
        """
        item: dict[str, Any]
        try:
            if isinstance(image, np.ndarray):
                if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                    raise UsageError(f'an array has to be (H, W, 3) of uint8, not {image.shape} of {image.dtype}')
                steps, item = self.of_arrays, {'img': image, 'img_id': number}
            else:
                fault = find_fault(Path(image))
                if fault is not None and fault.kind != 'unknown_format':
                    raise UsageError(f'it {fault.message}')
                steps, item = self.of_files, dict(img_path=str(image), img_id=number)
            pixels = None
            for step in steps:
                item = step(item)
                if pixels is None and 'img' in item:
                    pixels = to_picture(item['img'])
            sample = item['data_samples']
            if 'scale_factor' not in sample and sample.get('img_shape') == sample.get('ori_shape'):
                sample.set_metainfo(dict(scale_factor=(1.0, 1.0)))  # which heads need and only Resize sets
            assert pixels is not None, 'no step of the test pipeline loads it'
        except Exception as error:  # a user's own steps may raise anything
            raise UsageError(f'it cannot be read as a picture ({reason_of(error)})') from error
        return pixels, item


def reason_of(error: Exception) -> str:
    """Return why an image could not be read, predicted or drawn, in a few words; of a bug also where it is."""
    if is_out_of_memory(error):
        return 'out of memory'
    text = str(error).strip().split('\n')[0]
    if isinstance(error, SELF_EXPLAINING) and text:
        return text
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f'{type(error).__name__}: {text}, in line {place.lineno} of {Path(place.filename).name}'


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether an error means too little memory, for which Python, torch and OpenCV have errors of their own."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or (
        isinstance(error, RuntimeError | cv2.error) and bool(NO_MEMORY.search(str(error)))
    )


def to_picture(image: NDArray[Any]) -> Picture:
    """Return a copy of a loaded image with three bytes a pixel, which later steps of the pipeline do not change."""
    values: NDArray[Any] = image.clip(0, 255).astype(np.uint8)
    if values.ndim == 2 or values.shape[2] == 1:
        values = cv2.cvtColor(values, cv2.COLOR_GRAY2BGR)
    return np.ascontiguousarray(values[..., :3])
