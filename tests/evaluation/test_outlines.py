import numpy as np
import pytest
from matplotlib.path import Path
from pycocotools import mask as coco_mask
from scipy import ndimage

from fasegr.evaluation.outlines import outlines


def filled(polygons, shape) -> dict[str, np.ndarray]:
    """The pixels in the polygons: as pycocotools fills them, and those whose centre is inside."""
    height, width = shape
    codes = coco_mask.frPyObjects([polygon.ravel().tolist() for polygon in polygons], height, width)
    centres = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), -1).reshape(-1, 2)
    inside = [Path(np.concatenate([polygon, polygon[:1]])).contains_points(centres) for polygon in polygons]
    return {
        "pycocotools": coco_mask.decode(coco_mask.merge(codes)).astype(bool),
        "centres": np.any(inside, axis=0).reshape(shape),
    }


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("sigma", [1, 3, 8])
def test_blobs_come_back(sigma):
    rng = np.random.default_rng(sigma)
    for shape in ((60, 90), (120, 40), (7, 9)):
        noise = ndimage.gaussian_filter(rng.normal(size=shape), sigma)
        mask = noise > np.median(noise)
        polygons = outlines(mask)
        for how, found in filled(polygons, shape).items():
            assert iou(found, mask) > (0.98 if how == "pycocotools" else 0.97), (how, shape)


def test_a_smooth_region_has_few_corners():
    y, x = np.mgrid[:200, :300]
    mask = (y - 100) ** 2 + (x - 150) ** 2 < 70**2
    (polygon,) = outlines(mask)
    assert len(polygon) < 80
    box = np.zeros((200, 300), bool)
    box[20:180, 30:90] = True
    (polygon,) = outlines(box)
    assert len(polygon) < 10


def test_holes_stay_open_and_regions_are_polygons_of_their_own():
    mask = np.zeros((80, 100), bool)
    mask[5:60, 5:60] = True
    mask[20:40, 20:30] = mask[45:50, 10:50] = False  # two holes
    mask[25:30, 22:28] = True  # an island in one of them
    mask[70:75, 80:95] = True
    polygons = outlines(mask)
    assert len(polygons) == 3 and np.ptp(polygons[0], axis=0).max() > 50  # the largest first
    for found in filled(polygons, mask.shape).values():
        assert iou(found, mask) > 0.98
        assert not found[32:38, 22:28].any() and not found[46:49, 15:45].any()


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (3, 1), (2, 2)])
@pytest.mark.parametrize("corner", [(0, 0), (5, 4)])
def test_the_smallest_regions_at_the_border_and_inside(size, corner):
    mask = np.zeros((9, 9), bool)
    mask[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]] = True
    for found in filled(outlines(mask), mask.shape).values():
        np.testing.assert_array_equal(found, mask)


def test_whole_images_and_empty_masks():
    assert outlines(np.zeros((5, 6), bool)) == []
    whole = np.ones((30, 40), bool)
    for found in filled(outlines(whole), whole.shape).values():
        assert iou(found, whole) > 0.98
