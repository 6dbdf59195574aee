#!/usr/bin/env python3
"""Make ADE20K's label maps: classes counted from 0, and 255 for no class.

    python datasets/prepare_ade20k_sem_seg.py

Reads $DETECTRON2_DATASETS/ADEChallengeData2016/annotations, whose classes are counted from 1, and writes
annotations_detectron2 beside it. May be interrupted and run again: label maps that exist are kept. Exit code: 0, 1
if a file failed, 2 if there is nothing to do.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from preparation import Job, run

from fasegr.data.datasets.ade20k import DOWNLOAD, EXPECTED, FOLDER
from fasegr.data.datasets.root import datasets_root, where_datasets_are
from fasegr.data.image_io import BadFile, read_label

CLASSES = 150


def count_from_zero(path: Path) -> np.ndarray:
    """The label map of an annotation: 1..150 become 0..149, and 0 becomes 255."""
    labels = read_label(path)
    if labels.max(initial=0) > CLASSES:
        raise BadFile(
            f"{path}: holds the value {labels.max()}; expected 0 (no class) to {CLASSES}. Is it an annotation of the "
            "scene parsing benchmark, as published?"
        )
    return labels.astype(np.uint8) - np.uint8(1)  # 0 wraps around to 255


def find_jobs() -> dict[str, list[Job]]:
    """All annotations by split. Raises FileNotFoundError if there are none, or if images have none."""
    return {split: _find_jobs(datasets_root() / FOLDER, split) for split in EXPECTED}


def _find_jobs(root: Path, split: str) -> list[Job]:
    annotations, images = root / "annotations" / split, root / "images" / split
    sources = sorted(annotations.glob("*.png"))
    if not sources:
        raise FileNotFoundError(
            f"no annotations in {annotations} (from {Path.cwd()}). {where_datasets_are()}; ADE20K is at {DOWNLOAD}, "
            f"and unpacking it there makes the folder {FOLDER}"
        )
    annotated = {source.stem for source in sources}
    missing = sorted(image.name for image in images.glob("*.jpg") if image.stem not in annotated)
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} images in {images} have no annotation in {annotations}, the first {missing[0]}; "
            "unpack the archive again"
        )
    return [
        Job(source, images / f"{source.stem}.jpg", root / "annotations_detectron2" / split / source.name)
        for source in sources
    ]


def main(argv: list[str] | None = None) -> int:
    return run(__doc__, find_jobs, count_from_zero, EXPECTED, argv)


if __name__ == "__main__":
    sys.exit(main())
