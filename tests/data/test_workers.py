"""Loaders with real worker processes, and signals to these."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from fasegr.data.workers import with_sturdy_workers

pytestmark = pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="only there SIGTERM can be ignored")

# A main process that prints the number of its worker, and is killed.
ORPHANS = """
import multiprocessing, os, signal
from torch.utils.data import DataLoader
from fasegr.data.workers import with_sturdy_workers
loader = iter(with_sturdy_workers(DataLoader(range(10**6), num_workers=1, collate_fn=list), 60))
next(loader)
print(multiprocessing.active_children()[0].pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


class Numbers(Dataset):
    """0 .. 99; `slow` takes three seconds."""

    def __init__(self, slow: int = -1):
        self.slow = slow

    def __len__(self):
        return 100

    def __getitem__(self, i):
        if i == self.slow:
            time.sleep(3)
        return torch.tensor(i)  # whose memory the main process asks the worker for


def start(slow=-1, timeout=60):
    loader = iter(with_sturdy_workers(DataLoader(Numbers(slow), num_workers=1, collate_fn=list), timeout))
    assert next(loader) == [0]
    (worker,) = multiprocessing.active_children()
    return loader, worker


def alive(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("signum", ["INT", "TERM", "HUP"])
def test_signals_of_others_are_ignored(signum):
    loader, worker = start()
    for _ in range(2):
        subprocess.run(["kill", f"-{signum}", str(worker.pid)], check=True)
        time.sleep(0.1)
    assert list(loader) == [[i] for i in range(1, 100)]


def test_the_main_process_ends_its_workers():
    loader, worker = start(slow=1)
    worker.terminate()
    worker.join(2)
    assert worker.exitcode == 0
    loader.close()


@pytest.mark.slow
def test_workers_end_without_a_main_process():
    done = subprocess.run([sys.executable, "-c", ORPHANS], capture_output=True, text=True)
    worker = int(done.stdout)
    until = time.monotonic() + 20
    while alive(worker):
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_worker_that_hangs(stopped):
    """In its work, or altogether, with a batch on the way."""
    loader, worker = start(slow=-1 if stopped else 1, timeout=1)
    if stopped:
        os.kill(worker.pid, signal.SIGSTOP)
    before = signal.getsignal(signal.SIGALRM)
    begin = time.monotonic()
    with pytest.raises(TimeoutError, match="no batch came within 1 seconds"):
        list(loader)
    worker.join(5)
    assert worker.exitcode == 0
    assert time.monotonic() - begin < 8
    assert signal.getsignal(signal.SIGALRM) == before


def test_no_limit():
    loader, _ = start(slow=1, timeout=0)
    assert list(loader) == [[i] for i in range(1, 100)]


def test_loaders_without_workers_are_left_alone():
    assert list(with_sturdy_workers(DataLoader(Numbers(), collate_fn=list), 1)) == [[i] for i in range(100)]


def test_a_worker_that_is_killed_with_a_batch_on_the_way():
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise its own error first
    loader, worker = start()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    time.sleep(0.2)
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=f"DataLoader worker .pid.* {worker.pid}"):
        list(loader)
    signal.signal(signal.SIGCHLD, before)
