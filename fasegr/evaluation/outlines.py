"""Outlines of masks as polygons, for labelling tools."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from contourpy import FillType, contour_generator
from pycocotools import mask as coco_mask

__all__ = ["outlines"]

_TOLERANCE = 0.6  # pixels by which a line may miss the corners that it replaces
_IOU = 0.98  # with the mask that a polygon must have when it is filled


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Polygons of the regions of a mask, largest first, none for an empty mask.

    mask: (H, W) bool. Returns (n, 2) float64 arrays of x and y in pixels, from the left top corner of the image. Holes
    are joined to their outline by a cut of no width, which every program fills rightly. Corners are left out as long as
    the filled polygons and the mask keep an IoU of 0.98.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return []
    top, left = rows[0], columns[0]
    part = mask[top : rows[-1] + 1, left : columns[-1] + 1]
    best, best_iou = [], -1.0
    # A contour at half height cuts the corners of pixels off, which matters in regions of few pixels.
    for scale, tolerance in ((1, _TOLERANCE), (1, 0.0), (4, 0.0)):
        polygons = _polygons(part, scale, tolerance)
        iou = _filled_iou(polygons, part)
        if iou > best_iou:
            best, best_iou = polygons, iou
        if iou >= _IOU:
            break
    return [polygon + np.array([left, top]) for polygon in best]


def _polygons(mask: np.ndarray, scale: int, tolerance: float) -> list[np.ndarray]:
    fine = np.pad(mask.repeat(scale, 0).repeat(scale, 1), 1).astype(np.float64)
    contours = contour_generator(z=fine, fill_type=FillType.OuterOffset).filled(0.5, 2.0)
    polygons = []
    for points, offsets in zip(*contours, strict=True):
        # the last point of a ring is its first; a pixel's centre is at one half, and the padding is one pixel wide
        rings = [(points[a : b - 1] - 0.5) / scale for a, b in pairwise(offsets)]
        rings = [_simplified(ring, tolerance) for ring in rings]
        polygons.append(_joined([ring for ring in rings if len(ring) > 2]))
    polygons = [polygon for polygon in polygons if len(polygon) > 2]
    return sorted(polygons, key=lambda polygon: -abs(_area(polygon)))


def _simplified(ring: np.ndarray, tolerance: float) -> np.ndarray:
    """Douglas and Peucker: the corners of a closed ring (n, 2) without those that are within `tolerance` pixels of the
    line between the ones that are kept; with 0, without those on it."""
    n = len(ring)
    if n <= 3:
        return ring
    far = int(((ring - ring[0]) ** 2).sum(1).argmax())
    closed = np.concatenate([ring, ring[:1]])
    kept = np.zeros(n + 1, bool)
    kept[[0, far, n]] = True
    parts = [(0, far), (far, n)]
    while parts:
        a, b = parts.pop()
        if b - a < 2:
            continue
        line, points = closed[b] - closed[a], closed[a + 1 : b] - closed[a]
        length = np.hypot(*line)
        distance = np.abs(points[:, 0] * line[1] - points[:, 1] * line[0]) / length if length else np.hypot(*points.T)
        middle = int(distance.argmax())
        if distance[middle] > max(tolerance, 1e-9):
            kept[a + 1 + middle] = True
            parts += [(a, a + 1 + middle), (a + 1 + middle, b)]
    return ring[kept[:-1]]


def _joined(rings: Sequence[np.ndarray]) -> np.ndarray:
    """One ring of an outline and its holes: to each hole and back along the shortest way between two corners."""
    if not rings:
        return np.zeros((0, 2))
    whole = rings[0]
    for hole in rings[1:]:
        distance = ((whole[:, None] - hole) ** 2).sum(2)
        i, j = np.unravel_index(int(distance.argmin()), distance.shape)
        whole = np.concatenate([whole[: i + 1], hole[j:], hole[: j + 1], whole[i:]])
    return whole


def _area(polygon: np.ndarray) -> float:
    x, y = polygon.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def _filled_iou(polygons: Sequence[np.ndarray], mask: np.ndarray) -> float:
    if not polygons:
        return 0.0
    codes = coco_mask.frPyObjects([polygon.ravel().tolist() for polygon in polygons], *mask.shape)
    filled = coco_mask.decode(coco_mask.merge(codes)).astype(bool)
    return float((filled & mask).sum() / (filled | mask).sum())
