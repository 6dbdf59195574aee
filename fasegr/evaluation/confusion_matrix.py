"""The confusion matrix of two label maps, and the scores that follow from it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


def confusion_matrix(ground_truth: Tensor, prediction: Tensor, num_labels: int) -> Tensor:
    """Pixels by pair of labels.

    ground_truth, prediction: integers in [0, num_labels) of one shape on one device.
    Returns (num_labels, num_labels) int64 on that device: rows are labels of the ground truth, columns predicted ones.
    """
    index = ground_truth.flatten().int() * num_labels + prediction.flatten()
    return bincount(index, num_labels * num_labels).view(num_labels, num_labels)


def bincount(values: Tensor, size: int) -> Tensor:
    """How often each value occurs. values: (n,) integers in [0, size). Returns (size,) int64 on their device."""
    if values.device.type == "cpu":
        return torch.bincount(values, minlength=size)
    # torch.bincount would make the host wait for the largest value
    one = torch.ones((), dtype=torch.int64, device=values.device)
    return torch.zeros(size, dtype=torch.int64, device=values.device).scatter_add_(
        0, values.long(), one.expand_as(values)
    )


class PixelCounts(NamedTuple):
    """Pixels of each class, (C,) float64 each: in both maps, in the ground truth, in the prediction."""

    intersection: np.ndarray
    ground_truth: np.ndarray
    prediction: np.ndarray

    @classmethod
    def from_confusion(cls, confusion: np.ndarray) -> PixelCounts:
        """confusion: (C + 1, C + 1) of `confusion_matrix`, where the last label stands for "no class"."""
        confusion = confusion.astype(np.float64)
        return cls(confusion.diagonal()[:-1], confusion.sum(1)[:-1], confusion.sum(0)[:-1])

    def iou(self) -> np.ndarray:
        """(C,) intersection over union; NaN for a class that is not in the ground truth."""
        union = self.ground_truth + self.prediction - self.intersection
        return divide(self.intersection, np.where(self.ground_truth > 0, union, 0))

    def accuracy(self) -> np.ndarray:
        """(C,) share of a class's pixels that were found; NaN for a class that is not in the ground truth."""
        return divide(self.intersection, self.ground_truth)


def divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotients; NaN, without a warning, where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)


def nanmean(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN, without a warning, where all are."""
    valid = values[~np.isnan(values)]
    return float(valid.mean()) if valid.size else float("nan")
