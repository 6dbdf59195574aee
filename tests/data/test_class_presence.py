"""Classes that the training images never show are said, at once where all is well."""

import numpy as np
import pytest
from PIL import Image

from fasegr.data.class_presence import count_classes, warn_of_missing_classes
from fasegr.data.image_io import BadFile

NAMES, COLOURS = ["sky", "road", "car"], [(1, 1, 1), (2, 2, 2), (3, 3, 3)]


def records(tmp_path, *maps, palette=None):
    made = []
    for i, values in enumerate(maps):
        image = Image.fromarray(np.array([values], np.uint8), mode="P" if palette else None)
        if palette:
            image.putpalette([level for colour in palette for level in colour])
        image.save(tmp_path / f"{i}.png")
        made.append({"file_name": "x.jpg", "sem_seg_file_name": str(tmp_path / f"{i}.png")})
    return made


def test_masks_of_0_and_255(tmp_path, caplog):
    warn_of_missing_classes("own_train", records(tmp_path, [0, 0, 255, 0], [0, 255, 255, 255]), NAMES[:2])
    assert "1 of 2 classes have no pixel in the 2 images of own_train" in caplog.text
    assert "road (1). Pixels of the others: sky (0) 4. 50.0 % of the pixels are ignored" in caplog.text
    assert "LABEL_MAP [[0, CLASS], [255, CLASS]]" in caplog.text


def test_labels_counted_from_one(tmp_path, caplog):
    warn_of_missing_classes("own_train", records(tmp_path, [1, 2, 2]), NAMES)
    assert "sky (0)" in caplog.text and "LABEL_MAP from_one" in caplog.text


def test_nothing_is_said_and_little_read_where_all_is_well(tmp_path, caplog):
    many = records(tmp_path, [0, 1, 2]) * 1000
    warn_of_missing_classes("own_train", many, NAMES)
    assert not caplog.records
    presence = count_classes(many, 3, 255)
    assert presence.images < 100 and not presence.complete


def test_what_is_no_class_is_found_before_the_training(tmp_path):
    with pytest.raises(BadFile, match=r"0\.png: holds the label 7"):
        count_classes(records(tmp_path, [0, 1, 7]), 3, 255)


def test_classes_without_objects(caplog):
    objects = [{"annotations": [{"category_id": 2, "iscrowd": 0}, {"category_id": 1, "iscrowd": 1}]}]
    warn_of_missing_classes("own_train", objects, NAMES, semantic=False)
    assert "2 of 3 classes have no object in the 1 images" in caplog.text and "car (2) 1" in caplog.text


@pytest.mark.parametrize(("order", "said"), [((0, 1, 2), False), ((2, 1, 0), True), ((1, 2, 0), True)])
def test_palettes_of_another_order(tmp_path, caplog, order, said):
    found = records(tmp_path, [0, 1, 2], palette=[COLOURS[i] for i in order])
    warn_of_missing_classes("own_train", found, NAMES, COLOURS)
    assert ("LABEL_MAP colours" in caplog.text) == said
