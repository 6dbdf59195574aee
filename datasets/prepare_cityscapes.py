#!/usr/bin/env python3
"""Make Cityscapes' label maps: *_gtFine_labelTrainIds.png, classes 0..18, and 255 for what is not evaluated.

    python datasets/prepare_cityscapes.py

Reads $DETECTRON2_DATASETS/cityscapes/gtFine and writes beside what it reads: *_gtFine_labelIds.png, which the archive
holds, or where there is none *_gtFine_polygons.json, whose drawing may differ from it at edges, depending on the
version of Pillow. May be interrupted and run again: what is there is kept. Exit code: 0, 1 if a file failed, 2 if
nothing could be done.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from fasegr.data.datasets.cityscapes import DOWNLOAD, EXPECTED, IGNORE, IMAGE_ENDING, LABEL_ENDING, LABELS
from fasegr.data.datasets.folder import datasets_root, where_datasets_are
from fasegr.data.image_io import BadFile, read_label
from fasegr.data.preparation import Job, make_label_maps, parse_workers, report

ID_ENDING, POLYGON_ENDING = "_gtFine_labelIds.png", "_gtFine_polygons.json"

TRAIN_IDS = np.array([label.train_id for label in LABELS if label.id >= 0], np.uint8)  # by label id
BY_NAME = {label.name: label for label in LABELS}


def read_annotation(path: Path) -> np.ndarray:
    """The label map of an annotation of either kind."""
    return draw_polygons(path) if path.suffix == ".json" else map_label_ids(path)


def map_label_ids(path: Path) -> np.ndarray:
    ids = read_label(path)
    if ids.max(initial=0) >= len(TRAIN_IDS):
        raise BadFile(f"{path}: holds the label id {ids.max()}; Cityscapes has 0..{len(TRAIN_IDS) - 1}")
    return TRAIN_IDS[ids]


def draw_polygons(path: Path) -> np.ndarray:
    """Later objects lie over earlier ones. What is not a class covers, too: its pixels become 255."""
    try:
        annotation = json.loads(path.read_text(encoding="utf-8"))
        canvas = Image.new("L", (annotation["imgWidth"], annotation["imgHeight"]), IGNORE)
        pencil = ImageDraw.Draw(canvas)
        for item in annotation["objects"]:
            name = item["label"]
            # A group of objects that could not be told apart is of their class, unless groups have one of their own.
            label = BY_NAME.get(name) or BY_NAME.get(name.removesuffix("group"))
            if item.get("deleted"):
                continue
            if label is None:
                raise BadFile(f"{path}: an object is labelled {name!r}, which is no label of Cityscapes")
            if label.id >= 0:
                pencil.polygon([(x, y) for x, y in item["polygon"]], fill=label.train_id)
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise BadFile(f"{path}: is not an annotation of Cityscapes ({type(error).__name__}: {error})") from error
    return np.array(canvas)


def find_jobs(root: Path, split: str) -> list[Job]:
    """Every annotation of a split, of two kinds of the same image the label ids."""
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
    workers = parse_workers(__doc__, argv)
    root = datasets_root() / "cityscapes"
    jobs = {split: found for split in EXPECTED if (found := find_jobs(root, split))}
    if not jobs:
        print(
            f"error: no *{ID_ENDING} or *{POLYGON_ENDING} in {root}/gtFine/SPLIT/CITY (from {Path.cwd()}). "
            f"{where_datasets_are()}; Cityscapes is at {DOWNLOAD}, to be unpacked in its folder cityscapes",
            file=sys.stderr,
        )
        return 2
    failed = False
    for split in [split for split in EXPECTED if split not in jobs]:
        print(f"{split}: warning: no annotations in {root}/gtFine/{split}, so nothing was done", file=sys.stderr)
    for split, found in jobs.items():
        outcome = make_label_maps(found, read_annotation, workers, split)
        report(split, outcome, EXPECTED[split])
        without = sum(job.image is None for job in found)
        if without:
            print(
                f"{split}: warning: {without} annotations have no image in {root}/leftImg8bit/{split}; "
                "their size was not compared",
                file=sys.stderr,
            )
        failed |= bool(outcome.problems)
    return int(failed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command continues")
