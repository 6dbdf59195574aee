"""How sure a score is: bootstrap intervals over images, and paired comparisons of two models on the same images.

A score of a dataset (mIoU, the IoU of a class, ECE) is a function of sums of counts over its images. So a resample of
the images is a vector of how often each was drawn, and all resamples together are one product of matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.stats import norm
from scipy.stats import t as student_t

__all__ = [
    "DRAWS",
    "Intervals",
    "benjamini_hochberg",
    "bootstrap",
    "class_iou",
    "mean_score",
    "paired_bootstrap",
    "permutation_test",
    "resamples",
]

DRAWS = 2000  # resamples of an interval
PERMUTATIONS = 10_000  # of a paired test; 1 / 10001 is its smallest p
LEVEL = 0.95
SEED = 0
_CHUNK = 1000  # permutations at a time

Counts = np.ndarray | sparse.csr_matrix  # (images, numbers)
Score = Callable[[np.ndarray], np.ndarray]
"""From sums (..., numbers) to scores (..., K); NaN where a score is not defined."""


class Intervals(NamedTuple):
    """K scores and the ends of their intervals, (K,) each; NaN where there is none."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def class_iou(sums: np.ndarray) -> np.ndarray:
    """(..., 3 C) intersections, ground truths and predictions of C classes in pixels, to (..., C) IoU in percent; NaN
    for a class that is not in the ground truth."""
    intersection, truth, prediction = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, 0)
    return 100 * _divide(intersection, np.where(truth > 0, truth + prediction - intersection, 0))


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    shape = np.broadcast_shapes(np.shape(numerator), np.shape(denominator))
    return np.divide(numerator, denominator, out=np.full(shape, np.nan), where=denominator > 0)


def mean_score(values: np.ndarray) -> np.ndarray:
    """(..., K) to (..., 1): the mean of those that are not NaN."""
    valid = ~np.isnan(values)
    return _divide(np.where(valid, values, 0).sum(-1, keepdims=True), valid.sum(-1, keepdims=True))


def resamples(images: int, draws: int = DRAWS, seed: int = SEED) -> np.ndarray:
    """(draws, images) float64: how often each image is in each resample, as many as there are images."""
    drawn = np.random.default_rng(seed).integers(images, size=(draws, images))
    index = drawn + images * np.arange(draws)[:, None]
    return np.bincount(index.ravel(), minlength=draws * images).reshape(draws, images).astype(np.float64)


def bootstrap(
    score: Score, counts: Counts, weights: np.ndarray, images: np.ndarray | None = None, level: float = LEVEL
) -> Intervals:
    """Scores of a dataset, and the intervals in which those of other images of the same kind would lie.

    Percentiles of the resamples' scores, expanded for small samples (Hesterberg, The American Statistician 2015, sec.
    5.2): resamples of n images vary by sqrt((n - 1) / n) too little, and few images tell little about their own
    variance. Bias-corrected and accelerated intervals (BCa) hold the truth less often here, as a test measures.

    counts: (images, numbers) of each image; weights: of `resamples`, the same for all scores of a dataset.
    images: (K,) how many images each score comes from, by default all; with less than two it has no interval.
    """
    total = _dense(counts.sum(0))
    value = score(total)
    number = np.broadcast_to(counts.shape[0] if images is None else images, value.shape)
    n = np.maximum(number, 2)
    share = norm.cdf(np.sqrt(n / (n - 1)) * student_t.ppf((1 - level) / 2, n - 1))
    drawn = np.sort(score(_product(weights, counts)), axis=0)  # NaN last
    last = np.maximum((~np.isnan(drawn)).sum(0) - 1, 0)
    missing = np.isnan(value) | (number < 2)
    ends = (np.where(missing, np.nan, _at(drawn, at * last)) for at in (share, 1 - share))
    return Intervals(value, *ends)


def _at(ordered: np.ndarray, position: np.ndarray) -> np.ndarray:
    """(K,) values at fractional positions (K,) along the first axis of (draws, K)."""
    before = np.floor(position).astype(int)
    low, high = (np.take_along_axis(ordered, i[None], 0)[0] for i in (before, np.ceil(position).astype(int)))
    return low + (position - before) * (high - low)


def paired_bootstrap(
    score: Score,
    first: Counts,
    second: Counts,
    weights: np.ndarray,
    images: np.ndarray | None = None,
    level: float = LEVEL,
) -> Intervals:
    """The same for score(second) - score(first), of two models on the same images: each resample has the same images
    for both, so what makes an image hard for both does not widen the interval."""
    width = first.shape[1]
    both = (sparse.hstack if sparse.issparse(first) else np.hstack)([first, second]).astype(np.float64)
    both = both.tocsr() if sparse.issparse(both) else both
    return bootstrap(lambda sums: score(sums[..., width:]) - score(sums[..., :width]), both, weights, images, level)


def permutation_test(
    score: Score, first: Counts, second: Counts, draws: int = PERMUTATIONS, seed: int = SEED
) -> np.ndarray:
    """(K,) p, two-sided: how often a difference as large as score(second) - score(first) comes up if on each image it
    is tossed which result is whose; NaN where the difference is not defined.

    The toss as it was counts as one of the draws, so p is never 0 and the test is exact (Phipson and Smyth, 2010).
    """
    start, change = _dense(first.sum(0)), second.astype(np.float64) - first.astype(np.float64)
    total = _dense(first.sum(0)) + _dense(second.sum(0))

    def difference(second_sums: np.ndarray) -> np.ndarray:
        return score(second_sums) - score(total - second_sums)

    observed = difference(_dense(second.sum(0)))
    rng = np.random.default_rng(seed)
    as_large = np.zeros(observed.shape)
    for begin in range(0, draws, _CHUNK):
        exchanged = rng.integers(2, size=(min(_CHUNK, draws - begin), first.shape[0])).astype(np.float64)
        tossed = difference(start + _product(exchanged, change))
        # rounding must not make a difference of the same size smaller
        as_large += (np.abs(tossed) >= np.abs(observed) * (1 - 1e-12)).sum(0)
    return np.where(np.isnan(observed), np.nan, (as_large + 1) / (draws + 1))


def benjamini_hochberg(p: np.ndarray, rate: float = 1 - LEVEL) -> np.ndarray:
    """(K,) bool: which of K tests are counted as found, such that about `rate` of those are false on average
    (Benjamini and Hochberg, 1995). NaN is never found."""
    order = np.argsort(p)  # NaN last
    number = int((~np.isnan(p)).sum())
    below = p[order][:number] <= rate * np.arange(1, number + 1) / max(number, 1)
    found = np.zeros(len(p), bool)
    if below.any():
        found[order[: below.nonzero()[0].max() + 1]] = True
    return found


def _product(weights: np.ndarray, counts: Counts) -> np.ndarray:
    return np.asarray((counts.T @ weights.T).T if sparse.issparse(counts) else weights @ counts)


def _dense(counts: Counts | np.matrix) -> np.ndarray:
    array = counts.toarray() if sparse.issparse(counts) else np.asarray(counts)
    return array.astype(np.float64).reshape(-1) if isinstance(counts, np.matrix) else array.astype(np.float64)
