"""The evaluator of instance segmentation: COCO's average precision of masks."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate
from torch import Tensor

from fasegr.d2 import DatasetCatalog, DatasetEvaluator, MetadataCatalog, comm
from fasegr.evaluation.prediction_files import write_json

__all__ = ["InstanceEvaluator", "mask_run_lengths"]

logger = logging.getLogger(__name__)

MAX_DETECTIONS = 100  # of an image that COCO's AP looks at, the highest scores first
AREAS = ("all", "small", "medium", "large")  # in COCOeval's order


class InstanceEvaluator(DatasetEvaluator):
    """COCO's average precision of masks, as pycocotools' COCOeval finds it, in percent, under detectron2's names.

    AP is the mean over IoU thresholds 0.5, 0.55, ..., 0.95, AP50 and AP75 are those of one threshold, APs, APm and APl
    those of objects below 32^2, below 96^2 and above pixels, AP-NAME that of a class. What the truth does not hold (a
    class, a size) has NaN and is in no mean. A model that finds nothing has an AP of 0; detectron2 gives NaN.

    Masks are kept as run lengths until `evaluate`, which gathers those of all processes in the main one.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        distributed: bool = True,
        output_dir: str | os.PathLike | None = None,
        save_json: bool = False,
    ):
        """dataset_name: in the catalogs; its records have image_id, its metadata thing_classes,
        thing_dataset_id_to_contiguous_id and json_file, the annotations in COCO's format. Without annotations in it, as
        those of test images are, nothing is scored and save_json must be True.
        distributed: gather the predictions of all processes; else each has its own result.
        save_json: write output_dir/coco_instances_results.json, COCO's format of results.
        """
        if save_json and output_dir is None:
            raise ValueError("save_json writes to output_dir, which is None; name a folder")
        self._image_ids = {record["file_name"]: record["image_id"] for record in DatasetCatalog.get(dataset_name)}
        metadata = MetadataCatalog.get(dataset_name)
        json_file = metadata.get("json_file")
        if json_file is None or not os.path.isfile(json_file):
            raise FileNotFoundError(
                f"{dataset_name}: its metadata name {json_file} as the file of annotated instances (json_file), which "
                "is not there; put it there, or set MODEL.MASK_FORMER.TEST.INSTANCE_ON False"
            )
        self.dataset_name = dataset_name
        self.distributed = distributed
        self.output_dir = output_dir
        self.save_json = save_json
        ids = metadata.thing_dataset_id_to_contiguous_id
        self._dataset_ids: dict[int, int] = {contiguous: dataset for dataset, contiguous in sorted(ids.items())}
        self.class_names = _thing_names(metadata.thing_classes, sorted(self._dataset_ids))
        self._truth: COCO | None = None
        if self._is_main:
            self._truth = _read_truth(os.fspath(json_file))
            self._check_truth(os.fspath(json_file))
        self.reset()

    @property
    def _is_main(self) -> bool:
        return not self.distributed or comm.is_main_process()

    def _check_truth(self, json_file: str) -> None:
        if unknown := set(self._image_ids.values()) - set(self._truth.getImgIds()):
            raise ValueError(
                f"{self.dataset_name} has {len(unknown)} images that {json_file} does not list, the first with the id "
                f"{min(unknown)}; images and annotations must be of one dataset"
            )
        if not self._is_scored and not self.save_json:
            raise ValueError(
                f"{json_file} holds no annotations, so nothing can be scored; TEST.SAVE_JSON True writes what is found"
            )

    @property
    def _is_scored(self) -> bool:
        return "annotations" in self._truth.dataset

    def reset(self) -> None:
        self._found: list[dict] = []
        self._seen: set[int] = set()

    def process(self, inputs: Sequence[Mapping], outputs: Sequence[Mapping[str, Any]]) -> None:
        """inputs: records with "file_name"; outputs: {"instances": `Instances`} for each.

        Raises ValueError where an instance has a class that the dataset does not have.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            file_name = sample["file_name"]
            if file_name not in self._image_ids:
                raise KeyError(
                    f"{file_name} is not an image of {self.dataset_name}; evaluate on the dataset that the loader reads"
                )
            found = output["instances"]
            classes = found.pred_classes.tolist()
            if unknown := set(classes) - self.class_names.keys():
                raise ValueError(
                    f"{file_name}: the model finds an instance of class {max(unknown)}, but {self.dataset_name} has "
                    f"objects of {len(self.class_names)} classes ({min(self.class_names)}..{max(self.class_names)}); "
                    "set MODEL.SEM_SEG_HEAD.NUM_CLASSES to what the dataset has"
                )
            image_id = self._image_ids[file_name]
            self._seen.add(image_id)
            self._found += [
                {"image_id": image_id, "category_id": self._dataset_ids[label], "segmentation": code, "score": score}
                for label, code, score in zip(
                    classes, mask_run_lengths(found.pred_masks), found.scores.tolist(), strict=True
                )
            ]

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """{"segm": {name: percent}}, or {} where there are no annotations; with several processes, None in all but the
        main one.

        Logs a table of the classes. Raises ValueError where no image was seen by any process.
        """
        parts = comm.gather((self._found, self._seen)) if self.distributed else [(self._found, self._seen)]
        if not self._is_main:
            return None
        found = list(chain.from_iterable(part for part, _ in parts))
        seen = set().union(*(part for _, part in parts))
        if not seen:
            raise ValueError(
                f"no image of {self.dataset_name} was evaluated; is the dataset empty, or process() not called?"
            )
        if self.save_json:
            write_json(found, os.path.join(self.output_dir, "coco_instances_results.json"))
        if not self._is_scored:
            logger.warning(
                "%s has no annotations to score; what was found is in %s", self.dataset_name, self.output_dir
            )
            return OrderedDict()
        if unseen := len(self._truth.getImgIds()) - len(seen):
            logger.warning("%s: %d images were not looked at, and count as empty", self.dataset_name, unseen)
        scores = self._scores(found)
        self._log(scores, len(seen))
        return OrderedDict(segm=scores)

    def _scores(self, found: list[dict]) -> dict[str, float]:
        with contextlib.redirect_stdout(io.StringIO()):  # COCO's code prints as it goes
            evaluation = COCOeval(self._truth, _results(self._truth, found), "segm")
            evaluation.params.catIds = [self._dataset_ids[c] for c in self.class_names]
            evaluation.params.maxDets = [MAX_DETECTIONS]
            evaluation.evaluate()
            evaluation.accumulate()
        precision = evaluation.eval["precision"][..., 0]  # (thresholds, recalls, classes, areas); -1: no truth
        thresholds = evaluation.params.iouThrs
        scores = {"AP": _mean(precision[..., 0])}
        for percent in (50, 75):
            scores[f"AP{percent}"] = _mean(precision[np.isclose(thresholds, percent / 100), ..., 0])
        scores |= {f"AP{area[0]}": _mean(precision[..., i]) for i, area in enumerate(AREAS) if area != "all"}
        return scores | {f"AP-{name}": _mean(precision[:, :, i, 0]) for i, name in enumerate(self.class_names.values())}

    def _log(self, scores: Mapping[str, float], images: int) -> None:
        rows = [[name, scores[f"AP-{name}"]] for name in self.class_names.values()]
        table = tabulate([*rows, ["mean", scores["AP"]]], headers=["class", "AP"], floatfmt=".2f", tablefmt="pipe")
        total = "  ".join(f"{name} {value:.2f}" for name, value in scores.items() if "-" not in name)
        logger.info(f"{self.dataset_name}, {images} images:\n{table}\nmasks: {total}")


def mask_run_lengths(masks: Tensor) -> list[dict]:
    """COCO's compressed run-length codes of masks (N, H, W) bool: N of {"size": [H, W], "counts": str}."""
    # COCO runs down the columns, and wants the masks one after the other: a C array of (N, W, H), seen from behind.
    planes = masks.transpose(1, 2).contiguous().cpu().numpy().view(np.uint8).T
    return [code | {"counts": code["counts"].decode("ascii")} for code in coco_mask.encode(planes)]


def _thing_names(names: Sequence[str], things: Sequence[int]) -> dict[int, str]:
    """Names by class. names: of the things alone, in their order, or of all classes, as detectron2's panoptic datasets
    have them."""
    return dict(zip(things, names if len(names) == len(things) else (names[c] for c in things), strict=True))


def _read_truth(json_file: str) -> COCO:
    """The annotations, with what COCOeval reads and a file of one's own may leave out."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(json_file)
    for annotation in truth.dataset.get("annotations", ()):
        annotation.setdefault("iscrowd", 0)
        if "area" not in annotation:
            annotation["area"] = float(coco_mask.area(truth.annToRLE(annotation)))
    return truth


def _results(truth: COCO, found: list[dict]) -> COCO:
    if found:
        return truth.loadRes([dict(instance) for instance in found])  # it adds to the dicts
    nothing = COCO()
    nothing.dataset = {"images": truth.dataset["images"], "categories": truth.dataset["categories"], "annotations": []}
    nothing.createIndex()
    return nothing


def _mean(precision: np.ndarray) -> float:
    """Percent; NaN where there is no truth."""
    valid = precision[precision > -1]
    return 100 * float(valid.mean()) if valid.size else float("nan")
