"""Runs as processes: several at once, one on each GPU, monitored until all have ended, stopped together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from fasegr.engine.interruption import Interrupted, Interruption
from tools.ablation.runs import Run, iterations_done, locked, score, write_identity

__all__ = ["CONSOLE", "ROOT", "Failure", "command", "execute", "failure_of", "start"]

ROOT = Path(__file__).parents[2]
TRAINER = ROOT / "train_net.py"
CONSOLE = "console.txt"  # the output of a run; its log.txt starts only after the config has been read


class Failure(NamedTuple):
    """run: one that ended without a score. reason: its exit code, or what is missing. log: its output."""

    run: Run
    reason: str
    log: Path


class _Process(NamedTuple):
    run: Run
    popen: subprocess.Popen
    gpus: str | None
    lock: ExitStack


def command(run: Run, num_gpus: int) -> list[str]:
    """The command line of a run, which resumes from an earlier one if there is one."""
    options = [str(word) for word in (*run.options, "OUTPUT_DIR", run.folder)]
    config = ["--config-file", str(run.config), "--num-gpus", str(num_gpus), "--resume"]
    return [sys.executable, str(TRAINER), *config, *options]


def start(run: Run, lock: int, num_gpus: int, *, gpus: str | None = None, threads: int = 1) -> subprocess.Popen:
    """Start the process of a run, in a session of its own so that Ctrl-C in the terminal does not reach it.

    lock: of `locked`, which the process holds to its end. num_gpus: 0 is the CPU, with `threads` threads. gpus: value
    of CUDA_VISIBLE_DEVICES, None to leave it as it is.
    """
    write_identity(run)
    environment = dict(os.environ)
    if gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpus
    if num_gpus == 0:
        environment["OMP_NUM_THREADS"] = environment["MKL_NUM_THREADS"] = str(threads)
    # SLURM may send SIGUSR2 to all processes of a job before its time is up, which would kill this one
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        with open(run.folder / CONSOLE, "a") as console:
            return subprocess.Popen(
                command(run, num_gpus),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=[lock],
                start_new_session=True,
            )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def failure_of(run: Run, code: int) -> Failure | None:
    """Why a run whose process ended with `code` has failed; None if it has not."""
    if code:
        reason = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    elif score(run) is None:
        reason = f"metrics.json has no {run.score} of iteration {run.max_iter}"
    else:
        return None
    return Failure(run, reason, run.folder / CONSOLE)


def execute(
    runs: Sequence[Run],
    *,
    jobs: int = 1,
    gpus: Sequence[str] = (),
    threads: int = 1,
    bar: tqdm | None = None,
    interval: float = 0.5,
    log: Callable[[str], None] = print,
) -> list[Failure]:
    """Finish all of `runs`, `jobs` at once. Returns those that failed; the others have a score.

    gpus: values of CUDA_VISIBLE_DEVICES, each one GPU or several; a run gets one of them. Without any, runs are on the
    CPU with `threads` threads. bar: counts the iterations of all runs. interval: seconds between two checks.
    A run that another process is working on is waited for. On SIGTERM and Ctrl-C the runs save a checkpoint and stop,
    and Interrupted is raised.
    """
    waiting = [run for run in runs if score(run) is None]
    running: list[_Process] = []
    failures: list[Failure] = []
    free: list[str | None] = list(gpus) if gpus else [None] * jobs
    with Interruption("Stopping: the runs save checkpoints. The same command resumes them.") as interruption:
        while waiting or running:
            if interruption.signum is not None:
                _stop(running)
                raise Interrupted(interruption.signum)
            for run in list(waiting):
                if len(running) == jobs or not free:
                    break
                lock = ExitStack()
                held = lock.enter_context(locked(run))
                if held is None or score(run) is not None:
                    lock.close()
                    if held is not None:  # another process has finished it
                        waiting.remove(run)
                    continue
                waiting.remove(run)
                slot = free.pop(0)
                num_gpus = 0 if slot is None else slot.count(",") + 1
                popen = start(run, held, num_gpus, gpus=slot, threads=threads)
                running.append(_Process(run, popen, slot, lock))
            time.sleep(interval)
            for process in [process for process in running if process.popen.poll() is not None]:
                running.remove(process)
                process.lock.close()
                free.append(process.gpus)
                failure = failure_of(process.run, process.popen.returncode)
                if failure is None:
                    log(f"done: {process.run.folder}: {score(process.run):.2f}; {len(waiting)} runs are waiting")
                elif interruption.signum is None:
                    failures.append(failure)
                    log(f"failed: {failure.run.folder}: {failure.reason}; see {failure.log}")
            if bar is not None and not bar.disable:
                bar.n = sum(map(iterations_done, runs))
                bar.set_postfix_str(f"{len(running)} running, {len(waiting)} waiting, {len(failures)} failed")
    return failures


def _stop(running: Sequence[_Process]) -> None:
    """Ask all to stop, and wait until each has finished its step and saved a checkpoint."""
    for process in running:
        if process.popen.poll() is None:
            process.popen.send_signal(signal.SIGTERM)
    for process in running:
        process.popen.wait()
        process.lock.close()
