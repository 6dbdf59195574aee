"""The training mapper of panoptic segmentation: one mask for each segment that is not a crowd."""

from __future__ import annotations

import numpy as np

from fasegr.data.dataset_mappers.dataset_mapper import ImageCount, TrainingMapper, count_segments, visible
from fasegr.data.datasets.coco_json import without_crowds
from fasegr.data.image_cache import read_cached
from fasegr.data.image_io import BadFile, check_label_size
from fasegr.data.panoptic_png import class_map, read_segment_ids
from fasegr.data.transform import Transform

__all__ = ["PanopticMapper"]

Annotation = tuple[np.ndarray, list[dict]]  # the segment id of each pixel, (H, W); the segments


class PanopticMapper(TrainingMapper):
    """record: of `load_panoptic`."""

    def read_annotation(self, record: dict) -> Annotation:
        path = record.get("pan_seg_file_name")
        if path is None:
            raise BadFile(f"{record['file_name']}: its record has no 'pan_seg_file_name'; training needs the segments")
        ids = read_cached(path, read_segment_ids, self.cache)
        check_label_size(path, ids.shape, record["file_name"], (record["height"], record["width"]))
        return ids, without_crowds(record["segments_info"])

    def sem_seg(self, annotation: Annotation) -> np.ndarray:
        return class_map(*annotation, self.ignore_label)

    def count(self, annotation: Annotation, record: dict) -> ImageCount:
        ids, segments = annotation
        found, pixels = np.unique(ids, return_counts=True)
        of_id = dict(zip(found.tolist(), pixels.tolist(), strict=True))
        pixels = np.array([of_id.get(segment["id"], 0) for segment in segments], np.int64)
        return count_segments(segments, pixels, self.num_classes, record["file_name"])

    def apply(self, transform: Transform, annotation: Annotation, record: dict) -> tuple[np.ndarray, np.ndarray]:
        ids, segments = annotation
        numbers = np.array([segment["id"] for segment in segments], dtype=ids.dtype)
        masks = transform.apply_segmentation(ids, 0) == numbers[:, None, None]
        return visible(segments, masks, self.num_classes, record["file_name"])
