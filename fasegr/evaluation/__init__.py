"""Scores of semantic segmentation: IoU, accuracy and Boundary IoU, and the predictions written to disk."""

from .build import build_evaluator
from .cityscapes import CityscapesEvaluator
from .labels import predicted_labels
from .sem_seg import SemSegEvaluator

__all__ = ["CityscapesEvaluator", "SemSegEvaluator", "build_evaluator", "predicted_labels"]
