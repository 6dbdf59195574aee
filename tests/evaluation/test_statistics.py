import itertools

import numpy as np
import pytest
from scipy import sparse
from scipy.stats import norm
from scipy.stats import t as student_t

from fasegr.evaluation.statistics import (
    benjamini_hochberg,
    bootstrap,
    class_iou,
    mean_score,
    paired_bootstrap,
    permutation_test,
    resamples,
)

CLASSES = 4


def miou(sums):
    return mean_score(class_iou(sums))


def all_scores(sums):
    return np.concatenate([class_iou(sums), miou(sums)], -1)


def draw_images(rng: np.random.Generator, number: int, skill: float = 1.2) -> np.ndarray:
    """(number, 3 CLASSES) counts of images of which some are hard for all classes, and that do not show every class."""
    present = rng.random((number, CLASSES)) < np.linspace(0.9, 0.3, CLASSES)
    truth = present * rng.lognormal(6, 1, (number, CLASSES)).round()
    hard = rng.normal(0, 0.8, (number, 1)) + rng.normal(0, 0.7, (number, CLASSES))
    both = np.floor(truth / (1 + np.exp(-skill - hard)))
    false = (rng.random((number, CLASSES)) < 0.3) * rng.lognormal(4, 1, (number, CLASSES)).round()
    return np.hstack([both, truth, both + false])


def images_with_class(counts: np.ndarray) -> np.ndarray:
    return (counts[:, CLASSES : 2 * CLASSES] > 0).sum(0)


def test_iou_of_a_class_by_hand():
    sums = np.array([6.0, 0, 0, 10, 5, 0, 8, 3, 7])  # of three classes, of which the last is not in the truth
    np.testing.assert_allclose(class_iou(sums), [100 * 6 / 12, 0, np.nan])
    assert miou(sums) == pytest.approx(25)


@pytest.mark.parametrize("sparsely", [False, True])
def test_a_resample_is_the_dataset_of_the_images_it_drew(sparsely):
    rng = np.random.default_rng(0)
    counts = draw_images(rng, 12)
    weights = resamples(12, 30)
    assert (weights.sum(1) == 12).all() and len({*map(tuple, weights)}) == 30
    given = sparse.csr_matrix(counts) if sparsely else counts
    intervals = bootstrap(all_scores, given, weights, np.append(images_with_class(counts), 12))
    drawn = []
    for times in weights.astype(int):
        chosen = np.repeat(counts, times, axis=0)  # the images themselves
        drawn.append(all_scores(chosen.sum(0)))
    for k, n in enumerate([*images_with_class(counts), 12]):
        share = norm.cdf(np.sqrt(n / (n - 1)) * student_t.ppf(0.025, n - 1))
        ends = np.nanquantile(np.array(drawn)[:, k], [share, 1 - share])
        np.testing.assert_allclose([intervals.low[k], intervals.high[k]], ends)
    np.testing.assert_allclose(intervals.value, all_scores(counts.sum(0)))


