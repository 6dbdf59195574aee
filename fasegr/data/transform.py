"""What is done to one training sample: resize, crop, flip, color, padding, applied to the image and to its labels.

No pixel is computed that the crop throws away. Sizes and positions are (height, width) and (y, x) in pixels; images
are RGB.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from PIL import Image

__all__ = [
    "Box",
    "ColorTransform",
    "Transform",
    "channels_first",
    "height_and_width",
    "pad",
    "resize_image",
    "resize_label",
]

PAD_VALUE = 128  # middle grey, close to the mean that the segmentor subtracts

_FLIPS = {"horizontal": Image.Transpose.FLIP_LEFT_RIGHT, "vertical": Image.Transpose.FLIP_TOP_BOTTOM}
_STRIP = 16384  # pixels whose temporaries stay in the cache


class Box(NamedTuple):
    """A rectangle of an image, in pixels."""

    y: int
    x: int
    height: int
    width: int


class Transform(NamedTuple):
    """The image is resized to `size`, cropped to `box`, flipped, changed in color and padded to `padded_size` at the
    right and the bottom.

    flip: "none", "horizontal" or "vertical".
    """

    size: tuple[int, int]
    box: Box
    padded_size: tuple[int, int]
    flip: str = "none"
    color: ColorTransform | None = None

    def apply_image(self, image: Image.Image | np.ndarray) -> np.ndarray:
        """uint8 (3, *padded_size) of an RGB image, PIL's or uint8 (H, W, 3)."""
        resized = resize_image(image, self.size, self.box)
        if self.flip != "none":
            resized = resized.transpose(_FLIPS[self.flip])
        pixels = channels_first(resized)
        if self.color is not None:
            pixels = self.color.apply_image(pixels)
        return pad(pixels, self.padded_size, PAD_VALUE)

    def apply_segmentation(self, segmentation: np.ndarray, fill: int) -> np.ndarray:
        """(*padded_size) of a map (H, W) of labels or segment ids, with `fill` in the padding."""
        return self.flip_and_pad(resize_label(segmentation, self.size, self.box), fill)

    def flip_and_pad(self, array: np.ndarray, fill: int) -> np.ndarray:
        """`array` (..., box.height, box.width), already resized and cropped; (..., *padded_size), contiguous."""
        if self.flip != "none":
            array = array[..., ::-1] if self.flip == "horizontal" else array[..., ::-1, :]
        return np.ascontiguousarray(pad(array, self.padded_size, fill))


def height_and_width(image: Image.Image | np.ndarray) -> tuple[int, int]:
    """Of an image, PIL's or (H, W, ...)."""
    return (image.height, image.width) if isinstance(image, Image.Image) else image.shape[:2]


def channels_first(image: Image.Image) -> np.ndarray:
    """A contiguous, writable copy: (3, H, W)."""
    return np.array(np.asarray(image).transpose(2, 0, 1), order="C")


def resize_image(image: Image.Image | np.ndarray, size: tuple[int, int], box: Box | None = None) -> Image.Image:
    """`image`, PIL's or uint8 (H, W, 3), resized to `size` and cropped to `box` (None: all of it): bilinear with
    antialiasing, without computing the rest. Of an array no more is read than the crop is made from.

    PIL evaluates its filter at the same places and sees the neighbours outside the window. Values are those of a full
    resize or one level off: between its two passes it rounds to 8 bits, and which comes first depends on the window.
    Of an array, the offset of the part that is read is subtracted from the places that PIL evaluates, so values half
    way between two levels may be rounded the other way: in a photograph below 1 %, by one level.
    """
    original = height_and_width(image)
    box = box or Box(0, 0, *size)
    is_array = isinstance(image, np.ndarray)
    if size == original:
        if is_array:
            return Image.fromarray(image[box.y : box.y + box.height, box.x : box.x + box.width])
        return image.crop((box.x, box.y, box.x + box.width, box.y + box.height))
    x0, y0, x1, y1 = _window(original, size, box)
    if is_array:
        reach_y, reach_x = (
            math.ceil(max(1.0, o / s)) + 1 for o, s in zip(original, size, strict=True)
        )  # of the filter
        top, left = max(0, math.floor(y0) - reach_y), max(0, math.floor(x0) - reach_x)
        image = Image.fromarray(image[top : math.ceil(y1) + reach_y, left : math.ceil(x1) + reach_x])
        x0, y0, x1, y1 = x0 - left, y0 - top, x1 - left, y1 - top
    return image.resize((box.width, box.height), Image.Resampling.BILINEAR, box=(x0, y0, x1, y1))


def _window(original: tuple[int, int], size: tuple[int, int], box: Box) -> tuple[float, float, float, float]:
    """Left, top, right and bottom, in pixels of the original, of what `box` cuts from it once resized to `size`."""
    scale_y, scale_x = original[0] / size[0], original[1] / size[1]
    return (
        box.x * scale_x,
        box.y * scale_y,
        min((box.x + box.width) * scale_x, original[1]),  # rounding may lead past the edge, which PIL refuses
        min((box.y + box.height) * scale_y, original[0]),
    )


