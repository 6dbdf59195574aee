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
from fasegr.checkpoint.hub import HUB, local_folder
from fasegr.config import add_fasegr_config
from fasegr.d2 import CfgNode, build_model
from fasegr.data.datasets import check_num_classes, register_all, register_from_config
from fasegr.data.datasets.known_classes import use_known_dataset
from fasegr.inference.predictor import Predictor

__version__ = "0.1.0"
__all__ = [
    "Predictor",
    "add_fasegr_config",
    "build_model",
    "from_pretrained",
    "load_cfg",
    "load_checkpoint",
    "register_all",
]


def load_cfg(path: str | os.PathLike, opts: Sequence[Any] = ()) -> CfgNode:
    """The config of a YAML file and `opts` (key, value, key, value, ...) on top, ready for the model and its data.

    path: a file, or the name of a config that comes with the package, such as quickstart/faseg_scenes.yaml; the folder
    of a model that `save_pretrained` or Hugging Face's transformers wrote (Mask2Former on a Swin), or hf://OWNER/NAME,
    such a model on Hugging Face's hub; MODEL.WEIGHTS are then its weights.
    The datasets in DATASETS.FOLDER and DATASETS.COCO are registered. Raises FileNotFoundError for a missing file, and
    ValueError for anything wrong in the values, or if a dataset's classes are not those of the model.
    """
    cfg = config.load_cfg(local_folder(os.fspath(path)), opts)
    use_known_dataset(cfg)
    register_from_config(cfg)
    check_num_classes(cfg)
    return cfg


def from_pretrained(model: str | os.PathLike, opts: Sequence[Any] = ()) -> Predictor:
    """A predictor with the model in a folder, or the one called OWNER/NAME on Hugging Face's hub, downloaded once.

    model: as `load_cfg` takes it; a name that is no folder is one of the hub. opts: as there. Nothing of it is run.
    Raises as `load_cfg` and `Predictor`, and ConnectionError if the model cannot be downloaded.
    """
    path = os.path.expanduser(os.fspath(model))
    if not path.startswith(HUB) and not os.path.exists(path):
        try:
            path = local_folder(HUB + path)
        except (ValueError, ConnectionError) as error:
            raise type(error)(f"there is no folder {path} (working directory: {os.getcwd()}), and {error}") from error
    return Predictor(load_cfg(path, opts))


register_all()
