"""Datasets, and their names in the catalogs."""

from fasegr.data.datasets.ade20k import register_ade20k
from fasegr.data.datasets.cityscapes import register_cityscapes
from fasegr.data.datasets.coco import register_coco
from fasegr.data.datasets.folder import read_classes
from fasegr.data.datasets.from_config import check_num_classes, register_from_config
from fasegr.data.datasets.root import datasets_root
from fasegr.data.datasets.scenes.coco import register_coco_scenes
from fasegr.data.datasets.scenes.semantic import register_scenes

__all__ = ["check_num_classes", "datasets_root", "read_classes", "register_all", "register_from_config"]


def register_all() -> None:
    """Adds the datasets of this package to the catalogs, by name: nothing on disk is read.

    Names that are taken are left alone, so it may be called again.
    """
    register_scenes()
    register_ade20k()
    register_cityscapes()
    register_coco()
    register_coco_scenes()
