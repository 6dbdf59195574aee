import colorsys

import numpy as np
import pytest
from PIL import Image

from fasegr.data.augmentation import (
    Box,
    Colour,
    RandomCrop,
    ShortestEdge,
    SSDColour,
    change_colour,
    pad,
    resize_image,
    resize_label,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# sizes


@pytest.mark.parametrize(
    ("size", "length", "max_size", "expected"),
    [
        ((480, 640), 240, 1000, (240, 320)),
        ((640, 480), 240, 1000, (320, 240)),
        ((480, 640), 480, 500, (375, 500)),  # the longer side is at its bound
        ((375, 500), 512, 2048, (512, 683)),
        ((5, 1000), 1, 50, (1, 50)),  # never less than one pixel
        ((480, 640), 0, 100, (480, 640)),  # 0: as it is
    ],
)
def test_shortest_edge(size, length, max_size, expected):
    assert ShortestEdge(length, max_size).scaled(size, length) == expected


def test_shortest_edge_draws_all_lengths_alike(rng):
    choice = ShortestEdge((16, 20, 24), 1000)
    drawn = [choice.draw(rng, (16, 32))[0] for _ in range(3000)]
    assert set(drawn) == {16, 20, 24}
    assert np.bincount(drawn)[[16, 20, 24]].min() > 900
    between = ShortestEdge((16, 24), 1000, "range")
    assert {between.draw(rng, (16, 32))[0] for _ in range(500)} == set(range(16, 25))


@pytest.mark.parametrize("arguments", [((), 10), ((-1,), 10), ((5, 3), 10, "range"), ((3, 4, 5), 10, "range"), (3, 0)])
def test_impossible_sizes_are_refused(arguments):
    with pytest.raises(ValueError, match="side"):
        ShortestEdge(*arguments)


def test_unknown_sampling_is_refused():
    with pytest.raises(ValueError, match="'uniform'; it must be 'choice' or 'range'"):
        ShortestEdge(4, 10, "uniform")


# crops


@pytest.mark.parametrize(
    ("kind", "size", "low", "high"),
    [
        ("absolute", (10, 50), (10, 40), (10, 40)),
        ("relative", (0.5, 0.25), (15, 10), (15, 10)),
        ("relative_range", (0.5, 0.25), (15, 10), (30, 40)),
        ("absolute_range", (12, 35), (12, 12), (30, 35)),
    ],
)
def test_crop_sizes_and_places(rng, kind, size, low, high):
    crop = RandomCrop(kind, size)
    boxes = np.array([crop.draw(rng, np.zeros((30, 40), np.uint8), (30, 40)) for _ in range(2000)])
    np.testing.assert_array_equal(boxes[:, 2:].min(0), low)
    np.testing.assert_array_equal(boxes[:, 2:].max(0), high)
    np.testing.assert_array_equal(boxes[:, :2].min(0), (0, 0))
    np.testing.assert_array_equal((boxes[:, :2] + boxes[:, 2:]).max(0), (30, 40))  # every place is reached, none beyond


def test_crop_places_are_uniform(rng):
    crop = RandomCrop("absolute", (27, 40))
    places = [crop.draw(rng, np.zeros((30, 40), np.uint8), (30, 40)).y for _ in range(4000)]
    assert np.bincount(places, minlength=4).min() > 900


def test_crop_looks_for_variety_ten_times(rng):
    labels = np.zeros((20, 20), np.uint8)
    labels[:, 10:] = 1
    plain, picky = RandomCrop("absolute", (20, 6)), RandomCrop("absolute", (20, 6), 0.75)

    def share_varied(crop):
        crops = [crop.draw(rng, labels, (20, 20)) for _ in range(600)]
        return np.mean([0.25 < labels[:, x : x + w].mean() < 0.75 for _, x, _, w in crops])

    single = share_varied(plain)  # 3 of 15 places
    assert abs(single - 3 / 15) < 0.05
    assert abs(share_varied(picky) - (1 - (1 - 3 / 15) ** 10)) < 0.05


def test_crop_does_not_count_ignored_pixels(rng):
    labels = np.full((20, 20), 255, np.uint8)
    labels[0, 0], labels[0, 1] = 0, 1
    crop = RandomCrop("absolute", (20, 20), 0.75, ignore_label=255)
    assert crop._is_varied(labels)
    labels[0, 1] = 0
    assert not crop._is_varied(labels)
    assert crop.draw(rng, labels, (20, 20)) == Box(0, 0, 20, 20)  # the last attempt is taken as it is


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("middle", (4, 4)), "TYPE is 'middle'"),
        (("relative", (0.5, 1.5)), r"SIZE is \(0.5, 1.5\)"),
        (("absolute", (4,)), "expected two sizes in pixels"),
        (("absolute", (0, 4)), "expected two sizes in pixels"),
        (("absolute_range", (8, 4)), "smaller bound first"),
        (("absolute", (4, 4), 0.0), "SINGLE_CATEGORY_MAX_AREA is 0.0"),
    ],
)
def test_impossible_crops_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RandomCrop(*arguments)


# resizing


def random_window(rng):
    original = rng.integers(20, 120, 2)
    size = tuple(int(s) for s in np.maximum(1, original * rng.uniform(0.3, 2.5, 2)))
    height, width = (int(rng.integers(1, s + 1)) for s in size)
    y, x = int(rng.integers(size[0] - height + 1)), int(rng.integers(size[1] - width + 1))
    return tuple(original), size, Box(y, x, height, width)


