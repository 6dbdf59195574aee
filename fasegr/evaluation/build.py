"""From a config and the name of a dataset to the evaluator that scores it."""

from __future__ import annotations

import os

from fasegr.d2 import DatasetEvaluator, MetadataCatalog
from fasegr.evaluation.cityscapes import CityscapesEvaluator
from fasegr.evaluation.sem_seg import SemSegEvaluator

__all__ = ["EVALUATORS", "build_evaluator"]

EVALUATORS = {"sem_seg": SemSegEvaluator, "cityscapes_sem_seg": CityscapesEvaluator}


def build_evaluator(cfg, dataset_name: str, output_dir: str | os.PathLike | None = None) -> DatasetEvaluator:
    """The evaluator of the dataset's evaluator_type ("sem_seg" where its metadata name none), as cfg.TEST describes.

    output_dir: where predictions are saved; OUTPUT_DIR/inference by default, and a folder for each dataset below it
    where several are tested. Raises ValueError for a type that there is no evaluator for.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type", "sem_seg")
    if kind not in EVALUATORS:
        raise ValueError(
            f"the metadata of {dataset_name} have the evaluator_type {kind!r}; there are: {', '.join(EVALUATORS)}"
        )
    if output_dir is None:
        output_dir = os.path.join(cfg.OUTPUT_DIR, "inference")
        if len(cfg.DATASETS.TEST) > 1:
            output_dir = os.path.join(output_dir, dataset_name)
    return EVALUATORS[kind](
        dataset_name,
        distributed=True,
        output_dir=output_dir,
        save_labels=cfg.TEST.SAVE_LABELS,
        save_json=cfg.TEST.SAVE_JSON,
        save_submission=cfg.TEST.SAVE_SUBMISSION,
        boundary=cfg.TEST.BOUNDARY_IOU,
    )
