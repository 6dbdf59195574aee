"""The end of a training that no longer gets better (SOLVER.PATIENCE)."""

import os
from collections.abc import Sequence

from fasegr.d2 import HookBase, comm
from fasegr.utils.metrics_file import read_metrics

__all__ = ["Patience"]


class Patience(HookBase):
    """Counts the evaluations in a row without a new best score. Place it after the evaluation.

    It counts in metrics.json, so that a resumed run goes on counting where the one before was stopped.
    """

    def __init__(self, limit: int, period: int, scores: Sequence[str], output_dir: str):
        """limit: so many evaluations end the training. period: iterations between them. scores: a new best of any of
        these counts."""
        self.limit = limit
        self.period = period
        self.scores = scores
        self.path = os.path.join(output_dir, "metrics.json")
        self.exhausted = False  # the same in all processes

    def before_train(self) -> None:
        self._count()

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self.period == 0 and self.trainer.iter + 1 < self.trainer.max_iter:
            self._count()

    def _count(self) -> None:
        in_vain = 0
        if comm.is_main_process():
            best = dict.fromkeys(self.scores, -float("inf"))
            tasks = tuple(f"{name.rpartition('/')[0]}/" for name in self.scores)
            for line in read_metrics(self.path):
                if any(name.startswith(tasks) for name in line):
                    better = [name for name in self.scores if line.get(name, -float("inf")) > best[name]]
                    best.update({name: line[name] for name in better})
                    in_vain = 0 if better else in_vain + 1
        self.exhausted = comm.all_gather(in_vain)[0] >= self.limit
