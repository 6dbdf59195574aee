"""The seam: everything that the program takes from detectron2, under one roof.

With detectron2 installed its own objects are re-exported, so that models, trainers and datasets are registered with it.
Without it a small built-in over fvcore, iopath and torch serves the same names. The choice is made once, on import; the
environment variable ``FASEGR_RUNTIME`` (``detectron2`` or ``builtin``) forces one. Nothing outside this package imports
detectron2, and nothing in it is maths: numbers have one implementation, plumbing has two.
"""

import importlib
import importlib.util
import os
from types import ModuleType

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


def import_runtime(name: str) -> ModuleType:
    """The module that holds the names of a runtime; ImportError, with what to do, if detectron2 is there but broken."""
    if name == "builtin":
        return importlib.import_module(".builtin", __name__)
    try:
        return importlib.import_module(".detectron2", __name__)
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

RUNTIME = choose_runtime(os.environ.get("FASEGR_RUNTIME", ""), importlib.util.find_spec("detectron2") is not None)
_runtime = import_runtime(RUNTIME)
globals().update({name: getattr(_runtime, name) for name in __all__ if name != "RUNTIME"})
