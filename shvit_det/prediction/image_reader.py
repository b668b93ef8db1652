"""Images read by the test pipeline of a config, and the errors of single images as a reason in a few words."""

import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ..common.errors import UsageError
from ..common.image_files import find_fault, is_nearly_black, pages_of
from ..common.log import warn
from ..configuration.reading import inference_pipeline, type_of
from ..configuration.test_time_augmentation import tta_pipeline
from ..data.checking.image_checks import DecodeSettings
from .drawing import Picture

Source = str | Path | Picture | Image.Image
SELF_EXPLAINING = (UsageError, OSError, AssertionError, cv2.error)  # errors whose message is enough
NO_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|insufficient memory|bad_alloc|ALLOC_FAILED", re.IGNORECASE
)
THREAD_SAFE = ('LoadImageFromFile', 'Resize', 'FixScaleResize', 'Pad', 'Normalize', 'PackDetInputs')  # of mmcv, mmdet
HEIC = re.compile(rb'....ftyp(hei|hev|mif|msf)', re.DOTALL)  # how such a file begins


class ImageReader:
    """The test pipeline of a config without its annotations, for files, for arrays and for images of Pillow's.

    With ``tta`` it makes several views of each image, and an item has lists of inputs and samples.

    Raises:
        UsageError: If the config has no pipeline, or one that cannot be built.
    """

    def __init__(self, config: Config, tta: bool = False) -> None:
        from mmcv.transforms import Compose

        with suppress(ImportError):  # if it is there, Pillow opens HEIC too
            from pillow_heif import register_heif_opener

            register_heif_opener()
        try:
            steps = without_annotations(tta_pipeline(config) if tta else inference_pipeline(config))
            loader = dict(steps[0])
            of_arrays = dict(type='LoadImageFromNDArray', to_float32=loader.get('to_float32', False))
            with DefaultScope.overwrite_default_scope('mmdet'):
                self.of_files = Compose(steps).transforms
                self.of_arrays = Compose([of_arrays, *steps[1:]]).transforms
        except (RuntimeError, KeyError, AttributeError, TypeError, IndexError) as error:
            raise UsageError(f'the config has no test pipeline that can be built: {error}') from error
        kinds = [type(step) for step in self.of_files]
        self.is_thread_safe = all(  # known to keep nothing between two images, so that several threads may share them
            kind.__name__ in THREAD_SAFE and kind.__module__.startswith(('mmcv.', 'mmdet.')) for kind in kinds
        )
        self.settings = DecodeSettings(loader.get('color_type', 'color'), loader.get('imdecode_backend', 'cv2'))
        self.uses_opencv = type_of(loader) == 'LoadImageFromFile' and self.settings.backend in ('cv2', None)

    def load(self, image: Source) -> Picture:
        """Return the pixels that the pipeline loads, and take no further steps; errors are those of a call."""
        return self(image, whole=False)[0]

    def __call__(self, image: Source, number: int = 0, whole: bool = True) -> tuple[Picture, dict[str, Any]]:
        """Return the pixels that the pipeline loads, and the item that the whole pipeline makes of them.

        Results are in the coordinates of these pixels: mmcv turns an image upright by its EXIF orientation, unless the
        config says otherwise. ``number`` becomes the ``img_id``. If not ``whole``, the item is that of the step that
        loads the image.

        Raises:
            UsageError: If the image cannot be read completely; the sentence does not name it.
        """
        item: dict[str, Any]
        source, pixels = image, None
        try:
            source = self._checked_file(Path(image)) if isinstance(image, str | Path) else image
            if isinstance(source, Image.Image):
                source = self._pixels_of(source)
            if isinstance(source, Path):
                steps, item = self.of_files, dict(img_path=str(source), img_id=number)
            else:
                steps, item = self.of_arrays, dict(img=self._as_loaded(source), img_id=number)
            for step in steps:
                item = step(item)
                if pixels is None and 'img' in item:
                    pixels = to_picture(item['img'])
                    if isinstance(source, Path):
                        warn_if_nearly_black(source, item['img'], lambda: cv2.imread(str(source), cv2.IMREAD_UNCHANGED))
                    if not whole:
                        return pixels, item
            samples = item['data_samples']
            for sample in samples if isinstance(samples, list) else [samples]:
                if 'scale_factor' not in sample and sample.get('img_shape') == sample.get('ori_shape'):
                    sample.set_metainfo(dict(scale_factor=(1.0, 1.0)))  # which heads need and only Resize sets
            assert pixels is not None, 'no step of the test pipeline loads it'
        except Exception as error:  # a user's own steps may raise anything
            reason = reason_of(error)
            if isinstance(error, AssertionError) and isinstance(source, Path) and pixels is None:  # of the loading step
                deep = cv2.imread(str(source), cv2.IMREAD_UNCHANGED)
                if deep is not None and deep.dtype != np.uint8:
                    bits = 8 * deep.itemsize
                    reason = f'it has values of {bits} bits, which the pipeline does not load: scale it to 8 bits'
            raise UsageError(f'it cannot be read as a picture ({reason})') from error
        return pixels, item

    def pages(self, path: Path, numbers: list[int]) -> Iterator[Picture]:
        """Yield frames or pages of an image file, each as the pipeline would load it.

        Raises:
            UsageError: If one cannot be read; the sentence does not name the file.
        """
        with Image.open(path) as image:
            for number in numbers:
                try:
                    if image.format == 'TIFF':  # of which Pillow does not know all kinds
                        yield self._page_of_tiff(path, number)
                    else:
                        image.seek(number)
                        yield self._pixels_of(image)
                except (OSError, ValueError) as error:
                    raise UsageError(f'its page {number} cannot be read ({reason_of(error)})') from error

    def _page_of_tiff(self, path: Path, number: int) -> Picture:
        def load(flags: int) -> Any:
            return next(iter(cv2.imreadmulti(str(path), start=number, count=1, flags=flags)[1]), None)

        page = load(cv2.IMREAD_COLOR)
        if page is None:
            raise UsageError(f'its page {number} cannot be decoded by OpenCV')
        warn_if_nearly_black(path, page, lambda: load(cv2.IMREAD_UNCHANGED))
        return np.asarray(page)

    def _checked_file(self, path: Path) -> Path | Image.Image:
        """Return a file for the pipeline, or its image where OpenCV knows its format less well than Pillow does."""
        fault = find_fault(path)
        if fault is not None and fault.kind == 'unknown_format':
            with path.open('rb') as file:
                if HEIC.match(file.read(12)):
                    raise UsageError('it is a HEIC image, for which pillow-heif is needed: pip install pillow-heif')
        elif fault is not None:
            raise UsageError(f'it {fault.message}')
        if (count := len(pages_of(path))) > 1:
            warn(f'{path} has {count} pages or frames: the first is predicted')
        if fault is None and self.uses_opencv and not cv2.haveImageReader(str(path)):
            with Image.open(path) as image:
                image.load()
                return image
        return path

    def _pixels_of(self, image: Image.Image) -> Picture:
        """Return the pixels of an opened image as OpenCV would load them, blue first."""
        if self.settings.follows_exif:
            image = ImageOps.exif_transpose(image)
        if image.mode[0] in 'IF':
            values = np.asarray(image)
            if values.dtype != np.uint16:
                raise UsageError(f'it has values of {8 * values.itemsize} bits: scale them to 8 bits')
            pixels: Picture = (values >> 8).astype(np.uint8)
            warn_if_nearly_black('an image', pixels, lambda: values)
            return pixels
        if image.mode in ('LA', 'PA'):
            image = image.convert('RGBA')  # from which RGB drops the transparency, where it would mix it in
        return cv2.cvtColor(np.asarray(image.convert('RGB')), cv2.COLOR_RGB2BGR)  # type: ignore[return-value]

    def _as_loaded(self, array: Any) -> Picture:
        """Return an array with as many channels as the pipeline loads."""
        if not isinstance(array, np.ndarray):
            raise UsageError(f'an image is a file, an array or an image of Pillow, not of type {type(array).__name__}')
        has_channels = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
        if array.dtype != np.uint8 or not has_channels or not array.size:
            raise UsageError(
                f'an array has to be (H, W, 3), blue first, or (H, W), of uint8, not {array.shape} of {array.dtype}'
            )
        picture = to_picture(array)
        if self.settings.color_type.startswith('grayscale'):
            return cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)  # type: ignore[return-value]
        return picture


