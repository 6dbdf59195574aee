"""The evaluator of instance segmentation: COCO's average precision of masks."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate

from fasegr.data.datasets.coco_file import read_instances
from fasegr.data.image_io import check_image_size
from fasegr.evaluation.confusion_matrix import nanmean
from fasegr.evaluation.evaluator import Evaluator
from fasegr.evaluation.prediction_files import encode_masks

__all__ = ["InstanceEvaluator"]

logger = logging.getLogger(__name__)

MAX_DETECTIONS = 100  # of a class that COCO's own AP takes of an image, the highest scores first
AREAS = ("all", "small", "medium", "large")  # in COCOeval's order


class InstanceEvaluator(Evaluator):
    """COCO's average precision of masks, as pycocotools' COCOeval finds it, in percent, under detectron2's names.

    AP is the mean over IoU thresholds 0.5, 0.55, ..., 0.95, AP50 and AP75 are those of one threshold, APs, APm and APl
    those of objects below 32^2, below 96^2 and above pixels, AP-NAME that of a class. A class or size that is not in
    the ground truth has NaN and is in no mean. A model that finds nothing has an AP of 0; detectron2 gives NaN.
    All count the max_detections highest scores of a class in an image; with more than COCO's 100, AP100 is COCO's AP.

    Masks are kept as run-length codes until `evaluate`.
    """

    task, json_name = "segm", "coco_instances_results.json"

    def __init__(self, dataset_name: str, *, max_detections: int = MAX_DETECTIONS, **options):
        """dataset_name: its records have image_id, its metadata thing_classes, thing_dataset_id_to_contiguous_id and
        json_file, the annotations in COCO's format. A file without annotations, as for test images, is not scored.
        options: those of `Evaluator`.
        """
        super().__init__(dataset_name, **options)
        self.max_detections = max_detections
        json_file = self.metadata.get("json_file")
        if json_file is None or not os.path.isfile(json_file):
            raise FileNotFoundError(
                f"{dataset_name}: there is no file {json_file}, which its metadata name as the annotated instances "
                "(json_file); put it there, or set MODEL.MASK_FORMER.TEST.INSTANCE_ON False"
            )
        ids = self.metadata.thing_dataset_id_to_contiguous_id
        self._dataset_ids: dict[int, int] = {contiguous: dataset for dataset, contiguous in sorted(ids.items())}
        self.class_names = _thing_names(self.metadata.thing_classes, sorted(self._dataset_ids))
        if self._is_main:
            self._ground_truth = _read_annotations(dataset_name, os.fspath(json_file), ids)
            listed = set(self._ground_truth.getImgIds())
            if unknown := {record["image_id"] for record in self._records.values()} - listed:
                raise ValueError(
                    f"{dataset_name} has {len(unknown)} images that {json_file} does not list, the first with the id "
                    f"{min(unknown)}; images and annotations must be of one dataset"
                )
            self._require_ground_truth("annotations" in self._ground_truth.dataset, f"annotations in {json_file}")

    def _process_image(self, record: Mapping[str, Any], output: Mapping[str, Any]) -> None:
        """output: {"instances": `Instances`}."""
        instances = output["instances"]
        classes = instances.pred_classes.tolist()
        if unknown := set(classes) - self.class_names.keys():
            raise ValueError(
                f"{record['file_name']}: the model predicts an instance of class {max(unknown)}, but "
                f"{self.dataset_name} has {len(self.class_names)} classes of objects ({min(self.class_names)}.."
                f"{max(self.class_names)}); evaluate a model of these classes"
            )
        if classes:
            size = tuple(instances.pred_masks.shape[-2:])
            check_image_size(record["file_name"], size, (record["height"], record["width"]))
        codes = encode_masks(instances.pred_masks)
        self._predictions += [
            {"image_id": record["image_id"], "category_id": self._dataset_ids[c], "segmentation": code, "score": score}
            for c, code, score in zip(classes, codes, instances.scores.tolist(), strict=True)
        ]

    def _scores(self, num_images: int, sums: Mapping[str, np.ndarray], predictions: list[dict]) -> dict | None:
        if "annotations" not in self._ground_truth.dataset:
            return None
        if unseen := len(self._ground_truth.getImgIds()) - num_images:
            logger.warning("%s: %d images were not evaluated, and count as empty", self.dataset_name, unseen)
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints as it goes
            evaluation = COCOeval(self._ground_truth, _results(self._ground_truth, predictions), "segm")
            evaluation.params.catIds = [self._dataset_ids[c] for c in self.class_names]
            evaluation.params.maxDets = sorted({MAX_DETECTIONS, self.max_detections})
            evaluation.evaluate()
            evaluation.accumulate()
        precision = evaluation.eval["precision"]  # (thresholds, recalls, classes, areas, maxDets); -1: no ground truth
        precision = np.where(precision > -1, precision, np.nan)
        of_100 = precision[..., 0, evaluation.params.maxDets.index(MAX_DETECTIONS)]
        precision = precision[..., evaluation.params.maxDets.index(self.max_detections)]
        thresholds = evaluation.params.iouThrs
        scores = {"AP": 100 * nanmean(precision[..., 0])}
        for percent in (50, 75):
            scores[f"AP{percent}"] = 100 * nanmean(precision[np.isclose(thresholds, percent / 100), ..., 0])
        scores |= {f"AP{area[0]}": 100 * nanmean(precision[..., i]) for i, area in enumerate(AREAS) if area != "all"}
        if self.max_detections != MAX_DETECTIONS:
            scores[f"AP{MAX_DETECTIONS}"] = 100 * nanmean(of_100)
        by_class = {name: 100 * nanmean(precision[:, :, i, 0]) for i, name in enumerate(self.class_names.values())}
        rows = [*by_class.items(), ("mean", scores["AP"])]
        headers = ["class", f"AP (MAX_DETS {self.max_detections})"]
        table = tabulate(rows, headers=headers, floatfmt=".2f", tablefmt="pipe")
        total = "  ".join(f"{name} {value:.2f}" for name, value in scores.items())
        logger.info(f"{self.dataset_name}, {num_images} images:\n{table}\nmasks: {total}")
        return scores | {f"AP-{name}": value for name, value in by_class.items()}


def _thing_names(names: Sequence[str], things: Sequence[int]) -> dict[int, str]:
    """Names by class. names: of the things only, in their order, or of all classes, as detectron2's panoptic datasets
    have them."""
    return dict(zip(things, names if len(names) == len(things) else (names[c] for c in things), strict=True))


def _read_annotations(name: str, json_file: str, categories: Mapping[int, int]) -> COCO:
    """What COCOeval reads, without objects that have no outline, which training leaves out too."""
    images, annotations, _ = read_instances(name, json_file, categories)
    ground_truth = COCO()
    ground_truth.dataset = {"images": list(images.values()), "categories": [{"id": number} for number in categories]}
    if annotations is not None:
        ground_truth.dataset["annotations"] = [
            # numbered anew: of two with one id COCOeval sees one, and 0 means "unmatched" to it
            {**annotation, "id": number}
            for number, annotation in enumerate((a for a in annotations if a["segmentation"] is not None), start=1)
        ]
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth.createIndex()
    for annotation in ground_truth.dataset.get("annotations", ()):
        if "area" not in annotation:
            annotation["area"] = float(coco_mask.area(ground_truth.annToRLE(annotation)))
    return ground_truth


def _results(ground_truth: COCO, predictions: list[dict]) -> COCO:
    if predictions:
        return ground_truth.loadRes([dict(instance) for instance in predictions])  # it adds to the dicts
    nothing = COCO()  # `loadRes` fails on an empty list
    nothing.dataset = ground_truth.dataset | {"annotations": []}
    nothing.createIndex()
    return nothing
