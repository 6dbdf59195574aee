"""The processes of a loader: they survive signals that are not for them, and are given up where they hang."""

import os
import signal
import threading
from collections.abc import Callable
from functools import partial

from torch.utils.data import DataLoader

__all__ = ["with_sturdy_workers"]


def with_sturdy_workers(loader: DataLoader, timeout: float) -> DataLoader:
    """`loader`, changed in place.

    Ctrl-C, `timeout`, systemd and SLURM send a signal to all processes, but a training still needs the batches of its
    last step. So workers ignore SIGINT, SIGTERM and SIGHUP, unless it is the main process that sends SIGTERM; when that
    is gone they end. timeout: seconds to wait for a batch before RuntimeError is raised; 0: for ever.
    """
    if loader.num_workers:
        loader.worker_init_fn = partial(_start, loader.worker_init_fn)
        loader.timeout = timeout
    return loader


def _start(then: Callable[[int], None] | None, worker_id: int) -> None:
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # which says who sent it; macOS has none, and any SIGTERM ends a worker there
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    if then is not None:
        then(worker_id)


def _end_with(main_process: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != main_process:
        pass
    os._exit(0)
