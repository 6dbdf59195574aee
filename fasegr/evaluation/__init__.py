"""Evaluators of semantic, instance and panoptic segmentation, which also write predictions to disk."""

from .build import build_evaluator, inference_dir, main_score
from .cityscapes import CityscapesEvaluator
from .instance import InstanceEvaluator
from .labels import predicted_labels
from .panoptic import PanopticEvaluator
from .sem_seg import SemSegEvaluator

__all__ = [
    "CityscapesEvaluator",
    "InstanceEvaluator",
    "PanopticEvaluator",
    "SemSegEvaluator",
    "build_evaluator",
    "inference_dir",
    "main_score",
    "predicted_labels",
]
