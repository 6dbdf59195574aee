"""Models of transformers whose classes are those of a dataset that is registered here."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from fasegr.config.transformers_folder import DATASET
from fasegr.d2 import CfgNode, DatasetCatalog, MetadataCatalog

__all__ = ["use_known_dataset"]

logger = logging.getLogger(__name__)

_CANDIDATES = {
    "semantic": ("ade20k_sem_seg", "cityscapes_fine_sem_seg", "scenes"),
    "instance": ("coco_2017", "scenes_instance"),
    "panoptic": ("coco_2017", "scenes_panoptic"),
}
_SUFFIXES = {("panoptic", "coco_2017"): ("train_panoptic", "val_panoptic_with_sem_seg")}


def use_known_dataset(cfg: CfgNode) -> None:
    """If the dataset of `cfg` is the one that stands for the classes of a model of transformers, and a registered one
    has the same classes in the same order, put that in its place: with its colours, and with what it says of things.

    Writing in capitals, and what is no letter or number, does not count in names.
    """
    if tuple(cfg.DATASETS.TEST) != (f"{DATASET}_val",) or not set(cfg.DATASETS.TRAIN) <= {f"{DATASET}_train"}:
        return  # options name other datasets
    test = cfg.MODEL.MASK_FORMER.TEST
    task = "panoptic" if test.PANOPTIC_ON else "semantic" if test.SEMANTIC_ON else "instance"
    section = cfg.DATASETS.FOLDER if cfg.DATASETS.FOLDER.NAME == DATASET else cfg.DATASETS.COCO
    entries = section.CLASSES if section is cfg.DATASETS.FOLDER else [c.get("name") for c in section.CATEGORIES]
    for base in _CANDIDATES[task]:
        train, val = (f"{base}_{split}" for split in _SUFFIXES.get((task, base), ("train", "val")))
        metadata = MetadataCatalog.get(val) if val in DatasetCatalog.list() else {}
        names = metadata.get("thing_classes" if task == "instance" else "stuff_classes") or ()
        if _plain(names) == _plain(entries):
            logger.info("The classes are those of %s, whose names, colours and things are used", val)
            section.NAME = ""
            cfg.DATASETS.TEST = (val,)
            cfg.DATASETS.TRAIN = (train,) if task == "panoptic" else ()
            return
    if task == "panoptic":
        logger.warning(
            "Which classes are things is not known, so each segment counts by itself, as in transformers; a file of "
            "categories with isthing as DATASETS.COCO.CATEGORIES can tell"
        )


def _plain(names: Sequence[str]) -> list[str]:
    return [re.sub(r"[\W_]+", " ", str(name).lower()).strip() for name in names]
