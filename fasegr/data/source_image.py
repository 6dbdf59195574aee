"""A photograph of a dataset, of which only the part that a crop keeps is to be resized."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from fasegr.data.augmentation import Box, resize_image, resize_pixels
from fasegr.data.image_cache import DecodedCache
from fasegr.data.image_io import open_image, read_image, read_png

__all__ = ["DecodedPhotograph", "Photograph", "read_photograph"]


class Photograph:
    """An image as PIL decodes it. size: (height, width)."""

    def __init__(self, image: Image.Image):
        self.image, self.size = image, (image.height, image.width)

    def resized(self, size: tuple[int, int], box: Box) -> Image.Image:
        """What `box` cuts from the image resized to `size`."""
        return resize_image(self.image, size, box)


class DecodedPhotograph:
    """An image as an array, as the cache keeps it: uint8 (H, W, 3). size: (height, width)."""

    def __init__(self, pixels: np.ndarray):
        self.pixels, self.size = pixels, pixels.shape[:2]

    def resized(self, size: tuple[int, int], box: Box) -> Image.Image:
        """As `Photograph.resized`; a value may be one level off (`resize_pixels`)."""
        return resize_pixels(self.pixels, size, box)


def read_photograph(path: str | Path, cache: DecodedCache | None) -> Photograph | DecodedPhotograph:
    """Raises what `open_image` raises."""
    if cache is None:
        pixels = read_png(path)
        return Photograph(open_image(path)) if pixels is None else DecodedPhotograph(pixels)
    return DecodedPhotograph(cache.get(path, lambda: read_image(path)))
