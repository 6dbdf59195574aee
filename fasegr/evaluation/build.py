"""From a config and the name of a dataset to the evaluator that scores it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

from fasegr.d2 import DatasetEvaluator, DatasetEvaluators, MetadataCatalog
from fasegr.evaluation.cityscapes import CityscapesEvaluator
from fasegr.evaluation.instance import InstanceEvaluator
from fasegr.evaluation.panoptic import PanopticEvaluator
from fasegr.evaluation.panoptic_sem_seg import PanopticSemSegEvaluator
from fasegr.evaluation.sem_seg import SemSegEvaluator

__all__ = ["EVALUATORS", "build_evaluator", "main_score"]

logger = logging.getLogger(__name__)

# By the evaluator_type of a dataset: what scores each kind of result of the model. Where a model has several, the first
# of them is what a training is about.
EVALUATORS: dict[str, dict[str, Callable[..., DatasetEvaluator]]] = {
    "sem_seg": {"semantic": SemSegEvaluator},
    "cityscapes_sem_seg": {"semantic": CityscapesEvaluator},
    "coco": {"instance": InstanceEvaluator},
    "coco_panoptic_seg": {
        "panoptic": PanopticEvaluator,
        "instance": InstanceEvaluator,
        "semantic": PanopticSemSegEvaluator,
    },
}
MAIN_SCORES = {"panoptic": "panoptic_seg/PQ", "instance": "segm/AP", "semantic": "sem_seg/mIoU"}


def build_evaluator(cfg, dataset_name: str, output_dir: str | os.PathLike | None = None) -> DatasetEvaluator:
    """What scores the results of cfg's model on a dataset, by its evaluator_type ("sem_seg" where its metadata name
    none), as cfg.TEST describes; several evaluators as one where the model has several kinds of results.
    A panoptic dataset of which no instances are annotated by themselves is not scored by these.
    output_dir: where predictions are saved; OUTPUT_DIR/inference by default, and a folder for each dataset below it
    where several are tested. Raises ValueError for a type that there is no evaluator for, or that scores nothing that
    the model predicts.
    """
    kinds = _evaluators(cfg, dataset_name)
    if output_dir is None:
        output_dir = os.path.join(cfg.OUTPUT_DIR, "inference")
        if len(cfg.DATASETS.TEST) > 1:
            output_dir = os.path.join(output_dir, dataset_name)
    options = {"distributed": True, "output_dir": output_dir, "save_json": cfg.TEST.SAVE_JSON}
    semantic_options = {
        "save_labels": cfg.TEST.SAVE_LABELS,
        "save_submission": cfg.TEST.SAVE_SUBMISSION,
        "boundary": cfg.TEST.BOUNDARY_IOU,
    }
    evaluators = [
        evaluator(dataset_name, **options, **(semantic_options if kind == "semantic" else {}))
        for kind, evaluator in kinds.items()
    ]
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)


def main_score(cfg, dataset_name: str) -> str:
    """The name, in flat results, of the score by which one training is better than another. Raises as
    `build_evaluator` does."""
    return MAIN_SCORES[next(iter(_evaluators(cfg, dataset_name)))]


def _evaluators(cfg, dataset_name: str) -> dict[str, Callable[..., DatasetEvaluator]]:
    """Those of the dataset's type for the results that the model gives, by kind of result."""
    metadata = MetadataCatalog.get(dataset_name)
    type_name = metadata.get("evaluator_type", "sem_seg")
    if type_name not in EVALUATORS:
        raise ValueError(
            f"the metadata of {dataset_name} have the evaluator_type {type_name!r}; there are: {', '.join(EVALUATORS)}"
        )
    test = cfg.MODEL.MASK_FORMER.TEST
    given = {"panoptic": test.PANOPTIC_ON, "instance": test.INSTANCE_ON, "semantic": test.SEMANTIC_ON}
    evaluators = {kind: evaluator for kind, evaluator in EVALUATORS[type_name].items() if given[kind]}
    if not evaluators:
        keys = " or ".join(f"MODEL.MASK_FORMER.TEST.{kind.upper()}_ON" for kind in EVALUATORS[type_name])
        raise ValueError(
            f"{dataset_name} (evaluator_type {type_name}) scores nothing that the model predicts; set {keys} True, "
            "or test on another dataset"
        )
    if len(evaluators) > 1 and "instance" in evaluators and metadata.get("json_file") is None:
        logger.info("%s has no annotated instances (json_file), so AP is not computed", dataset_name)
        del evaluators["instance"]
    return evaluators
