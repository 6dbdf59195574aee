"""The evaluator of semantic segmentation on panoptic datasets."""

from __future__ import annotations

import numpy as np

from fasegr.d2 import DatasetCatalog
from fasegr.data.panoptic_png import class_map, read_segment_ids
from fasegr.evaluation.sem_seg import SemSegEvaluator

__all__ = ["PanopticSemSegEvaluator"]


class PanopticSemSegEvaluator(SemSegEvaluator):
    """What `SemSegEvaluator` scores, where the truth are segments: a pixel has the class of its segment, also in groups
    of objects, and is ignored where there is none. So are the label maps made that Mask2Former's recipe wants."""

    truth_key = "pan_seg_file_name"

    def __init__(self, dataset_name: str, **options):
        """options: those of `SemSegEvaluator`."""
        super().__init__(dataset_name, **options)
        records = DatasetCatalog.get(dataset_name)
        self._segments_info = {record["file_name"]: record.get("segments_info", []) for record in records}

    def _read_labels(self, file_name: str) -> np.ndarray:
        ids = read_segment_ids(self._truth_files[file_name])
        return class_map(ids, self._segments_info[file_name], self.ignore_label)
