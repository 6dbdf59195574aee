"""Random changes of a training image, each split in two: parameters are drawn first, and pixels touched last.

So no pixel is computed that a later crop throws away, and a drawn set of parameters can be looked at and repeated.
Sizes and places are (height, width) and (y, x) in pixels; images are RGB.
"""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image

__all__ = [
    "Box",
    "Colour",
    "RandomCrop",
    "SSDColour",
    "ShortestEdge",
    "change_colour",
    "pad",
    "resize_image",
    "resize_label",
    "resize_pixels",
]

_STRIP = 16384  # pixels whose temporaries stay in the cache


class Box(NamedTuple):
    """A rectangle of an image, in pixels."""

    y: int
    x: int
    height: int
    width: int


class ShortestEdge:
    """Size after a resize that keeps the proportions, sets the shorter side and bounds the longer one.

    lengths: the shorter side is one of these ("choice"), or any integer between the two given ("range"). 0 keeps the
    size.
    """

    def __init__(self, lengths: int | tuple[int, ...], max_size: int, sampling: str = "choice"):
        lengths = (lengths,) if isinstance(lengths, int) else tuple(lengths)
        if sampling not in ("choice", "range"):
            raise ValueError(f"MIN_SIZE_TRAIN_SAMPLING is {sampling!r}; it must be 'choice' or 'range'")
        if sampling == "range" and len(lengths) == 1:
            lengths *= 2
        if not lengths or min(lengths) < 0 or (sampling == "range" and (len(lengths) != 2 or lengths[0] > lengths[1])):
            raise ValueError(
                f"the shorter side is to be {lengths} by {sampling!r}; expected sizes in pixels, "
                "of which 'range' takes two, the smaller first"
            )
        if max_size < 1:
            raise ValueError(f"the longest side is bounded by {max_size}; it must be at least 1")
        self.lengths, self.max_size, self.sampling = lengths, max_size, sampling

    def draw(self, rng: np.random.Generator, size: tuple[int, int]) -> tuple[int, int]:
        if self.sampling == "range":
            return self.scaled(size, int(rng.integers(self.lengths[0], self.lengths[1] + 1)))
        return self.scaled(size, self.lengths[int(rng.integers(len(self.lengths)))])

    def scaled(self, size: tuple[int, int], length: int) -> tuple[int, int]:
        """`size` with its shorter side made `length`, or less where the longer side meets its bound."""
        if length == 0:
            return size
        scale = min(length / min(size), self.max_size / max(size))
        height, width = (max(1, int(side * scale + 0.5)) for side in size)
        return height, width


class RandomCrop:
    """A random window, drawn again (at most ten times in all) while one class fills too much of it.

    kind, size: detectron2's INPUT.CROP.TYPE and SIZE: "absolute" (pixels, cut to the image), "relative" (shares of
    the image), "relative_range" (shares between the given ones and 1), "absolute_range" (both sides, in pixels,
    between the two numbers). max_area: largest share of the labelled pixels that one class may have, and the window
    must then hold two classes; 1 accepts any window.
    """

    ATTEMPTS = 10

    def __init__(self, kind: str, size: tuple[float, float], max_area: float = 1.0, ignore_label: int = 255):
        kinds = ("absolute", "absolute_range", "relative", "relative_range")
        if kind not in kinds:
            raise ValueError(f"INPUT.CROP.TYPE is {kind!r}; it must be one of {', '.join(kinds)}")
        if len(size) != 2 or min(size) <= 0 or (kind.startswith("relative") and max(size) > 1):
            raise ValueError(
                f"INPUT.CROP.SIZE is {tuple(size)} with TYPE {kind!r}; expected two "
                + ("shares of the image in (0, 1]" if kind.startswith("relative") else "sizes in pixels, at least 1")
            )
        if kind == "absolute_range" and size[0] > size[1]:
            raise ValueError(f"INPUT.CROP.SIZE is {tuple(size)}; 'absolute_range' takes the smaller bound first")
        if not 0 < max_area <= 1:
            raise ValueError(f"INPUT.CROP.SINGLE_CATEGORY_MAX_AREA is {max_area}; it must be in (0, 1]")
        self.kind, self.size, self.max_area, self.ignore_label = kind, tuple(size), max_area, ignore_label

    def _draw_size(self, rng: np.random.Generator, size: tuple[int, int]) -> tuple[int, int]:
        if self.kind == "absolute":
            sides = (min(int(want), have) for want, have in zip(self.size, size, strict=True))
        elif self.kind == "absolute_range":
            low, high = (int(bound) for bound in self.size)
            sides = (int(rng.integers(min(have, low), min(have, high) + 1)) for have in size)
        else:
            spread = rng.random(2) if self.kind == "relative_range" else np.zeros(2)
            shares = np.asarray(self.size) + spread * (1 - np.asarray(self.size))
            sides = (max(1, int(have * share + 0.5)) for have, share in zip(size, shares, strict=True))
        height, width = sides
        return height, width

    def draw(self, rng: np.random.Generator, labels: np.ndarray, size: tuple[int, int]) -> Box:
        """A window of the image once resized to `size`; `labels` are those of the image as it is, before that."""
        for _ in range(self.ATTEMPTS if self.max_area < 1 else 1):
            height, width = self._draw_size(rng, size)
            y, x = int(rng.integers(size[0] - height + 1)), int(rng.integers(size[1] - width + 1))
            box = Box(y, x, height, width)
            if self.max_area >= 1 or self._is_varied(resize_label(labels, size, box)):
                break
        return box  # the last one where none was varied: an image of one class is still to be learnt from

    def _is_varied(self, labels: np.ndarray) -> bool:
        counts = np.bincount(labels.ravel())
        counts[self.ignore_label : self.ignore_label + 1] = 0
        return np.count_nonzero(counts) > 1 and counts.max() < counts.sum() * self.max_area


