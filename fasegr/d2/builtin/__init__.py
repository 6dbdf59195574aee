"""Stand-in for the part of detectron2 that the program calls: the same names and behaviour over fvcore, iopath, torch.

It is plumbing only. Whatever changes a number (optimizer, schedule, step, augmentation, metrics) lives in `fasegr`, and
the classes here say so where detectron2 would bring its own.
"""

# ruff: noqa: F401 (names are taken from here by `fasegr.d2`, whose __all__ lists them)

from . import comm
from .catalog import DatasetCatalog, MetadataCatalog
from .checkpoint import DetectionCheckpointer
from .config import CfgNode, configurable, get_cfg
from .data import build_detection_test_loader, build_detection_train_loader
from .evaluation import DatasetEvaluator, DatasetEvaluators, inference_on_dataset
from .events import EventStorage, get_event_storage
from .launch import default_argument_parser, default_setup, launch
from .logger import setup_logger
from .modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
    Backbone,
    ShapeSpec,
    build_backbone,
    build_model,
    build_sem_seg_head,
)
from .trainer import DefaultTrainer, HookBase
