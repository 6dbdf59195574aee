"""The search, by a count that is a formula; the size of training images, by kind of crop."""

import pytest

import fasegr
from fasegr.analysis.fit_memory import Recipe, fit, training_size
from tools.ablation.tables import CONFIGS


def count(size, images, keeps_gradients):
    """100 for the weights, 20 for kept gradients, and one for each 32 x 32 cell of an image."""
    return 100 + 20 * keeps_gradients + images * size[0] * size[1] // 32**2


@pytest.mark.parametrize(
    ("memory", "processes", "expected"),
    [
        (10000, 1, (8, 1, (512, 512))),
        (100 + 8 * 256, 1, (8, 1, (512, 512))),  # just
        (100 + 8 * 256 - 1, 1, (4, 2, (512, 512))),
        (100 + 8 * 256, 2, (4, 2, (512, 512))),  # several processes keep gradients
        (120 + 3 * 256, 1, (2, 4, (512, 512))),  # 3 do not divide 8
        (120 + 256, 1, (1, 8, (512, 512))),
        (120 + 255, 1, (1, 8, (480, 480))),
        (121, 1, (1, 8, (32, 32))),
    ],
)
def test_the_fewest_micro_batches_that_fit(memory, processes, expected):
    way = fit(Recipe(8, (512, 512), processes), memory, count)
    assert (way.images, way.accumulate, way.size) == expected
    assert way.memory == count(way.size, way.images, processes > 1 or way.accumulate > 1) <= memory
    assert way.images * way.accumulate == 8


def test_room_for_more_images():
    assert fit(Recipe(2, (512, 512), 1), 120 + 9 * 256, count).most == 9


def test_nothing_fits():
    assert fit(Recipe(8, (512, 512), 1), 120, count) is None


def test_a_smaller_crop_has_the_same_proportions():
    way = fit(Recipe(1, (512, 1024), 1), 100 + 8 * 16, count)
    assert way.size == (256, 512)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ((), (128, 128)),
        (("INPUT.CROP.SIZE", (96, 200), "INPUT.SIZE_DIVISIBILITY", -1), (96, 224)),
        (("INPUT.CROP.TYPE", "absolute_range", "INPUT.CROP.SIZE", (64, 90)), (128, 128)),
        (("INPUT.CROP.TYPE", "relative", "INPUT.CROP.SIZE", (0.5, 1.0), "INPUT.MAX_SIZE_TRAIN", 256), (128, 256)),
        (("INPUT.CROP.ENABLED", False, "INPUT.MAX_SIZE_TRAIN", 300), (128, 384)),
        (("INPUT.DATASET_MAPPER_NAME", "coco_panoptic_lsj", "INPUT.IMAGE_SIZE", 640), (640, 640)),
    ],
)
def test_the_size_of_training_images(options, size):
    cfg = fasegr.load_cfg(CONFIGS / "quickstart/faseg_scenes.yaml", ["MODEL.DEVICE", "cpu", *options])
    assert training_size(cfg) == size
