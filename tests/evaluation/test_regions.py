import numpy as np
import pytest
from scipy import ndimage

from fasegr.evaluation.regions import SIZES, counts_by_size

TOUCHING = np.ones((3, 3))  # at sides or corners


def slow_counts(truth, prediction, num_classes):
    """Region by region, with scipy's labels."""
    counts = np.zeros((len(SIZES) + 2, 3, num_classes), int)
    for c in range(num_classes):
        objects, number = ndimage.label(truth == c, TOUCHING)
        masks = [objects == i + 1 for i in range(number)]
        sizes = [sum(mask.sum() >= side**2 for side in SIZES) for mask in masks]
        for mask, size in zip(masks, sizes, strict=True):
            found = (mask & (prediction == c)).sum()
            counts[size, :, c] += [found, mask.sum(), found]
        regions, number = ndimage.label(prediction == c, TOUCHING)
        for i in range(number):
            region = regions == i + 1
            overlaps = [(region & mask).sum() for mask in masks]
            owner = sizes[int(np.argmax(overlaps))] if any(overlaps) else len(SIZES) + 1
            counts[owner, 2, c] += (region & (truth != c)).sum()
    return counts


def maps(rng, shape, classes):
    """A label map and a prediction that is partly right, with pixels to ignore."""

    def smooth(sigma):
        return ndimage.gaussian_filter(rng.normal(size=(classes + 1, *shape)), (0, sigma, sigma)).argmax(0)

    truth, noise = smooth(5), smooth(1)
    prediction = np.where(rng.random(shape) < 0.8, truth, noise)
    prediction[(prediction == classes) & (truth != classes)] = 0
    prediction[truth == classes] = classes
    return truth, prediction


@pytest.mark.parametrize("shape", [(70, 90), (1, 50), (50, 1), (3, 3), (1, 1)])
def test_against_regions_one_by_one(shape):
    for seed in range(3):
        truth, prediction = maps(np.random.default_rng(seed), shape, classes=3)
        found = counts_by_size(truth, prediction, 3)
        np.testing.assert_array_equal(found, slow_counts(truth, prediction, 3))
        for i, labels in enumerate((np.where(truth == prediction, truth, 3), truth, prediction)):
            np.testing.assert_array_equal(found.sum(0)[i], np.bincount(labels.ravel(), minlength=4)[:3])


def test_what_is_predicted_around_an_object_counts_against_it():
    truth = np.zeros((40, 40), np.uint8)
    truth[2:6, 2:6] = 1  # a small object
    truth[10:40, 10:40] = 1  # and a large one, of 30^2
    prediction = truth.copy()
    prediction[1, 2:6] = 1  # 4 pixels at the small one
    prediction[20:30, 5:10] = 1  # 50 at the large one
    prediction[0:2, 30:34] = 1  # 8 at none
    counts = counts_by_size(truth, prediction, 2)[:, :, 1]
    assert counts[0].tolist() == [16, 16, 20]
    assert counts[1].tolist() == [900, 900, 950]
    assert counts[-1].tolist() == [0, 0, 8]


def test_corners_join_and_rows_do_not_wrap():
    truth = np.zeros((20, 20), np.uint8)
    np.fill_diagonal(truth, 1)
    truth[5, 19] = truth[6, 0] = 2  # the end of a row and the beginning of the next
    counts = counts_by_size(truth, truth, 3)
    assert counts[0, 1].tolist() == [0, 20, 2]  # the background is one region of 378, that touches by corners
    assert counts[1, 1, 0] == 378
