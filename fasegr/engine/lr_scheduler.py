"""Learning-rate schedules: a factor on every group's learning rate, as a function of the iteration only."""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

__all__ = ["build_lr_scheduler", "cosine", "multi_step", "poly", "warmup"]

Schedule = Callable[[int], float]


def poly(max_iter: int, power: float = 0.9, constant_ending: float = 0.0) -> Schedule:
    """(1 - i / max_iter) ** power, but never below `constant_ending` (DeepLab's schedule)."""
    return lambda i: max(max(1 - i / max_iter, 0.0) ** power, constant_ending)


def multi_step(steps: Sequence[int], gamma: float = 0.1) -> Schedule:
    """`gamma` to the number of `steps` (iterations, ascending) that have been reached."""
    return lambda i: gamma ** bisect_right(steps, i)


def cosine(max_iter: int, end: float = 0.0) -> Schedule:
    """Half a cosine from 1 to `end`."""
    return lambda i: end + (1 - end) * 0.5 * (1 + math.cos(math.pi * min(i / max_iter, 1.0)))


def warmup(schedule: Schedule, iters: int, factor: float, method: str = "linear") -> Schedule:
    """`schedule`, in its first `iters` iterations times `factor` (constant), or times `factor` rising to 1 (linear)."""
    if method not in ("linear", "constant"):
        raise ValueError(f"method is {method!r}; it must be 'linear' or 'constant'")

    def warmed(i: int) -> float:
        if i >= iters:
            return schedule(i)
        done = i / iters if method == "linear" else 0.0
        return schedule(i) * (factor * (1 - done) + done)

    return warmed


def build_lr_scheduler(cfg, optimizer: Optimizer) -> LRScheduler:
    """The schedule SOLVER.LR_SCHEDULER_NAME. Raises ValueError for a name that is not one."""
    solver = cfg.SOLVER
    schedules = {
        "WarmupPolyLR": lambda: poly(solver.MAX_ITER, solver.POLY_LR_POWER, solver.POLY_LR_CONSTANT_ENDING),
        "WarmupMultiStepLR": lambda: multi_step(sorted(solver.STEPS), solver.GAMMA),
        "WarmupCosineLR": lambda: cosine(solver.MAX_ITER, solver.BASE_LR_END / solver.BASE_LR),
    }
    if solver.LR_SCHEDULER_NAME not in schedules:
        raise ValueError(f"SOLVER.LR_SCHEDULER_NAME is {solver.LR_SCHEDULER_NAME!r}; there are: {', '.join(schedules)}")
    schedule = schedules[solver.LR_SCHEDULER_NAME]()
    return LambdaLR(optimizer, warmup(schedule, solver.WARMUP_ITERS, solver.WARMUP_FACTOR, solver.WARMUP_METHOD))
