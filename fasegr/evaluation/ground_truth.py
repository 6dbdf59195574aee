"""The ground truth of an image: its label map, and results as a model without errors would return them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fasegr.data.datasets.coco_json import without_crowds
from fasegr.data.instance_masks import window_mask
from fasegr.data.panoptic_png import read_segment_ids
from fasegr.data.semantic_labels import label_source, semantic_labels
from fasegr.data.transform import Box
from fasegr.modeling.meta_arch.instance_inference import Instances
from fasegr.modeling.meta_arch.panoptic_inference import PanopticSegmentation

__all__ = ["ground_truth_result"]


def ground_truth_result(
    record: Mapping[str, Any], kind: str, size: tuple[int, int], ignore_label: int = 255
) -> dict[str, Any] | None:
    """The ground truth in the form of a model's result, to be drawn or scored; None where the record has none.

    record: of a dataset. kind: "panoptic_seg", "instances" (without crowds, of score 1) or "sem_seg_labels" (with
    ignore_label). size: (height, width) of the image.
    """
    if kind == "panoptic_seg" and "pan_seg_file_name" in record:
        ids = torch.from_numpy(read_segment_ids(record["pan_seg_file_name"]))
        return {kind: PanopticSegmentation(ids, record["segments_info"])}
    if kind == "instances" and "annotations" in record:
        objects = without_crowds(record["annotations"])
        masks = np.zeros((len(objects), *size), dtype=bool)
        for mask, o in zip(masks, objects, strict=True):
            mask[:] = window_mask(o["segmentation"], size, size, Box(0, 0, *size))
        classes = torch.tensor([o["category_id"] for o in objects], dtype=torch.int64)
        return {kind: Instances(torch.ones(len(objects)), classes, torch.from_numpy(masks))}
    if kind == "sem_seg_labels" and label_source(record):
        return {kind: torch.from_numpy(semantic_labels(record, ignore_label))}
    return None
