"""What else uses the processor: the busy processes that a benchmark starts beside itself, and what it finds there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import omp_policy
from benchmarks.case import OURS, PEER, Case
from benchmarks.measure import take_turns

THREADS = 2  # of a busy process
DISTURBED = 0.2  # cores that others use, beyond which a time says little
BUSY = """
import os, torch
torch.set_num_threads({threads})
x, parent = torch.randn(512, 512), os.getppid()
x @ x
print("busy", flush=True)
while os.getppid() == parent:
    x @ x
"""


class BusyProcesses:
    """Inside the block, `count` processes multiply matrices, with threads that wait as torch's do by default."""

    def __init__(self, count: int):
        self.count = count
        self._processes: list[subprocess.Popen] = []

    def __enter__(self) -> BusyProcesses:
        environment = {name: value for name, value in os.environ.items() if name not in omp_policy.CHOICES}
        command = [sys.executable, "-c", BUSY.format(threads=THREADS)]
        try:
            for _ in range(self.count):
                self._processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, env=environment))
            for process in self._processes:
                if process.stdout.readline() != b"busy\n":
                    raise RuntimeError("a busy process did not start")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
            process.stdout.close()

    def _send(self, signum: int) -> None:
        for process in self._processes:
            process.send_signal(signum)

    def pause(self) -> None:
        self._send(signal.SIGSTOP)

    @contextmanager
    def running(self) -> Iterator[None]:
        """A block in which they run, after `pause`."""
        self._send(signal.SIGCONT)
        try:
            yield
        finally:
            self.pause()


@contextmanager
def beside(count: int, runs: Mapping[str, Callable[[], Any]]) -> Iterator[dict[str, Callable[[], Any]]]:
    """`runs`, steps by side, next to `count` busy processes.

    With a peer both sides run next to them; a step of ours alone takes turns with itself next to them, as PEER.
    """
    if not count:
        yield dict(runs)
        return
    with BusyProcesses(count) as processes:
        if PEER in runs:
            yield dict(runs)
            return
        processes.pause()

        def step() -> Any:
            with processes.running():
                return runs[OURS]()

        yield {OURS: runs[OURS], PEER: step}


class OtherLoad:
    """Reads how many cores other programs use. Linux only; None elsewhere."""

    def __init__(self):
        self.start()

    def start(self) -> None:
        self._before = self._now()

    def cores(self) -> float | None:
        """The mean since `start`, without this process and those that it has started."""
        if self._before is None:
            return None
        wall, busy, own = (now - before for now, before in zip(self._now(), self._before, strict=True))
        return max(0.0, (busy - own) / wall) if wall > 0 else 0.0

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        try:
            fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
            user, nice, system, _, _, irq, softirq, steal = map(int, fields)
            own = _family_ticks(os.getpid())
        except (OSError, ValueError):
            return None
        tick = os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), (user + nice + system + irq + softirq + steal) / tick, own / tick


def _family_ticks(root: int) -> int:
    """Processor time of a process and of all that descend from it, those that have ended included, in ticks."""
    parents, ticks = {}, {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        parents[int(folder.name)] = int(fields[1])
        ticks[int(folder.name)] = sum(map(int, fields[11:15]))  # its own, and that of children it has waited for
    family, found = {root}, True
    while found:
        found = {pid for pid, parent in parents.items() if parent in family} - family
        family |= found
    return sum(ticks.get(pid, 0) for pid in family)


def warning(cores: float | None, cpus: int) -> str | None:
    """What to say where other programs use `cores` of `cpus`; None where that is little or not known."""
    if cores is None or cores <= DISTURBED:
        return None
    return f"WARNING: other programs use {cores:.1f} of {cpus} cores; times taken now say little"


def timed(case: Case, runs: Mapping[str, Callable[[], dict[str, float]]], names: Mapping[str, str]) -> dict[str, Any]:
    """The result of a case: "seconds" of each side's rounds, "names" of the sides, and "others", the cores that other
    programs used in each round. runs, names: by side."""
    load, others = OtherLoad(), []
    with beside(case.beside, runs) as steps:
        seconds = take_turns(steps, case.rounds, case.warmup, load.start, lambda: others.append(load.cores()))
    added = {PEER: f"beside {case.beside}"} if PEER in steps and PEER not in runs else {}
    return {"seconds": seconds, "names": {**names, **added}, "others": others}
