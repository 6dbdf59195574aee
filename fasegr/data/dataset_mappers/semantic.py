"""The training mapper of semantic segmentation: one mask for each class in an image."""

from __future__ import annotations

import numpy as np

from fasegr.data.dataset_mappers.dataset_mapper import ImageCount, TrainingMapper
from fasegr.data.image_cache import read_cached
from fasegr.data.image_io import BadFile, check_label_size, check_label_values, label_histogram
from fasegr.data.semantic_labels import label_source, semantic_labels
from fasegr.data.transform import Transform

__all__ = ["SemanticMapper"]


class SemanticMapper(TrainingMapper):
    """record: "file_name", and what `semantic_labels` reads. "labels" are the classes present, ascending."""

    def read_annotation(self, record: dict) -> np.ndarray:
        path = label_source(record)
        if path is None:
            raise BadFile(
                f"{record['file_name']}: its record has no 'sem_seg_file_name', nor panoptic segments; training needs "
                "a class for each pixel (of objects alone: DATASETS.COCO.SEMANTIC True)"
            )
        if "sem_seg_file_name" in record:
            variant = repr(record["label_map"]) if "label_map" in record else ""
            labels = read_cached(path, lambda _: self._read(record, path), self.cache, variant)
        else:
            labels = self._read(record, path)
        if self.ignore_label > 255:
            labels = labels.astype(np.uint16)  # padding needs room for the ignore label
        check_label_size(path, labels.shape, record["file_name"], (record["height"], record["width"]))
        return labels

    def _read(self, record: dict, path: str) -> np.ndarray:
        labels = semantic_labels(record, self.ignore_label)
        check_label_values(labels, self.num_classes, self.ignore_label, path)
        return labels

    def sem_seg(self, annotation: np.ndarray) -> np.ndarray:
        return annotation

    def count(self, annotation: np.ndarray, record: dict) -> ImageCount:
        counts = label_histogram(np.asarray(annotation)).astype(np.int64)
        classes = self._classes(counts, record)
        return ImageCount(classes, counts[classes], np.ones_like(classes))

    def apply(self, transform: Transform, annotation: np.ndarray, record: dict) -> tuple[np.ndarray, np.ndarray]:
        labels = transform.apply_segmentation(annotation, self.ignore_label)
        classes = self._classes(np.bincount(labels.ravel()), record)
        return classes, labels == classes.astype(labels.dtype)[:, None, None]

    def _classes(self, counts: np.ndarray, record: dict) -> np.ndarray:
        classes = np.flatnonzero(counts)
        classes = classes[classes != self.ignore_label]
        # A map from the cache was checked when it was decoded, which may have been for more classes than these.
        check_label_values(classes.astype(np.uint16), self.num_classes, self.ignore_label, label_source(record))
        return classes
