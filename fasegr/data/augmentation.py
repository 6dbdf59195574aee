"""Random augmentation of training images. `get_transform` draws the parameters; `Transform` then touches the pixels.

So a drawn set of parameters can be looked at and repeated. Sizes and positions are (height, width) and (y, x) in
pixels.
"""

from __future__ import annotations

import numpy as np

from fasegr.data.image_io import label_histogram
from fasegr.data.transform import Box, ColorTransform, Transform, resize_label

__all__ = [
    "ColorAugSSD",
    "LargeScaleJitter",
    "RandomCrop",
    "RareClasses",
    "ResizeCropFlip",
    "ResizeShortestEdge",
    "ResizeTo",
]


class ResizeShortestEdge:
    """Size after a resize that keeps the aspect ratio, sets the shorter side and bounds the longer one.

    short_edge_length: the shorter side is one of these ("choice"), or any integer between the two given ("range").
    0 keeps the size. multiple: if above 1, the sides are stretched to multiples of it, as transformers does.
    """

    def __init__(
        self,
        short_edge_length: int | tuple[int, ...],
        max_size: int,
        sample_style: str = "choice",
        *,
        multiple: int = 1,
    ):
        lengths = (short_edge_length,) if isinstance(short_edge_length, int) else tuple(short_edge_length)
        if sample_style == "range" and len(lengths) == 1:
            lengths *= 2
        is_range = len(lengths) == 2 and lengths[0] <= lengths[1]
        if not lengths or min(lengths) < 0 or (sample_style == "range" and not is_range):
            raise ValueError(
                f"the length of the shorter side is {lengths} with sample_style {sample_style!r}; expected sizes in "
                "pixels, of which 'range' takes two, the smaller first"
            )
        if max_size < 1:
            raise ValueError(f"the maximum of the longer side is {max_size}; it must be at least 1")
        if multiple < 1:
            raise ValueError(f"sides are stretched to a multiple of {multiple}; it must be at least 1")
        self.short_edge_length, self.max_size, self.sample_style = lengths, max_size, sample_style
        self.multiple = multiple

    def get_size(self, rng: np.random.Generator, size: tuple[int, int]) -> tuple[int, int]:
        lengths = self.short_edge_length
        if self.sample_style == "range":
            return self.output_size(size, int(rng.integers(lengths[0], lengths[1] + 1)))
        return self.output_size(size, lengths[int(rng.integers(len(lengths)))])

    def output_size(self, size: tuple[int, int], length: int | None = None) -> tuple[int, int]:
        """`size` with its shorter side set to `length` (None: the first of short_edge_length), or to less if the
        longer side would exceed max_size."""
        length = self.short_edge_length[0] if length is None else length
        if self.multiple > 1:
            return self._multiples(size, length)
        scale = 1 if length == 0 else min(length / min(size), self.max_size / max(size))
        height, width = (max(1, int(side * scale + 0.5)) for side in size)
        return height, width

    def _multiples(self, size: tuple[int, int], length: int) -> tuple[int, int]:
        short, long = sorted(size)
        if length:
            exact = min(length, self.max_size * short / long)
            short, long = round(exact), int(exact * long / short)
        sides = [-(-max(1, side) // self.multiple) * self.multiple for side in (short, long)]
        height, width = sides if size[0] <= size[1] else reversed(sides)
        return height, width


class ResizeTo:
    """The size (height, width) for images of any shape, whose aspect ratio is not kept."""

    def __init__(self, size: tuple[int, int]):
        self.size = size

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return self.size


class RareClasses:
    """Where crops should look: with probability `prob` at a random pixel of one class of the image, drawn with chances
    in inverse proportion to the classes' pixels in the training set.

    class_pixels: (C,) of the training set.
    """

    def __init__(self, prob: float, class_pixels: np.ndarray):
        self.prob, self.class_pixels = prob, np.asarray(class_pixels)

    def get_pixel(self, rng: np.random.Generator, sem_seg: np.ndarray) -> tuple[int, int] | None:
        """(y, x) in the labels `sem_seg` (H, W), or None where this crop looks for nothing."""
        if rng.random() >= self.prob:
            return None
        classes = np.flatnonzero(label_histogram(sem_seg)[: len(self.class_pixels)])
        if len(classes) == 0:
            return None
        chances = 1 / np.maximum(self.class_pixels[classes], 1)
        chosen = rng.choice(classes, p=chances / chances.sum())
        places = np.flatnonzero(sem_seg.ravel() == chosen)
        y, x = divmod(int(places[rng.integers(len(places))]), sem_seg.shape[1])
        return y, x


class RandomCrop:
    """A random window, drawn again (at most ten times in all) while one class fills too much of it.

    crop_type, crop_size: detectron2's INPUT.CROP.TYPE and SIZE: "absolute" (pixels, cut to the image), "relative"
    (shares of the image), "relative_range" (shares between the given ones and 1), "absolute_range" (both sides, in
    pixels, between the two numbers). single_category_max_area: largest share of the labelled pixels that one class may
    have, and the window must then hold two classes; 1 accepts any window. rare: what windows are drawn towards.
    """

    ATTEMPTS = 10

    def __init__(
        self,
        crop_type: str,
        crop_size: tuple[float, float],
        single_category_max_area: float = 1.0,
        ignore_label: int = 255,
        rare: RareClasses | None = None,
    ):
        self.crop_type, self.crop_size = crop_type, tuple(crop_size)
        self.single_category_max_area, self.ignore_label = single_category_max_area, ignore_label
        self.rare = rare

    @property
    def needs_sem_seg(self) -> bool:
        return self.single_category_max_area < 1 or self.rare is not None

    def get_crop_size(self, rng: np.random.Generator, size: tuple[int, int]) -> tuple[int, int]:
        if self.crop_type == "absolute":
            sides = (min(int(want), have) for want, have in zip(self.crop_size, size, strict=True))
        elif self.crop_type == "absolute_range":
            low, high = (int(bound) for bound in self.crop_size)
            sides = (int(rng.integers(min(have, low), min(have, high) + 1)) for have in size)
        else:
            spread = rng.random(2) if self.crop_type == "relative_range" else np.zeros(2)
            shares = np.asarray(self.crop_size) + spread * (1 - np.asarray(self.crop_size))
            sides = (max(1, int(have * share + 0.5)) for have, share in zip(size, shares, strict=True))
        height, width = sides
        return height, width

    def get_crop(self, rng: np.random.Generator, size: tuple[int, int], sem_seg: np.ndarray | None = None) -> Box:
        """A window of the image resized to `size`. sem_seg: labels (H, W) of the image before that, for
        `needs_sem_seg`."""
        pixel = None if self.rare is None else self.rare.get_pixel(rng, sem_seg)
        if pixel is not None:
            pixel = tuple(
                (2 * p + 1) * new // (2 * old) for p, new, old in zip(pixel, size, sem_seg.shape, strict=True)
            )
        any_will_do = self.single_category_max_area >= 1
        for _ in range(1 if any_will_do else self.ATTEMPTS):
            sides = self.get_crop_size(rng, size)
            if pixel is None:
                y, x = (int(rng.integers(whole - side + 1)) for whole, side in zip(size, sides, strict=True))
            else:
                y, x = (_start_around(rng, *place) for place in zip(pixel, size, sides, strict=True))
            box = Box(y, x, *sides)
            if any_will_do or self._is_varied(resize_label(sem_seg, size, box)):
                break
        return box  # the last one if none was varied: an image of one class can still be learnt from

    def _is_varied(self, labels: np.ndarray) -> bool:
        counts = np.bincount(labels.ravel())
        counts[self.ignore_label : self.ignore_label + 1] = 0
        return np.count_nonzero(counts) > 1 and counts.max() < counts.sum() * self.single_category_max_area


def _start_around(rng: np.random.Generator, place: int, whole: int, side: int) -> int:
    """The start of a window of `side` pixels, of `whole`, that has the pixel `place` in it; each is as likely."""
    first, last = max(0, place - side + 1), min(place, whole - side)
    return first + int(rng.integers(last - first + 1))


class ColorAugSSD:
    """Photometric distortion of SSD (Liu et al., ECCV 2016): each of four changes with probability one half."""

    BRIGHTNESS = 32.0
    CONTRAST = (0.5, 1.5)
    SATURATION = (0.5, 1.5)
    HUE_STEPS, HUE_STEP = 18, 2  # OpenCV counts hue in steps of two degrees, and so SSD draws it

    def get_transform(self, rng: np.random.Generator) -> ColorTransform:
        brightness = rng.uniform(-self.BRIGHTNESS, self.BRIGHTNESS) if rng.random() < 0.5 else 0.0
        contrast_first = bool(rng.random() < 0.5)
        contrast = rng.uniform(*self.CONTRAST) if rng.random() < 0.5 else 1.0
        saturation = rng.uniform(*self.SATURATION) if rng.random() < 0.5 else 1.0
        steps = int(rng.integers(-self.HUE_STEPS, self.HUE_STEPS + 1)) if rng.random() < 0.5 else 0
        return ColorTransform(brightness, contrast, contrast_first, saturation, float(steps * self.HUE_STEP))


class ResizeCropFlip:
    """Resize the shorter side, crop, distort colors, flip with probability one half, pad to a multiple.

    flip: "horizontal", "vertical" or "none". size_divisibility: sides are padded to a multiple of it; -1 does not pad.
    """

    def __init__(
        self,
        resize: ResizeShortestEdge,
        crop: RandomCrop | None = None,
        color: ColorAugSSD | None = None,
        flip: str = "none",
        size_divisibility: int = -1,
    ):
        self.resize, self.crop, self.color, self.flip = resize, crop, color, flip
        self.size_divisibility = max(1, size_divisibility)

    @property
    def needs_sem_seg(self) -> bool:
        """Whether `get_transform` looks at the classes of the image."""
        return self.crop is not None and self.crop.needs_sem_seg

    def get_transform(
        self, rng: np.random.Generator, size: tuple[int, int], sem_seg: np.ndarray | None = None
    ) -> Transform:
        """size: of the image. sem_seg: its labels (H, W), for `needs_sem_seg`."""
        resized = self.resize.get_size(rng, size)
        box = self.crop.get_crop(rng, resized, sem_seg) if self.crop else Box(0, 0, *resized)
        color = self.color.get_transform(rng) if self.color else None
        flip = self.flip if self.flip != "none" and rng.random() < 0.5 else "none"
        height, width = (-(-side // self.size_divisibility) * self.size_divisibility for side in box[2:])
        return Transform(resized, box, (height, width), flip, color)


class LargeScaleJitter:
    """Large-scale jittering (Ghiasi et al., CVPR 2021), as in detectron2 and Mask2Former.

    The image is flipped with probability one half and resized to fit a square of `image_size` times a factor between
    `min_scale` and `max_scale`. What is larger than `image_size` is cropped, what is smaller padded. One random number
    places the window along both sides, so in an image that is too large on both it lies on the diagonal.
    """

    needs_sem_seg = False

    def __init__(self, image_size: int, min_scale: float, max_scale: float, flip: str = "none"):
        self.image_size, self.min_scale, self.max_scale, self.flip = image_size, min_scale, max_scale, flip

    def get_transform(
        self, rng: np.random.Generator, size: tuple[int, int], sem_seg: np.ndarray | None = None
    ) -> Transform:
        """size: of the image. sem_seg: not used."""
        factor = self.image_size * rng.uniform(self.min_scale, self.max_scale) / max(size)
        position = rng.random()
        flip = self.flip if self.flip != "none" and rng.random() < 0.5 else "none"
        height, width = (max(1, round(side * factor)) for side in size)
        crop_height, crop_width = min(height, self.image_size), min(width, self.image_size)
        y, x = round((height - crop_height) * position), round((width - crop_width) * position)
        # detectron2 places the window on the flipped image
        if flip == "horizontal":
            x = width - crop_width - x
        elif flip == "vertical":
            y = height - crop_height - y
        box = Box(y, x, crop_height, crop_width)
        return Transform((height, width), box, (self.image_size, self.image_size), flip)
