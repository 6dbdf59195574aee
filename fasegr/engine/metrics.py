"""What a run writes down: metrics.json, TensorBoard, and lines in the log."""

import json
import logging
import math
import os
from collections.abc import Mapping

__all__ = ["MetricsFile", "set_aside"]

logger = logging.getLogger(__name__)


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

    A resumed run drops the lines that it is about to write again, so an iteration is there once however often a run was
    killed. Numbers that are not finite (a class without pixels has no IoU) are left out: JSON has no name for them.
    """

    def __init__(self, output_dir: str, start_iter: int):
        """start_iter: first iteration of this run; lines from it on are dropped."""
        from torch.utils.tensorboard import SummaryWriter  # takes seconds to import, and only training wants it

        self.path = os.path.join(output_dir, "metrics.json")
        os.makedirs(output_dir, exist_ok=True)
        self.lines = [line for line in self._read() if line["iteration"] < start_iter]
        partial = self.path + ".partial"
        with open(partial, "w") as file:
            file.writelines(json.dumps(line) + "\n" for line in self.lines)
        os.replace(partial, self.path)
        self._file = open(self.path, "a")  # noqa: SIM115 (closed by `close`)
        self._board = SummaryWriter(output_dir, purge_step=start_iter)

    def _read(self) -> list[dict]:
        if not os.path.exists(self.path):
            return []
        with open(self.path) as file:
            lines = file.read().splitlines()
        read = []
        for number, line in enumerate(lines, start=1):
            try:
                read.append(json.loads(line))
            except json.JSONDecodeError:
                # The machine went down while the last line was written.
                logger.warning("%s, line %d is cut short; it is dropped", self.path, number)
        return read

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
