"""Ctrl-C and SIGTERM as a request to stop where a training can be resumed."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Interrupted", "Interruption"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A terminal and torchrun may both forward one Ctrl-C; only after this many seconds is it a second one.
DEAD_TIME = 2.0


class Interrupted(KeyboardInterrupt):
    """A training was stopped by the signal `signum`; `exit_code` is the one that shells expect (130 after Ctrl-C)."""

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum
        self.exit_code = 128 + signum


class Interruption:
    """A context in which the first signal is kept in `signum`, for the training loop to check, and ends nothing.

    A second Ctrl-C ends the process. Python handles signals in its main thread only: in another, this does nothing.
    """

    def __init__(self, announcement: str = ""):
        """announcement: printed to the terminal when the signal arrives."""
        self.announcement = announcement
        self.signum: int | None = None
        self._since = 0.0
        self._may_raise = False

    def __enter__(self) -> "Interruption":
        self.signum, self._pid = None, os.getpid()
        in_main_thread = threading.current_thread() is threading.main_thread()
        self._before = {s: signal.signal(s, self._handle) for s in SIGNALS} if in_main_thread else {}
        return self

    def __exit__(self, *exception) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A context in which a signal raises Interrupted immediately: for long work that can be left unfinished."""
        if self.signum is not None:
            raise Interrupted(self.signum)
        self._may_raise = True
        try:
            yield
        finally:
            self._may_raise = False

    def _handle(self, signum: int, frame) -> None:
        if os.getpid() != self._pid:  # in a data worker, which was forked with this handler
            if signum == signal.SIGTERM:
                signal.signal(signum, signal.SIG_DFL)
                os.kill(os.getpid(), signum)
            return  # Ctrl-C in the terminal reaches workers too, but the current step still needs their batches
        now = time.monotonic()
        if self.signum is None:
            self.signum, self._since = signum, now
            if self.announcement:
                os.write(2, f"\n{self.announcement}\n".encode())  # print is not safe in a signal handler
            if self._may_raise:
                raise Interrupted(signum)
        elif signum == signal.SIGINT and now - self._since > DEAD_TIME:
            raise KeyboardInterrupt
