"""The evaluator of panoptic segmentation: panoptic quality (Kirillov et al., CVPR 2019, section 4)."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from fasegr.d2 import DatasetCatalog, DatasetEvaluator, MetadataCatalog, comm
from fasegr.data.image_io import BadFile, check_label_size
from fasegr.data.panoptic_png import read_segment_ids, write_segment_ids
from fasegr.evaluation.prediction_files import label_file_names, write_json
from fasegr.evaluation.sem_seg import mean_of_numbers

__all__ = ["PanopticEvaluator", "match_segments"]

logger = logging.getLogger(__name__)

NUMBERS = ("IoU", "TP", "FP", "FN")  # columns of the tally


class PanopticEvaluator(DatasetEvaluator):
    """Panoptic quality PQ = SQ x RQ, in percent, under detectron2's names.

    Of a class, SQ is the mean IoU of the segments that were found (`match_segments`) and RQ = TP / (TP + FP/2 + FN/2).
    PQ, SQ and RQ are means over the classes that occur in the truth or the predictions; PQ_th, ... those over things,
    PQ_st, ... over stuff, and PQ-NAME is that of a class. panopticapi, which detectron2 needs, is not needed.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        distributed: bool = True,
        output_dir: str | os.PathLike | None = None,
        save_json: bool = False,
    ):
        """dataset_name: in the catalogs; its records have pan_seg_file_name and segments_info (id, contiguous
        category_id, iscrowd), its metadata stuff_classes, the names of all classes, and
        thing_dataset_id_to_contiguous_id. Without pan_seg_file_name nothing is scored, and save_json must be True.
        distributed: add up the counts of all processes; else each has its own result.
        save_json: write COCO's format of results: output_dir/panoptic/*.png and output_dir/predictions.json.
        """
        if save_json and output_dir is None:
            raise ValueError("save_json writes to output_dir, which is None; name a folder")
        metadata = MetadataCatalog.get(dataset_name)
        self.dataset_name = dataset_name
        self.distributed = distributed
        self.output_dir = output_dir
        self.save_json = save_json
        self.class_names: list[str] = list(metadata.stuff_classes)
        things = metadata.thing_dataset_id_to_contiguous_id
        stuff = metadata.get("stuff_dataset_id_to_contiguous_id", {})
        # A thing can be among the stuff as well, whose names then are those of all classes.
        self._dataset_ids = {contiguous: dataset for dataset, contiguous in (stuff | things).items()}
        self._is_thing = np.isin(np.arange(len(self.class_names)), list(things.values()))
        self._records = {record["file_name"]: record for record in DatasetCatalog.get(dataset_name)}
        if not save_json and self._records and not any("pan_seg_file_name" in r for r in self._records.values()):
            raise ValueError(
                f"{dataset_name} has no panoptic truth (pan_seg_file_name), so nothing can be scored; TEST.SAVE_JSON "
                "True writes what is predicted, MODEL.MASK_FORMER.TEST.PANOPTIC_ON False predicts other things alone"
            )
        self._names = label_file_names(self._records) if save_json else {}
        self.reset()

    def reset(self) -> None:
        self._tally = np.zeros((len(self.class_names), len(NUMBERS)))
        self._num_images = 0
        self._saved: list[dict] = []

    def process(self, inputs: Sequence[Mapping], outputs: Sequence[Mapping[str, Any]]) -> None:
        """inputs: records with "file_name"; outputs: {"panoptic_seg": `PanopticSegmentation`} for each.

        Raises BadFile where the truth cannot be read, differs in size or holds a segment that its record does not
        list, ValueError where the prediction has other classes than the dataset; all name the image or its truth.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            file_name = sample["file_name"]
            if file_name not in self._records:
                raise KeyError(
                    f"{file_name} is not an image of {self.dataset_name}; evaluate on the dataset that the loader reads"
                )
            segment_ids, segments = output["panoptic_seg"]
            segment_ids = segment_ids.cpu().numpy()
            if unknown := {s["category_id"] for s in segments} - set(range(len(self.class_names))):
                raise ValueError(
                    f"{file_name}: the model predicts a segment of class {max(unknown)}, but {self.dataset_name} has "
                    f"{len(self.class_names)} classes; set MODEL.SEM_SEG_HEAD.NUM_CLASSES to it"
                )
            self._num_images += 1
            self._score(self._records[file_name], segment_ids, segments)
            if self.save_json:
                self._save(self._records[file_name], segment_ids, segments)

    def _score(self, record: Mapping, segment_ids: np.ndarray, segments: Sequence[Mapping]) -> None:
        path = record.get("pan_seg_file_name")
        if path is None:
            return
        truth = read_segment_ids(path)
        check_label_size(path, truth.shape, record["file_name"], segment_ids.shape)
        sources = (str(path), f"the prediction for {record['file_name']}")
        self._tally += match_segments(
            truth, record["segments_info"], segment_ids, segments, len(self.class_names), sources
        )

    def _save(self, record: Mapping, segment_ids: np.ndarray, segments: Sequence[Mapping]) -> None:
        name = self._names[record["file_name"]]
        path = Path(self.output_dir, "panoptic", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_segment_ids(path, segment_ids)
        listed = [{"id": s["id"], "category_id": self._dataset_ids[s["category_id"]]} for s in segments]
        self._saved.append({"image_id": record["image_id"], "file_name": name, "segments_info": listed})

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """{"panoptic_seg": {name: percent}}, or {} where there is no truth; with several processes, None in all but the
        main one.

        Logs a table of the classes. Raises ValueError where no image was seen by any process.
        """
        own = (self._tally, self._num_images, self._saved)
        parts = comm.gather(own) if self.distributed else [own]
        if self.distributed and not comm.is_main_process():
            return None
        tallies, images, saved = zip(*parts, strict=True)
        tally, images = sum(tallies), sum(images)
        if images == 0:
            raise ValueError(
                f"no image of {self.dataset_name} was evaluated; is the dataset empty, or process() not called?"
            )
        if self.save_json:
            content = {"annotations": list(chain.from_iterable(saved))}
            write_json(content, os.path.join(self.output_dir, "predictions.json"))
        if not any("pan_seg_file_name" in record for record in self._records.values()):
            logger.warning("%s has no panoptic truth; what is predicted is in %s", self.dataset_name, self.output_dir)
            return OrderedDict()
        columns = quality(tally)
        scores = self._scores(columns)
        self._log(scores, columns, tally, images)
        return OrderedDict(panoptic_seg=scores)

    def _scores(self, columns: Mapping[str, np.ndarray]) -> dict[str, float]:
        groups = {"": slice(None), "_th": self._is_thing, "_st": ~self._is_thing}
        scores = {
            f"{metric}{suffix}": mean_of_numbers(values[group])
            for suffix, group in groups.items()
            for metric, values in columns.items()
        }
        return scores | {f"PQ-{name}": float(v) for name, v in zip(self.class_names, columns["PQ"], strict=True)}

    def _log(self, scores: Mapping, columns: Mapping[str, np.ndarray], tally: np.ndarray, images: int) -> None:
        kinds = np.where(self._is_thing, "thing", "stuff")
        counts = tally[:, 1:].astype(int).T
        rows = list(zip(self.class_names, kinds, *columns.values(), *counts, strict=True))
        for title, suffix in (("all", ""), ("things", "_th"), ("stuff", "_st")):
            rows.append([title, None, *(scores[f"{metric}{suffix}"] for metric in columns), None, None, None])
        headers = ["class", "", *columns, *NUMBERS[1:]]
        table = tabulate(rows, headers=headers, floatfmt=".2f", intfmt="d", tablefmt="pipe", missingval="")
        logger.info(f"{self.dataset_name}, {images} images:\n{table}")


def match_segments(
    truth_ids: np.ndarray,
    truth: Sequence[Mapping],
    predicted_ids: np.ndarray,
    predicted: Sequence[Mapping],
    num_classes: int,
    sources: tuple[str, str] = ("the truth", "the prediction"),
) -> np.ndarray:
    """The sum of IoU and the numbers of true positives, false positives and false negatives of one image by class.

    Pixels with id 0 are void. A predicted segment is matched to one of the truth that has its class if their IoU,
    pixels left out that are void in the truth, is above 0.5; there can be one at most. Groups of objects (iscrowd) are
    not to be found: they are matched to nothing and missed by nobody. A prediction that is not matched and has more
    than half of its pixels in void or in groups of its class is no false positive.

    truth_ids, predicted_ids: (H, W) integers. truth, predicted: dicts with the `id` and the contiguous `category_id` of
    each segment, and in the truth `iscrowd`. sources: what errors call the two. Returns (num_classes, 4) float64.
    Raises BadFile where a map holds an id that is not among those of its segments.
    """
    truth_class, predicted_class = (
        np.array([s["category_id"] for s in segments], int) for segments in (truth, predicted)
    )
    crowd = np.array([s.get("iscrowd", 0) for s in truth], bool)
    columns = len(predicted) + 1
    pairs = _places(truth_ids, truth, sources[0]) * columns + _places(predicted_ids, predicted, sources[1])
    pixels = np.bincount(pairs.ravel(), minlength=(len(truth) + 1) * columns).reshape(len(truth) + 1, columns)

    both = pixels[1:, 1:]  # (truth, predicted)
    size, predicted_size, in_void = pixels[1:].sum(1), pixels[:, 1:].sum(0), pixels[0, 1:]
    union = size[:, None] + (predicted_size - in_void) - both
    same_class = truth_class[:, None] == predicted_class
    match = same_class & ~crowd[:, None] & (2 * both > union)
    excused = in_void + (both * (same_class & crowd[:, None])).sum(0)
    wrong = ~match.any(0) & (predicted_size > 0) & (2 * excused <= predicted_size)
    missed = ~match.any(1) & ~crowd

    found, by = np.nonzero(match)

    def total(classes: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(classes, weights, minlength=num_classes)

    iou = total(truth_class[found], both[found, by] / union[found, by])
    return np.stack([iou, total(truth_class[found]), total(predicted_class[wrong]), total(truth_class[missed])], 1)


def _places(ids: np.ndarray, segments: Sequence[Mapping], source: str) -> np.ndarray:
    """(H, W): i + 1 where `ids` has the id of segments[i], 0 where it is 0."""
    listed = np.array([0, *(segment["id"] for segment in segments)])
    order = np.argsort(listed)
    places = order[np.searchsorted(listed, ids, sorter=order).clip(max=len(listed) - 1)]
    strange = listed[places] != ids
    if strange.any():
        raise BadFile(
            f"{source}: holds the segment {ids[strange][0]}, which is not listed; the segments listed are "
            f"{', '.join(map(str, listed[1:]))}, and 0 is for no segment"
        )
    return places


def quality(tally: np.ndarray) -> dict[str, np.ndarray]:
    """PQ, SQ and RQ by class, in percent, (C,) each, of (C, 4) sums of `match_segments`; NaN where nothing occurs."""
    iou, tp, fp, fn = tally.T
    occurring = tp + (fp + fn) / 2
    nothing = np.full(len(tally), np.nan)
    pq, rq = (100 * np.divide(over, occurring, out=nothing.copy(), where=occurring > 0) for over in (iou, tp))
    sq = 100 * np.divide(iou, tp, out=np.where(occurring > 0, 0, nothing), where=tp > 0)
    return {"PQ": pq, "SQ": sq, "RQ": rq}
