"""The evaluator of semantic segmentation."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor

from fasegr.d2 import DatasetCatalog, DatasetEvaluator, MetadataCatalog, comm
from fasegr.data.image_io import BadFile, check_label_values, read_label
from fasegr.evaluation.boundary import boundary_mask, boundary_width
from fasegr.evaluation.confusion_matrix import Overlap, count_pairs
from fasegr.evaluation.labels import predicted_labels
from fasegr.evaluation.prediction_files import (
    label_file_names,
    run_lengths,
    submission_file_names,
    write_json,
    write_label_png,
)

__all__ = ["SemSegEvaluator"]

logger = logging.getLogger(__name__)


class SemSegEvaluator(DatasetEvaluator):
    """IoU, accuracy and Boundary IoU over all pixels of a dataset that the truth does not leave out.

    Scores are in percent, under detectron2's names: mIoU, fwIoU (IoU weighted by the classes' pixels), mACC, pACC,
    IoU-NAME and ACC-NAME. A class that the truth never holds has NaN and is in no mean, although predicting it costs
    the classes that are there. What is predicted on ignored pixels makes no difference to any score.

    BoundaryIoU-NAME is the IoU of the class's boundaries in truth and prediction (Cheng et al., CVPR 2021), and
    BoundaryIoU its mean. detectron2 has another number under this name as soon as there are two classes beside the
    background: it erodes the map of class *numbers*, and its boundaries hold differences of numbers. Given one class
    against the rest, where the numbers are a mask, it agrees with this one.

    Counts stay on the device of the predictions until `evaluate`.

    Images without a label map are not scored. A dataset that has no truth at all, as the test images of a benchmark,
    can be predicted for, and its result is empty.
    """

    truth_key = "sem_seg_file_name"  # of a record

    def __init__(
        self,
        dataset_name: str,
        *,
        distributed: bool = True,
        output_dir: str | os.PathLike | None = None,
        save_labels: bool = False,
        save_json: bool = False,
        save_submission: bool = False,
        boundary: bool = True,
    ):
        """dataset_name: in the catalogs; its records name the truth as "sem_seg_file_name", its metadata hold
        stuff_classes and, unless it is 255, ignore_label; and submission_ids, the label that each class has in files
        for the benchmark's server.
        distributed: add up the counts of all processes; else each has its own result.
        save_labels: write class indices to output_dir/labels/*.png, under the paths that the images have to each other.
        save_json: write output_dir/sem_seg_predictions.json, a list of {file_name, category_id, segmentation}.
        save_submission: write output_dir/submission/*.png, named as the images are, with the labels of submission_ids.
        boundary: compute Boundary IoU.
        """
        self._saves = save_labels or save_json or save_submission
        if self._saves and output_dir is None:
            raise ValueError(
                "save_labels, save_json and save_submission write to output_dir, which is None; name a folder"
            )
        metadata = MetadataCatalog.get(dataset_name)
        self.class_names: list[str] = list(metadata.stuff_classes)
        self.ignore_label: int = metadata.get("ignore_label", 255)
        to_contiguous = metadata.get("stuff_dataset_id_to_contiguous_id", {})
        self._dataset_ids = {contiguous: dataset for dataset, contiguous in to_contiguous.items()}
        self._truth_files = {r["file_name"]: r.get(self.truth_key) for r in DatasetCatalog.get(dataset_name)}
        if not self._saves and self._truth_files and not any(self._truth_files.values()):
            raise ValueError(
                f"{dataset_name} has no label maps, so nothing can be scored; TEST.SAVE_LABELS True or "
                "TEST.SAVE_SUBMISSION True writes what is predicted"
            )
        self._label_names = label_file_names(self._truth_files) if save_labels else {}
        self._submission_names = submission_file_names(self._truth_files) if save_submission else {}
        self._submission_ids = metadata.get("submission_ids") if save_submission else None
        if save_submission and self._submission_ids is None:
            raise ValueError(
                f"TEST.SAVE_SUBMISSION is True, but {dataset_name} has no benchmark that is known here (those of "
                "ADE20K and Cityscapes are); TEST.SAVE_LABELS True writes class indices"
            )
        self.dataset_name = dataset_name
        self.distributed = distributed
        self.output_dir = output_dir
        self.save_labels = save_labels
        self.save_json = save_json
        self.save_submission = save_submission
        self.boundary = boundary
        self.reset()

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def reset(self) -> None:
        # Square, with one label more than there are classes: ignored pixels in the one, no boundary in the other.
        self._counts: Tensor | None = None
        self._boundary_counts: Tensor | None = None
        self._num_images = 0
        self._segments: list[dict] = []

    def process(self, inputs: Sequence[Mapping], outputs: Sequence[Mapping[str, Tensor]]) -> None:
        """inputs: records with "file_name"; outputs: {"sem_seg": (C, H, W)} or {"sem_seg_labels": (H, W)} for each.

        Raises BadFile where the truth cannot be read, differs in size or holds a label out of range, ValueError where
        the prediction has other classes than the dataset; all name the image or its truth.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            file_name = sample["file_name"]
            prediction = self._prediction(output, file_name)
            truth = self._truth(file_name, prediction)
            if self._saves:
                self._save(file_name, prediction.cpu().numpy())
            self._num_images += 1
            if truth is not None:
                self._count(file_name, truth, prediction)

    def _prediction(self, output: Mapping[str, Tensor], file_name: str) -> Tensor:
        """(H, W) class indices, all of them below the number of classes."""
        labels = predicted_labels(output)
        if "sem_seg_labels" in output:
            low, high = torch.stack(labels.aminmax()).tolist()
            if low < 0 or high >= self.num_classes:
                raise ValueError(
                    f"{file_name}: the labels predicted go from {low} to {high}, but {self.dataset_name} has "
                    f"{self.num_classes} classes (0..{self.num_classes - 1}); set MODEL.SEM_SEG_HEAD.NUM_CLASSES to it"
                )
        elif len(output["sem_seg"]) != self.num_classes:
            raise ValueError(
                f"{file_name}: the model scores {len(output['sem_seg'])} classes, but {self.dataset_name} has "
                f"{self.num_classes}; set MODEL.SEM_SEG_HEAD.NUM_CLASSES to it"
            )
        return labels

    def _truth(self, file_name: str, prediction: Tensor) -> Tensor | None:
        """(H, W) class indices as large as the prediction, on its device; ignored pixels have num_classes. None where
        the image has no label map."""
        if file_name not in self._truth_files:
            raise KeyError(
                f"{file_name} is not an image of {self.dataset_name}; evaluate on the dataset that the loader reads"
            )
        path = self._truth_files[file_name]
        if path is None:
            return None
        truth = self._read_labels(file_name)
        if truth.shape != tuple(prediction.shape):
            raise BadFile(
                f"{path}: the truth has {_by(truth.shape)} pixels (height x width), but the prediction for {file_name} "
                f"has {_by(prediction.shape)}; an image and its label map must be of one size"
            )
        check_label_values(truth, self.num_classes, self.ignore_label, path)
        ignored = truth == self.ignore_label
        truth = truth.astype(np.uint8 if self.num_classes <= 255 else np.int32)
        truth[ignored] = self.num_classes
        return torch.from_numpy(truth).to(prediction.device, non_blocking=True)

    def _read_labels(self, file_name: str) -> np.ndarray:
        """The label map of an image, (H, W) class numbers and ignore_label."""
        return read_label(self._truth_files[file_name])

    def _count(self, file_name: str, truth: Tensor, prediction: Tensor) -> None:
        no_class = self.num_classes
        # An ignored pixel is taken out of both maps, so that it is neither a part nor the boundary of a wrong segment.
        prediction = torch.where(truth == no_class, no_class, prediction.to(truth.dtype))
        counts = count_pairs(truth, prediction, no_class + 1)
        self._counts = counts if self._counts is None else self._counts + counts
        if self.boundary:
            width = boundary_width(*truth.shape)
            truth, prediction = (
                torch.where(boundary_mask(labels, width), labels, no_class) for labels in (truth, prediction)
            )
            counts = count_pairs(truth, prediction, no_class + 1)
            self._boundary_counts = counts if self._boundary_counts is None else self._boundary_counts + counts

    def _save(self, file_name: str, labels: np.ndarray) -> None:
        if self.save_labels:
            path = os.path.join(self.output_dir, "labels", self._label_names[file_name])
            write_label_png(labels, path, self.num_classes)
        if self.save_submission:
            ids = np.array(self._submission_ids)
            path = os.path.join(self.output_dir, "submission", self._submission_names[file_name])
            write_label_png(ids[labels], path, ids.max() + 1)
        if self.save_json:
            self._segments += [
                {"file_name": file_name, "category_id": self._dataset_ids.get(label, label), "segmentation": code}
                for label, code in run_lengths(labels).items()
            ]

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """{"sem_seg": {name: percent}}, or {} where predictions are saved and there is no truth to score them by; with
        several processes, None in all but the main one.

        Logs a table of the classes. Raises ValueError where no image was seen by any process, or no labelled pixel and
        nothing saved.
        """
        tally = self._gather()
        if tally["images"] == 0:
            raise ValueError(
                f"no image of {self.dataset_name} was evaluated; is the dataset empty, or process() not called?"
            )
        if self.save_json:
            segments = comm.gather(self._segments) if self.distributed else [self._segments]
            if not self.distributed or comm.is_main_process():
                write_json(list(chain(*segments)), os.path.join(self.output_dir, "sem_seg_predictions.json"))
        if self.distributed and not comm.is_main_process():
            return None

        if not Overlap.of(tally["pixels"]).truth.any():
            if self._saves:
                logger.warning(
                    f"{self.dataset_name} has no labelled pixel, so there is nothing to score; the predictions for its "
                    f"{tally['images']} images are in {self.output_dir}"
                )
                return OrderedDict()
            raise ValueError(
                f"all pixels of the {tally['images']} label maps of {self.dataset_name} are ignored "
                f"(label {self.ignore_label}), so there is nothing to score"
            )
        scores, columns = self._scores(tally)
        self._log(scores, columns, tally)
        return OrderedDict(sem_seg=scores)

    def _tally(self) -> dict[str, np.ndarray | int]:
        """What this process has counted; what all have is the sum."""
        empty = np.zeros((self.num_classes + 1,) * 2, np.int64)
        pixels, boundary = (empty if c is None else c.cpu().numpy() for c in (self._counts, self._boundary_counts))
        return {"pixels": pixels, "boundary": boundary, "images": self._num_images}

    def _gather(self) -> dict[str, np.ndarray | int]:
        parts = comm.all_gather(self._tally()) if self.distributed else [self._tally()]
        return {name: sum(part[name] for part in parts) for name in parts[0]}

    def _scores(self, tally: Mapping) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """All scores by name, and the (C,) columns of the table, in percent."""
        overlap = Overlap.of(tally["pixels"])
        columns = {"IoU": 100 * overlap.iou(), "ACC": 100 * overlap.accuracy()}
        present = overlap.truth > 0
        scores = {
            "mIoU": columns["IoU"][present].mean(),
            "fwIoU": (columns["IoU"] * overlap.truth)[present].sum() / overlap.truth.sum(),
            "mACC": columns["ACC"][present].mean(),
            "pACC": 100 * overlap.both.sum() / overlap.truth.sum(),
        }
        if self.boundary:
            columns["BoundaryIoU"] = 100 * Overlap.of(tally["boundary"]).iou()
            scores["BoundaryIoU"] = columns["BoundaryIoU"][present].mean()  # each segment has a boundary
        for metric, values in columns.items():
            scores |= {f"{metric}-{name}": value for name, value in zip(self.class_names, values, strict=True)}
        return {name: float(value) for name, value in scores.items()}, columns

    def _log(self, scores: Mapping[str, float], columns: Mapping[str, np.ndarray], tally: Mapping) -> None:
        pixels = Overlap.of(tally["pixels"]).truth
        rows = list(zip(self.class_names, *columns.values(), 100 * pixels / pixels.sum(), strict=True))
        table = tabulate(
            [*rows, ["mean", *map(mean_of_numbers, columns.values()), None]],
            headers=["class", *columns, "% of pixels"],
            floatfmt=".2f",
            tablefmt="pipe",
            missingval="",
        )
        total = "  ".join(f"{name} {value:.2f}" for name, value in scores.items() if "-" not in name)
        logger.info(f"{self.dataset_name}, {tally['images']} images:\n{table}\n{total}")


def mean_of_numbers(values: np.ndarray) -> float:
    """Of those that are not NaN; NaN where all are."""
    valid = values[~np.isnan(values)]
    return float(valid.mean()) if valid.size else float("nan")


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
