"""Through a stand-in for submitit, of which only the calls made here matter."""

import importlib.machinery
import importlib.util
import pickle
import signal
import sys
import threading
import types
from contextlib import contextmanager
from typing import ClassVar

import pytest

from tests.tools.ablation.study import runs
from tools.ablation.execution import CONSOLE
from tools.ablation.runs import iterations_done, locked, score
from tools.ablation.slurm import SubmittedRun, submit

pytestmark = pytest.mark.slow


class Executor:
    """Runs each job when it is submitted."""

    made: ClassVar[list] = []

    def __init__(self, folder, cluster, **keywords):
        self.folder, self.cluster, self.parameters, self.in_batch = folder, cluster, {}, False
        self.made.append(self)

    def update_parameters(self, **keywords):
        self.parameters |= keywords

    @contextmanager
    def batch(self):
        self.in_batch = True
        yield
        self.in_batch = False

    def submit(self, function):
        assert self.in_batch  # or they would be no array
        pickle.loads(pickle.dumps(function))()
        return types.SimpleNamespace(job_id=f"7_{id(function)}")


@pytest.fixture
def submitit(monkeypatch):
    module = types.ModuleType("submitit")
    module.__spec__ = importlib.machinery.ModuleSpec("submitit", None)
    module.AutoExecutor = Executor
    helpers = types.ModuleType("submitit.helpers")
    helpers.DelayedSubmission = lambda function: ("again", function)
    monkeypatch.setitem(sys.modules, "submitit", module)
    monkeypatch.setitem(sys.modules, "submitit.helpers", helpers)
    monkeypatch.setattr(Executor, "made", [])
    monkeypatch.setenv("PYTHONPATH", "")


def test_an_array_of_runs(tmp_path, fake_trainer, submitit):
    planned = runs(tmp_path)
    jobs = submit(planned, tmp_path / "slurm", gpus=0, cpus=3, minutes=5, partition="gpu", at_once=2, cluster="local")
    assert len(jobs) == 4
    assert all(score(run) is not None for run in planned)
    (executor,) = Executor.made
    assert executor.parameters["slurm_partition"] == "gpu"
    assert executor.parameters["slurm_array_parallelism"] == 2
    assert (executor.parameters["gpus_per_node"], executor.parameters["cpus_per_task"]) == (0, 3)


def test_a_job_whose_time_is_over_stops_its_run_and_is_put_back(tmp_path, fake_trainer, submitit):
    run = runs(tmp_path)[0]
    run.folder.parent.mkdir(parents=True)
    (run.folder.parent / "slow").touch()
    job = SubmittedRun(run, 0, 1)
    put_back = []

    def end():
        while job.process is None or iterations_done(run) < 2:
            threading.Event().wait(0.02)
        job.process.send_signal(signal.SIGUSR2)  # as SLURM does to all processes; it must not end the run
        put_back.append(job.checkpoint())

    thread = threading.Thread(target=end)
    thread.start()
    with pytest.raises(RuntimeError, match="exit code 143"):
        job()
    thread.join()
    (run.folder.parent / "slow").unlink()
    word, again = put_back[0]
    assert word == "again"
    pickle.loads(pickle.dumps(again))()
    assert score(run) == 51
    assert (run.folder / CONSOLE).read_text() == "starting at 0\nstarting at 2\n"


def test_a_run_that_is_under_way_is_not_begun_again(tmp_path, fake_trainer, submitit, capsys):
    run = runs(tmp_path)[0]
    with locked(run):
        SubmittedRun(run, 0, 1)()
    assert "another process is working on this run" in capsys.readouterr().out
    assert not (run.folder / CONSOLE).exists()


def test_a_failure_is_the_jobs(tmp_path, fake_trainer):
    run = runs(tmp_path)[0]
    run.folder.parent.mkdir(parents=True)
    (run.folder.parent / "fail").touch()
    with pytest.raises(RuntimeError, match=r"exit code 1; see .*console\.txt"):
        SubmittedRun(run, 0, 1)()


def test_without_submitit_or_slurm(tmp_path, monkeypatch, submitit):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="has no srun"):
        submit([], tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install submitit"):
        submit([], tmp_path)
