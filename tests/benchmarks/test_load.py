import os
import subprocess
import sys
import time

import pytest

from benchmarks import load
from benchmarks.case import OURS, PEER
from benchmarks.load import BusyProcesses, OtherLoad, beside, warning

LINUX = pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="reads /proc")


def _ticks(pid):
    with open(f"/proc/{pid}/stat") as file:
        return sum(map(int, file.read().rpartition(")")[2].split()[11:13]))


@LINUX
def test_busy_processes_compute_only_where_they_should_and_are_gone_afterwards():
    def used(pid, seconds=0.5):
        before = _ticks(pid)
        time.sleep(seconds)
        return _ticks(pid) - before

    with BusyProcesses(1) as processes:
        (pid,) = (process.pid for process in processes._processes)
        assert used(pid) > 0
        processes.pause()
        time.sleep(0.1)
        assert used(pid) == 0
        with processes.running():
            assert used(pid) > 0
        time.sleep(0.1)
        assert used(pid) == 0
    assert not os.path.exists(f"/proc/{pid}")


def test_our_step_takes_turns_with_itself_beside_them(monkeypatch):
    seen = []

    class Processes:
        def __init__(self, count):
            seen.append(count)

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            seen.append("ended")

        def pause(self):
            seen.append("paused")

        def running(self):
            seen.append("running")
            return self

    monkeypatch.setattr(load, "BusyProcesses", Processes)
    with beside(2, {OURS: lambda: seen.append("step")}) as steps:
        steps[OURS]()
        steps[PEER]()
    assert seen == [2, "paused", "step", "running", "step", "ended", "ended"]
    seen.clear()
    with beside(1, {OURS: lambda: "ours", PEER: lambda: "peer"}) as steps:
        assert {name: step() for name, step in steps.items()} == {OURS: "ours", PEER: "peer"}
    assert seen == [1, "ended"], "both sides run beside them all the time"


@LINUX
def test_what_this_process_and_its_children_use_is_not_the_load_of_others(monkeypatch):
    spin = "import time\nwhile time.process_time() < 0.4: pass"
    mine = OtherLoad._now()[2]
    exec(spin.replace("0.4", str(time.process_time() + 0.4)))
    subprocess.run([sys.executable, "-c", spin])
    assert OtherLoad._now()[2] - mine == pytest.approx(0.85, abs=0.2)
    clock = iter([(10.0, 100.0, 50.0), (14.0, 108.0, 52.0)])  # wall, all that is busy, what is ours
    monkeypatch.setattr(OtherLoad, "_now", lambda self: next(clock))
    assert OtherLoad().cores() == 1.5


def test_a_warning_where_others_use_the_processor():
    assert warning(None, 2) is None
    assert warning(0.1, 2) is None
    assert "other programs use 1.3 of 2 cores" in warning(1.3, 2)