def test_resized_window_equals_window_of_resized_image(rng):
    errors = []
    for _ in range(40):
        original, size, box = random_window(rng)
        image = Image.fromarray(rng.integers(0, 256, (*original, 3), dtype=np.uint8))
        slow = np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR))
        slow = slow[box.y : box.y + box.height, box.x : box.x + box.width].astype(int)
        fast = np.asarray(resize_image(image, size, box)).astype(int)
        assert fast.shape == slow.shape
        errors.append((fast - slow).ravel())
    errors = np.concatenate(errors)
    # noise is the worst case for what is rounded in between
    assert np.abs(errors).max() <= 2 and np.mean(np.abs(errors) > 1) < 1e-3
    assert np.mean(np.abs(errors)) < 0.2 and abs(np.mean(errors)) < 0.01


def test_image_of_the_right_size_is_only_cut(rng):
    pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    cut = np.asarray(resize_image(Image.fromarray(pixels), (20, 30), Box(3, 5, 10, 8)))
    np.testing.assert_array_equal(cut, pixels[3:13, 5:13])


def test_labels_are_taken_at_pixel_centres(rng):
    for _ in range(40):
        original, size, box = random_window(rng)
        labels = rng.integers(0, 256, original, dtype=np.uint8)
        fast = resize_label(labels, size, box)
        for _ in range(20):
            i, j = int(rng.integers(box.height)), int(rng.integers(box.width))
            row = int(np.floor((box.y + i + 0.5) * original[0] / size[0]))
            column = int(np.floor((box.x + j + 0.5) * original[1] / size[1]))
            assert fast[i, j] == labels[row, column]


def test_labels_stay_on_their_image(rng):
    """A picture of its own labels keeps agreeing with them, except where a class ends."""
    labels = (rng.integers(0, 2, (6, 8)) * 255).repeat(16, 0).repeat(16, 1).astype(np.uint8)
    for size in ((48, 64), (70, 90), (96, 128), (200, 260)):
        box = Box(5, 7, 40, 50)
        image = np.asarray(resize_image(Image.fromarray(labels), size, box)).astype(int)
        resized = resize_label(labels, size, box).astype(int)
        # a bilinear filter crosses the middle where the label changes, so no pixel is on the wrong side of it
        assert np.abs(image - resized).max() <= 128


# colours


def slow_colour(image, colour):
    result = np.empty(image.shape)
    for i in range(image.shape[1]):
        for j in range(image.shape[2]):
            pixel = np.clip(image[:, i, j] + colour.brightness, 0, 255)
            if colour.contrast_first:
                pixel = np.clip(pixel * colour.contrast, 0, 255)
            hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
            hue, saturation = (hue + colour.hue / 360) % 1, min(1, saturation * colour.saturation)
            pixel = 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value))
            if not colour.contrast_first:
                pixel = np.clip(pixel * colour.contrast, 0, 255)
            result[:, i, j] = pixel
    return result


def test_colours_equal_the_slow_truth(rng):
    image = rng.integers(0, 256, (3, 12, 14), dtype=np.uint8)
    image[:, 0] = image[:1, 0]  # greys
    image[:, 1], image[:, 2] = 0, 255
    image[1:, 3] = 0  # pure red
    image[0, 4] = image[2, 4]  # two channels alike
    colours = [SSDColour().draw(rng) for _ in range(60)]
    colours += [Colour(hue=h) for h in (-60, -36, 36, 60)] + [Colour(saturation=1.5), Colour(saturation=0.0)]
    for colour in colours:
        error = np.abs(change_colour(image, colour) - slow_colour(image, colour))
        assert error.max() < 0.51, colour  # rounding alone


def test_colour_of_large_images_is_that_of_small_ones(rng):
    image = rng.integers(0, 256, (3, 70, 900), dtype=np.uint8)
    colour = Colour(10, 1.2, False, 1.3, -20)
    whole = change_colour(image, colour)
    np.testing.assert_array_equal(whole[:, 30:50], change_colour(image[:, 30:50], colour))


def test_no_change_of_colour(rng):
    image = rng.integers(0, 256, (3, 4, 5), dtype=np.uint8)
    assert change_colour(image, Colour()) is image


def test_distribution_of_colours(rng):
    drawn = [SSDColour().draw(rng) for _ in range(6000)]
    for name, neutral, low, high in (
        ("brightness", 0, -32, 32),
        ("contrast", 1, 0.5, 1.5),
        ("saturation", 1, 0.5, 1.5),
        ("hue", 0, -36, 36),
    ):
        values = np.array([getattr(colour, name) for colour in drawn])
        changed = values[values != neutral]
        unmoved = 0.5 + (0.5 / 37 if name == "hue" else 0)
        assert abs(np.mean(values == neutral) - unmoved) < 0.03
        assert low <= changed.min() < low + 0.03 * (high - low)
        assert high >= changed.max() > high - 0.03 * (high - low)
        assert abs(changed.mean() - neutral) < 0.02 * (high - low)
        assert abs(changed.std() - (high - low) / 12**0.5) < 0.03 * (high - low)
    assert abs(np.mean([colour.contrast_first for colour in drawn]) - 0.5) < 0.03
    assert {colour.hue % 2 for colour in drawn} == {0.0}


# padding


def test_padding():
    array = np.ones((3, 5, 8), np.uint8)
    padded = pad(array, (8, 8), 128)
    assert padded.shape == (3, 8, 8)
    np.testing.assert_array_equal(padded[:, :5], array)
    assert (padded[:, 5:] == 128).all()
    assert pad(array, (5, 8), 7) is array
    assert pad(array[0], (5, 9), 7)[4].tolist() == [1] * 8 + [7]
