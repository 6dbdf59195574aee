"""Scores of semantic, instance and panoptic segmentation, and the predictions written to disk."""

from .build import build_evaluator, main_score
from .cityscapes import CityscapesEvaluator
from .instance import InstanceEvaluator
from .labels import predicted_labels
from .panoptic import PanopticEvaluator
from .panoptic_sem_seg import PanopticSemSegEvaluator
from .sem_seg import SemSegEvaluator

__all__ = [
    "CityscapesEvaluator",
    "InstanceEvaluator",
    "PanopticEvaluator",
    "PanopticSemSegEvaluator",
    "SemSegEvaluator",
    "build_evaluator",
    "main_score",
    "predicted_labels",
]