def resize_image(image: Image.Image, size: tuple[int, int], box: Box) -> Image.Image:
    """What `box` cuts from `image` resized to `size`, bilinear with antialiasing, without computing the rest.

    PIL evaluates its filter at the same places and sees the neighbours outside the window. Values are those of a full
    resize or one level off: between its two passes it rounds to 8 bits, and which comes first depends on the window.
    """
    if size == (image.height, image.width):
        return image.crop((box.x, box.y, box.x + box.width, box.y + box.height))
    x0, y0, x1, y1 = _window((image.height, image.width), size, box)
    return image.resize((box.width, box.height), Image.Resampling.BILINEAR, box=(x0, y0, x1, y1))


def resize_pixels(pixels: np.ndarray, size: tuple[int, int], box: Box) -> Image.Image:
    """`resize_image` of an image that is an array (H, W, 3): no more of it is read than `box` is made from.

    Where the part begins is taken off the places that PIL evaluates, so values half way between two levels may be
    rounded the other way: below 1 % of a photograph's, by one level.
    """
    original = pixels.shape[:2]
    if size == original:
        return Image.fromarray(pixels[box.y : box.y + box.height, box.x : box.x + box.width])
    x0, y0, x1, y1 = _window(original, size, box)
    margin_y, margin_x = (math.ceil(max(1.0, o / s)) + 1 for o, s in zip(original, size, strict=True))  # filter's reach
    top, left = max(0, math.floor(y0) - margin_y), max(0, math.floor(x0) - margin_x)
    part = Image.fromarray(pixels[top : math.ceil(y1) + margin_y, left : math.ceil(x1) + margin_x])
    window = (x0 - left, y0 - top, x1 - left, y1 - top)
    return part.resize((box.width, box.height), Image.Resampling.BILINEAR, box=window)


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
    """The same for a label map (H, W): each pixel takes the label under its centre.

    Centres, as the image's filter has them; rounding corners down, as `F.interpolate(mode="nearest")` does, would
    shift the labels against the image by up to half a pixel.
    """

    def sources(start: int, count: int, scaled: int, original: int) -> np.ndarray:
        return (2 * np.arange(start, start + count) + 1) * original // (2 * scaled)

    rows = sources(box.y, box.height, size[0], labels.shape[0])
    columns = sources(box.x, box.width, size[1], labels.shape[1])
    return labels.take(rows, 0).take(columns, 1)


class Colour(NamedTuple):
    """A drawn change of colour. The defaults change nothing."""

    brightness: float = 0.0  # added, in levels of 255
    contrast: float = 1.0  # factor
    contrast_first: bool = True  # before or after saturation and hue
    saturation: float = 1.0  # factor of HSV's S, which is then cut to 1
    hue: float = 0.0  # rotation in degrees


class SSDColour:
    """Photometric distortion of SSD (Liu et al., ECCV 2016): each of four changes with chance one half."""

    BRIGHTNESS = 32.0
    CONTRAST = (0.5, 1.5)
    SATURATION = (0.5, 1.5)
    HUE_STEPS, HUE_STEP = 18, 2  # OpenCV counts hue in steps of two degrees, and so SSD draws it

    def draw(self, rng: np.random.Generator) -> Colour:
        brightness = rng.uniform(-self.BRIGHTNESS, self.BRIGHTNESS) if rng.random() < 0.5 else 0.0
        contrast_first = bool(rng.random() < 0.5)
        contrast = rng.uniform(*self.CONTRAST) if rng.random() < 0.5 else 1.0
        saturation = rng.uniform(*self.SATURATION) if rng.random() < 0.5 else 1.0
        steps = int(rng.integers(-self.HUE_STEPS, self.HUE_STEPS + 1)) if rng.random() < 0.5 else 0
        return Colour(brightness, contrast, contrast_first, saturation, float(steps * self.HUE_STEP))


def change_colour(image: np.ndarray, colour: Colour) -> np.ndarray:
    """`image`, uint8 (3, H, W), with `colour` applied; may be the array itself where nothing changes.

    Brightness and contrast alone are one table of 256 values; saturation and hue, which cost most, are taken together
    and skipped where neither changes. Results in between are not rounded to 8 bits, as they are in SSD's own code.
    """
    if colour.saturation == 1 and colour.hue == 0:
        table = _brighten(np.arange(256, dtype=np.float32), colour.brightness, colour.contrast)
        table = (table + np.float32(0.5)).astype(np.uint8)
        if np.array_equal(table, np.arange(256)):
            return image
        flat = Image.fromarray(image.reshape(-1, image.shape[2])).point(table.tolist())  # twice as fast as table.take
        return np.array(flat).reshape(image.shape)
    changed = np.empty_like(image)
    rows = max(1, _STRIP // image.shape[2])
    for top in range(0, image.shape[1], rows):
        strip = image[:, top : top + rows].astype(np.float32)
        strip = _brighten(strip, colour.brightness, colour.contrast if colour.contrast_first else 1.0)
        strip = _saturate_and_rotate(strip, colour.saturation, colour.hue)
        strip = _brighten(strip, 0.0, 1.0 if colour.contrast_first else colour.contrast)
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

    and g', b' by going on around the circle; for t < 0, g and b change parts. No hue is computed, and no case told
    apart.
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
    """`array` (..., H, W), extended to the right and below with `value` to `size`; the array itself where it has it."""
    height, width = array.shape[-2:]
    if (height, width) == tuple(size):
        return array
    padded = np.full((*array.shape[:-2], *size), value, array.dtype)
    padded[..., :height, :width] = array
    return padded