def resize_label(labels: np.ndarray, size: tuple[int, int], box: Box) -> np.ndarray:
    """A map (H, W) of labels resized to `size` and cropped to `box`: each pixel takes the label under its centre.

    Centres, as the image's filter has them; rounding corners down, as `F.interpolate(mode="nearest")` does, would
    shift the labels against the image by up to half a pixel.
    """

    def sources(start: int, count: int, scaled: int, original: int) -> np.ndarray:
        return (2 * np.arange(start, start + count) + 1) * original // (2 * scaled)

    rows = sources(box.y, box.height, size[0], labels.shape[0])
    columns = sources(box.x, box.width, size[1], labels.shape[1])
    return labels.take(rows, 0).take(columns, 1)


class ColorTransform(NamedTuple):
    """A change of color. The defaults change nothing."""

    brightness: float = 0.0  # added, in levels of 255
    contrast: float = 1.0  # factor
    contrast_first: bool = True  # before or after saturation and hue
    saturation: float = 1.0  # factor of HSV's S, which is then cut to 1
    hue: float = 0.0  # rotation in degrees

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """`image`, uint8 (3, H, W), changed; the array itself if nothing changes.

        Brightness and contrast together are one table of 256 values; saturation and hue, which cost most, are computed
        together and skipped if neither changes. Results in between are not rounded to 8 bits, as they are in SSD's own
        code.
        """
        if self.saturation == 1 and self.hue == 0:
            table = _brighten(np.arange(256, dtype=np.float32), self.brightness, self.contrast)
            table = (table + np.float32(0.5)).astype(np.uint8)
            if np.array_equal(table, np.arange(256)):
                return image
            flat = Image.fromarray(image.reshape(-1, image.shape[2])).point(table.tolist())  # twice as fast as take
            return np.array(flat).reshape(image.shape)
        changed = np.empty_like(image)
        rows = max(1, _STRIP // image.shape[2])
        for top in range(0, image.shape[1], rows):
            strip = image[:, top : top + rows].astype(np.float32)
            strip = _brighten(strip, self.brightness, self.contrast if self.contrast_first else 1.0)
            strip = _saturate_and_rotate(strip, self.saturation, self.hue)
            strip = _brighten(strip, 0.0, 1.0 if self.contrast_first else self.contrast)
            strip += np.float32(0.5)
            changed[:, top : top + rows] = strip
        return changed


def _brighten(levels: np.ndarray, brightness: float, contrast: float) -> np.ndarray:
    """float32 `levels` of 0..255, changed in place."""
    if brightness != 0:
        levels += np.float32(brightness)
        np.maximum(levels, 0, out=levels)
        np.minimum(levels, 255, out=levels)
    if contrast != 1:
        levels *= np.float32(contrast)
        np.minimum(levels, 255, out=levels)
    return levels


def _saturate_and_rotate(rgb: np.ndarray, saturation: float, hue: float) -> np.ndarray:
    """HSV's S times `saturation` (cut to 1) and its hue turned by `hue` degrees (|hue| <= 60), V kept.

    rgb: float32 (3, ...), not negative. Let V, m be the largest and smallest channel, C = V - m, and r, g, b the
    channels less m. Around the circle of hues r is C for 120 degrees, falls to 0 within 60, stays 0 for 120 and
    climbs again; g and b do the same 120 and 240 degrees later. So r - g is linear in the hue on both of r's slopes,
    b being 0 on the falling one and C on the climbing one, and turning by t = hue / 60 in [0, 1] gives

        r' = clip(r - g - (1 - 2 t) b + (1 - t) C, 0, C)

    and g', b' by going on around the circle; for t < 0, g and b change parts. No hue is computed, and there are no
    cases to tell apart.
    """
    t = np.float32(abs(hue) / 60)
    value, least = rgb.max(0), rgb.min(0)
    chroma = value - least
    circle = np.concatenate([rgb, rgb[:2]])
    following, third = (circle[1:4], circle[2:5]) if hue >= 0 else (circle[2:5], circle[1:4])
    turned = rgb - following
    turned -= (1 - 2 * t) * third
    turned += (1 - t) * chroma + (1 - 2 * t) * least
    np.maximum(turned, 0, out=turned)
    np.minimum(turned, chroma, out=turned)
    factor = np.float32(saturation)  # of C, which is V where S is 1
    if saturation > 1:
        factor = np.minimum(factor, value / np.maximum(chroma, np.float32(1e-3)))
    turned *= factor
    turned += value - factor * chroma
    return turned


def pad(array: np.ndarray, size: tuple[int, int], value: int) -> np.ndarray:
    """`array` (..., H, W), padded to `size` at the right and the bottom; the array itself if it has that size."""
    height, width = array.shape[-2:]
    if (height, width) == tuple(size):
        return array
    padded = np.full((*array.shape[:-2], *size), value, array.dtype)
    padded[..., :height, :width] = array
    return padded
