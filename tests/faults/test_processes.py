"""Data workers and ranks that are killed, frozen or compute NaN: one message, a checkpoint, no waiting for ever."""

import itertools
import os
import random
import signal
import time

import pytest

from tests.faults.amount import count, in_full, sample
from tests.faults.runs import Training, children, differences, gone, newest_checkpoint, wait_until

pytestmark = pytest.mark.faults

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TO = ((0,), (1,), (0, 1))  # ranks


def pause_at(tmp_path, iteration: int, rank: int = 0) -> tuple[dict, object, object]:
    marker, release = tmp_path / "marker", tmp_path / "release"
    fault = {"do": "pause", "at": "step", "iteration": iteration, "rank": rank, "seconds": 30}
    return {**fault, "marker": str(marker), "release": str(release)}, marker, release


@pytest.mark.parametrize("i", range(count(20)))
def test_a_data_worker_is_killed(training: Training, expected, tmp_path, i):
    chance = random.Random(f"worker {i}")
    out = tmp_path / "out"
    fault, marker, release = pause_at(tmp_path, chance.randrange(2, 12))
    run = training.start(out, "DATALOADER.NUM_WORKERS", "2", faults=[fault])
    wait_until(marker.exists)
    worker = chance.choice(wait_until(run.children))
    os.kill(worker, chance.choice((signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS)))
    release.touch()
    code = run.wait()
    assert "Traceback" not in run.output
    if code == 0:  # the last batches had been handed over
        assert not differences(out, expected)
        return
    assert code == 2, run.output
    assert "DATALOADER.NUM_WORKERS" in run.output
    assert newest_checkpoint(out) >= fault["iteration"] - 1, "the step before it is not lost"
    training.finish(out)
    assert not differences(out, expected)


@pytest.mark.parametrize(("i", "victim"), sample(itertools.product(range(10), range(2))))
def test_a_rank_is_killed(training: Training, two_expected, tmp_path, i, victim):
    """The other one ends by itself, soon and with a message."""
    chance = random.Random(f"rank {i}")
    out = tmp_path / "out"
    fault, marker, _ = pause_at(tmp_path, chance.randrange(2, 12), rank=victim)
    runs = training.start_two(out, faults=[fault])
    wait_until(marker.exists)
    runs[victim].kill()
    survivor = runs[1 - victim]
    assert survivor.wait(60) == 2, survivor.output
    assert "Traceback" not in survivor.output
    assert f"process {victim} has ended" in survivor.output
    runs[victim].wait()
    finish_two(training, out)
    assert not differences(out, two_expected)


@in_full
def test_a_data_worker_is_frozen(training: Training, expected, tmp_path):
    """The run ends after DATALOADER.TIMEOUT seconds."""
    out = tmp_path / "out"
    fault, marker, release = pause_at(tmp_path, 8)
    run = training.start(out, "DATALOADER.NUM_WORKERS", "2", "DATALOADER.TIMEOUT", "3", faults=[fault])
    wait_until(marker.exists)
    for worker in run.children():
        os.kill(worker, signal.SIGSTOP)
    release.touch()
    assert run.wait(60) == 2, run.output
    assert "Traceback" not in run.output
    assert "DATALOADER.TIMEOUT" in run.output
    wait_until(lambda: gone(run.pid), 30)
    training.finish(out)
    assert not differences(out, expected)


@in_full
@pytest.mark.parametrize("victim", range(2))
def test_a_rank_is_frozen(training: Training, two_expected, tmp_path, victim):
    """The other one waits as long as processes wait for one another, and no longer."""
    out = tmp_path / "out"
    fault, marker, _ = pause_at(tmp_path, 8, rank=victim)
    runs = training.start_two(out, faults=[fault, {"at": "start", "do": "timeout", "seconds": 5}])
    wait_until(marker.exists)
    runs[victim].kill(signal.SIGSTOP)
    survivor = runs[1 - victim]
    assert survivor.wait(60) == 2, survivor.output
    assert "Traceback" not in survivor.output
    runs[victim].kill()
    runs[victim].wait()
    finish_two(training, out)
    assert not differences(out, two_expected)


