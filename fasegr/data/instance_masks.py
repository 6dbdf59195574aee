"""Masks of objects from COCO's two kinds of segmentation: polygons and run-length codes (RLE)."""

import math
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from fasegr.data.image_io import BadFile
from fasegr.data.transform import Box, resize_label

__all__ = ["mask_area", "usable_segmentation", "window_mask"]

_REACH = 10  # image sizes by which a corner may lie outside; pycocotools walks along every edge

_FORMS = (
    "polygons of numbers [[x, y, x, y, x, y, ...], ...], one polygon [x, y, ...], or a run-length code "
    "{'size': [height, width], 'counts': numbers or text}, alone or in a list"
)

Segmentation = list[list[float]] | dict[str, Any]


def usable_segmentation(segmentation: Any, size: tuple[int, int]) -> Segmentation | None:
    """`segmentation`, of an image of `size` (height, width), as polygons of at least three corners or a run-length
    code; None where nothing is left. One flat polygon, and a list of one code, are read too.

    Raises BadFile saying what is wrong with one that pycocotools would draw wrongly, or on which it would not return.
    """
    if not segmentation:
        return None
    if isinstance(segmentation, list) and all(type(value) in (int, float) for value in segmentation):
        segmentation = [segmentation]  # one polygon, as some programs write it
    elif isinstance(segmentation, list) and len(segmentation) == 1 and isinstance(segmentation[0], dict):
        segmentation = segmentation[0]  # one code
    if isinstance(segmentation, list):
        return [polygon for polygon in segmentation if _encloses(polygon, size)] or None
    if not isinstance(segmentation, dict) or {"size", "counts"} - set(segmentation):
        raise BadFile(f"a segmentation is a {type(segmentation).__name__}; expected {_FORMS}")
    if not isinstance(segmentation["size"], list | tuple) or tuple(segmentation["size"]) != tuple(size):
        raise BadFile(f"a run-length code has the size {segmentation['size']!r:.60} in an image of {list(size)}")
    try:
        counts = _run_lengths(segmentation["counts"])
    except (TypeError, ValueError, OverflowError):
        raise BadFile("a run-length code has 'counts' that are neither numbers nor COCO's compressed text") from None
    pixels, low, high = size[0] * size[1], counts.min(initial=0), counts.max(initial=0)
    if low < 0 or high > pixels or counts.sum() != pixels:
        raise BadFile(
            f"a run-length code has runs of {counts.sum()} pixels, of {low} to {high} each; its image has "
            f"{size[0]} x {size[1]} = {pixels}"
        )
    return {"size": list(size), "counts": segmentation["counts"]}


def _encloses(polygon: Any, size: tuple[int, int]) -> bool:
    if not isinstance(polygon, list):
        raise BadFile(f"has {polygon!r:.60} for a polygon; expected {_FORMS}")
    if not polygon:
        return False
    try:
        low, high = (min(polygon), max(polygon)) if math.isfinite(sum(polygon)) else (-math.inf, math.inf)
    except (TypeError, OverflowError):
        raise BadFile(f"has the polygon {polygon!r:.60}; expected {_FORMS}") from None
    reach = _REACH * max(size)
    if not (-reach <= low and high <= reach):
        raise BadFile(f"has a polygon with corners at {low} and {high}, far from its image of {size[0]} x {size[1]}")
    return len(polygon) >= 6 and len(polygon) % 2 == 0


def _run_lengths(counts: list | str | bytes) -> np.ndarray:
    """The lengths of the runs, int64, of either form of a code."""
    if isinstance(counts, list):
        if not all(type(count) is int for count in counts):
            raise TypeError
        return np.array(counts, np.int64)
    # As pycocotools' rleFrString: five bits a character, low ones first, the sign in the last; from the fourth on the
    # difference to the run before the last.
    text = np.frombuffer(counts.encode("ascii") if isinstance(counts, str) else counts, np.uint8).astype(np.int64) - 48
    last = text & 32 == 0
    ends = np.flatnonzero(last)
    lengths = np.diff(ends, prepend=-1)
    if not len(text) or text.min() < 0 or text.max() > 63 or not last[-1] or lengths.max() > 7:
        raise ValueError
    starts = ends - lengths + 1
    place = np.arange(len(text)) - np.repeat(starts, lengths)
    values = np.add.reduceat((text & 31) << (5 * place), starts)
    values -= (text[ends] >> 4 & 1) << (5 * lengths)
    for first in (1, 2):
        values[first::2] = np.cumsum(values[first::2])
    return values


def mask_area(segmentation: Any, size: tuple[int, int]) -> int:
    """Pixels of an object in its image of `size` (height, width). Raises BadFile as `window_mask`, whose mask at that
    size has as many, but for ties of a fifth of a pixel."""
    segmentation = usable_segmentation(segmentation, size)
    if not segmentation:
        return 0
    code = segmentation
    if isinstance(segmentation, list):
        code = coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
    elif isinstance(segmentation["counts"], list):
        code = coco_mask.frPyObjects(segmentation, *size)
    return int(coco_mask.area(code))


def window_mask(segmentation: Any, original: tuple[int, int], size: tuple[int, int], box: Box) -> np.ndarray:
    """The mask of an object after its image, of size `original`, is resized to `size` and cropped to `box`.

    segmentation: a list of polygons, each [x, y, x, y, ...] in pixels of the image, whose union is the object; or
    {"size", "counts"}, counts being numbers or COCO's compressed text. Polygons are resized first and rasterised by
    pycocotools at the new size; a code is decoded and each pixel takes the value under its centre. Sizes are (height,
    width). Returns bool (box.height, box.width). Raises BadFile saying what is wrong with the segmentation.
    """
    segmentation = usable_segmentation(segmentation, original)
    if not isinstance(segmentation, dict):
        return _polygon_mask(segmentation or [], (size[1] / original[1], size[0] / original[0]), box)
    code = segmentation
    if isinstance(code["counts"], list):
        code = coco_mask.frPyObjects(code, *code["size"])
    return resize_label(coco_mask.decode(code), size, box).astype(bool)


def _polygon_mask(polygons: list, scale: tuple[float, float], box: Box) -> np.ndarray:
    """Each polygon is rasterised only within its bounds, and not beyond the right and lower edges of `box`.

    pycocotools rounds corners to fifths of a pixel, negative ones in the other direction. So they are rounded first
    and then moved by whole pixels until none is negative, which changes only ties between two fifths.
    """
    mask = np.zeros((box.height, box.width), dtype=bool)
    for polygon in polygons:
        points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2) * scale
        points = np.floor(points * 5 + 0.5) / 5 - (box.x, box.y)
        left, top = np.floor(points.min(0)).astype(int).tolist()
        right, bottom = np.ceil(points.max(0)).astype(int).tolist()
        right, bottom = min(right + 1, box.width), min(bottom + 1, box.height)
        if right <= max(left, 0) or bottom <= max(top, 0):
            continue
        code = coco_mask.frPyObjects([(points - (left, top)).ravel()], bottom - top, right - left)
        part = coco_mask.decode(code)[..., 0].astype(bool)
        mask[max(top, 0) : bottom, max(left, 0) : right] |= part[max(-top, 0) :, max(-left, 0) :]
    return mask
