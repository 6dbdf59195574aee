"""Datasets, and their names in the catalogs."""

from fasegr.data.datasets.ade20k import register_ade20k
from fasegr.data.datasets.cityscapes import register_cityscapes
from fasegr.data.datasets.coco import register_coco
from fasegr.data.datasets.coco_from_config import register_coco_from_config
from fasegr.data.datasets.folder import datasets_root, read_classes
from fasegr.data.datasets.folder import register_from_config as register_folder_from_config
from fasegr.data.datasets.scenes.coco import register_coco_scenes
from fasegr.data.datasets.scenes.semantic import register_scenes

__all__ = ["datasets_root", "read_classes", "register_all", "register_from_config"]


def register_from_config(cfg) -> list[str]:
    """Registers the datasets that cfg.DATASETS.FOLDER and COCO describe; returns their names, one for each split."""
    return [*register_folder_from_config(cfg), *register_coco_from_config(cfg)]


def register_all() -> None:
    """Adds the datasets this package knows to the catalogs: names only, since nothing on disk is looked at.

    May be called again; names that are taken are left alone.
    """
    register_scenes()
    register_ade20k()
    register_cityscapes()
    register_coco()
    register_coco_scenes()
