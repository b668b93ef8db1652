"""mmcv rounds a side of a resized image to 0 if it is thin, as 6000x3 pixels are, and OpenCV refuses that size."""

from types import ModuleType


def keep_one_pixel(geometric: ModuleType) -> None:
    """Give ``mmcv.image.geometric`` sizes of at least one pixel to resize to."""
    scaled_size = geometric._scale_size

    def scaled_size_of_one_pixel(size: tuple[int, int], scale: float | tuple[float, float]) -> tuple[int, int]:
        width, height = scaled_size(size, scale)
        return max(1, width), max(1, height)

    geometric._scale_size = scaled_size_of_one_pixel  # type: ignore[attr-defined]
