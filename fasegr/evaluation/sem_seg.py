"""The evaluator of semantic segmentation."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Mapping
from datetime import datetime
from itertools import chain
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor

from fasegr.d2 import comm
from fasegr.data.image_io import check_label_size, check_label_values
from fasegr.data.semantic_labels import label_source, semantic_labels
from fasegr.evaluation.boundary import boundary_mask, boundary_width
from fasegr.evaluation.confusion_matrix import PixelCounts, confusion_matrix, nanmean
from fasegr.evaluation.evaluator import Evaluator
from fasegr.evaluation.image_counts import Recorder
from fasegr.evaluation.labels import predicted_labels
from fasegr.evaluation.prediction_files import (
    encode_masks,
    label_file_names,
    submission_file_names,
    write_label_png,
)
from fasegr.evaluation.report import build_report, write_report
from fasegr.modeling.ops import to_device

__all__ = ["SemSegEvaluator"]

logger = logging.getLogger(__name__)


class SemSegEvaluator(Evaluator):
    """IoU, accuracy and Boundary IoU over all pixels of a dataset, except those that the ground truth ignores.

    Scores are in percent, under detectron2's names: mIoU, fwIoU (IoU weighted by the classes' pixels), mACC, pACC,
    IoU-NAME and ACC-NAME. A class that is not in the ground truth has NaN and is in no mean, although predicting it
    costs the classes that are. Predictions on ignored pixels make no difference to any score.

    BoundaryIoU-NAME is the IoU of the class's boundaries in ground truth and prediction (Cheng et al., CVPR 2021), and
    BoundaryIoU its mean. detectron2 has another number under this name as soon as there are two classes beside the
    background: it erodes the map of class *indices*, and its boundaries hold differences of indices. Given one class
    against the rest, where the indices are a mask, it agrees with this one.

    Images without ground truth are not scored. A dataset without any, such as the test images of a benchmark, can be
    predicted for, and its result is empty. Of a panoptic dataset, the ground truth is the classes of its segments.
    """

    task, json_name = "sem_seg", "sem_seg_predictions.json"

    def __init__(
        self,
        dataset_name: str,
        *,
        save_labels: bool = False,
        save_submission: bool = False,
        boundary: bool = True,
        report: Mapping[str, Any] | None = None,
        **options,
    ):
        """dataset_name: its records name the ground truth as sem_seg_file_name, or as pan_seg_file_name and
        segments_info; its metadata hold stuff_classes and, unless it is 255, ignore_label; and submission_ids, the
        label of each class in files for the benchmark's server.
        save_labels: write class indices to output_dir/labels/*.png, in the images' folder structure.
        save_submission: write output_dir/submission/*.png, named like the images, with the labels of submission_ids.
        boundary: compute Boundary IoU.
        report: write output_dir/report (`fasegr.evaluation.report`) with this in it, such as the weights that are
        evaluated, and label maps as save_labels does; None writes no report.
        options: those of `Evaluator`; save_json writes a list of {file_name, category_id, segmentation}.
        """
        self.save_labels = save_labels or report is not None
        self.save_submission = save_submission
        self.boundary = boundary
        self.report = report
        super().__init__(dataset_name, **options)
        self.class_names: list[str] = list(self.metadata.stuff_classes)
        self.ignore_label: int = self.metadata.get("ignore_label", 255)
        to_contiguous = self.metadata.get("stuff_dataset_id_to_contiguous_id", {})
        self._dataset_ids = {contiguous: dataset for dataset, contiguous in to_contiguous.items()}
        self._require_ground_truth(not self._records or any(map(label_source, self._records.values())), "label maps")
        self._label_names = label_file_names(self._records) if self.save_labels else {}
        self._submission_names = submission_file_names(self._records) if save_submission else {}
        self._submission_ids = self.metadata.get("submission_ids")
        if save_submission and self._submission_ids is None:
            raise ValueError(
                f"TEST.SAVE_SUBMISSION is True, but {dataset_name} belongs to no benchmark with a known format (ADE20K "
                "and Cityscapes do); TEST.SAVE_LABELS True writes class indices"
            )

    @property
    def _saves_predictions(self) -> bool:
        return super()._saves_predictions or self.save_labels or self.save_submission

    def reset(self) -> None:
        super().reset()
        self._recorder = Recorder() if self.report is not None else None

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def _process_image(self, record: Mapping[str, Any], output: Mapping[str, Tensor]) -> None:
        """output: {"sem_seg": (C, H, W)} or {"sem_seg_labels": (H, W)}."""
        prediction = self._predicted_labels(output, record["file_name"])
        ground_truth = self._ground_truth(record, prediction) if label_source(record) else None
        self._save(record["file_name"], prediction)
        if ground_truth is not None:
            self._count(record, ground_truth, prediction, output.get("sem_seg"))

    def _predicted_labels(self, output: Mapping[str, Tensor], file_name: str) -> Tensor:
        """(H, W) class indices, all of them below the number of classes."""
        labels = predicted_labels(output)
        if "sem_seg_labels" in output:
            low, high = torch.stack(labels.aminmax()).tolist()
            if low < 0 or high >= self.num_classes:
                raise ValueError(
                    f"{file_name}: the predicted labels range from {low} to {high}, but {self.dataset_name} has "
                    f"{self.num_classes} classes (0..{self.num_classes - 1}); evaluate a model of these classes"
                )
        elif len(output["sem_seg"]) != self.num_classes:
            raise ValueError(
                f"{file_name}: the model has scores of {len(output['sem_seg'])} classes, but {self.dataset_name} has "
                f"{self.num_classes}; evaluate a model of these classes"
            )
        return labels

    def _ground_truth(self, record: Mapping[str, Any], prediction: Tensor) -> Tensor:
        """(H, W) class indices, num_classes for ignored pixels, on the prediction's device."""
        path = label_source(record)
        labels = semantic_labels(record, self.ignore_label)
        check_label_size(path, labels.shape, record["file_name"], tuple(prediction.shape))
        check_label_values(labels, self.num_classes, self.ignore_label, path)
        ignored = labels == self.ignore_label
        labels = labels.astype(np.uint8 if self.num_classes <= 255 else np.int32)
        labels[ignored] = self.num_classes
        return to_device(torch.from_numpy(labels), prediction.device)

    def _count(
        self, record: Mapping[str, Any], ground_truth: Tensor, prediction: Tensor, scores: Tensor | None = None
    ) -> None:
        no_class = self.num_classes
        # An ignored pixel is removed from both maps, so that it is neither part nor boundary of a wrong segment.
        prediction = torch.where(ground_truth == no_class, no_class, prediction.to(ground_truth.dtype))
        pixels, edges = confusion_matrix(ground_truth, prediction, no_class + 1), None
        self._add("pixels", pixels)
        if self.boundary:
            width = boundary_width(*ground_truth.shape)
            boundaries = (
                torch.where(boundary_mask(labels, width), labels, no_class) for labels in (ground_truth, prediction)
            )
            edges = confusion_matrix(*boundaries, no_class + 1)
            self._add("boundary", edges)
        if self._recorder is not None:
            self._recorder.add(record["file_name"], ground_truth, prediction, pixels, edges, scores)

    def _save(self, file_name: str, prediction: Tensor) -> None:
        if self.save_labels:
            path = os.path.join(self.output_dir, "labels", self._label_names[file_name])
            write_label_png(prediction.cpu().numpy(), path, self.num_classes)
        if self.save_submission:
            ids = np.array(self._submission_ids)
            path = os.path.join(self.output_dir, "submission", self._submission_names[file_name])
            write_label_png(ids[prediction.cpu().numpy()], path, ids.max() + 1)
        if self.save_json:
            present = prediction.unique()
            self._predictions += [
                {"file_name": file_name, "category_id": self._dataset_ids.get(label, label), "segmentation": code}
                for label, code in zip(
                    present.tolist(), encode_masks(prediction == present[:, None, None]), strict=True
                )
            ]

    def _scores(self, num_images: int, sums: Mapping[str, np.ndarray], predictions: list[dict]) -> dict | None:
        if "pixels" not in sums or not PixelCounts.from_confusion(sums["pixels"]).ground_truth.any():
            return None
        scores, columns = self._metrics(sums)
        self._log(scores, columns, sums, num_images)
        return scores

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        results = super().evaluate()
        if self._recorder is not None:
            self._write_report(bool(results))
        return results

    def _write_report(self, scored: bool) -> None:
        own = [(image, self._files(image.file_name)) for image in self._recorder.images()]
        parts = comm.gather(own) if self.distributed else [own]
        if not self._is_main:
            return
        if not scored:
            logger.warning("%s has no ground truth, so there is no report (TEST.REPORT)", self.dataset_name)
            return
        colors = self.metadata.get("stuff_colors")
        about = {
            "dataset": self.dataset_name,
            "date": datetime.now().astimezone().isoformat(timespec="seconds"),
            "ignore_label": self.ignore_label,
            "colors": None if colors is None else np.asarray(colors).tolist(),
            **self.report,
        }
        images, files = zip(*chain.from_iterable(parts), strict=True)
        report = build_report(images, self.class_names, files, boundary=self.boundary, about=about)
        write_report(report, os.path.join(self.output_dir, "report"))

    def _files(self, file_name: str) -> dict[str, str | None]:
        record = self._records[file_name]
        # A label map of class numbers can be read without the dataset; segments, objects and other values cannot.
        plain = record.get("pan_seg_file_name") is None and record.get("label_map") is None
        return {
            "truth": record.get("sem_seg_file_name") if plain else None,
            "prediction": f"../labels/{self._label_names[file_name]}",
        }

    def _metrics(self, sums: Mapping[str, np.ndarray]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """All scores by name, and the (C,) columns of the table, in percent."""
        counts = PixelCounts.from_confusion(sums["pixels"])
        pixels = counts.ground_truth
        columns = {"IoU": 100 * counts.iou(), "ACC": 100 * counts.accuracy()}
        scores = {
            "mIoU": nanmean(columns["IoU"]),
            "fwIoU": float((columns["IoU"] * pixels)[pixels > 0].sum() / pixels.sum()),
            "mACC": nanmean(columns["ACC"]),
            "pACC": float(100 * counts.intersection.sum() / pixels.sum()),
        }
        if self.boundary:
            columns["BoundaryIoU"] = 100 * PixelCounts.from_confusion(sums["boundary"]).iou()
            scores["BoundaryIoU"] = nanmean(columns["BoundaryIoU"])
        for metric, values in columns.items():
            scores |= {f"{metric}-{name}": float(value) for name, value in zip(self.class_names, values, strict=True)}
        return scores, columns

    def _log(self, scores: Mapping[str, float], columns: Mapping, sums: Mapping, num_images: int) -> None:
        pixels = PixelCounts.from_confusion(sums["pixels"]).ground_truth
        rows = list(zip(self.class_names, *columns.values(), 100 * pixels / pixels.sum(), strict=True))
        table = tabulate(
            [*rows, ["mean", *map(nanmean, columns.values()), None]],
            headers=["class", *columns, "% of pixels"],
            floatfmt=".2f",
            tablefmt="pipe",
            missingval="",
        )
        total = "  ".join(f"{name} {value:.2f}" for name, value in scores.items() if "-" not in name)
        logger.info(f"{self.dataset_name}, {num_images} images:\n{table}\n{total}")
