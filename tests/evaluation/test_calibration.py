import numpy as np
import pytest
import torch

from fasegr.evaluation.calibration import BINS, confidence, expected_calibration_error, reliability, reliability_counts


def slow_ece(confidence: np.ndarray, right: np.ndarray) -> float:
    error = 0.0
    for i in range(BINS):
        low, high = i / BINS, (i + 1) / BINS
        inside = (confidence >= low) & ((confidence < high) | (i == BINS - 1))
        if inside.any():
            error += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    return 100 * error


@pytest.mark.parametrize("seed", range(4))
def test_ece_against_bins_one_by_one(seed):
    rng = np.random.default_rng(seed)
    # on the steps that are counted, and not on the ends of bins
    sure = (200 * rng.integers(BINS, size=4000) + rng.integers(1, 200, 4000)) / (200 * BINS)
    right = rng.random(4000) < sure**2
    assert expected_calibration_error(reliability_counts(sure, right)) == pytest.approx(slow_ece(sure, right))
    # off them the steps make no difference that one would see
    sure = rng.beta(4, 2, 20_000)
    right = rng.random(20_000) < sure**1.5
    assert expected_calibration_error(reliability_counts(sure, right)) == pytest.approx(slow_ece(sure, right), abs=0.1)


def test_counts_of_images_add_up():
    rng = np.random.default_rng(0)
    sure, right = rng.random(1000), rng.random(1000) < 0.5
    parts = sum(reliability_counts(sure[i::3], right[i::3]) for i in range(3))
    np.testing.assert_array_equal(parts, reliability_counts(sure, right))


def test_the_ends_and_empty_bins():
    counts = reliability_counts(np.array([0.0, 1.0, 1.0]), np.array([False, True, False]))
    pixels, sure, right = reliability(counts)
    assert pixels.tolist() == [1, *[0] * (BINS - 2), 2]
    assert sure[0] == 0 and sure[-1] == 1 and right[-1] == 0.5 and np.isnan(right[1])
    assert expected_calibration_error(counts) == pytest.approx(100 * 2 / 3 * 0.5)
    assert np.isnan(expected_calibration_error(np.zeros((BINS, 3))))


def test_confidence_is_the_share_of_the_predicted_class():
    scores = torch.tensor([[[0.2, 0.0]], [[0.6, 0.0]], [[0.0, 0.0]]], dtype=torch.float16)
    labels = torch.tensor([[1, 0]], dtype=torch.uint8)
    found = confidence(scores, labels)
    assert found.dtype == torch.float32 and found.shape == (1, 2)
    torch.testing.assert_close(found, torch.tensor([[0.75, 1 / 3]]), atol=1e-3, rtol=0)


def test_confidence_of_probabilities_is_the_probability():
    probabilities = torch.rand(5, 6, 7, dtype=torch.float64).softmax(0)
    torch.testing.assert_close(confidence(probabilities, probabilities.argmax(0)), probabilities.amax(0))
