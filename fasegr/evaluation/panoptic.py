"""The evaluator of panoptic segmentation: panoptic quality (Kirillov et al., CVPR 2019, section 4)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from fasegr.data.image_io import BadFile, check_label_size
from fasegr.data.panoptic_png import read_segment_ids, write_segment_ids
from fasegr.evaluation.confusion_matrix import divide, nanmean
from fasegr.evaluation.evaluator import Evaluator
from fasegr.evaluation.prediction_files import label_file_names

__all__ = ["PanopticEvaluator", "match_segments"]

logger = logging.getLogger(__name__)


class PanopticEvaluator(Evaluator):
    """Panoptic quality PQ = SQ x RQ, in percent, under detectron2's names.

    Of a class, SQ is the mean IoU of the segments that were found (`match_segments`) and RQ = TP / (TP + FP/2 + FN/2).
    PQ, SQ and RQ are means over the classes that occur in the ground truth or the predictions; PQ_th, ... those over
    things, PQ_st, ... over stuff, and PQ-NAME is that of a class. panopticapi, which detectron2 needs, is not needed.
    """

    task, json_name = "panoptic_seg", "predictions.json"

    def __init__(self, dataset_name: str, **options):
        """dataset_name: its records have pan_seg_file_name and segments_info (id, contiguous category_id, iscrowd), its
        metadata stuff_classes, the names of all classes, and thing_dataset_id_to_contiguous_id.
        options: those of `Evaluator`; save_json also writes output_dir/panoptic/*.png.
        """
        super().__init__(dataset_name, **options)
        self.class_names: list[str] = list(self.metadata.stuff_classes)
        things = self.metadata.thing_dataset_id_to_contiguous_id
        stuff = self.metadata.get("stuff_dataset_id_to_contiguous_id", {})
        # Things may be listed as stuff too, whose names are then those of all classes.
        self._dataset_ids = {contiguous: dataset for dataset, contiguous in (stuff | things).items()}
        self._is_thing = np.isin(np.arange(len(self.class_names)), list(things.values()))
        labelled = any("pan_seg_file_name" in record for record in self._records.values())
        self._require_ground_truth(not self._records or labelled, "panoptic ground truth (pan_seg_file_name)")
        self._names = label_file_names(self._records) if self.save_json else {}

    def _process_image(self, record: Mapping[str, Any], output: Mapping[str, Any]) -> None:
        """output: {"panoptic_seg": `PanopticSegmentation`}."""
        segment_ids, segments = output["panoptic_seg"]
        segment_ids = segment_ids.cpu().numpy()
        if unknown := {s["category_id"] for s in segments} - set(range(len(self.class_names))):
            raise ValueError(
                f"{record['file_name']}: the model predicts a segment of class {max(unknown)}, but {self.dataset_name} "
                f"has {len(self.class_names)} classes; evaluate a model of these classes"
            )
        if "pan_seg_file_name" in record:
            path = record["pan_seg_file_name"]
            ground_truth = read_segment_ids(path)
            check_label_size(path, ground_truth.shape, record["file_name"], segment_ids.shape)
            sources = (str(path), f"the prediction for {record['file_name']}")
            arguments = (ground_truth, record["segments_info"], segment_ids, segments, len(self.class_names), sources)
            self._add("matches", match_segments(*arguments))
        if self.save_json:
            name = self._names[record["file_name"]]
            path = Path(self.output_dir, "panoptic", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_segment_ids(path, segment_ids)
            listed = [{"id": s["id"], "category_id": self._dataset_ids[s["category_id"]]} for s in segments]
            self._predictions.append({"image_id": record["image_id"], "file_name": name, "segments_info": listed})

    def _json(self, predictions: list[dict]) -> dict:
        return {"annotations": predictions}

    def _scores(self, num_images: int, sums: Mapping[str, np.ndarray], predictions: list[dict]) -> dict | None:
        if "matches" not in sums:
            return None
        columns = panoptic_quality(sums["matches"])
        groups = {"": slice(None), "_th": self._is_thing, "_st": ~self._is_thing}
        scores = {
            f"{metric}{suffix}": nanmean(values[group])
            for suffix, group in groups.items()
            for metric, values in columns.items()
        }
        kinds = np.where(self._is_thing, "thing", "stuff")
        counts = sums["matches"][:, 1:].astype(int).T
        rows = list(zip(self.class_names, kinds, *columns.values(), *counts, strict=True))
        for title, suffix in (("all", ""), ("things", "_th"), ("stuff", "_st")):
            rows.append([title, None, *(scores[f"{metric}{suffix}"] for metric in columns), None, None, None])
        headers = ["class", "", *columns, "TP", "FP", "FN"]
        table = tabulate(rows, headers=headers, floatfmt=".2f", intfmt="d", tablefmt="pipe", missingval="")
        logger.info(f"{self.dataset_name}, {num_images} images:\n{table}")
        return scores | {f"PQ-{name}": float(v) for name, v in zip(self.class_names, columns["PQ"], strict=True)}


def match_segments(
    true_ids: np.ndarray,
    true_segments: Sequence[Mapping],
    predicted_ids: np.ndarray,
    predicted_segments: Sequence[Mapping],
    num_classes: int,
    sources: tuple[str, str] = ("the ground truth", "the prediction"),
) -> np.ndarray:
    """The sum of IoU and the numbers of true positives, false positives and false negatives of one image by class.

    Pixels with id 0 are void. A predicted segment is matched to one of the ground truth of its class if their IoU,
    without pixels that are void in the ground truth, is above 0.5; there can be one at most. Crowds (iscrowd) are
    matched to nothing and are no false negatives. A prediction that is not matched and has more than half of its
    pixels in void or in crowds of its class is no false positive.

    true_ids, predicted_ids: (H, W) integers. true_segments, predicted_segments: dicts with the `id` and the contiguous
    `category_id` of each segment, and in the ground truth `iscrowd`. sources: what errors call the two.
    Returns (num_classes, 4) float64. Raises BadFile where a map holds an id that is not among those of its segments.
    """
    true_class, predicted_class = (
        np.array([s["category_id"] for s in segments], int) for segments in (true_segments, predicted_segments)
    )
    crowd = np.array([s.get("iscrowd", 0) for s in true_segments], bool)
    shape = (len(true_segments) + 1, len(predicted_segments) + 1)
    true_index = _segment_index(true_ids, true_segments, sources[0])
    pairs = true_index * shape[1] + _segment_index(predicted_ids, predicted_segments, sources[1])
    pixels = np.bincount(pairs.ravel(), minlength=shape[0] * shape[1]).reshape(shape)

    intersection = pixels[1:, 1:]  # (ground truth, predicted)
    true_size, predicted_size, in_void = pixels[1:].sum(1), pixels[:, 1:].sum(0), pixels[0, 1:]
    union = true_size[:, None] + (predicted_size - in_void) - intersection
    same_class = true_class[:, None] == predicted_class
    match = same_class & ~crowd[:, None] & (2 * intersection > union)
    ignored = in_void + (intersection * (same_class & crowd[:, None])).sum(0)
    false_positive = ~match.any(0) & (predicted_size > 0) & (2 * ignored <= predicted_size)
    false_negative = ~match.any(1) & ~crowd

    found, by = np.nonzero(match)
    iou = np.bincount(true_class[found], intersection[found, by] / union[found, by], minlength=num_classes)
    counts = (
        np.bincount(classes, minlength=num_classes)
        for classes in (true_class[found], predicted_class[false_positive], true_class[false_negative])
    )
    return np.stack([iou, *counts], 1)


def _segment_index(ids: np.ndarray, segments: Sequence[Mapping], source: str) -> np.ndarray:
    """(H, W): i + 1 where `ids` has the id of segments[i], 0 where it is 0."""
    listed = np.array([0, *(segment["id"] for segment in segments)])
    order = np.argsort(listed)
    index = order[np.searchsorted(listed, ids, sorter=order).clip(max=len(listed) - 1)]
    unlisted = listed[index] != ids
    if unlisted.any():
        raise BadFile(
            f"{source}: holds the segment {ids[unlisted][0]}, which is not listed; the segments listed are "
            f"{', '.join(map(str, listed[1:]))}, and 0 means no segment"
        )
    return index


def panoptic_quality(matches: np.ndarray) -> dict[str, np.ndarray]:
    """PQ, SQ and RQ by class, in percent, (C,) each, of (C, 4) sums of `match_segments`; NaN for a class that occurs
    neither in the ground truth nor in the predictions."""
    iou, tp, fp, fn = matches.T
    occurring = tp + (fp + fn) / 2
    sq = np.where(occurring > 0, 100 * (iou / np.maximum(tp, 1)), np.nan)
    return {"PQ": 100 * divide(iou, occurring), "SQ": sq, "RQ": 100 * divide(tp, occurring)}
