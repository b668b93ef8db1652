"""Reading pictures as the config's test pipeline reads them."""

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
from PIL import Image, UnidentifiedImageError

from ..common.errors import UsageError

Picture = NDArray[np.uint8]  # (H, W, 3), blue, green, red
ENDS = (b'\xff\xd9', b'IEND')  # of a JPEG and of a PNG
TELLING = (UsageError, OSError, AssertionError, cv2.error)  # errors whose sentence says enough
NO_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|insufficient memory|bad_alloc|ALLOC_FAILED", re.IGNORECASE
)


class Reader:
    """The test pipeline of a config without its annotations, for files and for arrays.

    Args:
        config: One whose test loader has a pipeline.

    Raises:
        UsageError: If it has none, or one that cannot be built.
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
        """Return the pixels that the first steps loaded, and what the whole pipeline makes of them.

        Pixels and results are in one frame, that of the picture as the pipeline loads it: mmcv turns it upright by its
        EXIF orientation unless the config says otherwise.

        Raises:
            UsageError: If the picture cannot be read in full; the sentence does not name it.
        """
        item: dict[str, Any]
        try:
            if isinstance(image, np.ndarray):
                if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                    raise UsageError(f'an array has to be (H, W, 3) of uint8, not {image.shape} of {image.dtype}')
                steps, item = self.of_arrays, {'img': image, 'img_id': number}
            else:
                check_whole(Path(image))
                steps, item = self.of_files, dict(img_path=str(image), img_id=number)
            pixels = None
            for step in steps:
                item = step(item)
                if pixels is None and 'img' in item:
                    pixels = to_picture(item['img'])
            sample = item['data_samples']
            if 'scale_factor' not in sample and sample.get('img_shape') == sample.get('ori_shape'):
                sample.set_metainfo(dict(scale_factor=(1.0, 1.0)))  # heads ask for it; without Resize nothing sets it
            assert pixels is not None, 'no step of the test pipeline loads it'
        except Exception as error:  # a pipeline may have steps of the user's own
            raise UsageError(f'it cannot be read as a picture ({reason_of(error)})') from error
        return pixels, item


def reason_of(error: Exception) -> str:
    """Return why a picture could not be read, predicted or drawn, in a few words; of a bug also where it is."""
    if is_out_of_memory(error):
        return 'out of memory'
    text = str(error).strip().split('\n')[0]
    if isinstance(error, TELLING) and text:
        return text
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f'{type(error).__name__}: {text}, in line {place.lineno} of {Path(place.filename).name}'


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether there was too little memory: Python, torch and OpenCV say so in ways of their own."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or (
        isinstance(error, RuntimeError | cv2.error) and bool(NO_MEMORY.search(str(error)))
    )


def to_picture(image: NDArray[Any]) -> Picture:
    """Return a loaded image as three bytes a pixel, a copy that later steps of the pipeline do not change."""
    values: NDArray[Any] = image.clip(0, 255).astype(np.uint8)
    if values.ndim == 2 or values.shape[2] == 1:
        values = cv2.cvtColor(values, cv2.COLOR_GRAY2BGR)
    return np.ascontiguousarray(values[..., :3])


def check_whole(path: Path) -> None:
    """Look for the end of a file: OpenCV gives a cut-off picture a grey lower part and says nothing.

    Raises:
        OSError: If it cannot be opened, is empty or is cut off.
    """
    with path.open('rb') as file:
        size = file.seek(0, 2)
        if size == 0:
            raise OSError('the file is empty')
        file.seek(max(0, size - 64))
        tail = file.read()
    if any(end in tail for end in ENDS):
        return
    try:
        with Image.open(path) as image:
            image.load()
    except UnidentifiedImageError:
        return  # no format that this knows: OpenCV decides
    except Image.DecompressionBombError as error:
        raise OSError(str(error)) from error
    except SyntaxError as error:  # a damaged PNG
        raise OSError(str(error)) from error
