"""FASeg: dynamic focus-aware positional queries and high-resolution cross-attention for semantic segmentation.

import fasegr
cfg = fasegr.load_cfg("configs/ade20k/semantic-segmentation/faseg_r50.yaml", ["MODEL.DEVICE", "cpu"])
model = fasegr.build_model(cfg)
"""

import os
from collections.abc import Sequence
from typing import Any

import fasegr.modeling  # noqa: F401 (registers architecture, head and backbones)
from fasegr import config
from fasegr.checkpoint import load_checkpoint
from fasegr.config import add_fasegr_config
from fasegr.d2 import CfgNode, build_model
from fasegr.data.datasets import check_num_classes, register_all, register_from_config
from fasegr.data.datasets.known_classes import use_known_dataset
from fasegr.inference.predictor import Predictor

__version__ = "0.1.0"
__all__ = ["Predictor", "add_fasegr_config", "build_model", "load_cfg", "load_checkpoint", "register_all"]


def load_cfg(path: str | os.PathLike, opts: Sequence[Any] = ()) -> CfgNode:
    """The config of a YAML file and `opts` (key, value, key, value, ...) on top, ready for the model and its data.

    path: a file, or the name of a config that comes with the package, such as quickstart/faseg_scenes.yaml.
    The datasets in DATASETS.FOLDER and DATASETS.COCO are registered. Raises FileNotFoundError for a missing file, and
    ValueError for anything wrong in the values, or if a dataset's classes are not those of the model.
    """
    cfg = config.load_cfg(path, opts)
    use_known_dataset(cfg)
    register_from_config(cfg)
    check_num_classes(cfg)
    return cfg


register_all()
