import numpy as np
import pytest

from fasegr.data.augmentation import ColorAugSSD, LargeScaleJitter, RandomCrop, ResizeCropFlip, ResizeShortestEdge
from fasegr.data.transform import Box, Transform


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
    assert ResizeShortestEdge(length, max_size).output_size(size) == expected


def test_shortest_edge_draws_all_lengths_alike(rng):
    choice = ResizeShortestEdge((16, 20, 24), 1000)
    drawn = [choice.get_size(rng, (16, 32))[0] for _ in range(3000)]
    assert set(drawn) == {16, 20, 24}
    assert np.bincount(drawn)[[16, 20, 24]].min() > 900
    between = ResizeShortestEdge((16, 24), 1000, "range")
    assert {between.get_size(rng, (16, 32))[0] for _ in range(500)} == set(range(16, 25))


@pytest.mark.parametrize("arguments", [((), 10), ((-1,), 10), ((5, 3), 10, "range"), ((3, 4, 5), 10, "range"), (3, 0)])
def test_impossible_sizes_are_refused(arguments):
    with pytest.raises(ValueError, match="side"):
        ResizeShortestEdge(*arguments)


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
    boxes = np.array([crop.get_crop(rng, (30, 40)) for _ in range(2000)])
    np.testing.assert_array_equal(boxes[:, 2:].min(0), low)
    np.testing.assert_array_equal(boxes[:, 2:].max(0), high)
    np.testing.assert_array_equal(boxes[:, :2].min(0), (0, 0))
    np.testing.assert_array_equal((boxes[:, :2] + boxes[:, 2:]).max(0), (30, 40))  # every place is reached, none beyond


def test_crop_places_are_uniform(rng):
    crop = RandomCrop("absolute", (27, 40))
    places = [crop.get_crop(rng, (30, 40)).y for _ in range(4000)]
    assert np.bincount(places, minlength=4).min() > 900


def test_crop_looks_for_variety_ten_times(rng):
    labels = np.zeros((20, 20), np.uint8)
    labels[:, 10:] = 1
    plain, picky = RandomCrop("absolute", (20, 6)), RandomCrop("absolute", (20, 6), 0.75)

    def share_varied(crop):
        crops = [crop.get_crop(rng, (20, 20), labels) for _ in range(600)]
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
    assert crop.get_crop(rng, (20, 20), labels) == Box(0, 0, 20, 20)  # the last attempt is taken as it is


# colors


def test_distribution_of_colors(rng):
    drawn = [ColorAugSSD().get_transform(rng) for _ in range(6000)]
    for name, neutral, low, high in (
        ("brightness", 0, -32, 32),
        ("contrast", 1, 0.5, 1.5),
        ("saturation", 1, 0.5, 1.5),
        ("hue", 0, -36, 36),
    ):
        values = np.array([getattr(color, name) for color in drawn])
        changed = values[values != neutral]
        unmoved = 0.5 + (0.5 / 37 if name == "hue" else 0)
        assert abs(np.mean(values == neutral) - unmoved) < 0.03
        assert low <= changed.min() < low + 0.03 * (high - low)
        assert high >= changed.max() > high - 0.03 * (high - low)
        assert abs(changed.mean() - neutral) < 0.02 * (high - low)
        assert abs(changed.std() - (high - low) / 12**0.5) < 0.03 * (high - low)
    assert abs(np.mean([color.contrast_first for color in drawn]) - 0.5) < 0.03
    assert {color.hue % 2 for color in drawn} == {0.0}


# resize, crop and flip


def test_resized_crop():
    augmentation = ResizeCropFlip(
        ResizeShortestEdge((40, 60), 1000), RandomCrop("absolute", (32, 32)), ColorAugSSD(), "vertical", 24
    )
    transforms = [augmentation.get_transform(np.random.default_rng(seed), (20, 30)) for seed in range(200)]
    assert {transform.size for transform in transforms} == {(40, 60), (60, 90)}
    assert {transform.padded_size for transform in transforms} == {(48, 48)} and {
        transform.flip for transform in transforms
    } == {"none", "vertical"}
    assert all(
        transform.box.y + 32 <= transform.size[0] and transform.box.x + 32 <= transform.size[1]
        for transform in transforms
    )
    plain = ResizeCropFlip(ResizeShortestEdge(40, 1000)).get_transform(np.random.default_rng(0), (20, 30))
    assert plain == Transform((40, 60), Box(0, 0, 40, 60), (40, 60))


def test_crops_that_look_at_classes():
    """One half of the picture is one class: a window must reach over the border."""
    labels = np.zeros((40, 80), np.uint8)
    labels[:, 40:] = 1
    augmentation = ResizeCropFlip(ResizeShortestEdge(40, 1000), RandomCrop("absolute", (40, 20), 0.9))
    assert augmentation.needs_sem_seg
    windows = [augmentation.get_transform(np.random.default_rng(seed), (40, 80), labels).box.x for seed in range(60)]
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
    augmentation = LargeScaleJitter(100, 0.1, 2.0, flip)
    for seed in range(100):
        transform = augmentation.get_transform(np.random.default_rng(seed), size)
        rng = np.random.default_rng(seed)
        resized, (y, x) = slow_jitter(size, 100, rng.uniform(0.1, 2.0), rng.random())
        assert transform.size == resized and transform.padded_size == (100, 100) and transform.color is None
        assert transform.box[2:] == tuple(min(side, 100) for side in resized)
        if transform.flip == "horizontal":
            x = resized[1] - transform.box.width - x
        if transform.flip == "vertical":
            y = resized[0] - transform.box.height - y
        assert transform.box[:2] == (y, x)


def test_jitter_is_distributed_as_it_should_be():
    augmentation = LargeScaleJitter(1000, 0.1, 2.0, "horizontal")
    transforms = [augmentation.get_transform(np.random.default_rng(seed), (500, 1000)) for seed in range(3000)]
    scales = np.sort([transform.size[1] / 1000 for transform in transforms])
    assert np.abs(scales - np.linspace(0.1, 2.0, 3000)).max() < 0.06  # uniform
    assert abs(np.mean([transform.flip == "horizontal" for transform in transforms]) - 0.5) < 0.03
    assert np.isclose(
        [transform.size[0] * 2 for transform in transforms], [transform.size[1] for transform in transforms], atol=1
    ).all()
    places = np.sort(
        [transform.box.x / (transform.size[1] - 1000) for transform in transforms if transform.size[1] > 1200]
    )
    assert np.abs(places - np.linspace(0, 1, len(places))).max() < 0.06
    assert all(
        transform.box.y == 0 and transform.box.height == min(transform.size[0], 1000) for transform in transforms
    )


def test_jitter_never_loses_an_image():
    transform = LargeScaleJitter(8, 0.01, 0.01).get_transform(np.random.default_rng(0), (3, 4000))
    assert transform.size == (1, 1) and transform.box == (0, 0, 1, 1)
