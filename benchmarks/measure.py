"""Meters of time, memory and work for the parts of a step; alternating rounds; measurements in fresh processes."""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fasegr.utils.memory import current_memory, peak_memory, reset_peak_memory

ROOT = Path(__file__).resolve().parents[1]
WHOLE = "whole"  # the name of the step itself
REST = "rest"


class Boundary(NamedTuple):
    """A part of a step: the calls of `owner.attribute`, which is a module, a method or a function."""

    part: str
    owner: Any
    attribute: str


class Meter(Protocol):
    """Takes a reading at the beginning and the end of each part. Parts may be nested."""

    def enter(self, part: str) -> None: ...

    def leave(self, called: Any, arguments: Any, result: Any) -> None: ...

    def readings(self) -> dict[str, float]:
        """Totals of each part since the last call, nested parts included; REST is the step without its parts."""


class Clock:
    """Seconds by the host's clock; on a GPU by CUDA events, which are synchronised only in `readings`."""

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._open: list[tuple[str, Any]] = []
        self._closed: list[tuple[str, int, Any, Any]] = []
        self._order: dict[str, None] = {}  # parts in the order of their first call

    def _now(self):
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def enter(self, part: str) -> None:
        self._order.setdefault(part)
        self._open.append((part, self._now()))

    def leave(self, called, arguments, result) -> None:
        part, start = self._open.pop()
        self._closed.append((part, len(self._open), start, self._now()))

    def readings(self) -> dict[str, float]:
        if self._on_gpu:
            torch.cuda.synchronize()
        seconds = dict.fromkeys(self._order, 0.0)
        inside = []
        for part, depth, start, end in self._closed:
            took = start.elapsed_time(end) / 1e3 if self._on_gpu else end - start
            seconds[part] += took
            if depth == 1:
                inside.append(took)
        if inside:
            seconds[REST] = seconds[WHOLE] - sum(inside)
        self._closed.clear()
        self._order.clear()
        return seconds


class PeakMemory:
    """Peak bytes in use during each part, above what was in use when the meter was created.

    On a GPU the memory allocated by torch, on the CPU that of the process (Linux only).
    """

    def __init__(self, device: torch.device):
        self._device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.synchronize()
        self._before = current_memory(device)
        self._peak_since_last()
        self._open: list[tuple[str, int]] = []
        self._peaks: dict[str, int] = defaultdict(int)

    def _peak_since_last(self) -> int:
        """The peak since the last call."""
        peak = peak_memory(self._device)
        if not reset_peak_memory(self._device):
            raise RuntimeError("the peak memory of a part can only be measured on a GPU or on Linux; pass --no-memory")
        return peak

    def _record_peak(self) -> None:
        """At a boundary: the peak since the last one counts for all open parts, or for the rest of the step."""
        peak = self._peak_since_last()
        if len(self._open) == 1:
            self._peaks[REST] = max(self._peaks[REST], peak - self._before)
        self._open = [(part, max(top, peak)) for part, top in self._open]

    def enter(self, part: str) -> None:
        self._record_peak()
        self._open.append((part, 0))

    def leave(self, called, arguments, result) -> None:
        self._record_peak()
        part, peak = self._open.pop()
        self._peaks[part] = max(self._peaks[part], peak - self._before)

    def readings(self) -> dict[str, int]:
        peaks = {part: max(0, peak) for part, peak in self._peaks.items()}
        self._peaks.clear()
        return peaks


class Work:
    """The least work of each part, in three numbers: PART/flops, floating-point operations by the counter `flops`;
    PART/bytes, memory traffic (parameters, inputs and outputs, each once); PART/out, the bytes of the outputs."""

    def __init__(self, flops: Callable[[], int]):
        self._flops = flops
        self._open: list[tuple[str, int]] = []
        self._work: dict[str, int] = defaultdict(int)

    def enter(self, part: str) -> None:
        self._open.append((part, self._flops()))

    def leave(self, called, arguments, result) -> None:
        part, before = self._open.pop()
        flops = self._flops() - before
        self._work[f"{part}/flops"] += flops
        self._work[f"{part}/bytes"] += tensor_bytes(arguments) + tensor_bytes(result) + parameter_bytes(called)
        self._work[f"{part}/out"] += tensor_bytes(result)
        if not self._open:
            self._work[f"{REST}/flops"] += flops
        elif len(self._open) == 1:
            self._work[f"{REST}/flops"] -= flops

    def readings(self) -> dict[str, int]:
        work = dict(self._work)
        self._work.clear()
        return work


