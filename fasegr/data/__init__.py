"""From files to samples: datasets, augmentation and loaders."""

from fasegr.data.build import build_test_loader, build_train_loader
from fasegr.data.dataset_mappers import build_mapper
from fasegr.data.datasets import check_num_classes, register_all, register_from_config
from fasegr.data.image_io import BadFile, read_image, read_label

__all__ = [
    "BadFile",
    "build_mapper",
    "build_test_loader",
    "build_train_loader",
    "check_num_classes",
    "read_image",
    "read_label",
    "register_all",
    "register_from_config",
]
