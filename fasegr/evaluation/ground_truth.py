"""The truth of an image in the form of a segmentor's result, to be drawn or compared like one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fasegr.data.augmentation import Box
from fasegr.data.image_io import read_label
from fasegr.data.instance_masks import window_mask
from fasegr.data.panoptic_png import class_map, read_segment_ids
from fasegr.modeling.meta_arch.instance_inference import Instances
from fasegr.modeling.meta_arch.panoptic_inference import PanopticSegmentation

__all__ = ["true_result"]


def true_result(
    record: Mapping[str, Any], kind: str, size: tuple[int, int], ignore_label: int = 255
) -> dict[str, Any] | None:
    """What a segmentor would return that made no mistake; None where the record does not tell.

    record: of a dataset. kind: "panoptic_seg", "instances" (groups of objects are left out, scores are 1) or
    "sem_seg_labels" (with ignore_label). size: height and width of the image.
    """
    segments = record.get("segments_info")
    if kind == "panoptic_seg" and "pan_seg_file_name" in record:
        ids = torch.from_numpy(read_segment_ids(record["pan_seg_file_name"]))
        return {kind: PanopticSegmentation(ids, segments)}
    if kind == "instances" and "annotations" in record:
        objects = [o for o in record["annotations"] if not o.get("iscrowd", 0)]
        masks = [window_mask(o["segmentation"], size, size, Box(0, 0, *size)) for o in objects]
        classes = torch.tensor([o["category_id"] for o in objects], dtype=torch.int64)
        masks = torch.from_numpy(np.stack(masks)) if masks else torch.zeros(0, *size, dtype=torch.bool)
        return {kind: Instances(torch.ones(len(objects)), classes, masks)}
    if kind == "sem_seg_labels" and "sem_seg_file_name" in record:
        return {kind: torch.from_numpy(read_label(record["sem_seg_file_name"]))}
    if kind == "sem_seg_labels" and "pan_seg_file_name" in record:
        labels = class_map(read_segment_ids(record["pan_seg_file_name"]), segments, ignore_label)
        return {kind: torch.from_numpy(labels)}
    return None
