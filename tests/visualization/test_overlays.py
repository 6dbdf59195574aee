import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

from fasegr.visualization.overlays import overlay, palette, side_by_side

NAMES = ["road", "car", "sky"]
COLORS = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]


def grey(height=300, width=400, level=100):
    return np.full((height, width, 3), level, np.uint8)


# colours


@pytest.mark.parametrize("n", [0, 1, 12, 13, 150, 300])
def test_palette_has_different_colours(n):
    colors = palette(n)
    assert colors.shape == (n, 3) and colors.dtype == np.uint8
    assert len({tuple(color) for color in colors}) == n
    np.testing.assert_array_equal(colors, palette(n))
    np.testing.assert_array_equal(colors, palette(n + 5)[:n])


def test_palette_colours_are_far_apart():
    colors = palette(40).astype(int)
    distances = np.abs(colors[:, None] - colors).sum(-1) + 1000 * np.eye(40, dtype=int)
    assert distances.min() > 30


# overlay


def test_overlay_tints_segments_and_leaves_the_unlabelled():
    labels = np.full((300, 400), 255)
    labels[:, 200:] = 2
    picture = np.asarray(overlay(grey(), labels, NAMES, COLORS, alpha=0.25))
    assert picture.shape[0] > 300 and picture.shape[1:] == (400, 3)  # a legend below
    np.testing.assert_array_equal(picture[:300, :200], grey()[:, :200])
    np.testing.assert_allclose(picture[5, 395], [75, 75, 125], atol=1)


def test_overlay_outlines_segments_where_they_meet():
    labels = np.zeros((300, 400), np.uint8)
    labels[:, 200:] = 1
    picture = np.asarray(overlay(grey(), labels, NAMES, COLORS, alpha=0.25)).astype(int)
    at_edge, inside = picture[5, 199] - picture[5, 100], picture[5, 200] - picture[5, 300]
    assert at_edge[0] > 30 and inside[1] > 30
    np.testing.assert_array_equal(picture[0, 100], picture[5, 100])  # the frame of the picture is no outline


def names_drawn(labels, first, second) -> tuple[int, int, int, int] | None:
    """Box around all pixels of the photograph that depend on the names."""
    height, width = labels.shape
    pictures = [
        overlay(grey(height, width), labels, names, COLORS).crop((0, 0, width, height)) for names in (first, second)
    ]
    return ImageChops.difference(*pictures).getbbox()


def test_a_name_stands_in_the_largest_segment_of_its_class():
    labels = np.zeros((300, 400), np.int64)
    labels[20:30, 20:50] = 1
    labels[200:280, 250:390] = 1  # the larger one
    left, top, right, bottom = names_drawn(labels, ["road", "car", "sky"], ["road", "bus", "sky"])
    assert 250 <= left < right <= 390 and 200 <= top < bottom <= 280


def test_a_name_stands_where_there_is_room():
    """In an L of two arms, the name goes to the one that it fits into."""
    labels = np.full((300, 400), 255)
    labels[:, :12] = 1
    labels[250:, :300] = 1
    left, top, right, bottom = names_drawn(labels, ["road", "car", "sky"], ["road", "bus", "sky"])
    assert 12 <= left < right <= 300 and 250 <= top < bottom <= 300


def test_specks_have_no_name():
    labels = np.zeros((300, 400), np.int64)
    labels[100:103, 100:103] = 1
    assert names_drawn(labels, ["road", "car", "sky"], ["road", "bus", "sky"]) is None


def test_names_do_not_cover_each_other():
    labels = np.zeros((300, 400), np.int64)
    labels[130:170, 100:140], labels[130:170, 140:200] = 1, 2
    long = ["road", "a very long name of a class", "another very long name of a class"]
    drawn = [
        names_drawn(labels, long, other) for other in (["road", "?" + long[1], long[2]], [*long[:2], "?" + long[2]])
    ]
    assert drawn.count(None) == 1  # one of them had to go