@in_full
@pytest.mark.parametrize("rank", range(2))
def test_a_rank_computes_nan(training: Training, tmp_path, rank):
    out = tmp_path / "out"
    runs = training.start_two(out, faults=[{"do": "nan", "at": "step", "iteration": 7, "rank": rank}])
    for run in runs:
        assert run.wait() == 2, run.output
        assert "Traceback" not in run.output
        assert "iteration 7: " in run.output
    assert newest_checkpoint(out) == 5
    assert (out / "nan_0000007.pth").exists()


@in_full
def test_nan(training: Training, expected, tmp_path):
    run = training.start(tmp_path, faults=[{"do": "nan", "at": "step", "iteration": 7}])
    assert run.wait() == 2, run.output
    assert "Traceback" not in run.output
    assert "images/train/" in run.output
    training.finish(tmp_path)
    assert not differences(tmp_path, expected)


@pytest.mark.parametrize(("signum", "to", "iteration"), sample(itertools.product(SIGNALS, TO, (7, 8)), 1))
def test_a_signal_to_ranks(training: Training, two_expected, tmp_path, signum, to, iteration):
    """All stop after the same step, be it followed by an evaluation (8) or not. It may be the next one: rank 1 is in
    the step when the signal comes."""
    out = tmp_path / "out"
    fault, marker, release = pause_at(tmp_path, iteration)
    runs = training.start_two(out, faults=[fault])
    wait_until(marker.exists)
    for rank in to:
        runs[rank].kill(signum)
    time.sleep(0.2)
    release.touch()
    for run in runs:
        assert run.wait() in (128 + signum, 128 + signal.SIGTERM), run.output
        assert "Traceback" not in run.output
    assert newest_checkpoint(out) in (iteration, iteration + 1)
    finish_two(training, out)
    assert not differences(out, two_expected)


@pytest.mark.parametrize(("signum", "rank"), sample(itertools.product(SIGNALS, (0, 1)), 1))
def test_a_signal_to_a_rank_in_its_evaluation(training: Training, two_expected, tmp_path, signum, rank):
    """The other one, which is in its own share or waits for this one, stops too, and as the signal says."""
    out, marker, release = (tmp_path / name for name in ("out", "marker", "release"))
    place = {"at": "evaluation", "number": 2, "image": 0, "rank": rank}
    runs = training.start_two(
        out, faults=[{**place, "do": "pause", "marker": str(marker), "release": str(release), "seconds": 30}]
    )
    wait_until(marker.exists)
    time.sleep(0.3)
    runs[rank].kill(signum)
    release.touch()
    for run in runs:
        assert run.wait(60) == 128 + signum, run.output
        assert "Traceback" not in run.output
    assert newest_checkpoint(out) == 5
    finish_two(training, out)
    assert not differences(out, two_expected)


def finish_two(training: Training, out) -> None:
    for run in training.start_two(out, resume=True):
        assert run.wait() == 0, run.output


@pytest.mark.parametrize("i", range(count(10, at_least=0)))
def test_torchrun_starts_again(training: Training, two_expected, tmp_path, i):
    """A rank is killed, twice; torchrun --max-restarts starts both again, and they go on from the last checkpoint."""
    chance = random.Random(f"elastic {i}")
    process = training.torchrun(tmp_path, "--max-restarts", "2")
    for moment in sorted(chance.sample(range(1, 9), 2)):
        wait_until(lambda: newest_checkpoint(tmp_path) >= moment and children(process.pid))  # noqa: B023
        os.kill(chance.choice(children(process.pid)), signal.SIGKILL)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert not differences(tmp_path, two_expected)


@in_full
def test_torchrun_ends_with_a_rank(training: Training, two_expected, tmp_path):
    process = training.torchrun(tmp_path)
    wait_until(lambda: newest_checkpoint(tmp_path) >= 3 and children(process.pid), 120)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    output = process.communicate(timeout=60)[0]
    assert process.returncode, output
    finish_two(training, tmp_path)
    assert not differences(tmp_path, two_expected)
