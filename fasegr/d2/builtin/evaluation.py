"""Running a model over a dataset and handing its results to evaluators."""

import datetime
import logging
import time
from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.data import DataLoader

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
            if twice := results.keys() & result.keys():
                raise AssertionError(f"several evaluators give results named {', '.join(sorted(twice))}; rename some")
            results.update(result)
        return results


def inference_on_dataset(model: nn.Module, data_loader: DataLoader, evaluator: DatasetEvaluator) -> dict:
    """Evaluate `model`, in evaluation mode and without gradients, on all batches of `data_loader`.

    Returns the results of `evaluator`, {} in ranks where it has none. The model's mode is restored.
    """
    total, training = len(data_loader), model.training
    logger.info("Evaluating %d batches in each of %d processes", total, comm.get_world_size())
    evaluator.reset()
    model.eval()
    begin = logged = time.perf_counter()
    try:
        with torch.no_grad():
            for done, inputs in enumerate(data_loader, start=1):
                evaluator.process(inputs, model(inputs))
                now = time.perf_counter()
                if now - logged > SECONDS_BETWEEN_LINES:
                    logged, pace = now, (now - begin) / done
                    left = datetime.timedelta(seconds=int(pace * (total - done)))
                    logger.info("Evaluated %d of %d batches, %.3f s each, %s left", done, total, pace, left)
    finally:
        model.train(training)
    logger.info("Evaluated %d batches in %.1f s", total, time.perf_counter() - begin)
    return evaluator.evaluate() or {}
