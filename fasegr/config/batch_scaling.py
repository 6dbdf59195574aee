"""Training with a batch size other than the one a recipe is written for.

SOLVER.REFERENCE_BATCH is the IMS_PER_BATCH that a config's schedule is for; 0 leaves the schedule as it is. With
s = IMS_PER_BATCH / REFERENCE_BATCH, the learning rate is multiplied by s and everything counted in iterations is
divided by it, so that training, evaluation and checkpoints cover the same epochs as in the recipe. The number of GPUs
alone changes nothing: IMS_PER_BATCH is the total batch size. The decay of an average of the weights becomes decay ** s,
which covers the same epochs (Busbridge et al., "How to scale your EMA", 2023).

The learning rate scales linearly, as in detectron2 (Goyal et al., "Accurate, Large Minibatch SGD", 2017), although
theory suggests a square root for Adam. With AdamW the linear rule also preserves the total weight decay: a step shrinks
a weight by rate x decay, and rate x iterations stays the same.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from typing import Any

from fasegr.d2 import CfgNode
from fasegr.utils.nested import lookup

__all__ = ["scale_to_batch"]

logger = logging.getLogger(__name__)

COUNTED_IN_ITERATIONS = ("SOLVER.MAX_ITER", "SOLVER.WARMUP_ITERS", "SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD")


def scale_to_batch(cfg: CfgNode, explicit: Collection[str] = ()) -> None:
    """Rescale the schedule of `cfg`, in place, from SOLVER.REFERENCE_BATCH to SOLVER.IMS_PER_BATCH, and log it.

    explicit: keys given together with the batch size, on the command line, which are not changed.
    REFERENCE_BATCH becomes IMS_PER_BATCH, so that a scaled config, and its dump, are not scaled again.
    Raises ValueError, and changes nothing, if a number of iterations would not be an integer.
    """
    solver = cfg.SOLVER
    batch, reference = solver.IMS_PER_BATCH, solver.REFERENCE_BATCH
    if reference in (0, batch):
        return
    keys = [*COUNTED_IN_ITERATIONS, *(["SOLVER.STEPS"] if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR" else [])]
    old = {key: lookup(cfg, key) for key in keys if key not in explicit}
    fractional = [key for key in old if not _divisible([old[key]], reference, batch)]
    if fractional:
        changes = [
            f"{key} {old[key]} would be " + ", ".join(f"{v * reference / batch:.2f}" for v in _numbers(old[key]))
            for key in fractional
        ]
        possible = [b for b in range(1, 4 * reference + 1) if _divisible(old.values(), reference, b)]
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {batch}; the schedule, which is for {reference} (SOLVER.REFERENCE_BATCH), cannot "
            f"be divided into whole iterations: {'; '.join(changes)}. Use another batch size, such as "
            f"{', '.join(map(str, possible))}, set these keys as well, or keep the schedule as it is with "
            "SOLVER.REFERENCE_BATCH 0"
        )
    new: dict[str, Any] = {}
    for key, value in old.items():
        scaled = [v * reference // batch for v in _numbers(value)]
        new[key] = scaled[0] if isinstance(value, int) else scaled
    if "SOLVER.BASE_LR" not in explicit:
        old["SOLVER.BASE_LR"] = solver.BASE_LR
        new["SOLVER.BASE_LR"] = float(f"{solver.BASE_LR * batch / reference:.12g}")  # 3e-05, not 3.0000000000000004e-05
    if solver.EMA.ENABLED and "SOLVER.EMA.DECAY" not in explicit:
        old["SOLVER.EMA.DECAY"] = solver.EMA.DECAY
        new["SOLVER.EMA.DECAY"] = float(f"{solver.EMA.DECAY ** (batch / reference):.12g}")
    cfg.merge_from_list([word for pair in new.items() for word in pair])
    solver.REFERENCE_BATCH = batch
    changes = ", ".join(f"{key} {old[key]} -> {new[key]}" for key in new if old[key] != new[key])
    logger.warning("The schedule is for a batch of %d and was scaled to %d: %s", reference, batch, changes)


def _numbers(value: int | Collection[int]) -> Collection[int]:
    return [value] if isinstance(value, int) else value


def _divisible(values: Iterable[int | Collection[int]], reference: int, batch: int) -> bool:
    """Whether all `values`, iterations for the batch `reference`, are integers for `batch` too."""
    return all(v * reference % batch == 0 for value in values for v in _numbers(value))
