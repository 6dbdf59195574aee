"""What a report keeps of each image: counts of pixels, from which every score and its interval can be computed."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from scipy import sparse
from torch import Tensor

from fasegr.evaluation.calibration import confidence, reliability_counts
from fasegr.evaluation.regions import SIZES, counts_by_size

__all__ = ["DISTANCES", "GROUPS", "CountsTable", "ImageCounts", "Recorder", "confidence_map", "distance_band"]

DISTANCES = (2, 4, 8, 16, 32)  # pixels from a boundary; the first band is up to 2
GROUPS = {
    "all": slice(0, 1),
    "boundary": slice(1, 2),
    "distance": slice(2, 3 + len(DISTANCES)),  # to 2, 4, ... pixels, and beyond the last
    "size": slice(3 + len(DISTANCES), 5 + len(DISTANCES) + len(SIZES)),  # of `counts_by_size`
}
_NUM_GROUPS = 5 + len(DISTANCES) + len(SIZES)
_MAP_SIDE = 192  # pixels of the longer side of a confidence map
_WAITING = 4  # images; each holds a few maps of its size


class ImageCounts(NamedTuple):
    """Counts of one image. Arrays hold what is not 0, as (cells, counts).

    confusion: of (C, C), truth by prediction. groups: of (_NUM_GROUPS, 3, C), for each of GROUPS the pixels of each
    class in both maps, in the ground truth and in the prediction. reliability: (BINS, 3), or None without scores.
    confidence: a small map, compressed, with its height and width.
    """

    file_name: str
    confusion: tuple[np.ndarray, np.ndarray]
    groups: tuple[np.ndarray, np.ndarray]
    reliability: np.ndarray | None
    confidence: tuple[bytes, int, int] | None


def count_image(
    file_name: str,
    truth: np.ndarray,
    prediction: np.ndarray,
    confusion: np.ndarray,
    boundary: np.ndarray | None,
    confidence: np.ndarray | None,
) -> ImageCounts:
    """truth, prediction: (H, W) integers in 0..C, C for pixels to ignore. confusion, boundary: (C + 1, C + 1) of the
    maps and of their boundaries; confidence: (H, W) in [0, 1]."""
    c = len(confusion) - 1
    groups = np.zeros((_NUM_GROUPS, 3, c), np.int64)
    for name, matrix in (("all", confusion), ("boundary", boundary)):
        if matrix is not None:
            groups[GROUPS[name]] = np.stack([matrix.diagonal(), matrix.sum(1), matrix.sum(0)])[:, :-1]
    offset = distance_band(truth).astype(np.int32) * (c + 1)
    for i, maps in enumerate((np.where(truth == prediction, truth, c), truth, prediction)):
        counts = np.bincount((offset + maps).ravel(), minlength=(len(DISTANCES) + 1) * (c + 1))
        groups[GROUPS["distance"], i] = counts.reshape(-1, c + 1)[:, :-1]
    groups[GROUPS["size"]] = counts_by_size(truth, prediction, c)
    reliable = small = None
    if confidence is not None:
        counted = truth != c
        reliable = reliability_counts(confidence[counted], (truth == prediction)[counted])
        step = -(-max(truth.shape) // _MAP_SIDE)
        levels = np.rint(confidence[::step, ::step] * 63).astype(np.uint8)
        small = (zlib.compress(levels.tobytes(), 1), *levels.shape)
    return ImageCounts(file_name, _nonzero(confusion[:-1, :-1]), _nonzero(groups), reliable, small)


def _nonzero(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    cells = np.flatnonzero(counts)
    return cells.astype(np.int32), counts.ravel()[cells].astype(np.int32)


def confidence_map(image: ImageCounts) -> np.ndarray | None:
    """(h, w) float in [0, 1] of the small map; None if there is none."""
    if image.confidence is None:
        return None
    data, height, width = image.confidence
    return np.frombuffer(zlib.decompress(data), np.uint8).reshape(height, width) / 63


def distance_band(labels: np.ndarray) -> np.ndarray:
    """How far each pixel is from a boundary: i where a pixel with another label is within DISTANCES[i] pixels along
    rows and columns, but none within DISTANCES[i - 1]; len(DISTANCES) where all are farther. The border of the image is
    no boundary. labels: (H, W) integers. Returns (H, W) uint8.
    """
    margin = DISTANCES[-1]
    height, width = labels.shape
    rows, columns = (np.arange(-margin, side + margin).clip(0, side - 1) for side in (height, width))
    padded = labels[rows][:, columns]
    corner = padded[:-1, :-1]
    mixed = (corner != padded[:-1, 1:]) | (corner != padded[1:, :-1]) | (corner != padded[1:, 1:])
    band = np.full(labels.shape, len(DISTANCES), np.uint8)
    # A pixel has another label within r pixels if one of the 2 x 2 blocks in the square around it, 2 r along a side,
    # is mixed; squares of twice the side are made of four.
    span = 1
    while span < 2 * margin:
        mixed = mixed[:-span] | mixed[span:]
        mixed = mixed[:, :-span] | mixed[:, span:]
        span *= 2
        if span // 2 in DISTANCES:
            start = margin - span // 2
            band -= mixed[start : start + height, start : start + width]
    return band


class Recorder:
    """Counts images while the next ones are computed, in a thread of its own, and keeps the counts in order.

    Counting is numpy's and SciPy's work, which leaves the interpreter to the model meanwhile.
    """

    def __init__(self):
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="report")
        self._waiting: deque[Future] = deque()
        self._images: list[ImageCounts] = []

    def add(
        self,
        file_name: str,
        truth: Tensor,
        prediction: Tensor,
        confusion: Tensor,
        boundary: Tensor | None,
        scores: Tensor | None,
    ) -> None:
        """Arguments as `count_image`'s, on the model's device; scores: (C, H, W) or None. Errors of an earlier image
        are raised here, or by `images`."""
        sure = None
        if scores is not None:  # reduced at once, since it is the largest tensor of all
            sure = confidence(scores, prediction.clamp(max=len(scores) - 1))
        self._waiting.append(self._pool.submit(_count_tensors, file_name, truth, prediction, confusion, boundary, sure))
        self._finish(_WAITING)

    def images(self) -> list[ImageCounts]:
        """Those of all images so far."""
        self._finish(0)
        return self._images

    def _finish(self, waiting: int) -> None:
        while len(self._waiting) > waiting:
            self._images.append(self._waiting.popleft().result())


def _count_tensors(file_name: str, *tensors: Tensor | None) -> ImageCounts:
    return count_image(file_name, *(None if tensor is None else tensor.cpu().numpy() for tensor in tensors))


class CountsTable(NamedTuple):
    """The counts of all N images. confusion: (N, C * C) and groups: (N, _NUM_GROUPS * 3 * C), sparse; reliability:
    (N, BINS, 3), or None where an image has none."""

    confusion: sparse.csr_matrix
    groups: sparse.csr_matrix
    reliability: np.ndarray | None
    num_classes: int

    @classmethod
    def of(cls, images: Sequence[ImageCounts], num_classes: int) -> CountsTable:
        has_scores = bool(images) and all(image.reliability is not None for image in images)
        return cls(
            _stack([image.confusion for image in images], num_classes**2),
            _stack([image.groups for image in images], _NUM_GROUPS * 3 * num_classes),
            np.stack([image.reliability for image in images]) if has_scores else None,
            num_classes,
        )

    def group(self, name: str) -> list[sparse.csr_matrix]:
        """(N, 3 C) for each part of a group: pixels in both maps, in the ground truth, in the prediction."""
        where, width = GROUPS[name], 3 * self.num_classes
        return [self.groups[:, i * width : (i + 1) * width] for i in range(where.start, where.stop)]


def _stack(rows: Sequence[tuple[np.ndarray, np.ndarray]], width: int) -> sparse.csr_matrix:
    ends = np.cumsum([0, *(len(cells) for cells, _ in rows)])
    cells, counts = (np.concatenate([row[i] for row in rows]) for i in (0, 1))
    return sparse.csr_matrix((counts.astype(np.float64), cells, ends), (len(rows), width))
