"""Counting pairs of labels, and the scores that follow from the counts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


def count_pairs(truth: Tensor, prediction: Tensor, num_labels: int) -> Tensor:
    """How often each pair of labels meets.

    truth, prediction: integers in [0, num_labels) of one shape on one device.
    Returns (num_labels, num_labels) int64 on that device: rows are the truth's labels, columns the prediction's.
    """
    index = truth.flatten().int() * num_labels + prediction.flatten()
    return count_values(index, num_labels * num_labels).view(num_labels, num_labels)


def count_values(index: Tensor, size: int) -> Tensor:
    """How often each value occurs. index: (n,) integers in [0, size). Returns (size,) int64 on its device."""
    if index.device.type == "cpu":
        return torch.bincount(index, minlength=size)
    # bincount would make the host wait for the largest index
    counts = torch.zeros(size, dtype=torch.int64, device=index.device)
    return counts.scatter_add_(0, index.long(), torch.ones((), dtype=torch.int64, device=index.device).expand_as(index))


class Overlap(NamedTuple):
    """Pixels of each class, (C,) float64 each: in both maps, in the truth, in the prediction."""

    both: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray

    @classmethod
    def of(cls, counts: np.ndarray) -> Overlap:
        """counts: (C + 1, C + 1) as of `count_pairs`, the last label standing for "no class"."""
        counts = counts.astype(np.float64)
        return cls(counts.diagonal()[:-1], counts.sum(1)[:-1], counts.sum(0)[:-1])

    def iou(self) -> np.ndarray:
        """(C,) intersection over union; NaN for a class that the truth does not hold."""
        return _ratio(self.both, self.truth + self.prediction - self.both, self.truth > 0)

    def accuracy(self) -> np.ndarray:
        """(C,) share of a class's pixels that were found; NaN for a class that the truth does not hold."""
        return _ratio(self.both, self.truth, self.truth > 0)


def _ratio(over: np.ndarray, under: np.ndarray, valid: np.ndarray) -> np.ndarray:
    return np.divide(over, under, out=np.full(over.shape, np.nan), where=valid)
