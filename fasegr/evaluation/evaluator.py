"""What all evaluators share: the dataset's records, sums over images and processes, and predictions saved as JSON."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fasegr.d2 import DatasetCatalog, DatasetEvaluator, MetadataCatalog, comm
from fasegr.utils.files import write_json

__all__ = ["Evaluator"]

logger = logging.getLogger(__name__)


class Evaluator(DatasetEvaluator):
    """Scores one kind of result on one dataset. A subclass implements `_process_image` and `_scores`."""

    task: str  # the name of its scores in the results
    json_name: str  # of the file of predictions in output_dir

    def __init__(
        self,
        dataset_name: str,
        *,
        distributed: bool = True,
        output_dir: str | os.PathLike | None = None,
        save_json: bool = False,
        saved_elsewhere: bool = False,
    ):
        """dataset_name: in the catalogs; what its records and metadata must hold, subclasses say.
        distributed: score the images of all processes together, in the main one; otherwise each process scores its own.
        output_dir: folder for predictions. save_json: write them there, in COCO's format of results.
        saved_elsewhere: whether predictions are saved by something else, so that ground truth is not needed.
        """
        self.dataset_name = dataset_name
        self.distributed = distributed
        self.output_dir = output_dir
        self.save_json = save_json
        self.saved_elsewhere = saved_elsewhere
        if self._saves_predictions and output_dir is None:
            raise ValueError("predictions are to be saved, but output_dir is None; name a folder")
        self.metadata = MetadataCatalog.get(dataset_name)
        self._records = {record["file_name"]: record for record in DatasetCatalog.get(dataset_name)}
        self.reset()

    @property
    def _saves_predictions(self) -> bool:
        return self.save_json or self.saved_elsewhere

    @property
    def _is_main(self) -> bool:
        return not self.distributed or comm.is_main_process()

    def _require_ground_truth(self, found: bool, missing: str) -> None:
        """Raises ValueError where there is neither ground truth nor a prediction to save."""
        if not found and not self._saves_predictions:
            raise ValueError(
                f"{self.dataset_name} has no {missing}, so nothing can be scored; to save the predictions, set "
                "TEST.SAVE_JSON True (or TEST.SAVE_LABELS, TEST.SAVE_SUBMISSION or TEST.SAVE_PREDICTIONS)"
            )

    def reset(self) -> None:
        self._num_images = 0
        self._sums: dict[str, Tensor | np.ndarray] = {}
        self._predictions: list[dict] = []  # entries of the JSON

    def _add(self, name: str, value: Tensor | np.ndarray) -> None:
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    def process(self, inputs: Sequence[Mapping], outputs: Sequence[Mapping[str, Any]]) -> None:
        """inputs: samples with "file_name"; outputs: the model's result for each.

        Raises KeyError for an image that is not in the dataset, ValueError where the prediction does not fit the
        dataset's classes, and BadFile where the ground truth cannot be read or does not fit; all name the file.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            file_name = sample["file_name"]
            if file_name not in self._records:
                raise KeyError(
                    f"{file_name} is not an image of {self.dataset_name}; evaluate on the dataset that the loader reads"
                )
            self._process_image(self._records[file_name], output)
            self._num_images += 1

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """{task: {name: percent}}, or {} where predictions are saved and there is no ground truth to score them
        against; with several processes, None in all but the main one.

        Logs a table of the classes. Raises ValueError where no image was evaluated, or nothing can be scored or saved.
        """
        sums = {name: value.cpu().numpy() if isinstance(value, Tensor) else value for name, value in self._sums.items()}
        own = (self._num_images, sums, self._predictions)
        parts = comm.gather(own) if self.distributed else [own]
        if not self._is_main:
            return None
        num_images = sum(number for number, _, _ in parts)
        if num_images == 0:
            raise ValueError(
                f"no image of {self.dataset_name} was evaluated; is the dataset empty, or process() not called?"
            )
        sums = {
            name: sum(part[name] for _, part, _ in parts if name in part)
            for name in dict.fromkeys(chain.from_iterable(part for _, part, _ in parts))
        }
        predictions = list(chain.from_iterable(saved for _, _, saved in parts))
        if self.save_json:
            write_json(self._json(predictions), Path(self.output_dir, self.json_name))
        scores = self._scores(num_images, sums, predictions)
        if scores is not None:
            return OrderedDict({self.task: scores})
        if not self._saves_predictions:
            raise ValueError(
                f"nothing can be scored: the ground truth of the {num_images} images of {self.dataset_name} that were "
                "evaluated is missing, or all of it is ignored"
            )
        logger.warning(
            "%s has no ground truth to score; the predictions for its %d images are in %s",
            *(self.dataset_name, num_images, self.output_dir),
        )
        return OrderedDict()

    def _json(self, predictions: list[dict]) -> Any:
        return predictions

    def _process_image(self, record: Mapping[str, Any], output: Mapping[str, Any]) -> None:
        """Add to the sums and predictions. record: the image's in the dataset; output: the model's result."""
        raise NotImplementedError

    def _scores(self, num_images: int, sums: Mapping[str, np.ndarray], predictions: list[dict]) -> dict | None:
        """The scores by name in percent, logged as a table; None where there is no ground truth."""
        raise NotImplementedError
