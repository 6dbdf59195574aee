import numpy as np
import pytest
from scipy import ndimage

from fasegr.analysis.segment_objects import components, segments


def rows(objects):
    return sorted(
        zip(objects.classes.tolist(), objects.areas.tolist(), map(tuple, objects.boxes.tolist()), strict=True)
    )


def slowly(labels):
    """Each class by itself."""
    found = []
    for value in np.unique(labels):
        regions, _ = ndimage.label(labels == value)
        for i, (y, x) in enumerate(ndimage.find_objects(regions), start=1):
            found.append((int(value), int((regions == i).sum()), (y.start, x.start, y.stop, x.stop)))
    return sorted(found)


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (30, 1), (13, 17), (40, 31)])
@pytest.mark.parametrize("values", [1, 2, 5])
@pytest.mark.parametrize("smooth", [False, True])
def test_components_are_those_of_each_class(size, values, smooth):
    rng = np.random.default_rng(values)
    labels = rng.integers(0, values, size).astype(np.uint8)
    if smooth:
        labels = ndimage.median_filter(labels, 5)
    assert rows(components(labels)) == slowly(labels)


def test_a_spiral_is_one_region():
    spiral = np.array([[1, 1, 1, 1, 1], [0, 0, 0, 0, 1], [1, 1, 1, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]])
    assert rows(components(spiral)) == slowly(spiral)
    assert rows(components(spiral))[-1] == (1, 17, (0, 0, 5, 5))


def test_segments():
    ids = np.array([[9, 9, 0, 4], [0, 9, 0, 4], [300, 0, 9, 4]])
    found = segments(ids, np.array([300, 4, 9, 77]), np.array([2, 1, 1, 0]))
    assert rows(found) == [(1, 3, (0, 3, 3, 4)), (1, 4, (0, 0, 3, 3)), (2, 1, (2, 0, 3, 1))]
    assert len(segments(ids, np.empty(0, np.int64), np.empty(0, np.int64)).areas) == 0
