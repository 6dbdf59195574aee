"""Two processes end together while others want the processor: none of them is aborted on its way out."""

import subprocess
import sys

import pytest

from tests.faults.amount import count
from tests.faults.runs import Training

pytestmark = pytest.mark.faults


@pytest.fixture
def load():
    """Four processes that compute all the time."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    yield
    for burner in burners:
        burner.kill()
        burner.wait()


@pytest.mark.parametrize("i", range(count(100)))
def test_exit(training: Training, load, tmp_path, i):
    """Every third pair ends by an error."""
    end = "error" if i % 3 == 2 else "done"
    options = ("SOLVER.MAX_ITER", "2", "TEST.EVAL_PERIOD", "0")
    faults = [{"do": "nan", "at": "step", "iteration": 1}] if end == "error" else []
    runs = training.start_two(tmp_path / "out", *options, faults=faults)
    codes = [run.wait() for run in runs]
    assert codes == [2 if end == "error" else 0] * 2, "".join(run.output for run in runs)
