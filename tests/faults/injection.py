"""Faults that a run brings on itself at an exact place: only the forked processes of these tests load this file.

A fault is a dict: where it happens, and what happens there.

    where   "file": start of a file's name, with "at": "open", "write" (after "bytes" of it), "fsync", "replace" or
            "replaced" (before or after the finished file gets its name), and "skip": so many of them are finished
            before; or
            "at": "start" with "do": "timeout" (processes wait "seconds" for one another, not half an hour); or
            "at": "step" (before iteration "iteration") or "evaluation" (before image "image" of evaluation "number")
    do      "kill"; "error" (an OSError of the number "errno"); "pause" (create the file "marker" and wait while the
            file "release" does not exist, at most "seconds"); "nan" (at a step: its losses)
    rank    in this rank only

Each happens once, but an error of a file, which like a full disk stays.
"""

import builtins
import datetime
import errno
import io
import os
import signal
import time
from pathlib import Path

_real_open = builtins.open


def act(fault: dict) -> None:
    if fault.get("done") or str(fault.get("rank", 0)) != os.environ.get("RANK", "0"):
        return
    if fault["do"] == "error":
        raise OSError(fault["errno"], os.strerror(fault["errno"]), fault["file"])
    fault["done"] = True
    if fault["do"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    until = time.monotonic() + fault["seconds"]
    Path(fault["marker"]).touch()
    while time.monotonic() < until and not os.path.exists(fault["release"]):
        time.sleep(0.005)


class FaultyFile(io.FileIO):
    """A file whose fault happens when `bytes` of it are written, in the middle of a call if that is where they end."""

    def __init__(self, path, mode: str, fault: dict):
        super().__init__(path, mode)
        self.fault = fault
        self.written = 0

    def write(self, data) -> int:
        data = memoryview(data).cast("B")
        left = self.fault["bytes"] - self.written
        if left < len(data):
            if left > 0:
                self.written += super().write(data[:left])
            act(self.fault)
            data = data[max(left, 0) :]
            left = max(left, 0)
        else:
            left = 0
        done = super().write(data)
        self.written += done
        return left + done


def install(faults: list[dict]) -> None:
    of_files = [fault for fault in faults if "file" in fault]
    if of_files:
        _install_in_files(of_files)
    for fault in faults:
        if fault["at"] == "step":
            _install_in_steps(fault)
        elif fault["at"] == "start":
            _set_timeout(fault["seconds"])
        elif fault["at"] == "evaluation":
            _install_in_evaluations(fault)


def _install_in_files(faults: list[dict]) -> None:
    def fault_of(path, *places: str) -> dict | None:
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        name = os.path.basename(os.fspath(path))
        return next(
            (f for f in faults if f["at"] in places and name.startswith(f["file"]) and not f.get("skip")),
            None,
        )

    def faulty_open(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
        writes = not isinstance(file, int) and set(mode) & set("wax+")
        fault = fault_of(file, "open", "write") if writes else None
        if fault is None:
            return _real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        if fault["at"] == "open":
            act(fault)
            return _real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = FaultyFile(file, mode.replace("b", "").replace("t", ""), fault)
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffered
        return io.TextIOWrapper(buffered, encoding, errors, newline, line_buffering=buffering == 1)

    builtins.open = io.open = faulty_open

    real_fsync = os.fsync

    def faulty_fsync(fd):
        if fault := fault_of(fd if isinstance(fd, int) else fd.fileno(), "fsync"):
            act(fault)
        real_fsync(fd)

    os.fsync = faulty_fsync

    real_replace = os.replace

    def faulty_replace(source, target):
        if fault := fault_of(target, "replace"):
            act(fault)
        real_replace(source, target)
        if fault := fault_of(target, "replaced"):
            act(fault)
        for fault in faults:
            if fault.get("skip") and os.path.basename(target).startswith(fault["file"]):
                fault["skip"] -= 1

    os.replace = faulty_replace


def _install_in_steps(fault: dict) -> None:
    from fasegr.engine.train_step import TrainStep

    real = TrainStep.run

    def run(self, iteration, *arguments, **options):
        if iteration == fault["iteration"]:
            if fault["do"] == "nan":
                if str(fault.get("rank", 0)) == os.environ.get("RANK", "0"):
                    self.model.register_forward_hook(
                        lambda model, inputs, losses: {name: loss * float("nan") for name, loss in losses.items()}
                    )
            else:
                act(fault)
        return real(self, iteration, *arguments, **options)

    TrainStep.run = run


def _set_timeout(seconds: float) -> None:
    from fasegr.engine import launch

    launch.TIMEOUT = datetime.timedelta(seconds=seconds)


def _install_in_evaluations(fault: dict) -> None:
    from fasegr.engine.trainer import Trainer

    real = Trainer.build_evaluator.__func__
    seen = {"evaluations": 0}

    def build_evaluator(cls, *arguments, **options):
        evaluator = real(cls, *arguments, **options)
        seen["evaluations"] += 1
        if seen["evaluations"] == fault["number"]:
            process, images = evaluator.process, iter(range(10**9))

            def faulty_process(inputs, outputs):
                if next(images) == fault["image"]:
                    act(fault)
                process(inputs, outputs)

            evaluator.process = faulty_process
        return evaluator

    Trainer.build_evaluator = classmethod(build_evaluator)


FULL, READ_ONLY, BROKEN = errno.ENOSPC, errno.EROFS, errno.EIO