def tensor_bytes(tree: Any) -> int:
    """Bytes of the distinct tensors in nested lists, tuples and dicts."""
    tensors = {id(leaf): leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def parameter_bytes(called: Any) -> int:
    return tensor_bytes(list(called.parameters())) if isinstance(called, nn.Module) else 0


class _Metered(nn.Module):
    """Wraps a part: behaves the same, and reports its calls to the meter."""

    def __init__(self, part: Any, name: str, meter: Meter, methods: Sequence[str]):
        super().__init__()
        self.part = part
        self._about = (name, meter, tuple(methods))

    def forward(self, *args, **kwargs):
        return _metered(self.part, self.part, *self._about[:2])(*args, **kwargs)

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            value = getattr(self.part, name)
            part, meter, methods = self._about
            return _metered(value, self.part, part, meter) if name in methods else value


def _metered(function: Callable, called: Any, name: str, meter: Meter) -> Callable:
    def call(*args, **kwargs):
        meter.enter(name)
        result = function(*args, **kwargs)
        meter.leave(called, (args, kwargs), result)
        return result

    return call


@contextmanager
def metered(boundaries: Sequence[Boundary], meter: Meter, methods: Sequence[str] = ()) -> Iterator[None]:
    """Report the calls of all parts inside the block to `meter`. methods: names that count as calls of a part, too."""
    with ExitStack() as undo:
        for part, owner, attribute in boundaries:
            original = getattr(owner, attribute)
            if isinstance(original, (FunctionType, MethodType)):
                replacement = _metered(original, original, part, meter)
            else:
                replacement = _Metered(original, part, meter, methods)
            undo.enter_context(_replaced(owner, attribute, replacement))
        yield


@contextmanager
def _replaced(owner: Any, attribute: str, replacement: Any) -> Iterator[None]:
    """Replace `owner.attribute` inside the block, bypassing nn.Module's checks on the types of attributes."""
    if isinstance(owner, type):
        original = getattr(owner, attribute)
        setattr(owner, attribute, replacement)
        try:
            yield
        finally:
            setattr(owner, attribute, original)
        return
    modules = getattr(owner, "_modules", {})
    table = modules if attribute in modules else vars(owner)
    before = dict(table)
    table[attribute] = replacement
    try:
        yield
    finally:
        if attribute in before:
            table[attribute] = before[attribute]
        else:
            del table[attribute]


Step = Callable[[], Any]


def read(step: Step, boundaries: Sequence[Boundary], meter: Meter, methods: Sequence[str] = ()) -> dict[str, float]:
    """Readings of `meter` for one step and its parts."""
    with metered(boundaries, meter, methods):
        _metered(step, step, WHOLE, meter)()
    return meter.readings()


def without_rest(readings: dict[str, float], name: str) -> dict[str, float]:
    """`readings` with REST renamed to `name`."""
    return {(name + part.removeprefix(REST) if part.split("/")[0] == REST else part): v for part, v in readings.items()}


def take_turns(
    sides: Mapping[str, Callable[[], dict[str, float]]],
    rounds: int,
    warmup: int = 1,
    before: Callable[[], None] = lambda: None,
    after: Callable[[], None] = lambda: None,
) -> dict[str, list[dict[str, float]]]:
    """Readings of `rounds` steps of each side, alternating (A B A B ...), so that disturbances affect both alike.

    before, after: called around each round, the warm-up excepted.
    """
    readings: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(warmup):
        for step in sides.values():
            step()
    for _ in range(rounds):
        before()
        for name, step in sides.items():
            readings[name].append(step())
        after()
    return readings


class Spread(NamedTuple):
    """Median, lower and upper quartile."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    if len(values) < 2:
        return Spread(values[0], values[0], values[0])
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(statistics.median(values), low, high)


def ratio(peer: Sequence[float], ours: Sequence[float]) -> Spread:
    """Ratio of the medians, with the quartiles of the ratios round by round."""
    pairs = spread([p / o for p, o in zip(peer, ours, strict=True)])
    return Spread(statistics.median(peer) / statistics.median(ours), pairs.low, pairs.high)


class Failed(RuntimeError):
    """A measurement did not finish. The message ends with the last output of its process."""


def in_fresh_process(function: str, arguments: dict[str, Any], timeout: float | None = None) -> Any:
    """Call `function`, "module:name", in a new process and return its result.

    Arguments and result must be JSON-serialisable. Raises Failed, with the last lines of the output, if the process
    fails or takes longer than `timeout` seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "result.json")
        request = json.dumps({"function": function, "arguments": arguments, "answer": str(answer)})
        environment = {
            # We use the built-in runtime, so that a peer on detectron2 has detectron2's registries to itself.
            "FASEGR_RUNTIME": "builtin",
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        try:
            output, _ = process.communicate(request, timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise Failed(f"it took longer than {timeout:.0f} s") from None
        except BaseException:
            process.kill()
            raise
        if process.returncode or not answer.exists():
            last = "\n".join(line[:400] for line in output.strip().splitlines()[-12:])
            raise Failed(f"its process exited with {process.returncode}:\n{last}")
        return json.loads(answer.read_text())
