"""The seam: everything that the program takes from detectron2, under one roof.

With detectron2 installed its own objects are re-exported, so that models, trainers and datasets are registered with it.
Without it a small built-in over fvcore, iopath and torch serves the same names. The choice is made once, on import; the
environment variable ``FASEGR_RUNTIME`` (``detectron2`` or ``builtin``) forces one. Nothing outside this package imports
detectron2, and nothing in it is maths: numbers have one implementation, plumbing has two.
"""

import importlib.util
import os

RUNTIMES = ("detectron2", "builtin")


def choose_runtime(forced: str, installed: bool) -> str:
    """Name of the runtime to use: the one `forced` (may be empty), else detectron2 where it is `installed`.

    Raises ValueError for a name that is not a runtime, ImportError if detectron2 is forced and not there.
    """
    if forced and forced not in RUNTIMES:
        raise ValueError(f"FASEGR_RUNTIME is {forced!r}; it must be one of {', '.join(RUNTIMES)}, or unset to choose")
    if forced == "detectron2" and not installed:
        raise ImportError(
            "FASEGR_RUNTIME is 'detectron2', but detectron2 is not installed; install it "
            "(pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2) "
            "or unset FASEGR_RUNTIME to run on the built-in"
        )
    return forced or ("detectron2" if installed else "builtin")


_spec = importlib.util.find_spec(
    "detectron2"
)  # a folder of that name in the working directory has a spec, and no origin
RUNTIME = choose_runtime(os.environ.get("FASEGR_RUNTIME", ""), _spec is not None and _spec.origin is not None)

if RUNTIME == "builtin":
    from .builtin import comm
    from .builtin.catalog import DatasetCatalog, MetadataCatalog
    from .builtin.checkpoint import DetectionCheckpointer
    from .builtin.config import CfgNode, configurable, get_cfg
    from .builtin.data import build_detection_test_loader, build_detection_train_loader
    from .builtin.evaluation import DatasetEvaluator, DatasetEvaluators, inference_on_dataset
    from .builtin.events import EventStorage, get_event_storage
    from .builtin.launch import default_argument_parser, default_setup, launch
    from .builtin.logger import setup_logger
    from .builtin.modeling import (
        BACKBONE_REGISTRY,
        META_ARCH_REGISTRY,
        SEM_SEG_HEADS_REGISTRY,
        Backbone,
        ShapeSpec,
        build_backbone,
        build_model,
        build_sem_seg_head,
    )
    from .builtin.trainer import DefaultTrainer, HookBase
else:
    try:
        from detectron2.checkpoint import DetectionCheckpointer
        from detectron2.config import CfgNode, configurable, get_cfg
        from detectron2.data import (
            DatasetCatalog,
            MetadataCatalog,
            build_detection_test_loader,
            build_detection_train_loader,
        )
        from detectron2.engine import DefaultTrainer, HookBase, default_argument_parser, default_setup, launch
        from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, inference_on_dataset
        from detectron2.layers import ShapeSpec
        from detectron2.modeling import (
            BACKBONE_REGISTRY,
            META_ARCH_REGISTRY,
            SEM_SEG_HEADS_REGISTRY,
            Backbone,
            build_backbone,
            build_model,
            build_sem_seg_head,
        )
        from detectron2.utils import comm
        from detectron2.utils.events import EventStorage, get_event_storage
        from detectron2.utils.logger import setup_logger
    except Exception as error:
        # Its C++ extension breaks in many ways when torch changes under it (ImportError, OSError, AttributeError ...).
        # Falling back silently would run another program than the one that was installed.
        raise ImportError(
            f"detectron2 is installed but cannot be imported ({type(error).__name__}: {error}); rebuild it for this "
            "torch, uninstall it, or set FASEGR_RUNTIME=builtin to run without it"
        ) from error

__all__ = [
    "BACKBONE_REGISTRY",
    "META_ARCH_REGISTRY",
    "RUNTIME",
    "SEM_SEG_HEADS_REGISTRY",
    "Backbone",
    "CfgNode",
    "DatasetCatalog",
    "DatasetEvaluator",
    "DatasetEvaluators",
    "DefaultTrainer",
    "DetectionCheckpointer",
    "EventStorage",
    "HookBase",
    "MetadataCatalog",
    "ShapeSpec",
    "build_backbone",
    "build_detection_test_loader",
    "build_detection_train_loader",
    "build_model",
    "build_sem_seg_head",
    "comm",
    "configurable",
    "default_argument_parser",
    "default_setup",
    "get_cfg",
    "get_event_storage",
    "inference_on_dataset",
    "launch",
    "setup_logger",
]
