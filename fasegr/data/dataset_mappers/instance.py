"""The training mapper of instance segmentation: one mask for each object that is not a crowd."""

from __future__ import annotations

import numpy as np

from fasegr.data.dataset_mappers.dataset_mapper import ImageCount, TrainingMapper, count_segments, visible
from fasegr.data.datasets.coco_json import without_crowds
from fasegr.data.image_io import BadFile
from fasegr.data.instance_masks import mask_area, window_mask
from fasegr.data.transform import Transform

__all__ = ["InstanceMapper"]


class InstanceMapper(TrainingMapper):
    """record: of `load_instances`."""

    def read_annotation(self, record: dict) -> list[dict]:
        if "annotations" not in record:
            raise BadFile(f"{record['file_name']}: its record has no 'annotations'; training needs the objects")
        return without_crowds(record["annotations"])

    def count(self, annotation: list[dict], record: dict) -> ImageCount:
        """Pixels that several objects share count for each."""
        size = (record["height"], record["width"])
        try:
            pixels = np.array([mask_area(item["segmentation"], size) for item in annotation], np.int64)
        except BadFile as error:
            raise BadFile(f"{record['file_name']}: {error}") from error
        return count_segments(annotation, pixels, self.num_classes, record["file_name"])

    def apply(self, transform: Transform, annotation: list[dict], record: dict) -> tuple[np.ndarray, np.ndarray]:
        masks = np.zeros((len(annotation), *transform.padded_size), dtype=bool)
        size = (record["height"], record["width"])
        try:
            for mask, item in zip(masks, annotation, strict=True):
                shown = window_mask(item["segmentation"], size, transform.size, transform.box)
                mask[:] = transform.flip_and_pad(shown, 0)
        except BadFile as error:
            raise BadFile(f"{record['file_name']}: {error}") from error
        return visible(annotation, masks, self.num_classes, record["file_name"])
