"""Cityscapes' scores of pixel-level labelling, as its own scripts define them: classes, categories and instances."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor

from fasegr.data.datasets.cityscapes import CATEGORIES, CLASSES, INSTANCE_ENDING, LABEL_ENDING, LABELS
from fasegr.data.image_io import BadFile, check_label_size, read_label
from fasegr.evaluation.confusion_matrix import PixelCounts, bincount, divide, nanmean
from fasegr.evaluation.sem_seg import SemSegEvaluator

__all__ = ["CityscapesEvaluator", "count_instances"]

logger = logging.getLogger(__name__)

# Pixels of an instance on average over the training images, as published with the benchmark.
AVERAGE_INSTANCE = {
    "person": 3462.4756337644,
    "rider": 3930.4788056518,
    "car": 12794.0202738185,
    "truck": 27855.1264367816,
    "bus": 35732.1511111111,
    "train": 67583.7075812274,
    "motorcycle": 6298.7200839748,
    "bicycle": 4672.3249222261,
}
IDS_PER_LABEL = 1000  # an instance has the id label id * 1000 + 0, 1, 2, ...; a pixel of none has its label id
NUM_LABELS = max(label.id for label in LABELS) + 1
CLASS_IDS = [label.id for label in CLASSES]  # label ids of the classes
CATEGORY_OF = torch.tensor([CATEGORIES.index(label.category) for label in CLASSES])  # of a class
INSTANCE_CLASSES = [label.name for label in CLASSES if label.instances]
# A category has instances if all of its labels have.
INSTANCE_CATEGORIES = [
    category
    for category in CATEGORIES
    if all(label.instances for label in LABELS if label.category == category and label.id >= 0)
]
CLASS_OF_LABEL = torch.full((NUM_LABELS,), -1)
CLASS_OF_LABEL[CLASS_IDS] = torch.tensor([label.train_id for label in CLASSES])
CATEGORY_OF_LABEL = torch.full((NUM_LABELS,), -1)
CATEGORY_OF_LABEL[CLASS_IDS] = CATEGORY_OF


def count_instances(instance_ids: Tensor, prediction: Tensor) -> Tensor:
    """How well the instances of one image were found, summed over the instances of each class.

    instance_ids: (H, W) integers of the ground truth; prediction: (H, W) class indices, on the same device.
    Returns (classes, 3) float64 on the CPU: the number of instances, the sum of the shares of each that were given its
    class, and of those that were given a class of its category.
    """
    device = instance_ids.device
    label = torch.div(instance_ids, IDS_PER_LABEL, rounding_mode="floor")  # 0 where there is no instance
    prediction = prediction.long()
    right_class = CLASS_OF_LABEL.to(device)[label] == prediction
    right_category = CATEGORY_OF_LABEL.to(device)[label] == CATEGORY_OF.to(device)[prediction]
    outcome = right_class.int() + right_category  # 0, 1 or 2: the right class implies the right category
    counts = bincount((instance_ids * 3 + outcome).flatten(), NUM_LABELS * IDS_PER_LABEL * 3)
    counts = counts.view(NUM_LABELS, IDS_PER_LABEL, 3).cpu()[CLASS_IDS].double()
    size = counts.sum(2)
    share = counts / size.clamp(min=1).unsqueeze(2)
    return torch.stack([(size > 0).sum(1), share[..., 2].sum(1), share[..., 1:].sum((1, 2))], 1)


class CityscapesEvaluator(SemSegEvaluator):
    """The scores of `SemSegEvaluator`, and the four of Cityscapes' benchmark, under detectron2's names.

    IoU        mean over the classes (the same as mIoU)
    iIoU       mean over the classes with instances; a pixel of an instance is weighted by the average size of its
               class's instances over its own instance's size, so that small ones count as much as large ones
    IoU_sup    mean over the categories (flat, construction, ...): a class taken for another of its category is right
    iIoU_sup   the same over instances, of the categories human and vehicle

    and each by class or category, IoU-NAME, iIoU-NAME, IoU_sup-NAME, iIoU_sup-NAME. All agree with cityscapesScripts'
    evalPixelLevelSemanticLabeling, which is not needed. As there, and unlike in `SemSegEvaluator`, a class or category
    that is not in the ground truth has an IoU of 0 if it was predicted on a pixel that is evaluated. (The 500
    validation images hold all of them.)

    The instances are those of *_gtFine_instanceIds.png beside the label maps; if there are no such files, iIoU and
    iIoU_sup are left out with a warning.
    """

    def __init__(self, dataset_name: str, **options):
        """options: those of `SemSegEvaluator`. Raises ValueError if the dataset does not have Cityscapes' 19 classes,
        FileNotFoundError if some label maps lack their file of instances."""
        super().__init__(dataset_name, **options)
        names = [label.name for label in CLASSES]
        if self.class_names != names:
            raise ValueError(
                f"{dataset_name} has the classes {', '.join(self.class_names)}; to be scored as Cityscapes "
                f"(evaluator_type cityscapes_sem_seg) it must have {', '.join(names)}"
            )
        files = [_instance_file(record) for record in self._records.values() if record.get("sem_seg_file_name")]
        missing = [file for file in files if not os.path.isfile(file)]
        if missing and len(missing) < len(files):
            raise FileNotFoundError(
                f"{dataset_name}: {len(missing)} of {len(files)} label maps have no file of instances, the first "
                f"{missing[0]}; unpack gtFine again"
            )
        self._scores_instances = bool(files) and not missing
        if missing:
            logger.warning("%s: no *%s, so iIoU is not computed", dataset_name, INSTANCE_ENDING)

    def _count(
        self, record: Mapping[str, Any], ground_truth: Tensor, prediction: Tensor, scores: Tensor | None = None
    ) -> None:
        super()._count(record, ground_truth, prediction, scores)
        if self._scores_instances:
            path = _instance_file(record)
            ids = read_label(path)
            check_label_size(path, ids.shape, record["file_name"], tuple(ground_truth.shape))
            if ids.max(initial=0) >= NUM_LABELS * IDS_PER_LABEL:
                raise BadFile(
                    f"{path}: holds the id {ids.max()}; expected a label id of 0..{NUM_LABELS - 1}, or that of an "
                    f"instance, label id * {IDS_PER_LABEL} + 0..{IDS_PER_LABEL - 1}"
                )
            ids = torch.from_numpy(ids.astype(np.int32)).to(prediction.device)
            self._add("instances", count_instances(ids, prediction))

    def _metrics(self, sums: Mapping[str, np.ndarray]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        scores, columns = super()._metrics(sums)
        confusion = sums["pixels"][:-1, :-1].astype(np.float64)  # the last label stands for "not evaluated"
        counts = PixelCounts.from_confusion(sums["pixels"])
        false_positives = counts.prediction - counts.intersection
        columns["IoU"] = 100 * divide(counts.intersection, counts.ground_truth + false_positives)

        # Categories: the classes of each as one. (categories, classes)
        members = (CATEGORY_OF.numpy() == np.arange(len(CATEGORIES))[:, None]).astype(np.float64)
        merged = members @ confusion @ members.T
        right = merged.diagonal()
        category_false_positives = merged.sum(0) - right
        by_category = {"IoU_sup": 100 * divide(right, merged.sum(1) + category_false_positives)}

        if self._scores_instances:
            average = np.array([AVERAGE_INSTANCE.get(name, 0.0) for name in self.class_names])
            number, found, found_category = sums["instances"].T * average
            iou = 100 * divide(found, number + false_positives)
            columns["iIoU"] = np.where(np.isin(self.class_names, INSTANCE_CLASSES), iou, np.nan)
            iou = 100 * divide(members @ found_category, members @ number + category_false_positives)
            by_category["iIoU_sup"] = np.where(np.isin(CATEGORIES, INSTANCE_CATEGORIES), iou, np.nan)

        scores["mIoU"] = nanmean(columns["IoU"])
        for metric in ("IoU", "iIoU"):
            if metric in columns:
                scores[metric] = nanmean(columns[metric])
                values = zip(self.class_names, columns[metric], strict=True)
                scores |= {f"{metric}-{n}": float(v) for n, v in values if metric == "IoU" or n in INSTANCE_CLASSES}
        for metric, values in by_category.items():
            scores[metric] = nanmean(values)
            for category, value in zip(CATEGORIES, values, strict=True):
                if metric == "IoU_sup" or category in INSTANCE_CATEGORIES:
                    scores[f"{metric}-{category}"] = float(value)
        return scores, columns

    def _log(self, scores: Mapping[str, float], columns: Mapping, sums: Mapping, num_images: int) -> None:
        super()._log(scores, columns, sums, num_images)
        metrics = [metric for metric in ("IoU_sup", "iIoU_sup") if metric in scores]
        rows = [[name, *(scores.get(f"{metric}-{name}") for metric in metrics)] for name in CATEGORIES]
        rows.append(["mean", *(scores[metric] for metric in metrics)])
        table = tabulate(rows, headers=["category", *metrics], floatfmt=".2f", tablefmt="pipe", missingval="")
        logger.info(f"{self.dataset_name}:\n{table}")


def _instance_file(record: Mapping[str, Any]) -> str:
    return record["sem_seg_file_name"].removesuffix(LABEL_ENDING) + INSTANCE_ENDING
