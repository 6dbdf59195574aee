"""How sure a model says it is, and how often it is right then: confidence, reliability and ECE.

Mask classification gives no distribution over the classes of a pixel: its score for a class is the sum over queries of
class probability times mask probability, and a pixel's scores sum to anything. The confidence of a pixel is the share
of its highest score in their sum, which is what softmax gives for per-pixel classification.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["BINS", "confidence", "expected_calibration_error", "reliability", "reliability_counts"]

BINS = 15  # of equal width, as in Guo et al., ICML 2017
_LEVELS = 200  # steps of confidence in a bin, so that sums are of integers, and the same in any order


def confidence(scores: Tensor, labels: Tensor) -> Tensor:
    """The share of each pixel's predicted class in the sum of its scores, in [0, 1].

    scores: (C, H, W), not negative; labels: (H, W) integers, the class with the highest score. Returns (H, W) of at
    least float32. Where all scores are 0 nothing is known, and it is 1 / C.
    """
    dtype = torch.promote_types(scores.dtype, torch.float32)
    best = scores.gather(0, labels.long()[None])[0].to(dtype)
    total = scores.sum(0, dtype=dtype)
    return torch.where(total > 0, best / total, 1 / len(scores))


def reliability_counts(confidence: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Pixels by confidence, (BINS, 3) int64: their number, how many are right, and the sum of their confidences in
    units of 1 / (BINS * 200).

    confidence: (n,) in [0, 1]; right: (n,) bool.
    """
    steps = BINS * _LEVELS
    level = np.rint(confidence * steps).astype(np.int32).clip(0, steps)
    counts = np.bincount(2 * level + right, minlength=2 * (steps + 1)).reshape(-1, 2)
    table = np.stack([counts.sum(1), counts[:, 1], counts.sum(1) * np.arange(steps + 1)], 1)
    table[-2] += table[-1]  # a confidence of 1 belongs to the last bin
    return table[:-1].reshape(BINS, _LEVELS, 3).sum(1)


def reliability(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of sums (..., BINS, 3) of `reliability_counts`: pixels, mean confidence and share that is right of each bin,
    (..., BINS) each, the latter two in [0, 1], NaN in an empty bin."""
    pixels, right, levels = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return pixels, levels / (pixels * BINS * _LEVELS), right / pixels


def expected_calibration_error(counts: np.ndarray) -> np.ndarray:
    """(...) of sums (..., BINS, 3): the mean over pixels of |confidence - share that is right| of their bin, in
    percent; NaN without pixels."""
    pixels, confidence, right = reliability(counts)
    with np.errstate(invalid="ignore", divide="ignore"):
        return 100 * np.nansum(pixels * np.abs(confidence - right), -1) / pixels.sum(-1)
