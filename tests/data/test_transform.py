import colorsys

import numpy as np
import pytest
from PIL import Image

from fasegr.data.augmentation import ColorAugSSD
from fasegr.data.transform import Box, ColorTransform, Transform, pad, resize_image, resize_label


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def photograph(height, width):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(("flip", "turn"), [("none", np.array), ("horizontal", np.fliplr), ("vertical", np.flipud)])
def test_image_and_labels_are_transformed_alike(flip, turn):
    """Resized, cut, flipped, padded: against doing each to the whole image."""
    image = photograph(20, 30)
    transform = Transform((40, 60), Box(5, 7, 30, 35), (32, 64), flip, ColorTransform(brightness=20.0))
    whole = np.asarray(image.resize((60, 40), Image.Resampling.BILINEAR))[5:35, 7:42]
    whole = transform.color.apply_image(np.ascontiguousarray(turn(whole).transpose(2, 0, 1))).astype(int)
    pixels = transform.apply_image(image)
    assert pixels.dtype == np.uint8 and pixels.shape == (3, 32, 64) and pixels.flags.c_contiguous
    assert np.abs(pixels[:, :30, :35] - whole).max() <= 1
    assert (pixels[:, 30:] == 128).all() and (pixels[:, :, 35:] == 128).all()

    labels = np.random.default_rng(1).integers(0, 1000, (20, 30))
    shown = transform.apply_segmentation(labels, -1)
    np.testing.assert_array_equal(shown[:30, :35], turn(labels.repeat(2, 0).repeat(2, 1)[5:35, 7:42]))
    assert (shown[30:] == -1).all() and (shown[:, 35:] == -1).all()


def test_results_are_writable():
    for flip in ("none", "horizontal"):
        transform = Transform((4, 6), Box(0, 0, 4, 6), (4, 6), flip)
        assert transform.apply_image(photograph(4, 6)).flags.writeable
        assert transform.apply_segmentation(np.zeros((4, 6)), 0).flags.writeable


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


def test_few_values_of_an_array_are_rounded_differently():
    pixels = np.random.default_rng(0).integers(0, 256, (400, 601, 3), dtype=np.uint8)  # noise: the hardest to agree on
    for size in ((251, 377), (611, 918)):
        box = Box(13, 40, 200, 300)
        full, part = np.asarray(resize_image(Image.fromarray(pixels), size, box)), resize_image(pixels, size, box)
        assert (full != np.asarray(part)).mean() < 0.01


# colors


def slow_color(image, color):
    result = np.empty(image.shape)
    for i in range(image.shape[1]):
        for j in range(image.shape[2]):
            pixel = np.clip(image[:, i, j] + color.brightness, 0, 255)
            if color.contrast_first:
                pixel = np.clip(pixel * color.contrast, 0, 255)
            hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
            hue, saturation = (hue + color.hue / 360) % 1, min(1, saturation * color.saturation)
            pixel = 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value))
            if not color.contrast_first:
                pixel = np.clip(pixel * color.contrast, 0, 255)
            result[:, i, j] = pixel
    return result


def test_colors_equal_the_slow_truth(rng):
    image = rng.integers(0, 256, (3, 12, 14), dtype=np.uint8)
    image[:, 0] = image[:1, 0]  # greys
    image[:, 1], image[:, 2] = 0, 255
    image[1:, 3] = 0  # pure red
    image[0, 4] = image[2, 4]  # two channels alike
    colors = [ColorAugSSD().get_transform(rng) for _ in range(60)]
    colors += [ColorTransform(hue=h) for h in (-60, -36, 36, 60)] + [
        ColorTransform(saturation=1.5),
        ColorTransform(saturation=0.0),
    ]
    for color in colors:
        error = np.abs(color.apply_image(image) - slow_color(image, color))
        assert error.max() < 0.51, color  # rounding alone


def test_color_of_large_images_is_that_of_small_ones(rng):
    image = rng.integers(0, 256, (3, 70, 900), dtype=np.uint8)
    color = ColorTransform(10, 1.2, False, 1.3, -20)
    whole = color.apply_image(image)
    np.testing.assert_array_equal(whole[:, 30:50], color.apply_image(image[:, 30:50]))


def test_no_change_of_color(rng):
    image = rng.integers(0, 256, (3, 4, 5), dtype=np.uint8)
    assert ColorTransform().apply_image(image) is image


# padding


def test_padding():
    array = np.ones((3, 5, 8), np.uint8)
    padded = pad(array, (8, 8), 128)
    assert padded.shape == (3, 8, 8)
    np.testing.assert_array_equal(padded[:, :5], array)
    assert (padded[:, 5:] == 128).all()
    assert pad(array, (5, 8), 7) is array
    assert pad(array[0], (5, 9), 7)[4].tolist() == [1] * 8 + [7]
