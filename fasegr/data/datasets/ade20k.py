"""ADE20K's 150 classes (the SceneParse150 benchmark), under the names that detectron2 has for it."""

from pathlib import Path

from fasegr.d2 import DatasetCatalog
from fasegr.data.datasets.folder import datasets_root, load_folder, read_classes, register_folder

__all__ = ["register_ade20k"]

_SPLITS = {"ade20k_sem_seg_train": "training", "ade20k_sem_seg_val": "validation"}


def register_ade20k() -> None:
    """Adds `ade20k_sem_seg_train` and `ade20k_sem_seg_val` to the catalogs; where detectron2 has, they are left alone.

    Label maps are those whose classes are counted from 0, with 255 for what has none.
    """
    classes = None
    for name, split in _SPLITS.items():
        if name in DatasetCatalog.list():
            continue

        def load(name: str = name, split: str = split) -> list[dict]:
            root = datasets_root() / "ADEChallengeData2016"
            return load_folder(name, root / "images" / split, root / "annotations_detectron2" / split)

        classes = classes or read_classes(Path(__file__).with_name("ade20k_classes.txt"))
        register_folder(name, load, classes)
