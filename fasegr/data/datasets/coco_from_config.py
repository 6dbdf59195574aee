"""A dataset of one's own in COCO's formats, described in the config as DATASETS.COCO."""

import os
from pathlib import Path

from fasegr.d2 import DatasetCatalog, MetadataCatalog
from fasegr.data.datasets.coco_json import BelowRoot, categories_from_json, register_instances, register_panoptic

__all__ = ["register_coco_from_config"]

_SOURCE = "Correct DATASETS.COCO. "


def register_coco_from_config(cfg) -> list[str]:
    """Registers the dataset that cfg.DATASETS.COCO describes, if it does; returns the names, one for each split.

    With PANOPTIC it is one of panoptic segments, else of instances. Categories are read now, all else when the dataset
    is first asked for. Again under the same name, it replaces what an earlier call registered.
    """
    coco = cfg.DATASETS.COCO
    if not coco.NAME:
        return []
    for key in ("IMAGES", "INSTANCES", "PANOPTIC", "SEGMENTS"):
        if coco[key] and len(coco.SPLITS) > 1 and "{split}" not in coco[key]:
            raise ValueError(
                f"DATASETS.COCO.{key} is {coco[key]!r} for the splits {', '.join(coco.SPLITS)}; "
                "it must contain {split}, which stands for the name of the split"
            )

    def path(key: str, split: str) -> BelowRoot:
        return BelowRoot(os.path.join(coco.ROOT, coco[key].replace("{split}", split)))

    kind = "PANOPTIC" if coco.PANOPTIC else "INSTANCES"
    if not coco[kind]:
        raise ValueError("DATASETS.COCO.INSTANCES and PANOPTIC are empty; one must name the annotation files")
    categories = categories_from_json(Path(coco.CATEGORIES) if coco.CATEGORIES else path(kind, coco.SPLITS[0]))
    names = []
    for split in coco.SPLITS:
        name = f"{coco.NAME}_{split}"
        if name in DatasetCatalog.list():
            if getattr(MetadataCatalog.get(name), "registered_by", None) != __name__:
                raise ValueError(f"DATASETS.COCO: another dataset is registered as {name} already; choose another NAME")
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        images = path("IMAGES", split)
        objects = path("INSTANCES", split) if coco.INSTANCES else None
        if coco.PANOPTIC:
            segments = path("PANOPTIC", split), path("SEGMENTS", split)
            register_panoptic(name, categories, *segments, images, objects, source=_SOURCE)
        else:
            register_instances(name, categories, objects, images, source=_SOURCE)
        MetadataCatalog.get(name).registered_by = __name__
        names.append(name)
    return names
