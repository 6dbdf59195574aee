"""Ctrl-C and SIGTERM as a request to stop where a training can be continued."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Interrupted", "Interruption"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A terminal and torchrun may both pass on one Ctrl-C; only a second one after this many seconds is a second one.
DEAD_TIME = 2.0


class Interrupted(KeyboardInterrupt):
    """A training was stopped by the signal `signum`; `exit_code` is what shells expect then (130 after Ctrl-C)."""

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum
        self.exit_code = 128 + signum


class Interruption:
    """While entered, notes the first signal in `signum` instead of ending the process; the loop looks at it.

    A second Ctrl-C ends it at once. Signals reach Python's main thread alone: entered in another, this does nothing.
    """

    def __init__(self, announcement: str = ""):
        """announcement: what the terminal is told when the signal comes."""
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
        """Inside, a signal raises Interrupted right away: for long work that can be left half done."""
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
            return  # a Ctrl-C in the terminal reaches workers too, but the step under way still needs their batches
        now = time.monotonic()
        if self.signum is None:
            self.signum, self._since = signum, now
            if self.announcement:
                os.write(2, f"\n{self.announcement}\n".encode())  # print is not safe in a handler
            if self._may_raise:
                raise Interrupted(signum)
        elif signum == signal.SIGINT and now - self._since > DEAD_TIME:
            raise KeyboardInterrupt
