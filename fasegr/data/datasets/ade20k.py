"""ADE20K's 150 classes (the SceneParse150 benchmark), under the names that detectron2 has for it."""

from functools import partial
from pathlib import Path

from fasegr.d2 import MetadataCatalog
from fasegr.data.datasets.folder import load_folder, load_images, read_classes, register_public
from fasegr.data.datasets.root import datasets_root

__all__ = ["DOWNLOAD", "EXPECTED", "FOLDER", "PREPARE", "register_ade20k"]

FOLDER = "ADEChallengeData2016"
DOWNLOAD = "http://sceneparsing.csail.mit.edu (ADEChallengeData2016.zip)"
PREPARE = "datasets/prepare_ade20k_sem_seg.py"
EXPECTED = {"training": 20210, "validation": 2000}  # images of each split
_SPLITS = {"ade20k_sem_seg_train": "training", "ade20k_sem_seg_val": "validation"}


def _load(name: str, split: str) -> list[dict]:
    root = datasets_root() / FOLDER
    images, labels = root / "images" / split, root / "annotations_detectron2" / split
    if images.is_dir() and not labels.is_dir():
        raise FileNotFoundError(
            f"dataset {name}: no folder {labels} (from {Path.cwd()}); make it with python {PREPARE}"
        )
    return load_folder(name, images, labels)


def register_ade20k() -> None:
    """Adds `ade20k_sem_seg_train`, `ade20k_sem_seg_val` and, to predict for the benchmark's server,
    `ade20k_sem_seg_test` to the catalogs; datasets that detectron2 has registered stay as they are.

    Label maps count classes from 0, with 255 for no class. The server counts from 1.
    """
    classes = read_classes(Path(__file__).with_name("ade20k_classes.txt"))
    submission_ids = list(range(1, len(classes.names) + 1))
    for name, split in _SPLITS.items():
        register_public(name, partial(_load, name, split), classes, submission_ids)
    # All datasets of a config must have the same class names, and detectron2's differ from these.
    theirs = MetadataCatalog.get("ade20k_sem_seg_val").get("stuff_classes", ())
    if len(theirs) == len(classes.names):
        classes = classes._replace(names=list(theirs))
    name = "ade20k_sem_seg_test"
    register_public(name, lambda: load_images(name, datasets_root() / "release_test/testing"), classes, submission_ids)
