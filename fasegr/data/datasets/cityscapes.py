"""Cityscapes: its table of labels, and its fine annotations under the names that detectron2 has for them.

cityscapes/leftImg8bit/SPLIT/CITY/CITY_000000_000019_leftImg8bit.png
cityscapes/gtFine/SPLIT/CITY/CITY_000000_000019_gtFine_labelTrainIds.png
"""

from functools import partial
from pathlib import Path
from typing import NamedTuple

from fasegr.data.datasets.folder import ClassList, load_images, read_records, register_public
from fasegr.data.datasets.root import datasets_root, where_datasets_are

__all__ = [
    "CATEGORIES",
    "CLASSES",
    "DOWNLOAD",
    "EXPECTED",
    "IGNORE",
    "IMAGE_ENDING",
    "INSTANCE_ENDING",
    "LABELS",
    "LABEL_ENDING",
    "PREPARE",
    "Label",
    "find_images",
    "register_cityscapes",
]

DOWNLOAD = "https://www.cityscapes-dataset.com/downloads (leftImg8bit_trainvaltest.zip, gtFine_trainvaltest.zip)"
PREPARE = "datasets/prepare_cityscapes.py"
EXPECTED = {"train": 2975, "val": 500, "test": 1525}  # images of each split
IMAGE_ENDING, LABEL_ENDING = "_leftImg8bit.png", "_gtFine_labelTrainIds.png"
INSTANCE_ENDING = "_gtFine_instanceIds.png"
IGNORE = 255


class Label(NamedTuple):
    """A row of the table. train_id: the class that a model predicts, IGNORE for what is not evaluated. instances:
    whether objects are annotated one by one."""

    name: str
    id: int
    train_id: int
    category: str
    instances: bool
    colour: tuple[int, int, int]


# fmt: off
LABELS = (
    Label("unlabeled",             0, IGNORE, "void",         False, (0, 0, 0)),
    Label("ego vehicle",           1, IGNORE, "void",         False, (0, 0, 0)),
    Label("rectification border",  2, IGNORE, "void",         False, (0, 0, 0)),
    Label("out of roi",            3, IGNORE, "void",         False, (0, 0, 0)),
    Label("static",                4, IGNORE, "void",         False, (0, 0, 0)),
    Label("dynamic",               5, IGNORE, "void",         False, (111, 74, 0)),
    Label("ground",                6, IGNORE, "void",         False, (81, 0, 81)),
    Label("road",                  7,      0, "flat",         False, (128, 64, 128)),
    Label("sidewalk",              8,      1, "flat",         False, (244, 35, 232)),
    Label("parking",               9, IGNORE, "flat",         False, (250, 170, 160)),
    Label("rail track",           10, IGNORE, "flat",         False, (230, 150, 140)),
    Label("building",             11,      2, "construction", False, (70, 70, 70)),
    Label("wall",                 12,      3, "construction", False, (102, 102, 156)),
    Label("fence",                13,      4, "construction", False, (190, 153, 153)),
    Label("guard rail",           14, IGNORE, "construction", False, (180, 165, 180)),
    Label("bridge",               15, IGNORE, "construction", False, (150, 100, 100)),
    Label("tunnel",               16, IGNORE, "construction", False, (150, 120, 90)),
    Label("pole",                 17,      5, "object",       False, (153, 153, 153)),
    Label("polegroup",            18, IGNORE, "object",       False, (153, 153, 153)),
    Label("traffic light",        19,      6, "object",       False, (250, 170, 30)),
    Label("traffic sign",         20,      7, "object",       False, (220, 220, 0)),
    Label("vegetation",           21,      8, "nature",       False, (107, 142, 35)),
    Label("terrain",              22,      9, "nature",       False, (152, 251, 152)),
    Label("sky",                  23,     10, "sky",          False, (70, 130, 180)),
    Label("person",               24,     11, "human",        True,  (220, 20, 60)),
    Label("rider",                25,     12, "human",        True,  (255, 0, 0)),
    Label("car",                  26,     13, "vehicle",      True,  (0, 0, 142)),
    Label("truck",                27,     14, "vehicle",      True,  (0, 0, 70)),
    Label("bus",                  28,     15, "vehicle",      True,  (0, 60, 100)),
    Label("caravan",              29, IGNORE, "vehicle",      True,  (0, 0, 90)),
    Label("trailer",              30, IGNORE, "vehicle",      True,  (0, 0, 110)),
    Label("train",                31,     16, "vehicle",      True,  (0, 80, 100)),
    Label("motorcycle",           32,     17, "vehicle",      True,  (0, 0, 230)),
    Label("bicycle",              33,     18, "vehicle",      True,  (119, 11, 32)),
    Label("license plate",        -1, IGNORE, "vehicle",      False, (0, 0, 142)),  # never drawn: part of its vehicle
)
# fmt: on

CLASSES = tuple(label for label in LABELS if label.train_id != IGNORE)  # in order of their train ids
CATEGORIES = tuple(dict.fromkeys(label.category for label in CLASSES))


def find_images(split: str) -> list[Path]:
    """The images of a split, in order of their names."""
    return sorted((datasets_root() / "cityscapes/leftImg8bit" / split).glob(f"*/*{IMAGE_ENDING}"))


def _load(name: str, split: str) -> list[dict]:
    folder = datasets_root() / "cityscapes"
    if split == "test":
        return load_images(name, folder / "leftImg8bit/test")
    images = find_images(split)
    if not images:
        raise FileNotFoundError(
            f"dataset {name}: no {folder}/leftImg8bit/{split}/CITY/*{IMAGE_ENDING} (from {Path.cwd()}). "
            f"{where_datasets_are()}; Cityscapes is at {DOWNLOAD}"
        )
    labels = [
        folder / "gtFine" / split / image.parent.name / (image.name.removesuffix(IMAGE_ENDING) + LABEL_ENDING)
        for image in images
    ]
    missing = [label for label in labels if not label.is_file()]
    if missing:
        raise FileNotFoundError(
            f"dataset {name}: {len(missing)} of {len(images)} images have no label map, the first {missing[0]}; "
            f"make them from the annotations with python {PREPARE}"
        )
    return read_records(list(zip(images, labels, strict=True)))


def register_cityscapes() -> None:
    """Adds `cityscapes_fine_sem_seg_train`, `_val` and, to predict for the benchmark's server, `_test` to the catalogs;
    datasets that detectron2 has registered stay as they are.

    The annotations published for the test images are dummies, so here these have none.
    """
    classes = ClassList([label.name for label in CLASSES], [label.colour for label in CLASSES])
    submission_ids = [label.id for label in CLASSES]
    for split in EXPECTED:
        name = f"cityscapes_fine_sem_seg_{split}"
        register_public(name, partial(_load, name, split), classes, submission_ids, "cityscapes_sem_seg")