def test_the_same_intervals_in_every_run():
    counts = draw_images(np.random.default_rng(1), 20)
    first, second = (bootstrap(all_scores, counts, resamples(20)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Of datasets with a known truth, 95 % of the intervals should hold it: here at least 90 % from 60 images."""
    rng = np.random.default_rng(0)
    truth = all_scores(sum(draw_images(rng, 200_000).sum(0) for _ in range(3)))
    hits, trials, width = np.zeros(CLASSES + 1), 250, 0
    for trial in range(trials):
        counts = draw_images(rng, 60)
        support = np.append(images_with_class(counts), 60)
        intervals = bootstrap(all_scores, counts, resamples(60, 400, seed=trial), support)
        hits += (intervals.low <= truth) & (truth <= intervals.high)
        width += (intervals.high - intervals.low)[-1] / trials
    assert (hits / trials > 0.9).all() and (hits / trials < 0.99).all(), hits / trials
    assert width < 20  # and are not simply wide


def test_intervals_of_a_difference_hold_the_truth_and_are_narrower_than_without_pairs():
    rng = np.random.default_rng(0)

    def draw_pair(number):
        first = draw_images(rng, number)
        second = first.copy()
        gained = np.floor(
            (second[:, CLASSES : 2 * CLASSES] - second[:, :CLASSES]) * rng.random((number, CLASSES)) * 0.3
        )
        second[:, :CLASSES] += gained
        second[:, 2 * CLASSES :] += gained
        return first, second

    sums = [np.zeros(3 * CLASSES), np.zeros(3 * CLASSES)]
    for _ in range(3):
        for total, part in zip(sums, draw_pair(200_000), strict=True):
            total += part.sum(0)
    truth = miou(sums[1]) - miou(sums[0])
    hits, trials = 0, 250
    for trial in range(trials):
        first, second = draw_pair(60)
        weights = resamples(60, 400, seed=trial)
        paired = paired_bootstrap(miou, first, second, weights)
        hits += bool(paired.low[0] <= truth[0] <= paired.high[0])
    assert 0.9 < hits / trials < 0.99
    alone = bootstrap(miou, first, weights)
    assert paired.high - paired.low < 0.4 * (alone.high - alone.low)
    np.testing.assert_allclose(paired.value, miou(second.sum(0)) - miou(first.sum(0)))


def test_classes_of_one_image_and_sets_of_one_image_have_no_interval():
    counts = draw_images(np.random.default_rng(3), 5)
    counts[:, 0::CLASSES] = 0
    counts[2, 0::CLASSES] = [3, 6, 5]
    counts[:, 1::CLASSES] = 0  # in no image
    intervals = bootstrap(class_iou, counts, resamples(5), images_with_class(counts))
    assert intervals.value[0] == pytest.approx(100 * 3 / 8) and np.isnan(intervals.low[0])
    assert np.isnan([values[1] for values in intervals]).all()
    single = bootstrap(miou, counts[2:3], resamples(1))
    assert not np.isnan(single.value).any() and np.isnan([single.low, single.high]).all()


def test_the_paired_test_agrees_with_all_exchanges_one_by_one():
    rng = np.random.default_rng(4)
    first, second = draw_images(rng, 8), draw_images(rng, 8, skill=2.0)
    second[:, CLASSES : 2 * CLASSES] = first[:, CLASSES : 2 * CLASSES]  # the truth is the same
    second[:, :CLASSES] = np.minimum(second[:, :CLASSES], first[:, CLASSES : 2 * CLASSES])
    second[:, 2 * CLASSES :] = np.maximum(second[:, 2 * CLASSES :], second[:, :CLASSES])
    observed = np.abs(all_scores(second.sum(0)) - all_scores(first.sum(0)))
    as_large = np.zeros(CLASSES + 1)
    for exchanged in itertools.product([False, True], repeat=8):
        swap = np.array(exchanged)[:, None]
        a, b = np.where(swap, second, first), np.where(swap, first, second)
        as_large += np.abs(all_scores(b.sum(0)) - all_scores(a.sum(0))) >= observed * (1 - 1e-12)
    exact = as_large / 2**8
    for counts in ((first, second), tuple(map(sparse.csr_matrix, (first, second)))):
        np.testing.assert_allclose(permutation_test(all_scores, *counts), exact, atol=0.02)


def test_the_paired_test_finds_a_gain_on_every_image_and_nothing_between_equals():
    counts = draw_images(np.random.default_rng(5), 40)
    better = counts.copy()
    gained = (counts[:, CLASSES : 2 * CLASSES] - counts[:, :CLASSES]) / 2
    better[:, :CLASSES] += gained
    better[:, 2 * CLASSES :] += gained
    assert (permutation_test(miou, counts, better, draws=2000) < 0.001).all()
    assert (permutation_test(all_scores, counts, counts, draws=200) == 1).all()
    counts[:, ::CLASSES] = 0
    assert np.isnan(permutation_test(class_iou, counts, counts, draws=200)[0])


def test_false_discoveries_by_hand():
    p = np.array([0.04, 0.001, np.nan, 0.012, 0.9])
    np.testing.assert_array_equal(benjamini_hochberg(p), [False, True, False, True, False])
    # the third of four is below its own bound, which brings in the second, that is not
    np.testing.assert_array_equal(benjamini_hochberg(np.array([0.001, 0.03, 0.031, 0.9])), [True, True, True, False])
    assert not benjamini_hochberg(np.array([np.nan, 0.9])).any()
