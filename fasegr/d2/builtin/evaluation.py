"""Running a model over a dataset and handing what it says to evaluators."""

import datetime
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from . import comm

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 5


class DatasetEvaluator:
    """Takes in batch after batch and sums up at the end."""

    def reset(self) -> None:
        """Forget everything; called before a round."""

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take in a batch: the samples and the model's result for each."""

    def evaluate(self) -> dict | None:
        """The metrics as ``{task: {metric: value}}``; None is allowed in ranks other than the main one."""


class DatasetEvaluators(DatasetEvaluator):
    """Several evaluators as one; their tasks must have different names."""

    def __init__(self, evaluators: Sequence[DatasetEvaluator]):
        self._evaluators = evaluators

    def reset(self) -> None:
        for evaluator in self._evaluators:
            evaluator.reset()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for evaluator in self._evaluators:
            evaluator.process(inputs, outputs)

    def evaluate(self) -> dict:
        results: dict = {}
        for evaluator in self._evaluators:
            result = evaluator.evaluate() or {}
            if not comm.is_main_process():
                continue
            if twice := results.keys() & result.keys():
                raise AssertionError(
                    f"several evaluators give results named {', '.join(sorted(twice))}; name them apart"
                )
            results.update(result)
        return results


def inference_on_dataset(
    model: Callable[[Any], Any],
    data_loader: Iterable,
    evaluator: DatasetEvaluator | list[DatasetEvaluator] | None,
) -> dict:
    """Evaluate `model`, in evaluation mode and without gradients, on all batches of `data_loader`, which has a length.

    Returns what `evaluator` makes of it, {} in ranks where that is None. The model's mode is restored.
    """
    if not isinstance(evaluator, DatasetEvaluator):
        evaluator = DatasetEvaluators(evaluator or [])
    evaluator.reset()
    total = len(data_loader)
    logger.info("Evaluation of %d batches in each of %d processes begins", total, comm.get_world_size())
    begin = said = time.perf_counter()
    with _evaluation_mode(model), torch.no_grad():
        for done, inputs in enumerate(data_loader, start=1):
            evaluator.process(inputs, model(inputs))
            now = time.perf_counter()
            if now - said > SECONDS_BETWEEN_LINES:
                said = now
                pace = (now - begin) / done
                left = datetime.timedelta(seconds=int(pace * (total - done)))
                logger.info("Evaluated %d of %d batches, %.3f s each, %s left", done, total, pace, left)
    logger.info("Evaluated %d batches in %.1f s", total, time.perf_counter() - begin)
    return evaluator.evaluate() or {}


@contextmanager
def _evaluation_mode(model: Callable) -> Iterator[None]:
    if not isinstance(model, nn.Module):
        yield
        return
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
