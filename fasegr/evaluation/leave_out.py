"""Results without what is uncertain or small."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from fasegr.evaluation.calibration import confidence
from fasegr.evaluation.labels import predicted_labels
from fasegr.modeling.meta_arch.instance_inference import Instances
from fasegr.modeling.meta_arch.panoptic_inference import PanopticSegmentation

__all__ = ["leave_out"]

_EIGHT_NEIGHBOURS = np.ones((3, 3), int)


def leave_out(
    result: Mapping[str, Any], min_confidence: float = 0, min_area: int = 0, classes: Collection[int] = ()
) -> dict[str, Any]:
    """A segmentor's result without what is less sure than `min_confidence` (0 to 1), smaller than `min_area` pixels, or
    of one of `classes`.

    Of `sem_seg` or `sem_seg_labels`: pixels whose class has a smaller share of their scores, which needs `sem_seg`
    (see `confidence`); then connected parts of one class with fewer pixels. These pixels are -1 in the
    `sem_seg_labels` (H, W) that the result gets. Of `instances`: those of a lower score, or with a smaller mask. Of
    `panoptic_seg`: segments with fewer pixels; they have no score.
    """
    kept = dict(result)
    if "sem_seg" in result or "sem_seg_labels" in result:
        labels = predicted_labels(result)
        if min_confidence > 0:
            unsure = confidence(result["sem_seg"], labels) < min_confidence
            labels = labels.to(torch.int16).masked_fill(unsure, -1)
        if classes:
            labels = labels.to(torch.int16)
            labels = labels.masked_fill(torch.isin(labels, torch.tensor(list(classes), device=labels.device)), -1)
        kept["sem_seg_labels"] = _without_small_parts(labels, min_area) if min_area > 1 else labels
    if "instances" in result:
        found = result["instances"]
        keep = (found.scores >= min_confidence) & (found.pred_masks.sum((1, 2)) >= min_area)
        keep &= ~torch.isin(found.pred_classes, torch.tensor(list(classes), device=keep.device, dtype=torch.int64))
        kept["instances"] = Instances(found.scores[keep], found.pred_classes[keep], found.pred_masks[keep])
    if "panoptic_seg" in result:
        ids, segments = result["panoptic_seg"]
        areas = torch.bincount(ids.flatten(), minlength=1 + max((segment["id"] for segment in segments), default=0))
        segments = [s for s in segments if areas[s["id"]] >= min_area and s["category_id"] not in classes]
        large = torch.tensor([0, *(segment["id"] for segment in segments)], dtype=ids.dtype, device=ids.device)
        kept["panoptic_seg"] = PanopticSegmentation(ids * torch.isin(ids, large), segments)
    return kept


def _without_small_parts(labels: torch.Tensor, min_area: int) -> torch.Tensor:
    """(H, W) int16, -1 where `labels` have a connected part of fewer than `min_area` pixels."""
    array = labels.cpu().numpy().astype(np.int16)
    kept = array.copy()
    for label in np.unique(array[array >= 0]):
        parts, _ = ndimage.label(array == label, _EIGHT_NEIGHBOURS)
        small = np.bincount(parts.ravel()) < min_area
        small[0] = False
        kept[small[parts]] = -1
    return torch.from_numpy(kept)
