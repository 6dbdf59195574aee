"""Scores of Cityscapes' pixel-level task as its own scripts define them: of classes, categories and instances."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor

from fasegr.data.datasets.cityscapes import CATEGORIES, CLASSES, INSTANCE_ENDING, LABEL_ENDING, LABELS
from fasegr.data.image_io import BadFile, check_label_size, read_label
from fasegr.evaluation.confusion_matrix import Overlap, count_values
from fasegr.evaluation.sem_seg import SemSegEvaluator, mean_of_numbers

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
PER_LABEL = 1000  # an instance has the number label id * 1000 + 0, 1, 2, ...; a pixel of none, its label id
NUM_IDS = max(label.id for label in LABELS) + 1
CATEGORY_OF = torch.tensor([CATEGORIES.index(label.category) for label in CLASSES])  # of a class
INSTANCE_CLASSES = [label.train_id for label in CLASSES if label.instances]
# A category has instances if all of its labels have.
INSTANCE_CATEGORIES = [
    category
    for category in CATEGORIES
    if all(label.instances for label in LABELS if label.category == category and label.id >= 0)
]


def _by_id(values: list[int], missing: int) -> Tensor:
    """Values of the classes, in a table by label id."""
    table = torch.full((NUM_IDS,), missing)
    table[[label.id for label in CLASSES]] = torch.tensor(values)
    return table


CLASS_OF_ID = _by_id([label.train_id for label in CLASSES], -1)
CATEGORY_OF_ID = _by_id(CATEGORY_OF.tolist(), -1)


def count_instances(instances: Tensor, prediction: Tensor) -> Tensor:
    """How the instances of one image were found, summed over the instances of each class.

    instances: (H, W) integers, the numbers of the truth; prediction: (H, W) class indices, on the same device.
    Returns (classes, 3) float64 on the CPU: the number of instances, the sum of the shares of each that were given its
    class, and of those that were given a class of its category.
    """
    device = instances.device
    label = torch.div(instances, PER_LABEL, rounding_mode="floor")  # 0 where there is no instance
    prediction = prediction.long()
    right_class = CLASS_OF_ID.to(device)[label] == prediction
    right_category = CATEGORY_OF_ID.to(device)[label] == CATEGORY_OF.to(device)[prediction]
    kind = right_class.int() + right_category  # what has the right class has the right category
    counts = count_values((instances * 3 + kind).flatten(), NUM_IDS * PER_LABEL * 3).view(NUM_IDS, PER_LABEL, 3).cpu()
    counts = counts[[label.id for label in CLASSES]].double()
    size = counts.sum(2)
    share = counts / size.clamp(min=1).unsqueeze(2)
    return torch.stack([(size > 0).sum(1), share[..., 2].sum(1), share[..., 1:].sum((1, 2))], 1)


class CityscapesEvaluator(SemSegEvaluator):
    """What `SemSegEvaluator` scores, and the four numbers of Cityscapes' benchmark, under detectron2's names.

    IoU        mean over the classes (the same as mIoU)
    iIoU       mean over the classes with instances; a pixel of an instance weighs the average size of its class's
               instances over its own instance's size, so that small ones count as much as large ones
    IoU_sup    mean over the categories (flat, construction, ...): a class taken for another of its category is right
    iIoU_sup   the same over instances, of the categories human and vehicle

    and each by class or category, IoU-NAME, iIoU-NAME, IoU_sup-NAME, iIoU_sup-NAME. All agree with cityscapesScripts'
    evalPixelLevelSemanticLabeling, which is not needed. As there, and other than with `SemSegEvaluator`, a class or
    category that the truth never holds has an IoU of 0 if it was predicted on a pixel that is evaluated. (The 500
    validation images hold all of them.)

    The instances are those of *_gtFine_instanceIds.png beside the label maps; where these files are missing altogether,
    iIoU and iIoU_sup are left out, and the log says so.
    """

    def __init__(self, dataset_name: str, **options):
        """options: those of `SemSegEvaluator`. Raises ValueError where the dataset has not Cityscapes' 19 classes,
        FileNotFoundError where some label maps lack the file of their instances."""
        super().__init__(dataset_name, **options)
        names = [label.name for label in CLASSES]
        if self.class_names != names:
            raise ValueError(
                f"{dataset_name} has the classes {', '.join(self.class_names)}; to be scored as Cityscapes "
                f"(evaluator_type cityscapes_sem_seg) it must have {', '.join(names)}"
            )
        self._instance_files = {
            image: truth.removesuffix(LABEL_ENDING) + INSTANCE_ENDING
            for image, truth in self._truth_files.items()
            if truth is not None
        }
        missing = [file for file in self._instance_files.values() if not os.path.isfile(file)]
        if missing and len(missing) < len(self._instance_files):
            raise FileNotFoundError(
                f"{dataset_name}: {len(missing)} of {len(self._instance_files)} label maps have no file of instances, "
                f"the first {missing[0]}; unpack gtFine again"
            )
        self._scores_instances = bool(self._instance_files) and not missing
        if missing:
            logger.warning("%s: no *%s, so iIoU is not computed", dataset_name, INSTANCE_ENDING)

    def reset(self) -> None:
        super().reset()
        self._instance_sums = torch.zeros(len(CLASSES), 3, dtype=torch.float64)

    def _count(self, file_name: str, truth: Tensor, prediction: Tensor) -> None:
        super()._count(file_name, truth, prediction)
        if self._scores_instances:
            instances = torch.from_numpy(self._instances(file_name, tuple(truth.shape)).astype(np.int32))
            self._instance_sums += count_instances(instances.to(prediction.device), prediction)

    def _instances(self, file_name: str, size: tuple[int, int]) -> np.ndarray:
        path = self._instance_files[file_name]
        instances = read_label(path)
        check_label_size(path, instances.shape, file_name, size)
        if instances.max(initial=0) >= NUM_IDS * PER_LABEL:
            raise BadFile(
                f"{path}: holds the number {instances.max()}; expected a label id of 0..{NUM_IDS - 1}, or of an "
                f"instance, id * {PER_LABEL} + 0..{PER_LABEL - 1}"
            )
        return instances

    def _tally(self) -> dict[str, np.ndarray | int]:
        return super()._tally() | {"instances": self._instance_sums.numpy()}

    def _scores(self, tally: Mapping) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        scores, columns = super()._scores(tally)
        confusion = tally["pixels"][:-1, :-1].astype(np.float64)  # the last label stands for "not evaluated"
        overlap = Overlap.of(tally["pixels"])
        columns["IoU"] = 100 * _iou(overlap.both, overlap.truth - overlap.both, overlap.prediction - overlap.both)
        scores["mIoU"] = scores["IoU"] = mean_of_numbers(columns["IoU"])
        scores |= {f"IoU-{name}": float(value) for name, value in zip(self.class_names, columns["IoU"], strict=True)}

        # Categories: the classes of each as one. (categories, classes)
        members = (CATEGORY_OF.numpy() == np.arange(len(CATEGORIES))[:, None]).astype(np.float64)
        merged = members @ confusion @ members.T
        both = merged.diagonal()
        wrong = merged.sum(0) - both
        by_category = {"IoU_sup": 100 * _iou(both, merged.sum(1) - both, wrong)}

        if self._scores_instances:
            average = np.array([AVERAGE_INSTANCE.get(name, 0.0) for name in self.class_names])
            number, found, found_category = tally["instances"].T * average
            iou = 100 * _iou(found, number - found, overlap.prediction - overlap.both)
            columns["iIoU"] = np.where([label.instances for label in CLASSES], iou, np.nan)
            found, number = members @ found_category, members @ number
            iou = 100 * _iou(found, number - found, wrong)
            by_category["iIoU_sup"] = np.where(np.isin(CATEGORIES, INSTANCE_CATEGORIES), iou, np.nan)
            scores["iIoU"] = mean_of_numbers(columns["iIoU"])
            scores |= {f"iIoU-{CLASSES[i].name}": float(columns["iIoU"][i]) for i in INSTANCE_CLASSES}
        for metric, values in by_category.items():
            scores[metric] = mean_of_numbers(values)
            for category, value in zip(CATEGORIES, values, strict=True):
                if metric == "IoU_sup" or category in INSTANCE_CATEGORIES:
                    scores[f"{metric}-{category}"] = float(value)
        return scores, columns

    def _log(self, scores: Mapping[str, float], columns: Mapping[str, np.ndarray], tally: Mapping) -> None:
        super()._log(scores, columns, tally)
        metrics = [metric for metric in ("IoU_sup", "iIoU_sup") if metric in scores]
        rows = [[name, *(scores.get(f"{metric}-{name}") for metric in metrics)] for name in CATEGORIES]
        rows.append(["mean", *(scores[metric] for metric in metrics)])
        table = tabulate(rows, headers=["category", *metrics], floatfmt=".2f", tablefmt="pipe", missingval="")
        logger.info(f"{self.dataset_name}:\n{table}")


def _iou(found: np.ndarray, missed: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Intersection over union from true positives, false negatives and false positives; NaN where all are 0."""
    union = found + missed + wrong
    return np.divide(found, union, out=np.full(union.shape, np.nan), where=union > 0)
