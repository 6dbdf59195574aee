"""The class with the highest score, for every pixel."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fasegr.modeling.ops import switches

_ROWS = 128  # at a time on a CPU, so that the running maximum and its class stay in the cache


def class_argmax(scores: Tensor) -> Tensor:
    """(C, H, W) scores to (H, W) classes, the first of ties on a CPU: uint8, or int16 above 256 classes."""
    dtype = torch.uint8 if len(scores) <= 256 else torch.int16
    if scores.device.type == "cpu" and switches.enabled("class_argmax"):
        return _plane_by_plane(scores, dtype)
    return scores.argmax(0).to(dtype)


def _plane_by_plane(scores: Tensor, dtype: torch.dtype) -> Tensor:
    """For a CPU, where torch's reductions over the first dimension read the map with a stride, and take several times
    as long as reading plane after plane."""
    scores = scores.detach().to(torch.promote_types(scores.dtype, torch.float32))  # numpy has no bfloat16
    labels = torch.zeros(scores.shape[1:], dtype=dtype)
    for planes, best_class in zip(scores.split(_ROWS, dim=1), labels.split(_ROWS), strict=True):
        planes, best_class = planes.numpy(), best_class.numpy()
        best = planes[0].copy()
        for c in range(1, len(planes)):
            # class indices increase, so the last one that beat all before it is the largest one
            np.maximum(best_class, (planes[c] > best) * best_class.dtype.type(c), out=best_class)
            np.maximum(best, planes[c], out=best)
    return labels
