"""What a training sample shows of an image: drawn once, then applied alike to its pixels and to its segments."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from fasegr.data.augmentation import Box, Colour, RandomCrop, ShortestEdge, SSDColour, change_colour, pad, resize_label
from fasegr.data.source_image import DecodedPhotograph, Photograph

__all__ = ["LargeScaleJitter", "ResizedCrop", "View", "channels_first"]

PAD_LEVEL = 128  # middle grey, near the mean that the segmentor subtracts

_FLIPS = {"horizontal": Image.Transpose.FLIP_LEFT_RIGHT, "vertical": Image.Transpose.FLIP_TOP_BOTTOM}

Labels = Callable[[], np.ndarray]  # gives the label map (H, W) of the image as it is


class View(NamedTuple):
    """`box` of the image resized to `size`, flipped, in the left top of a picture of size `padded`.

    flip: "none", "horizontal" or "vertical". Sizes are (height, width).
    """

    size: tuple[int, int]
    box: Box
    padded: tuple[int, int]
    flip: str = "none"
    colour: Colour | None = None

    def pixels(self, image: Photograph | DecodedPhotograph) -> np.ndarray:
        """uint8 (3, *padded)."""
        kept = image.resized(self.size, self.box)
        if self.flip != "none":
            kept = kept.transpose(_FLIPS[self.flip])
        pixels = channels_first(kept)
        if self.colour is not None:
            pixels = change_colour(pixels, self.colour)
        return pad(pixels, self.padded, PAD_LEVEL)

    def labels(self, labels: np.ndarray, fill: int) -> np.ndarray:
        """(*padded) of a map (H, W) of labels, or of other numbers; `fill` is around the image."""
        return self.place(resize_label(labels, self.size, self.box), fill)

    def place(self, array: np.ndarray, fill: int) -> np.ndarray:
        """`array` (..., box.height, box.width), flipped and padded: (..., *padded), contiguous."""
        if self.flip != "none":
            array = array[..., ::-1] if self.flip == "horizontal" else array[..., ::-1, :]
        return np.ascontiguousarray(pad(array, self.padded, fill))


def channels_first(image: Image.Image) -> np.ndarray:
    """A contiguous, writable copy: (3, H, W)."""
    return np.array(np.asarray(image).transpose(2, 0, 1), order="C")


def _check_flip(flip: str) -> str:
    if flip not in ("none", *_FLIPS):
        raise ValueError(f"INPUT.RANDOM_FLIP is {flip!r}; it must be 'horizontal', 'vertical' or 'none'")
    return flip


class ResizedCrop:
    """The shorter side drawn, a window cropped, colours distorted, flipped half of the time, padded to a multiple."""

    def __init__(
        self,
        resize: ShortestEdge,
        crop: RandomCrop | None = None,
        colour: SSDColour | None = None,
        flip: str = "none",
        size_divisibility: int = -1,
    ):
        self.resize, self.crop, self.colour, self.flip = resize, crop, colour, _check_flip(flip)
        self.multiple = max(1, size_divisibility)

    def draw(self, rng: np.random.Generator, size: tuple[int, int], labels: Labels) -> View:
        """A view of an image of `size`. `labels` is called where a crop looks at what it holds."""
        resized = self.resize.draw(rng, size)
        box = Box(0, 0, *resized)
        if self.crop is not None:
            looks = self.crop.max_area < 1
            box = self.crop.draw(rng, labels() if looks else np.empty((0, 0), np.uint8), resized)
        colour = self.colour.draw(rng) if self.colour else None
        flips = self.flip != "none" and rng.random() < 0.5
        height, width = (-(-side // self.multiple) * self.multiple for side in (box.height, box.width))
        return View(resized, box, (height, width), self.flip if flips else "none", colour)


class LargeScaleJitter:
    """Large-scale jittering (Ghiasi et al., CVPR 2021), as detectron2 and Mask2Former have it.

    The image is flipped half of the time and resized to fit a square of `image_size` times a factor drawn from
    `min_scale` to `max_scale`. What is larger than `image_size` is cropped, what is smaller padded. One number places
    the window along both sides, so that of an image that overhangs on both it lies on the diagonal.
    """

    def __init__(self, image_size: int, min_scale: float, max_scale: float, flip: str = "none"):
        if image_size < 1:
            raise ValueError(f"INPUT.IMAGE_SIZE is {image_size}; it must be the side of training samples, in pixels")
        if not 0 < min_scale <= max_scale:
            raise ValueError(
                f"INPUT.MIN_SCALE is {min_scale} and MAX_SCALE {max_scale}; they must be factors of IMAGE_SIZE "
                "above 0, the smaller first (0.1 and 2.0 are usual)"
            )
        self.image_size, self.min_scale, self.max_scale, self.flip = image_size, min_scale, max_scale, _check_flip(flip)

    def draw(self, rng: np.random.Generator, size: tuple[int, int], labels: Labels) -> View:
        """A view of an image of `size`; what the image holds is not looked at."""
        factor = self.image_size * rng.uniform(self.min_scale, self.max_scale) / max(size)
        place = rng.random()
        flips = self.flip != "none" and rng.random() < 0.5
        height, width = (max(1, round(side * factor)) for side in size)
        kept_height, kept_width = min(height, self.image_size), min(width, self.image_size)
        y, x = round((height - kept_height) * place), round((width - kept_width) * place)
        # the window is drawn on the flipped image
        if flips and self.flip == "horizontal":
            x = width - kept_width - x
        elif flips:
            y = height - kept_height - y
        flip = self.flip if flips else "none"
        return View((height, width), Box(y, x, kept_height, kept_width), (self.image_size, self.image_size), flip)
