"""FASeg: dynamic focus-aware positional queries and high-resolution cross-attention for semantic segmentation.

import fasegr
cfg = fasegr.load_cfg("configs/ade20k/semantic-segmentation/faseg_r50.yaml", ["MODEL.DEVICE", "cpu"])
model = fasegr.build_model(cfg)
"""

import fasegr.modeling  # noqa: F401 (registers architecture, head and backbones)
from fasegr.checkpoint import load_checkpoint
from fasegr.config import add_fasegr_config, load_cfg
from fasegr.d2 import build_model
from fasegr.data.datasets import register_all
from fasegr.inference.predictor import Predictor

__version__ = "0.1.0"
__all__ = ["Predictor", "add_fasegr_config", "build_model", "load_cfg", "load_checkpoint", "register_all"]

register_all()
