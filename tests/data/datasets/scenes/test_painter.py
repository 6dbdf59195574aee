import hashlib

import numpy as np
import pytest

from fasegr.data.datasets.scenes.painter import (
    CLASSES,
    COLOURS,
    THINGS,
    Dice,
    Landscape,
    mix,
    noise,
    paint_scene,
    smooth,
)


@pytest.fixture(scope="module")
def scenes():
    return [paint_scene(7, 0, index) for index in range(40)]


def test_scenes_have_the_form_of_images(scenes):
    for image, labels, objects in scenes:
        assert image.shape == (128, 128, 3) and image.dtype == np.uint8 and image.flags.c_contiguous
        assert labels.shape == (128, 128) and labels.dtype == np.uint8
        assert labels.max() < len(CLASSES)
        assert objects.shape == (128, 128) and objects.dtype == np.uint8
    assert len(CLASSES) == len(COLOURS) == len(set(COLOURS)) >= 10


def test_the_same_bytes_on_every_machine():
    """Recorded once; a change of the painting changes it, and then raise scenes.VERSION."""
    image, labels, objects = paint_scene(2022, 0, 0)
    assert hashlib.sha256(image.tobytes()).hexdigest()[:16] == "03cc7a5e1dfacaf7"
    assert hashlib.sha256(labels.tobytes()).hexdigest()[:16] == "a0d2c4554f5988e4"
    assert hashlib.sha256(objects.tobytes()).hexdigest()[:16] == "b7b35ff4770b094e"


def test_every_scene_is_another():
    first = paint_scene(1, 0, 0).image
    assert np.array_equal(first, paint_scene(1, 0, 0).image)
    for other in ((2, 0, 0), (1, 1, 0), (1, 0, 1)):
        assert not np.array_equal(first, paint_scene(*other).image)


def test_objects_are_told_apart(scenes):
    """Exactly the pixels of things have a number, each number one class, and there are scenes of several trees."""
    for _, labels, objects in scenes:
        np.testing.assert_array_equal(objects > 0, np.isin(labels, THINGS))
        assert all(len(np.unique(labels[objects == number])) == 1 for number in np.unique(objects) if number)
    trees = [len(np.unique(objects[labels == CLASSES.index("tree")])) for _, labels, objects in scenes]
    assert max(trees) >= 5 and np.mean(trees) > 2


def test_every_class_is_in_many_scenes(scenes):
    present = np.mean([np.bincount(labels.ravel(), minlength=len(CLASSES)) > 0 for _, labels, _ in scenes], axis=0)
    assert present.min() > 0.4, dict(zip(CLASSES, present, strict=True))


def test_sizes_of_things_vary(scenes):
    """Large and small classes, and thin ones: in a fence, few pixels have all neighbours of their own class."""
    areas = np.array([np.bincount(labels.ravel(), minlength=len(CLASSES)) for _, labels, _ in scenes]) / 128**2
    area = dict(zip(CLASSES, areas.sum(0) / np.maximum(1, (areas > 0).sum(0)), strict=True))
    assert area["sky"] > 0.2 and area["grass"] > 0.2
    assert area["bird"] < 0.015 and area["sun"] < 0.02

    def share_inside(name):
        inside = total = 0
        for _, labels, _ in scenes:
            mask = labels == CLASSES.index(name)
            core = mask[2:-2, 2:-2].copy()
            for dy, dx in ((-2, 0), (2, 0), (0, -2), (0, 2)):
                core &= mask[2 + dy : 126 + dy, 2 + dx : 126 + dx]
            inside, total = inside + core.sum(), total + mask.sum()
        return inside / total

    assert share_inside("fence") < 0.25 < 0.6 < share_inside("house")


def test_places_of_things_vary(scenes):
    for name in ("house", "tree", "car", "balloon", "sun"):
        masks = [scene.labels == CLASSES.index(name) for scene in scenes]
        centres = [np.argwhere(mask).mean(0) for mask in masks if mask.any()]
        assert np.std([x for _, x in centres]) > 12, name


def test_a_constant_guess_scores_next_to_nothing(scenes):
    counts = np.sum([np.bincount(labels.ravel(), minlength=len(CLASSES)) for _, labels, _ in scenes], axis=0)
    best = 0
    for guess in range(len(CLASSES)):
        iou = np.zeros(len(CLASSES))
        iou[guess] = counts[guess] / counts.sum()
        best = max(best, iou.mean())
    assert best < 0.05


def test_colour_alone_does_not_tell_the_class(scenes):
    """A table from colour (8 levels a channel) to its most frequent class, made and scored on the same scenes."""
    pixels = np.concatenate([image.reshape(-1, 3) >> 5 for image, _, _ in scenes]).astype(int)
    labels = np.concatenate([labels.ravel() for _, labels, _ in scenes])
    key = (pixels[:, 0] << 6) | (pixels[:, 1] << 3) | pixels[:, 2]
    table = np.zeros((512, len(CLASSES)), int)
    np.add.at(table, (key, labels), 1)
    guess = table.argmax(1)[key]
    iou = [
        np.sum((guess == c) & (labels == c)) / max(1, np.sum((guess == c) | (labels == c))) for c in range(len(CLASSES))
    ]
    assert np.mean(iou) < 0.35


def test_any_size():
    """The labels of a larger picture are, away from edges, those of the smaller one."""
    small, large = paint_scene(3, 0, 1, 64, 64).labels, paint_scene(3, 0, 1, 128, 128).labels
    assert paint_scene(3, 0, 1, 64, 96).image.shape == (64, 96, 3)
    assert np.mean(large[::2, ::2] == small) > 0.95


def test_shapes_are_distances():
    window = Landscape(Dice((0,)), 128, 128).window(0, 0, 50, 40)
    window.x, window.y = np.arange(50.0)[None, :], np.arange(40.0)[:, None]
    line = window.rod((10, 20), (30, 20), 3)
    assert line[20, 20] == -3 and line[26, 20] == 3 and line[20, 36] == 3
    square = window.polygon((10, 10), (20, 10), (20, 20), (10, 20))
    assert square[15, 15] == -5 and square[15, 25] == 5
    np.testing.assert_array_equal(square < 0, (window.x > 10) & (window.x < 20) & (window.y > 10) & (window.y < 20))


def test_noise_is_the_table_smoothly_joined():
    table = Dice((0,)).table(5, 7)
    x, y = np.arange(14.0)[None, :], np.arange(10.0)[:, None]
    np.testing.assert_array_equal(noise(table, x, y), np.tile(table, (2, 2)))
    fine = noise(table, np.linspace(0, 7, 701)[None, :], np.full((1, 1), 2.5))
    assert fine.shape == (1, 701) and np.abs(np.diff(fine)).max() < 0.02
    scattered = np.add(np.linspace(0, 9, 30)[:, None], np.linspace(0, 3, 40)[None, :])
    rows = np.linspace(0, 4, 30)[:, None]
    slow = [
        [noise(table, np.full((1, 1), scattered[i, j]), rows[i : i + 1]).item() for j in range(40)] for i in range(30)
    ]
    np.testing.assert_array_equal(noise(table, scattered, rows), slow)


def test_mixing():
    first, second = np.zeros((3, 1, 1)), np.ones((3, 1, 1))
    assert mix(first, second, np.full((4, 5), 0.25)).shape == (3, 4, 5)
    np.testing.assert_array_equal(smooth(np.array([-1.0, 0, 0.5, 1, 2]), 0, 1), [0, 0, 0.5, 1, 1])
