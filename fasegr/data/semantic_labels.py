"""The class of each pixel, from whatever a record says about its image: a label map, panoptic segments, or objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fasegr.data.datasets.label_map import read_record_labels
from fasegr.data.image_io import BadFile
from fasegr.data.instance_masks import window_mask
from fasegr.data.panoptic_png import class_map, read_segment_ids
from fasegr.data.transform import Box

__all__ = ["label_source", "paint_objects", "semantic_labels"]


def label_source(record: Mapping[str, Any]) -> str | None:
    """The file that tells the class of each pixel; None if there is none. Objects do so only in a dataset of
    DATASETS.COCO.SEMANTIC."""
    return record.get("pan_seg_file_name") or record.get("sem_seg_file_name") or record.get("sem_seg_objects")


def semantic_labels(record: Mapping[str, Any], ignore_label: int = 255) -> np.ndarray:
    """(H, W) class numbers, uint8 or uint16, and ignore_label for pixels without a class.

    Of panoptic segments, crowds are labelled like the objects of their class, as in Mask2Former's label maps. Raises
    BadFile naming the file.
    """
    if record.get("pan_seg_file_name"):
        return class_map(read_segment_ids(record["pan_seg_file_name"]), record["segments_info"], ignore_label)
    if record.get("sem_seg_file_name"):
        return read_record_labels(record)
    return paint_objects(record, ignore_label)


def paint_objects(record: Mapping[str, Any], ignore_label: int = 255) -> np.ndarray:
    """The record's objects over its "background" (a class, or None to ignore what is no object).

    Where objects overlap, the smaller one is in front; crowds are behind all others.
    """
    size = (record["height"], record["width"])
    nothing = ignore_label if record.get("background") is None else record["background"]
    objects = record["annotations"]
    highest = max((entry["category_id"] for entry in objects), default=0)
    labels = np.full(size, nothing, np.uint8 if max(nothing, ignore_label, highest) < 256 else np.uint16)
    painted = []
    try:
        for entry in objects:
            mask = window_mask(entry["segmentation"], size, size, Box(0, 0, *size))
            rows = np.flatnonzero(mask.any(1))
            if len(rows):
                top, bottom = rows[0], rows[-1] + 1  # only these rows are kept
                painted.append((entry["iscrowd"], int(mask.sum()), top, mask[top:bottom].copy(), entry["category_id"]))
    except BadFile as error:
        raise BadFile(f"{record['file_name']}: {error}") from error
    for _, _, top, mask, label in sorted(painted, key=lambda item: (-item[0], -item[1])):
        labels[top : top + len(mask)][mask] = label
    return labels
