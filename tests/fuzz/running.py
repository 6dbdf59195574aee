"""Batches of spoilt inputs in processes of their own, so that one that never returns, or brings the process down, is
found: it is ended, counted as a fault, and the batch goes on with the next input."""

import json
import os
import select
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COUNT = int(os.environ.get("FUZZ", "25"))  # inputs of a kind; `make fuzz` reads a thousand
SEED = os.environ.get("FUZZ_SEED", "1")
STARTING, LIMIT = 120, 20  # seconds until the first input, and for each


class Silence(Exception):
    """The batch has said nothing for too long."""


class Batch:
    """`count` inputs of a kind. counts: how many ended how; faults: what should not have happened, and to which."""

    def __init__(self, kind: str, folder: Path, count: int = COUNT, limit: float = LIMIT):
        self.kind, self.folder, self.count, self.limit = kind, folder, count, limit
        self.counts, self.faults = Counter(), []
        self._number = 0  # of the input that is read
        while self._number < count:
            self._read_on()

    def _read_on(self) -> None:
        """From this input until all are read, or to the one after a fault that ended the process."""
        first, last = str(self._number), str(self.count)
        command = [sys.executable, "-m", "tests.fuzz.batch", self.kind, SEED, first, last, str(self.folder)]
        with open(self.folder / "errors.txt", "wb") as errors:
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors)
        self._wait = STARTING
        try:
            for line in self._lines(process.stdout.fileno()):
                self._count(json.loads(line))
            if self._number < self.count:
                said = (self.folder / "errors.txt").read_text(errors="replace")[-2000:]
                self._fault("crash", f"the process ended with {process.wait()}: {said}")
        except Silence:
            self._fault("no end", f"no end within {self._wait} s")
        finally:
            process.kill()
            process.wait()
            process.stdout.close()

    def _count(self, report: int | dict) -> None:
        if isinstance(report, int):
            self._number, self._wait = report, self.limit
            return
        self.counts[report["outcome"]] += 1
        if "fault" in report:
            self.faults.append(f"{self.kind} {report['number']} ({report['input']}): {report['fault']}")
        self._number += 1

    def _fault(self, outcome: str, what: str) -> None:
        assert self._wait == self.limit, f"the batch did not start: {what}"
        self.counts[outcome] += 1
        self.faults.append(f"{self.kind} {self._number}: {what}")
        self._number += 1

    def _lines(self, output: int) -> Iterator[bytes]:
        waiting = b""
        while select.select([output], [], [], self._wait)[0]:
            part = os.read(output, 1 << 16)
            if not part:
                return
            *lines, waiting = (waiting + part).split(b"\n")
            yield from lines
        raise Silence
