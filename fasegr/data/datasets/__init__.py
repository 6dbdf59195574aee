"""Datasets, and their names in the catalogs."""

from fasegr.data.datasets.ade20k import register_ade20k
from fasegr.data.datasets.cityscapes import register_cityscapes
from fasegr.data.datasets.folder import datasets_root, read_classes, register_from_config
from fasegr.data.datasets.scenes import register_scenes

__all__ = ["datasets_root", "read_classes", "register_all", "register_from_config"]


def register_all() -> None:
    """Adds the datasets this package knows to the catalogs: names only, since nothing on disk is looked at.

    May be called again; names that are taken are left alone.
    """
    register_scenes()
    register_ade20k()
    register_cityscapes()
