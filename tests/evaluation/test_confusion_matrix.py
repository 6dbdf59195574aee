import numpy as np
import pytest
import torch

from fasegr.evaluation.confusion_matrix import Overlap, count_pairs


@pytest.mark.parametrize(
    ("dtype", "labels"), [(torch.uint8, 4), (torch.int32, 4), (torch.uint8, 256), (torch.int64, 300)]
)
def test_counts_pairs(dtype, labels):
    truth, prediction = torch.randint(0, labels, (2, 20, 30)).to(dtype)
    before = truth.clone()
    expected = np.zeros((labels, labels), np.int64)
    np.add.at(expected, (truth.numpy().astype(int), prediction.numpy().astype(int)), 1)
    counts = count_pairs(truth, prediction, labels)
    assert counts.dtype == torch.int64
    np.testing.assert_array_equal(counts.numpy(), expected)
    assert torch.equal(truth, before)


def test_scores_of_counts():
    counts = np.array(
        [
            [6, 2, 0, 0],
            [1, 3, 0, 0],
            [0, 0, 0, 0],
            [0, 0, 0, 9],  # "no class": in nobody's union
        ]
    )
    overlap = Overlap.of(counts)
    np.testing.assert_allclose(overlap.iou(), [6 / 9, 3 / 6, np.nan])
    np.testing.assert_allclose(overlap.accuracy(), [6 / 8, 3 / 4, np.nan])


def test_predicting_an_absent_class_costs_the_others():
    overlap = Overlap.of(np.array([[6, 2, 0], [0, 0, 0], [0, 0, 0]]))
    np.testing.assert_allclose(overlap.iou(), [6 / 8, np.nan])
