"""Masks of objects from COCO's two kinds of segmentation: polygons and run-length codes (RLE)."""

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from fasegr.data.image_io import BadFile
from fasegr.data.transform import Box, resize_label

__all__ = ["window_mask"]


def window_mask(segmentation: Any, original: tuple[int, int], size: tuple[int, int], box: Box) -> np.ndarray:
    """The mask of an object after its image, of size `original`, is resized to `size` and cropped to `box`.

    segmentation: a list of polygons, each [x, y, x, y, ...] in pixels of the image, whose union is the object; or
    {"size", "counts"}, counts being numbers or COCO's compressed text. Polygons are resized first and rasterised by
    pycocotools at the new size; a code is decoded and each pixel takes the value under its centre. Sizes are (height,
    width). Returns bool (box.height, box.width). Raises BadFile saying what is wrong with the segmentation.
    """
    if isinstance(segmentation, list):
        return _polygon_mask(segmentation, (size[1] / original[1], size[0] / original[0]), box)
    if not isinstance(segmentation, dict) or {"size", "counts"} - set(segmentation):
        raise BadFile(f"a segmentation is a {type(segmentation).__name__}; expected polygons or a run-length code")
    if tuple(segmentation["size"]) != tuple(original):
        raise BadFile(f"a run-length code has the size {segmentation['size']} in an image of {list(original)}")
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
