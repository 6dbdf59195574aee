import numpy as np
import pytest
import torch
from scipy import ndimage

from fasegr.evaluation.boundary import boundary_mask, boundary_width


def eroded_away(labels: np.ndarray, width: int) -> np.ndarray:
    """Class by class, `width` erosions with a 3 x 3 square, the outside of the image belonging to no class."""
    boundary = np.zeros(labels.shape, bool)
    for label in np.unique(labels):
        mask = labels == label
        boundary |= mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=width, border_value=0)
    return boundary


def blobs(height: int, width: int, classes: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(classes, height, width))
    return ndimage.gaussian_filter(noise, (0, 8, 8)).argmax(0).astype(np.uint8)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 7, 8, 9])
def test_is_what_erosion_takes_away(width):
    labels = blobs(90, 123, 4, seed=width)
    expected = eroded_away(labels, width)
    assert 0.05 < expected.mean() < 1
    np.testing.assert_array_equal(boundary_mask(torch.from_numpy(labels), width).numpy(), expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1), (6, 40), (7, 40), (7, 7)])
def test_images_as_small_as_the_boundary(shape):
    labels = np.zeros(shape, np.int32)
    np.testing.assert_array_equal(boundary_mask(torch.from_numpy(labels), 3).numpy(), eroded_away(labels, 3))


def test_a_pixel_between_two_diagonal_neighbours():
    labels = torch.eye(9, dtype=torch.int64)
    np.testing.assert_array_equal(boundary_mask(labels, 1).numpy(), eroded_away(labels.numpy(), 1))


def test_width_is_two_percent_of_the_diagonal():
    assert boundary_width(1024, 2048) == 46
    assert boundary_width(300, 400) == 10
    assert boundary_width(3, 4) == 1
