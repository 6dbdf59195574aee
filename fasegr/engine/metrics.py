"""What a run writes down: metrics.json and TensorBoard."""

import json
import math
import os
from collections.abc import Mapping

from fasegr.utils.files import replacing
from fasegr.utils.metrics_file import read_metrics

__all__ = ["MetricsFile", "set_aside"]


def set_aside(directory: str, names: tuple[str, ...]) -> int | None:
    """Number those of the files `names` that exist: metrics.json becomes metrics.N.json, N the first free for all.

    Returns N, or None if no file exists.
    """

    def numbered(name: str, n: int) -> str:
        stem, extension = os.path.splitext(name)
        return os.path.join(directory, f"{stem}.{n}{extension}")

    found = [name for name in names if os.path.exists(os.path.join(directory, name))]
    if not found:
        return None
    n = 1
    while any(os.path.exists(numbered(name, n)) for name in names):
        n += 1
    for name in found:
        os.rename(os.path.join(directory, name), numbered(name, n))
    return n


class MetricsFile:
    """metrics.json, one JSON object a line, each with its "iteration"; the same numbers go to TensorBoard.

    A resumed run drops the lines that it is about to write again, so each iteration appears once however often a run
    was killed. Numbers that are not finite (a class without pixels has no IoU) are left out: JSON cannot hold them.
    """

    def __init__(self, output_dir: str, start_iter: int):
        """start_iter: first iteration of this run; lines from it on are dropped."""
        from torch.utils.tensorboard import SummaryWriter  # takes seconds to import, and only training needs it

        os.makedirs(output_dir, exist_ok=True)
        path = os.path.join(output_dir, "metrics.json")
        self.lines = [line for line in read_metrics(path) if line["iteration"] < start_iter]
        with replacing(path) as file:
            file.writelines(json.dumps(line) + "\n" for line in self.lines)
        self._file = open(path, "a")  # noqa: SIM115 (closed by `close`)
        self._board = SummaryWriter(output_dir, purge_step=start_iter)

    def write(self, iteration: int, scalars: Mapping[str, float]) -> None:
        finite = {name: value for name, value in scalars.items() if math.isfinite(value)}
        self._file.write(json.dumps({"iteration": iteration, **finite}) + "\n")
        self._file.flush()
        for name, value in finite.items():
            self._board.add_scalar(name, value, iteration)
        self._board.flush()

    def close(self) -> None:
        self._file.close()
        self._board.close()
