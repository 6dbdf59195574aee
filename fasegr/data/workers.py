"""The processes of a loader: they survive signals that are not for them, and are given up where they hang."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from torch.utils.data import DataLoader

__all__ = ["with_sturdy_workers"]


def with_sturdy_workers(loader: DataLoader, timeout: float) -> "DataLoader | TimedLoader":
    """`loader`, whose workers ignore SIGINT, SIGTERM and SIGHUP, unless it is the main process that sends SIGTERM.

    Ctrl-C, `timeout`, systemd and SLURM send a signal to all processes, but a training still needs the batches of its
    last step. When the main process is gone, workers end. timeout: seconds to wait for a batch; 0: for ever.
    """
    if not loader.num_workers:
        return loader
    loader.worker_init_fn = partial(_start, loader.worker_init_fn)
    return TimedLoader(loader, timeout)


class TimedLoader:
    """`loader`, which raises TimeoutError where a batch does not come within `timeout` seconds.

    DataLoader's own timeout does not cover the time in which it fetches the tensors of a batch from a worker. Python
    can interrupt only its main thread: in another one there is no limit.
    """

    def __init__(self, loader: DataLoader, timeout: float):
        self.loader, self.timeout = loader, timeout

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator:
        batches, end = iter(self.loader), object()
        while True:
            try:
                with _limit(self.timeout):
                    batch = next(batches, end)
            except TimeoutError:
                for worker in getattr(batches, "_workers", ()):  # so that nothing waits for them
                    with suppress(ProcessLookupError):
                        os.kill(worker.pid, signal.SIGTERM)
                        os.kill(worker.pid, signal.SIGCONT)
                raise
            except (ConnectionError, EOFError) as error:  # its batch is there, but the tensors were lost with it
                for worker in getattr(batches, "_workers", ()):
                    worker.join(1)
                    if worker.exitcode:
                        how = f"killed by signal {-worker.exitcode}" if worker.exitcode < 0 else "gone"
                        raise RuntimeError(f"DataLoader worker (pid {worker.pid}) is {how}") from error
                raise
            if batch is end:
                return
            yield batch


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """A block that is left by TimeoutError after `seconds`; 0: never."""

    def stop(signum: int, frame) -> None:
        raise TimeoutError(
            f"no batch came within {seconds} seconds (DATALOADER.TIMEOUT): a process that prepares data hangs, as on a "
            "disk that does not answer. If it is only slow, a larger value, or 0, waits longer"
        )

    if not seconds or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _start(then: Callable[[int], None] | None, worker_id: int) -> None:
    """Called in a worker before its first sample."""
    for signum in (signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # which says who sent it; macOS has none, and any SIGTERM ends a worker there
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    if then is not None:
        then(worker_id)


def _end_with(main_process: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != main_process:
        pass
    os._exit(0)