def test_names_stay_inside_the_picture():
    labels = np.full((300, 300), 255)
    labels[0:14, 280:] = 1
    left, top, right, bottom = names_drawn(labels, ["a", "car", "c"], ["a", "bus", "c"])
    assert 200 < left < right < 300 and 0 < top < bottom < 30


@pytest.mark.parametrize("convert", [torch.tensor, np.uint8, np.int32], ids=["tensor", "uint8", "int32"])
def test_overlay_takes_labels_of_any_integers(convert):
    labels = np.arange(300 * 400).reshape(300, 400) // 40000
    assert overlay(grey(), convert(labels), NAMES) == overlay(Image.fromarray(grey()), labels, NAMES, palette(3))


def test_overlay_with_a_legend_of_its_own():
    labels = np.zeros((300, 400), int)
    plain, own, none = (overlay(grey(), labels, NAMES, COLORS, entries=e) for e in (None, [("x", (9, 8, 7))], ()))
    photograph = (0, 0, 400, 300)
    assert plain.crop(photograph) == own.crop(photograph) == none
    assert (np.asarray(own)[300:] == (9, 8, 7)).all(2).any()


def test_a_small_picture_is_enlarged():
    picture = overlay(grey(50, 70), np.zeros((50, 70), int), NAMES)
    assert picture.width == 70 * 8  # to about 384 pixels on the shorter side
    assert picture.height > 50 * 8


def test_nothing_labelled():
    picture = overlay(grey(), np.full((300, 400), 255), NAMES)
    np.testing.assert_array_equal(np.asarray(picture), grey())


def test_wrong_arguments_are_named():
    labels = np.zeros((300, 400), int)
    with pytest.raises(ValueError, match=r"alpha is 1\.5"):
        overlay(grey(), labels, NAMES, alpha=1.5)
    with pytest.raises(ValueError, match=r"\(400, 300\).*\(300, 400\)"):
        overlay(grey(), labels.T, NAMES)
    with pytest.raises(ValueError, match="float64"):
        overlay(grey(), labels * 0.5, NAMES)
    with pytest.raises(ValueError, match=r"uint8 \(H, W, 3\)"):
        overlay(grey() / 255, labels, NAMES)
    with pytest.raises(ValueError, match=r"\(2, 3\); expected \(3, 3\)"):
        overlay(grey(), labels, NAMES, COLORS[:2])


# side by side


def test_side_by_side_shows_rows_of_three():
    truth = np.zeros((300, 400), int)
    truth[:, 200:] = 255
    page = np.asarray(side_by_side([(grey(), truth, np.ones((300, 400), int))], NAMES, COLORS, cell_width=400))
    assert page.shape[1] == 3 * 400 + 2 * 5 + 2 * 10
    row = page[page.shape[0] // 2]
    left = [10 + 405 * column for column in range(3)]
    np.testing.assert_array_equal(row[left[0] + 200], [100, 100, 100])
    np.testing.assert_array_equal(row[left[1] + 100], COLORS[0])
    assert row[left[1] + 300].min() > 215  # ignored: light grey
    np.testing.assert_array_equal(row[left[2] + 200], COLORS[1])


def test_side_by_side_of_images_of_any_size():
    rows = [
        (grey(h, w), np.zeros((h, w), np.uint8), torch.ones(h, w, dtype=torch.int64)) for h, w in ((40, 90), (700, 300))
    ]
    one, two = (side_by_side(rows[:n], NAMES, cell_width=120) for n in (1, 2))
    assert one.width == two.width
    assert two.height == one.height + 280 + 2


def test_side_by_side_of_several_models():
    labels = np.zeros((30, 40), int)
    titles = ("Image", "Truth", "Learnable", "FASeg")
    assert side_by_side([(grey(30, 40), labels, labels, labels)], NAMES, titles=titles, cell_width=100).width > 400
    with pytest.raises(ValueError, match="a row has 3 images"):
        side_by_side([(grey(30, 40), labels, labels)], NAMES, titles=titles)


def test_side_by_side_needs_rows():
    with pytest.raises(ValueError, match="no rows"):
        side_by_side([], NAMES)
