"""A long training and many predictions use as much in the end as in the beginning."""

import json
import time

import pytest

from tests.faults.amount import in_full
from tests.faults.long_run import used
from tests.faults.runs import Training

pytestmark = pytest.mark.faults


def check_flat(trace: list[dict[str, int]]) -> None:
    """The last quarter uses no more than the second one, but 2 % of memory for what malloc leaves between blocks."""
    quarter = len(trace) // 4
    for name, slack in (("memory", 1.02), ("descriptors", 1), ("threads", 1)):
        second, last = (max(use[name] for use in part) for part in (trace[quarter : 2 * quarter], trace[-quarter:]))
        assert last <= second * slack, f"{name}: {second}, then {last}"
    print(f"{len(trace)} measurements: {trace[quarter]}, in the end {trace[-1]}")


@in_full
def test_training(training: Training, tmp_path):
    run = training.start(
        tmp_path,
        *("SOLVER.MAX_ITER", "5000", "SOLVER.CHECKPOINT_PERIOD", "500", "TEST.EVAL_PERIOD", "250"),
        *("DATALOADER.NUM_WORKERS", "2"),
    )
    trace = []
    while use := used(run.pid):
        trace.append(use)
        time.sleep(0.5)
    assert run.wait() == 0, run.output
    check_flat(trace[: -len(trace) // 20])


@in_full
def test_predictions(training: Training, uninterrupted, tmp_path):
    out = tmp_path / "trace.json"
    arguments = [str(training.config), str(uninterrupted / "model_final.pth"), "1000", str(out)]
    run = training.server.start(arguments, target="tests.faults.long_run:predict")
    assert run.wait(1800) == 0, run.output
    check_flat(json.loads(out.read_text()))
