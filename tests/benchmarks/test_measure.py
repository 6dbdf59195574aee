import mmap
import os
import sys
import time

import pytest
import torch
from torch import nn

from benchmarks.measure import (
    REST,
    WHOLE,
    Boundary,
    Clock,
    Failed,
    PeakMemory,
    Spread,
    Work,
    in_fresh_process,
    metered,
    ratio,
    read,
    spread,
    take_turns,
    tensor_bytes,
    without_rest,
)

CPU = torch.device("cpu")


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 3), nn.Linear(3, 4)

    def forward(self, x):
        return self.second(self.first(x))


class Log:
    """A meter that records its calls."""

    def __init__(self):
        self.seen = []

    def enter(self, part):
        self.seen.append(part)

    def leave(self, called, arguments, result):
        self.seen.append(called)

    def readings(self):
        return {}


@pytest.fixture
def ticks(monkeypatch):
    """A clock that stands still unless `ticks[0]` moves it."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_parts_are_metered_and_put_back():
    network, log = Network(), Log()
    first = network.first
    x = torch.rand(5, 2)
    with metered([Boundary("a", network, "first"), Boundary("b", network, "second")], log):
        inside = network(x)
        assert network.first.in_features == 2  # the wrapper has the attributes of the part
        assert len(list(network.parameters())) == 4
    assert log.seen == ["a", first, "b", network.second]
    assert torch.equal(inside, network(x))
    assert network.first is first
    assert list(network.state_dict()) == ["first.weight", "first.bias", "second.weight", "second.bias"]


def test_methods_functions_and_plain_objects_are_metered():
    class Matcher:
        size = 7

        def __call__(self, x):
            return x + self.size

        def other(self, x):
            return -x

    class Owner(nn.Module):
        def __init__(self):
            super().__init__()
            self.matcher = Matcher()

        def step(self):
            return self.matcher(1), self.matcher.size, self.matcher.other(2)

    owner, log = Owner(), Log()
    matcher = owner.matcher
    boundaries = [Boundary("matching", owner, "matcher"), Boundary("step", owner, "step")]
    with metered([*boundaries, Boundary("backward", torch.Tensor, "backward")], log, methods=("other",)):
        assert owner.step() == (8, 7, -2)
        torch.ones((), requires_grad=True).backward()
    assert [name for name in log.seen if isinstance(name, str)] == ["step", "matching", "matching", "backward"]
    assert owner.matcher is matcher
    assert "step" not in vars(owner)
    assert torch.Tensor.backward.__module__ == "torch._tensor"


def test_parts_are_put_back_after_an_error():
    network = Network()
    first = network.first
    with pytest.raises(RuntimeError), metered([Boundary("a", network, "first")], Log()):
        network(torch.rand(5, 9))
    assert network.first is first


def test_clock_adds_up_calls_and_names_the_rest(ticks):
    class Step:
        def outer(self):
            ticks[0] += 3
            self.inner()

        def inner(self):
            ticks[0] += 1

        def __call__(self):
            ticks[0] += 10
            self.outer()
            self.inner()

    step, clock = Step(), Clock(CPU)
    boundaries = [Boundary("inner", step, "inner"), Boundary("outer", step, "outer")]
    # one of the two calls of inner is within outer: 15 in total, 4 in outer, 1 in inner outside of it
    assert read(step, boundaries, clock) == {WHOLE: 15, "outer": 4, "inner": 2, REST: 10}
    assert list(read(step, boundaries, clock)) == [WHOLE, "outer", "inner", REST]
    assert read(step, [], clock) == {WHOLE: 15}


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory of a process is read from /proc")
def test_peak_memory_belongs_to_the_parts_that_were_open():
    mebibyte = 2**20

    def use(size):
        memory = mmap.mmap(-1, size)  # not a tensor: malloc may reuse freed memory, which still counts
        torch.frombuffer(memory, dtype=torch.uint8).fill_(1)

    class Step:
        def large(self):
            use(64 * mebibyte)

        def small(self):
            use(8 * mebibyte)

        def __call__(self):
            self.large()
            self.small()

    step = Step()
    step()
    peaks = read(step, [Boundary("large", step, "large"), Boundary("small", step, "small")], PeakMemory(CPU))
    assert 60 * mebibyte < peaks["large"] < 100 * mebibyte
    assert peaks["small"] < peaks["large"] - 40 * mebibyte
    assert peaks[WHOLE] >= peaks["large"]
    assert peaks[REST] < peaks["large"] - 40 * mebibyte


def test_work_counts_operations_and_bytes():
    network, counted = Network(), iter([0, 10, 17, 20, 29, 40])
    work = read(
        lambda: network(torch.rand(5, 2)),
        [Boundary("a", network, "first"), Boundary("b", network, "second")],
        Work(lambda: next(counted)),
    )
    assert work["a/flops"] == 7
    assert work["b/flops"] == 9
    assert work["whole/flops"] == 40
    assert work["rest/flops"] == 24
    assert work["a/bytes"] == 4 * (5 * 2 + 5 * 3 + 2 * 3 + 3)
    assert work["b/out"] == work["whole/out"] == 4 * 5 * 4


def test_a_tensor_counts_once():
    x = torch.zeros(3)
    assert tensor_bytes({"a": [x, x], "b": (torch.zeros(2, dtype=torch.uint8), "text")}) == 14


def test_the_rest_gets_its_name():
    assert without_rest({"rest": 1, "rest/flops": 2, "restless": 3}, "other") == {
        "other": 1,
        "other/flops": 2,
        "restless": 3,
    }


def test_sides_take_turns():
    seen = []

    def side(name):
        def step():
            seen.append(name)
            return {WHOLE: len(seen)}

        return step

    readings = take_turns({"a": side("a"), "b": side("b")}, rounds=2, warmup=1)
    assert seen == ["a", "b"] * 3
    assert readings == {"a": [{WHOLE: 3}, {WHOLE: 5}], "b": [{WHOLE: 4}, {WHOLE: 6}]}


def test_spread_and_ratio():
    assert spread([3.0]) == Spread(3, 3, 3)
    assert spread([5.0, 1.0, 3.0, 2.0, 4.0]) == Spread(3, 2, 4)
    # the machine is twice as slow in the last round, which leaves the ratios unchanged
    assert ratio([20.0, 22.0, 40.0], [10.0, 11.0, 20.0]) == Spread(2, 2, 2)


def test_a_fresh_process_returns_or_says_why_not():
    assert in_fresh_process("posixpath:basename", {"p": "/a/b"}) == "b"
    assert in_fresh_process("os:getpid", {}) != os.getpid()
    with pytest.raises(Failed, match=r"exited with 1:\n(.*\n)*.*unexpected keyword argument"):
        in_fresh_process("posixpath:basename", {"q": "/a/b"})
    with pytest.raises(Failed, match="longer than 0 s"):
        in_fresh_process("time:monotonic", {}, timeout=0.001)
