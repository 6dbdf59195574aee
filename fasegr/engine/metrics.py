"""What a run writes down: metrics.json and TensorBoard."""

import contextlib
import itertools
import json
import logging
import math
import os
import shutil
import socket
import time
from collections.abc import Iterable, Mapping

from fasegr.utils.files import replacing
from fasegr.utils.metrics_file import split_lines

__all__ = ["MetricsFile", "set_aside"]


logger = logging.getLogger(__name__)


def set_aside(directory: str, names: Iterable[str], *, copy: bool = False) -> int | None:
    """Number those of the files `names` that exist: metrics.json becomes metrics.N.json, N the first free for all.

    copy: leave the files as they are, too. Returns N, or None if no file exists.
    """

    def numbered(name: str, n: int) -> str:
        stem, extension = os.path.splitext(name)
        return os.path.join(directory, f"{stem}.{n}{extension}")

    found = [name for name in names if os.path.exists(os.path.join(directory, name))]
    if not found:
        return None
    n = 1
    while any(os.path.exists(numbered(name, n)) for name in found):
        n += 1
    for name in found:
        (shutil.copyfile if copy else os.rename)(os.path.join(directory, name), numbered(name, n))
    return n


class MetricsFile:
    """metrics.json, one JSON object a line, each with its "iteration"; the same numbers go to TensorBoard.

    A resumed run drops the lines that it is about to write again, so each iteration appears once however often a run
    was killed. Numbers that are not finite (a class without pixels has no IoU) are left out: JSON cannot hold them.
    A line is on disk when `write` returns, so a checkpoint that is saved later never knows more than this file.
    """

    def __init__(self, output_dir: str, start_iter: int):
        """start_iter: first iteration of this run; lines from it on are dropped."""
        os.makedirs(output_dir, exist_ok=True)
        path = os.path.join(output_dir, "metrics.json")
        lines, strange = split_lines(path)
        if strange:
            logger.warning(
                "%s: %d lines, the first of them line %d, are not metrics and are left out; metrics.%d.json has them",
                *(path, len(strange), strange[0], set_aside(output_dir, ["metrics.json"], copy=True)),
            )
        lines = [line for line in lines if line["iteration"] < start_iter]
        with replacing(path, durable=True) as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        self.last = {name for line in lines if line["iteration"] == start_iter - 1 for name in line}
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (closed by `close`)
        self._board = TensorBoardFile(output_dir, start_iter)

    def write(self, iteration: int, scalars: Mapping[str, float]) -> dict[str, float]:
        """Returns what was written: the scalars that are finite."""
        finite = {name: value for name, value in scalars.items() if math.isfinite(value)}
        line = (json.dumps({"iteration": iteration, **finite}) + "\n").encode()
        try:
            while line:  # a disk that becomes full takes a part
                line = line[self._file.write(line) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            error.filename = self._file.name
            raise
        self._board.write(iteration, finite)
        return finite

    def close(self) -> None:
        self._file.close()
        self._board.close()


class TensorBoardFile:
    """Scalars for TensorBoard, as torch's SummaryWriter writes them, but without its thread.

    The thread prints a traceback where a disk is full, and outlives what closes it. Here the first error of the disk is
    a warning and the last thing that is written: nothing reads this file to go on.
    """

    _numbers = itertools.count()

    def __init__(self, output_dir: str, start_iter: int):
        """start_iter: what earlier files of `output_dir` have from it on is not shown."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # slow, and only training needs them
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{next(self._numbers)}"
        self.path = os.path.join(output_dir, name)
        self._file, start = None, SessionLog(status=SessionLog.START)
        try:
            self._file = open(self.path, "wb")  # noqa: SIM115 (closed by `close`)
            self._records = RecordWriter(self._file)
        except OSError as error:
            self._give_up(error)
        self._add(file_version="brain.Event:2")
        self._add(session_log=start, step=start_iter)

    def write(self, iteration: int, scalars: Mapping[str, float]) -> None:
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._add(summary=self._summary(value=values), step=iteration)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _add(self, **event) -> None:
        if self._file is None:
            return
        try:
            self._records.write(self._event(wall_time=time.time(), **event).SerializeToString())
            self._file.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        logger.warning("%s cannot be written (%s): TensorBoard will not show the rest of this run", self.path, error)
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        self._file = None
