"""Scores of semantic segmentation: IoU, accuracy and Boundary IoU, and the predictions written to disk."""

from .labels import predicted_labels
from .sem_seg import SemSegEvaluator

__all__ = ["SemSegEvaluator", "predicted_labels"]
