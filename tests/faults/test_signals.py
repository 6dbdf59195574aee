"""Signals to a run and to its group: it stops where it can go on from, and resumed leaves what it should."""

import itertools
import signal

import pytest

from tests.faults.amount import sample
from tests.faults.runs import Training, differences, gone, newest_checkpoint, wait_until

pytestmark = pytest.mark.faults

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# The place at which a run waits for the signal, and the checkpoint that it must have when it has stopped.
PHASES = {
    "training": ({"at": "step", "iteration": 8}, 8),
    "evaluation": ({"at": "evaluation", "number": 2, "image": 1}, 5),
    "checkpointing": ({"file": "model_0000007", "at": "write", "bytes": 20000}, 7),
}
CASES = itertools.product(SIGNALS, ("process", "group"), (0, 2), PHASES)


@pytest.mark.parametrize(("signum", "to", "workers", "phase"), sample(CASES))
def test_signal(training: Training, expected, tmp_path, signum, to, workers, phase):
    out, marker, release = (tmp_path / name for name in ("out", "marker", "release"))
    place, checkpoint = PHASES[phase]
    pause = {**place, "do": "pause", "marker": str(marker), "release": str(release), "seconds": 30}
    options = ("DATALOADER.NUM_WORKERS", str(workers))
    run = training.start(out, *options, faults=[pause])
    wait_until(marker.exists)
    if to == "group":
        run.kill_group(signum)
    else:
        run.kill(signum)
    release.touch()
    assert run.wait() == 128 + signum, run.output
    assert "Traceback" not in run.output
    assert "run the same command with --resume" in run.output
    assert newest_checkpoint(out) == checkpoint
    assert (out / "last_checkpoint").read_text() == f"model_{checkpoint:07d}.pth"
    wait_until(lambda: gone(run.pid), 30)
    training.finish(out)
    assert not differences(out, expected)
