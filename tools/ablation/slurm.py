"""Runs as a SLURM job array, through the optional package submitit."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tools.ablation.execution import ROOT, failure_of, start
from tools.ablation.runs import Run, locked

__all__ = ["SubmittedRun", "submit"]

GRACE = 60  # seconds that a run has for saving a checkpoint; submitit's default leaves 90 until the job is killed


class SubmittedRun:
    """A job of the array: one run, which is requeued when the job's time is up."""

    def __init__(self, run: Run, gpus: int, threads: int):
        self.run, self.gpus, self.threads = run, gpus, threads
        self.process: subprocess.Popen | None = None

    def __call__(self) -> None:
        with locked(self.run) as lock:
            if lock is None:
                print(f"{self.run.folder}: another process is working on this run")
                return
            self.process = start(self.run, lock, self.gpus, threads=self.threads)
            while self.process.poll() is None:  # not wait(), which `checkpoint` would interrupt
                time.sleep(1)
        failure = failure_of(self.run, self.process.returncode)
        if failure is not None:
            raise RuntimeError(f"{self.run.folder}: {failure.reason}; see {failure.log}")

    def checkpoint(self):
        """Called by submitit when the job's time is almost up."""
        from submitit.helpers import DelayedSubmission

        end = time.monotonic() + GRACE
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            while self.process.poll() is None and time.monotonic() < end:
                time.sleep(0.2)
        return DelayedSubmission(SubmittedRun(self.run, self.gpus, self.threads))


def submit(
    runs: Sequence[Run],
    folder: Path,
    *,
    gpus: int = 1,
    cpus: int = 8,
    minutes: int = 1440,
    partition: str | None = None,
    at_once: int | None = None,
    cluster: str = "slurm",
) -> list[str]:
    """Submit `runs` as one job array; returns the ids of the jobs. Their logs are in `folder`.

    gpus, cpus, minutes: of each run. at_once: jobs that may run at the same time. cluster: of submitit, which also has
    "local" and "debug".
    """
    if importlib.util.find_spec("submitit") is None:
        raise ImportError("--slurm needs the package submitit: pip install submitit")
    if cluster == "slurm" and shutil.which("srun") is None:
        raise ValueError("--slurm: this machine has no srun; run it on a login node of the cluster")
    import submitit

    # Jobs inherit the environment, and unpickle objects of this package.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    executor = submitit.AutoExecutor(folder=folder, cluster=cluster, slurm_max_num_timeout=100)
    parameters = {"name": "ablation", "gpus_per_node": gpus, "cpus_per_task": cpus, "timeout_min": minutes}
    parameters |= {"slurm_array_parallelism": at_once or max(1, len(runs))}
    if partition:
        parameters["slurm_partition"] = partition
    executor.update_parameters(**parameters)
    with executor.batch():
        jobs = [executor.submit(SubmittedRun(run, gpus, cpus)) for run in runs]
    return [str(job.job_id) for job in jobs]
