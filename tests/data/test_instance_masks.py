import numpy as np
import pytest
from pycocotools import mask as coco_mask
from scipy.ndimage import binary_dilation, binary_erosion

from fasegr.data.image_io import BadFile
from fasegr.data.instance_masks import window_mask
from fasegr.data.transform import Box

ORIGINAL = (60, 80)


def star(rng, centre, radius, corners=9):
    """A ragged polygon with fractional corners, as people draw them."""
    angles = np.sort(rng.random(corners)) * 2 * np.pi
    lengths = radius * rng.uniform(0.3, 1, corners)
    points = np.stack([centre[0] + lengths * np.cos(angles), centre[1] + lengths * np.sin(angles)], 1)
    return np.clip(points, 0, ORIGINAL[::-1]).round(2).ravel().tolist()


def whole(polygons, size):
    """All of the resized image at once, by pycocotools."""
    scaled = []
    for polygon in polygons:
        points = np.asarray(polygon).reshape(-1, 2) * (size[1] / ORIGINAL[1], size[0] / ORIGINAL[0])
        scaled.append(points.ravel().tolist())
    return coco_mask.decode(coco_mask.frPyObjects(scaled, *size)).any(2)


@pytest.mark.parametrize("size", [(60, 80), (30, 40), (37, 91), (150, 200), (6, 8)])
def test_a_window_of_polygons_is_cut_from_the_whole(size):
    """But for pixels of the outline, one in many thousands, where an edge passes exactly between two of pycocotools'
    points, and which is nearer depends on the last bit."""
    rng = np.random.default_rng(size)
    different = total = 0
    for _ in range(60):
        polygons = [star(rng, rng.random(2) * (80, 60), rng.uniform(2, 50)) for _ in range(rng.integers(1, 4))]
        height, width = int(rng.integers(1, size[0] + 1)), int(rng.integers(1, size[1] + 1))
        y, x = int(rng.integers(size[0] - height + 1)), int(rng.integers(size[1] - width + 1))
        mask = window_mask(polygons, ORIGINAL, size, Box(y, x, height, width))
        assert mask.dtype == bool
        full = whole(polygons, size)
        inside, near = binary_erosion(full, border_value=1), binary_dilation(full)
        cut = (slice(y, y + height), slice(x, x + width))
        assert (mask | ~inside[cut]).all() and (near[cut] | ~mask).all()
        different, total = different + np.sum(mask != full[cut]), total + mask.size
    assert different <= total / 10000


def test_polygons_resized_up_are_drawn_finely():
    """Their edges are straight at the new size; enlarging a mask of the old size would leave steps."""
    triangle = [[0, 0, 80, 60, 0, 60]]
    mask = window_mask(triangle, ORIGINAL, (600, 800), Box(0, 0, 600, 800))
    y, x = np.mgrid[:600, :800] + 0.5
    distance = np.abs(y * 0.8 - x * 0.6)
    assert (mask == (y / 600 > x / 800))[distance > 1].all()


def test_polygons_beyond_the_image():
    """Corners outside, negative ones too, shift nothing inside."""
    box = Box(0, 0, 60, 80)
    mask = window_mask([[-3.4, -7.7, 20, -7.7, 20, 10, -3.4, 10]], ORIGINAL, ORIGINAL, box)
    assert mask[:10, :20].all() and mask.sum() == 200
    assert not window_mask([[90, 10, 99, 10, 99, 20]], ORIGINAL, ORIGINAL, box).any()


@pytest.mark.parametrize("form", ["text", "bytes", "numbers"])
def test_run_length_codes(form):
    rng = np.random.default_rng(0)
    truth = rng.random(ORIGINAL) < 0.4
    code = coco_mask.encode(np.asfortranarray(truth, dtype=np.uint8))
    if form == "text":
        code = {"size": list(code["size"]), "counts": code["counts"].decode()}
    elif form == "numbers":
        changes = np.flatnonzero(np.diff(truth.T.ravel(), prepend=False, append=~truth.T.ravel()[-1]))
        code = {"size": list(ORIGINAL), "counts": np.diff(changes, prepend=0).tolist()}
        assert np.array_equal(coco_mask.decode(coco_mask.frPyObjects(code, *ORIGINAL)), truth)
    np.testing.assert_array_equal(window_mask(code, ORIGINAL, ORIGINAL, Box(3, 5, 20, 30)), truth[3:23, 5:35])
    mask = window_mask(code, ORIGINAL, (90, 50), Box(10, 20, 40, 25))
    for y in range(40):
        for x in range(25):
            assert mask[y, x] == truth[int((10 + y + 0.5) * 60 / 90), int((20 + x + 0.5) * 80 / 50)]


def test_other_forms_are_refused():
    box = Box(0, 0, 60, 80)
    with pytest.raises(BadFile, match=r"a segmentation is a str; expected polygons of numbers .* or a run-length code"):
        window_mask("mask", ORIGINAL, ORIGINAL, box)
    code = coco_mask.encode(np.zeros((50, 80), np.uint8, order="F"))
    with pytest.raises(BadFile, match=r"has the size \[50, 80\] in an image of \[60, 80\]"):
        window_mask(code, ORIGINAL, ORIGINAL, box)
