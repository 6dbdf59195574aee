#!/usr/bin/env python3
"""Make Cityscapes' label maps: *_gtFine_labelTrainIds.png, classes 0..18, and 255 for what is not evaluated.

    python datasets/prepare_cityscapes.py

Reads *_gtFine_labelIds.png in $DETECTRON2_DATASETS/cityscapes/gtFine, or *_gtFine_polygons.json where the archive was
unpacked without them, and writes beside them. Polygons may be drawn differently at edges, depending on the version of
Pillow. May be interrupted and run again: label maps that exist are kept. Exit code: 0, 1 if a file failed, 2 if there
is nothing to do.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from preparation import Job, run

from fasegr.data.datasets.cityscapes import DOWNLOAD, EXPECTED, IGNORE, IMAGE_ENDING, LABEL_ENDING, LABELS
from fasegr.data.datasets.coco_file import read_json
from fasegr.data.datasets.root import datasets_root, where_datasets_are
from fasegr.data.image_io import BadFile, read_label

ID_ENDING, POLYGON_ENDING = "_gtFine_labelIds.png", "_gtFine_polygons.json"

TRAIN_IDS = np.array([label.train_id for label in LABELS if label.id >= 0], np.uint8)  # by label id
BY_NAME = {label.name: label for label in LABELS}


def read_annotation(path: Path) -> np.ndarray:
    """The label map of an annotation, label ids or polygons."""
    return draw_polygons(path) if path.suffix == ".json" else map_label_ids(path)


def map_label_ids(path: Path) -> np.ndarray:
    ids = read_label(path)
    if ids.max(initial=0) >= len(TRAIN_IDS):
        raise BadFile(f"{path}: holds the label id {ids.max()}; Cityscapes has 0..{len(TRAIN_IDS) - 1}")
    return TRAIN_IDS[ids]


def draw_polygons(path: Path) -> np.ndarray:
    """Later objects cover earlier ones, also those that are not a class: their pixels become 255."""
    try:
        annotation = read_json(path)
        canvas = Image.new("L", (annotation["imgWidth"], annotation["imgHeight"]), IGNORE)
        pencil = ImageDraw.Draw(canvas)
        for item in annotation["objects"]:
            name = item["label"]
            # A group of objects has the class of the objects, unless there is a label for such groups.
            label = BY_NAME.get(name) or BY_NAME.get(name.removesuffix("group"))
            if item.get("deleted"):
                continue
            if label is None:
                raise BadFile(f"an object is labelled {name!r}, which is not a label of Cityscapes")
            if label.id >= 0:
                pencil.polygon([(x, y) for x, y in item["polygon"]], fill=label.train_id)
    except BadFile as error:
        raise BadFile(f"{path}: {error}") from error
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, MemoryError) as error:
        raise BadFile(f"{path}: is not a Cityscapes annotation ({type(error).__name__}: {error})") from error
    return np.array(canvas)


def find_jobs() -> dict[str, list[Job]]:
    """All annotations by split. Raises FileNotFoundError if there are none."""
    root = datasets_root() / "cityscapes"
    jobs = {split: found for split in EXPECTED if (found := _find_jobs(root, split))}
    if not jobs:
        raise FileNotFoundError(
            f"no *{ID_ENDING} or *{POLYGON_ENDING} in {root}/gtFine/SPLIT/CITY (from {Path.cwd()}). "
            f"{where_datasets_are()}; Cityscapes is at {DOWNLOAD}; unpack it in the folder cityscapes there"
        )
    for split in EXPECTED.keys() - jobs.keys():
        print(f"{split}: warning: no annotations in {root}/gtFine/{split}, so nothing was done", file=sys.stderr)
    return jobs


def _find_jobs(root: Path, split: str) -> list[Job]:
    """One for each image: of label ids if there are any, else of polygons."""
    sources = {}
    for ending in (POLYGON_ENDING, ID_ENDING):
        for source in (root / "gtFine" / split).glob(f"*/*{ending}"):
            sources[source.with_name(source.name.removesuffix(ending))] = source
    jobs = []
    for stem, source in sorted(sources.items()):
        image = root / "leftImg8bit" / split / stem.parent.name / (stem.name + IMAGE_ENDING)
        jobs.append(Job(source, image if image.is_file() else None, stem.with_name(stem.name + LABEL_ENDING)))
    return jobs


def main(argv: list[str] | None = None) -> int:
    return run(__doc__, find_jobs, read_annotation, EXPECTED, argv)


if __name__ == "__main__":
    sys.exit(main())
