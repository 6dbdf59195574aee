"""Training with another batch size than the one a recipe was written for.

SOLVER.REFERENCE_BATCH says for which IMS_PER_BATCH the schedule of a config is meant; 0 leaves everything as it stands.
With s = IMS_PER_BATCH / REFERENCE_BATCH the learning rate is multiplied by s, and all that is counted in iterations is
divided by it, so that every epoch is trained, evaluated and saved as in the recipe. The number of GPUs alone changes
nothing: IMS_PER_BATCH is the batch of all of them together.

The learning rate follows linearly, as in detectron2 (Goyal et al., "Accurate, Large Minibatch SGD", 2017), although
theory would rather have a square root for Adam. With AdamW the linear rule also keeps the weight decay of the whole
training: a step shrinks a weight by rate x decay, and rate x iterations stays what it was.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from fractions import Fraction

from fasegr.d2 import CfgNode
from fasegr.utils.nested import lookup

__all__ = ["scale_to_batch"]

logger = logging.getLogger(__name__)

COUNTED_IN_ITERATIONS = ("SOLVER.MAX_ITER", "SOLVER.WARMUP_ITERS", "SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD")


def scale_to_batch(cfg: CfgNode, stated: Collection[str] = ()) -> None:
    """Rescale the schedule of `cfg`, in place, from SOLVER.REFERENCE_BATCH to SOLVER.IMS_PER_BATCH, and say so.

    stated: keys that were given next to the batch size, on the command line; they are meant as they stand.
    REFERENCE_BATCH becomes IMS_PER_BATCH, so that a config that has been scaled, and its dump, are not scaled again.
    Raises ValueError, and changes nothing, where a number of iterations would not be whole.
    """
    solver = cfg.SOLVER
    batch, reference = solver.IMS_PER_BATCH, solver.REFERENCE_BATCH
    if reference in (0, batch):
        return
    scale = Fraction(batch, reference)
    keys = [*COUNTED_IN_ITERATIONS, *(["SOLVER.STEPS"] if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR" else [])]
    old = {key: lookup(cfg, key) for key in keys if key not in stated}
    new = {key: _divided(value, scale) for key, value in old.items()}
    torn = [f"{key} {old[key]} would be {_text(value)}" for key, value in new.items() if not _whole(value)]
    if torn:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {batch}; the schedule, which is for {reference} (SOLVER.REFERENCE_BATCH), cannot "
            f"be divided into whole iterations: {'; '.join(torn)}. Take another batch size, such as "
            f"{', '.join(map(str, _possible(old.values(), reference)))}, state these keys next to it, "
            "or set SOLVER.REFERENCE_BATCH 0 to leave the schedule as it stands"
        )
    new = {key: [int(v) for v in value] if isinstance(value, list) else int(value) for key, value in new.items()}
    if "SOLVER.BASE_LR" not in stated:
        old["SOLVER.BASE_LR"] = solver.BASE_LR
        new["SOLVER.BASE_LR"] = float(f"{solver.BASE_LR * batch / reference:.12g}")  # 3e-05, not 3.0000000000000004e-05
    cfg.merge_from_list([part for key, value in new.items() for part in (key, value)])
    solver.REFERENCE_BATCH = batch
    changes = ", ".join(f"{key} {old[key]} -> {new[key]}" for key in new if old[key] != new[key])
    logger.warning("The schedule is for a batch of %d and was scaled to %d: %s", reference, batch, changes)


def _divided(value: int | Collection[int], scale: Fraction) -> Fraction | list[Fraction]:
    return value / scale if isinstance(value, int) else [v / scale for v in value]


def _whole(value: Fraction | list[Fraction]) -> bool:
    return all(v.denominator == 1 for v in (value if isinstance(value, list) else [value]))


def _text(value: Fraction | list[Fraction]) -> str:
    return ", ".join(f"{float(v):.2f}" for v in (value if isinstance(value, list) else [value]))


def _possible(values: Collection, reference: int) -> list[int]:
    """Batch sizes up to four times the reference that divide all the values."""
    batches = range(1, 4 * reference + 1)
    return [b for b in batches if all(_whole(_divided(value, Fraction(b, reference))) for value in values)]
