"""Objects of a label map, that is its connected regions, and how well a prediction finds those of each size.

Both maps of an image are cut into runs, pieces of a row with one label in each map. There are a few thousand of them,
and all else is arithmetic on runs.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

__all__ = ["SIZES", "counts_by_size"]

SIZES = (16, 32, 64, 128, 256)  # sides of the squares, in pixels, whose areas part small objects from larger ones


def counts_by_size(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixels of each class by the size of the objects they belong to.

    An object is a region of one class in the ground truth, whose pixels touch at sides or corners. What was predicted
    as its class around it counts against it: the wrong pixels of a predicted region go to the object of its class that
    the region covers most of, or to none if it covers no such object. So the counts of all sizes, and of none, sum up
    to those of the class.

    truth, prediction: (H, W) integers in 0..num_classes, the last for pixels to ignore, which are the same in both.
    Returns (len(SIZES) + 2, 3, num_classes) int64, for objects below SIZES[0]^2, ..., of SIZES[-1]^2 pixels and more,
    and for none: in both, in the ground truth, in the prediction.
    """
    width = truth.shape[1]
    truth, prediction = truth.astype(np.int32).ravel(), prediction.astype(np.int32).ravel()
    change = np.ones(truth.size, bool)
    np.logical_or(truth[1:] != truth[:-1], prediction[1:] != prediction[:-1], out=change[1:])
    change[::width] = True
    start = np.flatnonzero(change)
    length = np.diff(start, append=truth.size)
    true_class, predicted_class = truth[start], prediction[start]
    pairs = _touching(start, length, width, truth.size)
    true_region, predicted_region = (_regions(labels, pairs) for labels in (true_class, predicted_class))

    area = np.bincount(true_region, length).astype(np.int64)
    size = np.searchsorted(np.square(SIZES), area, side="right")  # of each region
    counts = np.zeros((len(SIZES) + 2, 3, num_classes + 1), np.int64)
    run_size = size[true_region]
    right = true_class == predicted_class
    np.add.at(counts, (run_size, 1, true_class), length)
    np.add.at(counts, (run_size[right], 0, true_class[right]), length[right])

    # The object that each predicted region covers most of.
    none = len(SIZES) + 1
    both, where = np.unique(predicted_region[right] * len(area) + true_region[right], return_inverse=True)
    order = np.argsort(np.bincount(where, length[right], minlength=len(both)), kind="stable")
    owner_size = np.full(predicted_region.max(initial=-1) + 1, none)
    owner_size[both[order] // len(area)] = size[both[order] % len(area)]  # of several, the last is kept
    charged = np.where(right, run_size, owner_size[predicted_region])
    np.add.at(counts, (charged, 2, predicted_class), length)
    return counts[..., :num_classes]


def _touching(start: np.ndarray, length: np.ndarray, width: int, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of runs that touch: each with the next of its row, and with those of the next row below it, also by a
    corner."""
    row = start // width
    n = len(start)
    beside = np.flatnonzero(row[1:] == row[:-1])
    above = np.flatnonzero(start + width < pixels)
    left = np.maximum(start[above] - 1, row[above] * width) + width
    right = np.minimum(start[above] + length[above], (row[above] + 1) * width - 1) + width
    first, last = (np.searchsorted(start, at, side="right") - 1 for at in (left, right))
    number = last - first + 1
    below = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number) + np.repeat(first, number)
    return np.concatenate([beside, np.repeat(above, number)]), np.concatenate([(beside + 1) % n, below])


def _regions(labels: np.ndarray, pairs: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """(n,) the region of each of n runs, those that touch and have the same label; pairs: of `_touching`."""
    same = labels[pairs[0]] == labels[pairs[1]]
    i, j = pairs[0][same], pairs[1][same]
    graph = coo_matrix((np.ones(len(i), bool), (i, j)), (len(labels), len(labels)))
    return connected_components(graph, directed=False)[1]
