"""The evaluator of a dataset, as a config describes it."""

from __future__ import annotations

import logging
import os

from fasegr.d2 import DatasetEvaluator, DatasetEvaluators, MetadataCatalog
from fasegr.evaluation.cityscapes import CityscapesEvaluator
from fasegr.evaluation.evaluator import Evaluator
from fasegr.evaluation.instance import MAX_DETECTIONS, InstanceEvaluator
from fasegr.evaluation.panoptic import PanopticEvaluator
from fasegr.evaluation.sem_seg import SemSegEvaluator

__all__ = ["EVALUATORS", "build_evaluator", "inference_dir", "main_score"]

logger = logging.getLogger(__name__)

# By a dataset's evaluator_type and the kind of result. The first kind that the model predicts gives the main score.
EVALUATORS: dict[str, dict[str, type[Evaluator]]] = {
    "sem_seg": {"semantic": SemSegEvaluator},
    "cityscapes_sem_seg": {"semantic": CityscapesEvaluator},
    "coco": {"instance": InstanceEvaluator},
    "coco_panoptic_seg": {
        "panoptic": PanopticEvaluator,
        "instance": InstanceEvaluator,
        "semantic": SemSegEvaluator,
    },
}
MAIN_SCORES = {"panoptic": "panoptic_seg/PQ", "instance": "segm/AP", "semantic": "sem_seg/mIoU"}


def build_evaluator(cfg, dataset_name: str, output_dir: str | os.PathLike | None = None) -> DatasetEvaluator:
    """The evaluator for a dataset's evaluator_type ("sem_seg" by default), with the options of cfg.TEST; several
    evaluators as one where the model has several kinds of results.

    A panoptic dataset without a file of annotated instances is not scored by AP if other results can be scored.
    output_dir: where predictions are saved; by default OUTPUT_DIR/inference, with a subfolder for each dataset if
    several are tested. Raises ValueError for an unknown type, or if the model predicts nothing that can be scored.
    """
    if output_dir is None:
        output_dir = inference_dir(cfg, dataset_name)
    options = {
        "output_dir": output_dir,
        "save_json": cfg.TEST.SAVE_JSON,
        "saved_elsewhere": bool(cfg.TEST.SAVE_PREDICTIONS),
    }
    semantic_options = {
        "save_labels": cfg.TEST.SAVE_LABELS,
        "save_submission": cfg.TEST.SAVE_SUBMISSION,
        "boundary": cfg.TEST.BOUNDARY_IOU,
        "report": {"weights": cfg.MODEL.WEIGHTS, "output_dir": cfg.OUTPUT_DIR} if cfg.TEST.REPORT else None,
    }
    own_options = {
        "semantic": semantic_options,
        "instance": {"max_detections": max(MAX_DETECTIONS, cfg.TEST.DETECTIONS_PER_IMAGE)},
    }
    evaluators = [
        evaluator(dataset_name, **options, **own_options.get(kind, {}))
        for kind, evaluator in _evaluators(cfg, dataset_name).items()
    ]
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)


def inference_dir(cfg, dataset_name: str, name: str = "inference") -> str:
    """OUTPUT_DIR/name, or a folder in it for each dataset where several are tested."""
    folder = os.path.join(cfg.OUTPUT_DIR, name)
    return os.path.join(folder, dataset_name) if len(cfg.DATASETS.TEST) > 1 else folder


def main_score(cfg, dataset_name: str) -> str:
    """The name, in flat results, of the score by which checkpoints are compared. Raises as `build_evaluator` does."""
    return MAIN_SCORES[next(iter(_evaluators(cfg, dataset_name)))]


def _evaluators(cfg, dataset_name: str) -> dict[str, type[Evaluator]]:
    """The evaluators of the dataset's type for the results that the model has, by kind of result."""
    metadata = MetadataCatalog.get(dataset_name)
    type_name = metadata.get("evaluator_type", "sem_seg")
    if type_name not in EVALUATORS:
        raise ValueError(
            f"the metadata of {dataset_name} have the evaluator_type {type_name!r}; expected one of "
            f"{', '.join(EVALUATORS)}"
        )
    test = cfg.MODEL.MASK_FORMER.TEST
    predicted = {"panoptic": test.PANOPTIC_ON, "instance": test.INSTANCE_ON, "semantic": test.SEMANTIC_ON}
    evaluators = {kind: evaluator for kind, evaluator in EVALUATORS[type_name].items() if predicted[kind]}
    if not evaluators:
        keys = " or ".join(f"MODEL.MASK_FORMER.TEST.{kind.upper()}_ON" for kind in EVALUATORS[type_name])
        raise ValueError(
            f"the model predicts nothing that can be scored on {dataset_name} (evaluator_type {type_name}); set {keys} "
            "True, or test on another dataset"
        )
    if cfg.TEST.REPORT and "semantic" not in evaluators:
        raise ValueError(
            f"TEST.REPORT is True, but on {dataset_name} (evaluator_type {type_name}) there is no class for each pixel "
            "to score, which the report is about; test on a semantic or panoptic dataset, or set TEST.REPORT False: AP "
            "is in the log"
        )
    if len(evaluators) > 1 and "instance" in evaluators and metadata.get("json_file") is None:
        logger.info("%s has no annotated instances (json_file), so AP is not computed", dataset_name)
        del evaluators["instance"]
    return evaluators
