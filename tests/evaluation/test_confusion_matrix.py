import numpy as np
import pytest
import torch

from fasegr.evaluation.confusion_matrix import PixelCounts, confusion_matrix


@pytest.mark.parametrize(
    ("dtype", "labels"), [(torch.uint8, 4), (torch.int32, 4), (torch.uint8, 256), (torch.int64, 300)]
)
def test_counts_pairs(dtype, labels):
    ground_truth, prediction = torch.randint(0, labels, (2, 20, 30)).to(dtype)
    expected = np.zeros((labels, labels), np.int64)
    np.add.at(expected, (ground_truth.numpy().astype(int), prediction.numpy().astype(int)), 1)
    counts = confusion_matrix(ground_truth, prediction, labels)
    assert counts.dtype == torch.int64
    np.testing.assert_array_equal(counts.numpy(), expected)


def test_scores_of_counts():
    counts = np.array(
        [
            [6, 2, 0, 0],
            [1, 3, 0, 0],
            [0, 0, 0, 0],
            [0, 0, 0, 9],  # "no class", which is in no union
        ]
    )
    counts = PixelCounts.from_confusion(counts)
    np.testing.assert_allclose(counts.iou(), [6 / 9, 3 / 6, np.nan])
    np.testing.assert_allclose(counts.accuracy(), [6 / 8, 3 / 4, np.nan])


def test_predicting_an_absent_class_costs_the_others():
    counts = PixelCounts.from_confusion(np.array([[6, 2, 0], [0, 0, 0], [0, 0, 0]]))
    np.testing.assert_allclose(counts.iou(), [6 / 8, np.nan])
