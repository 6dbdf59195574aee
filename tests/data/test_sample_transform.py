import numpy as np
import pytest
from PIL import Image

from fasegr.data.augmentation import Box, Colour, RandomCrop, ShortestEdge, SSDColour, change_colour
from fasegr.data.sample_transform import LargeScaleJitter, ResizedCrop, View
from fasegr.data.source_image import Photograph


def no_labels():
    raise AssertionError("nothing asks for labels")


def photograph(height, width):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(("flip", "turn"), [("none", np.array), ("horizontal", np.fliplr), ("vertical", np.flipud)])
def test_pixels_and_labels_are_shown_alike(flip, turn):
    """Resized, cut, flipped, padded: against doing each to the whole image."""
    image = photograph(20, 30)
    view = View((40, 60), Box(5, 7, 30, 35), (32, 64), flip, Colour(brightness=20.0))
    whole = np.asarray(image.resize((60, 40), Image.Resampling.BILINEAR))[5:35, 7:42]
    whole = change_colour(np.ascontiguousarray(turn(whole).transpose(2, 0, 1)), view.colour).astype(int)
    pixels = view.pixels(Photograph(image))
    assert pixels.dtype == np.uint8 and pixels.shape == (3, 32, 64) and pixels.flags.c_contiguous
    assert np.abs(pixels[:, :30, :35] - whole).max() <= 1
    assert (pixels[:, 30:] == 128).all() and (pixels[:, :, 35:] == 128).all()

    labels = np.random.default_rng(1).integers(0, 1000, (20, 30))
    shown = view.labels(labels, -1)
    np.testing.assert_array_equal(shown[:30, :35], turn(labels.repeat(2, 0).repeat(2, 1)[5:35, 7:42]))
    assert (shown[30:] == -1).all() and (shown[:, 35:] == -1).all()


def test_what_is_shown_may_be_written_to():
    for flip in ("none", "horizontal"):
        view = View((4, 6), Box(0, 0, 4, 6), (4, 6), flip)
        assert view.pixels(Photograph(photograph(4, 6))).flags.writeable
        assert view.labels(np.zeros((4, 6)), 0).flags.writeable


# resized crops


def test_resized_crop():
    drawing = ResizedCrop(ShortestEdge((40, 60), 1000), RandomCrop("absolute", (32, 32)), SSDColour(), "vertical", 24)
    views = [drawing.draw(np.random.default_rng(seed), (20, 30), no_labels) for seed in range(200)]
    assert {view.size for view in views} == {(40, 60), (60, 90)}
    assert {view.padded for view in views} == {(48, 48)} and {view.flip for view in views} == {"none", "vertical"}
    assert all(view.box.y + 32 <= view.size[0] and view.box.x + 32 <= view.size[1] for view in views)
    plain = ResizedCrop(ShortestEdge(40, 1000)).draw(np.random.default_rng(0), (20, 30), no_labels)
    assert plain == View((40, 60), Box(0, 0, 40, 60), (40, 60))


def test_crops_that_look_at_classes_ask_for_them():
    """One half of the picture is one class: a window must reach over the border."""
    labels = np.zeros((40, 80), np.uint8)
    labels[:, 40:] = 1
    drawing = ResizedCrop(ShortestEdge(40, 1000), RandomCrop("absolute", (40, 20), 0.9))
    windows = [drawing.draw(np.random.default_rng(seed), (40, 80), lambda: labels).box.x for seed in range(60)]
    assert np.mean([20 < x < 40 for x in windows]) > 0.9  # after ten attempts any window is taken


# large-scale jittering


def slow_jitter(size, image_size, scale, place):
    """ResizeScale and FixedSizeCrop as detectron2 documents them: size of the image resized, offset of the window."""
    target = image_size * scale
    ratio = min(target / size[0], target / size[1])
    resized = [int(np.round(side * ratio)) for side in size]
    return tuple(resized), tuple(int(np.round(max(side - image_size, 0) * place)) for side in resized)


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (50, 50), (480, 1000)])
@pytest.mark.parametrize("flip", ["none", "horizontal", "vertical"])
def test_jitter_step_by_step(size, flip):
    """The same numbers drawn by hand; the window is placed on the flipped image."""
    drawing = LargeScaleJitter(100, 0.1, 2.0, flip)
    for seed in range(100):
        view = drawing.draw(np.random.default_rng(seed), size, no_labels)
        rng = np.random.default_rng(seed)
        resized, (y, x) = slow_jitter(size, 100, rng.uniform(0.1, 2.0), rng.random())
        assert view.size == resized and view.padded == (100, 100) and view.colour is None
        assert view.box[2:] == tuple(min(side, 100) for side in resized)
        if view.flip == "horizontal":
            x = resized[1] - view.box.width - x
        if view.flip == "vertical":
            y = resized[0] - view.box.height - y
        assert view.box[:2] == (y, x)


def test_jitter_is_distributed_as_it_should_be():
    drawing = LargeScaleJitter(1000, 0.1, 2.0, "horizontal")
    views = [drawing.draw(np.random.default_rng(seed), (500, 1000), no_labels) for seed in range(3000)]
    scales = np.sort([view.size[1] / 1000 for view in views])
    assert np.abs(scales - np.linspace(0.1, 2.0, 3000)).max() < 0.06  # uniform
    assert abs(np.mean([view.flip == "horizontal" for view in views]) - 0.5) < 0.03
    assert np.isclose([view.size[0] * 2 for view in views], [view.size[1] for view in views], atol=1).all()
    places = np.sort([view.box.x / (view.size[1] - 1000) for view in views if view.size[1] > 1200])
    assert np.abs(places - np.linspace(0, 1, len(places))).max() < 0.06
    assert all(view.box.y == 0 and view.box.height == min(view.size[0], 1000) for view in views)


def test_jitter_never_loses_an_image():
    view = LargeScaleJitter(8, 0.01, 0.01).draw(np.random.default_rng(0), (3, 4000), no_labels)
    assert view.size == (1, 1) and view.box == (0, 0, 1, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((0, 0.1, 2.0), "IMAGE_SIZE is 0"),
        ((64, 0.0, 2.0), "MIN_SCALE is 0.0 and MAX_SCALE 2.0"),
        ((64, 2.0, 0.1), "MIN_SCALE is 2.0 and MAX_SCALE 0.1"),
        ((64, 0.1, 2.0, "both"), "RANDOM_FLIP is 'both'"),
    ],
)
def test_impossible_jitter_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LargeScaleJitter(*options)
