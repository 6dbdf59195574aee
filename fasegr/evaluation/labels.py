"""The class of each pixel in the result of a segmentor."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fasegr.modeling import ops


def predicted_labels(output: Mapping[str, Tensor]) -> Tensor:
    """The class of every pixel in one result of a segmentor.

    output: {"sem_seg": (C, H, W) scores} or {"sem_seg_labels": (H, W) integers}; the labels are used if both are there.
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
        raise KeyError(f"the result has the keys {sorted(output)}; expected sem_seg (C, H, W) or sem_seg_labels (H, W)")
    scores = output["sem_seg"]
    if scores.dim() != 3:
        raise ValueError(f"sem_seg has shape {tuple(scores.shape)}; expected (C, H, W)")
    return ops.class_argmax(scores)