def without_annotations(steps: Sequence[Any]) -> list[Any]:
    """Return the steps of a pipeline, those within ``TestTimeAug`` too, without those that load annotations."""
    kept = []
    for step in steps:
        if isinstance(step, Mapping) and type_of(step) == 'TestTimeAug':
            views = [without_annotations(choices) for choices in step['transforms']]
            kept.append({**step, 'transforms': [choices for choices in views if choices]})
        elif 'Annotations' not in type_of(step):
            kept.append(step)
    return kept


def warn_if_nearly_black(name: str | Path, loaded: Picture, deep: Callable[[], NDArray[Any] | None]) -> None:
    """Log a warning for an image of more than 8 bits of which the pipeline loads nearly nothing."""
    if is_nearly_black(loaded, deep):
        warn(
            f'{name} has more than 8 bits and small values: the upper 8 bits, which are read in training and here, are '
            f'nearly black; if the model was trained on brighter images, scale it to 8 bits as they were'
        )


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
    """Return a copy of a loaded image with three bytes a pixel, which later steps of the pipeline do not change.

    Values of another range than 0 to 255 are scaled by the largest one.
    """
    image = np.asarray(image)  # also of a masked array, whose mask means nothing here
    largest = image.max(initial=0)
    if image.dtype != np.uint8 and largest > 0 and (largest > 255 or (image.dtype.kind == 'f' and largest <= 1)):
        image = image * (255 / largest)
    values: NDArray[Any] = image.clip(0, 255).astype(np.uint8)
    if values.ndim == 2 or values.shape[2] == 1:
        values = cv2.cvtColor(values, cv2.COLOR_GRAY2BGR)
    return np.ascontiguousarray(values[..., :3])
