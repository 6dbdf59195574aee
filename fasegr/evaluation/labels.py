"""From what a segmentor returns to one class index a pixel."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

# Rows of the score map taken at a time: the running maximum and its index then stay in the processor's cache.
_STRIP = 128


def predicted_labels(output: Mapping[str, Tensor]) -> Tensor:
    """The class of every pixel in one result of a segmentor.

    output: {"sem_seg": (C, H, W) scores} or {"sem_seg_labels": (H, W) integers}; the labels are taken where both are.
    Returns (H, W) integers on the output's device. Raises KeyError if neither is there, ValueError on another shape.
    """
    if "sem_seg_labels" in output:
        labels = output["sem_seg_labels"]
        if labels.dim() != 2 or labels.is_floating_point():
            raise ValueError(
                f"sem_seg_labels is {labels.dtype} of shape {tuple(labels.shape)}; expected integers of shape (H, W)"
            )
        return labels
    if "sem_seg" not in output:
        raise KeyError(f"a result has the keys {sorted(output)}; expected sem_seg (C, H, W) or sem_seg_labels (H, W)")
    scores = output["sem_seg"]
    if scores.dim() != 3:
        raise ValueError(f"sem_seg has shape {tuple(scores.shape)}; expected (C, H, W)")
    # On a CPU torch.argmax walks the planes of the map with a stride and takes four times as long as reading each once.
    return _argmax_cpu(scores) if scores.device.type == "cpu" else scores.argmax(dim=0)


def _argmax_cpu(scores: Tensor) -> Tensor:
    """argmax over the first of (C, H, W) on the CPU, the first of equals. Returns (H, W) uint8, int32 if C > 256."""
    planes = scores.detach().to(torch.promote_types(scores.dtype, torch.float32)).numpy()  # numpy has no bfloat16
    classes, height, width = planes.shape
    labels = np.zeros((height, width), np.uint8 if classes <= 256 else np.int32)
    for top in range(0, height, _STRIP):
        strip = planes[:, top : top + _STRIP]
        index = labels[top : top + _STRIP]
        best = strip[0].copy()
        better = np.empty(best.shape, bool)
        candidate = np.empty_like(index)
        for c in range(1, classes):
            np.greater(strip[c], best, out=better)
            np.maximum(best, strip[c], out=best)
            # Classes come in rising order, so the class that last won a pixel is the largest that ever did.
            np.multiply(better, index.dtype.type(c), out=candidate)
            np.maximum(index, candidate, out=index)
    return torch.from_numpy(labels)
