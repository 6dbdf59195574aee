"""Ctrl-C, SIGTERM and SIGHUP as a request to stop where a training can be resumed."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

__all__ = ["SIGNALS", "Interrupted", "Interruption"]

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
# A terminal and torchrun may both forward one Ctrl-C; only after this many seconds is it a second one.
DEAD_TIME = 2.0


class Interrupted(KeyboardInterrupt):
    """A training was stopped by the signal `signum`; `exit_code` is the one that shells expect (130 after Ctrl-C).

    together: all processes of the training stop after the same step.
    """

    def __init__(self, signum: int, together: bool = False):
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum
        self.exit_code = 128 + signum
        self.together = together


class Interruption:
    """A context in which the first signal is kept in `signum`, for the training loop to check, and ends nothing.

    A second Ctrl-C ends the process. Python handles signals in its main thread only: in another, this does nothing.
    """

    def __init__(self, announcement: str = "", tell: Callable[[int], None] = lambda signum: None):
        """announcement: printed to the terminal when the signal arrives. tell: is called with the signal."""
        self.announcement = announcement
        self.tell = tell
        self.signum: int | None = None
        self._since = 0.0
        self._may_raise = False
        self._waiting = False
        self._lost_worker: RuntimeError | None = None
        self._before = {}  # handlers by signal

    def __enter__(self) -> "Interruption":
        self.signum, self._pid, self._lost_worker = None, os.getpid(), None
        in_main_thread = threading.current_thread() is threading.main_thread()
        self._before = {s: signal.signal(s, self._handle) for s in SIGNALS if not _nohup(s)} if in_main_thread else {}
        return self

    def __exit__(self, *exception) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

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

    def arrives(self, seconds: float) -> bool:
        """Whether there was a signal, or there is one within so long."""
        until = time.monotonic() + seconds
        while self.signum is None and time.monotonic() < until:
            time.sleep(0.02)
        return self.signum is not None

    @contextmanager
    def waiting_for_workers(self) -> Iterator[None]:
        """A context in which the death of a data worker raises RuntimeError.

        torch's handler of SIGCHLD would raise it anywhere, in the middle of an update or of writing a checkpoint too.
        After this was entered once, a death outside waits for the next such context.
        """
        self._waiting = True
        try:
            if self._lost_worker is not None:
                raise self._lost_worker
            yield
        except RuntimeError:
            if self._lost_worker is None:
                raise
            raise self._lost_worker from None  # the loader noticed it too, after its timeout and in other words
        finally:
            self._waiting = False
            self._hold_back_torch()

    def _hold_back_torch(self) -> None:
        handler = signal.getsignal(signal.SIGCHLD)  # torch sets its own when the first loader starts its workers
        if self._before and callable(handler) and handler != self._child_ended:
            self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, self._child_ended)

    def _child_ended(self, signum: int, frame) -> None:
        try:
            self._before[signal.SIGCHLD](signum, frame)
        except RuntimeError as error:
            self._lost_worker = error
            # Python prints what a finalizer raises, and goes on.
            if (self._waiting or self._may_raise) and not _in_finalizer(frame):
                raise

    def _handle(self, signum: int, frame) -> None:
        if os.getpid() != self._pid:  # in a process that was forked with this handler
            if signum == signal.SIGTERM:
                signal.signal(signum, signal.SIG_DFL)
                os.kill(os.getpid(), signum)
            return  # Ctrl-C in the terminal reaches workers too, but the current step still needs their batches
        now = time.monotonic()
        if self.signum is None:
            self.signum, self._since = signum, now
            self.tell(signum)
            if self.announcement:
                with suppress(OSError):  # the terminal is gone, which is what SIGHUP says
                    os.write(2, f"\n{self.announcement}\n".encode())  # print is not safe in a signal handler
            if self._may_raise:
                raise Interrupted(signum)
        elif signum == signal.SIGINT and now - self._since > DEAD_TIME:
            raise KeyboardInterrupt


def _nohup(signum: int) -> bool:
    """Whether the program was started to outlive its terminal."""
    return signal.Signals(signum).name == "SIGHUP" and signal.getsignal(signum) is signal.SIG_IGN


def _in_finalizer(frame: FrameType | None) -> bool:
    """Whether the garbage collector called some part of `frame`'s stack."""
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False
