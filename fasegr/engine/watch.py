"""A line between the processes of a run: each learns at once that another one has ended, or was told to stop.

gloo notices a process that is gone when its connections break; NCCL does not, and waits for its timeout. A signal to
one process in the middle of an evaluation stops that one alone. So every process has a connection to the first one,
which passes on what it hears. A process that ends breaks it, however it ends; so does a machine that is gone, within a
minute. A process that is frozen does not: its system still answers.
"""

import logging
import os
import secrets
import selectors
import signal
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from fasegr.checkpoint.checkpointer import SAVING
from fasegr.d2 import comm
from fasegr.engine.interruption import Interrupted

__all__ = ["lost_process", "tell", "watching"]

logger = logging.getLogger(__name__)

GRACE = 30.0  # seconds in which a process whose fellow has ended may save and end by itself
CONNECT = 10.0  # seconds to find the first process
MESSAGE = struct.Struct("!Bi")  # one of the next three, and a number
STOP, LOST, BYE = range(3)  # the signal; the rank

_current: "_Line | None" = None


@contextmanager
def watching(host: str) -> Iterator[None]:
    """A block in which this process and the others, which call this too, hear of one another.

    host: the machine of the first process; 127.0.0.1 if all are on it. If another process ends without leaving the
    block, this one has GRACE seconds to end, in which a collective with it fails or hangs; then it is ended with exit
    code 2, but not while it saves a checkpoint. Leaving by `Interrupted`, or without an error, is no such end.
    """
    global _current
    if comm.get_world_size() == 1:
        yield
        return
    line = _current = _connect(host)
    try:
        yield
    except BaseException as error:
        _current = None
        cause = error.__context__ if isinstance(error, SystemExit) else error
        line.close(bye=isinstance(cause, Interrupted))
        raise
    _current = None
    line.close(bye=True)


def tell(signum: int) -> None:
    """Pass a signal on to the other processes, which get it as if it had been sent to them. May be called in a handler
    of signals. Does nothing outside of `watching`, and with a signal after the first."""
    if _current is not None:
        _current.tell(signum)


def lost_process(seconds: float = 0.0) -> int | None:
    """The rank of a process that has ended before its time, waiting for the news at most so long."""
    if _current is None:
        return None
    _current.news.wait(seconds)
    return _current.lost


class _Line:
    """What both ends share: what was heard, and what follows from it."""

    def __init__(self):
        self.lost: int | None = None
        self.signum: int | None = None
        self.news = threading.Event()
        self._closing = False
        self._end = threading.Timer(GRACE, self._end_process)
        self._end.daemon = True
        self._thread = threading.Thread(target=self._listen, name="watch", daemon=True)

    def _hear_signal(self, signum: int) -> None:
        if self.signum is None:
            self.signum = signum
            # to the main thread, so that it leaves what it waits for
            signal.pthread_kill(threading.main_thread().ident, signum)

    def _hear_end(self, rank: int) -> None:
        if self.lost is None and not self._closing:
            self.lost = rank
            self.news.set()
            self._end.start()

    def _end_process(self) -> None:
        with suppress(OSError):
            print(
                f"{os.path.basename(sys.argv[0])}: error in process {comm.get_rank()}: process {self.lost} has ended; "
                f"this one still waits for it after {GRACE:.0f} seconds, and ends now",
                file=sys.stderr,
                flush=True,
            )
        with SAVING:
            os._exit(2 if self.signum is None else 128 + self.signum)

    def close(self, bye: bool) -> None:
        self._closing = True
        self._end.cancel()
        self._leave(bye)
        if self._thread.ident is not None:
            self._thread.join(5)
        self.forget()


class _First(_Line):
    """The end of the first process, with which all others are connected."""

    def __init__(self, everywhere: bool):
        super().__init__()
        if everywhere and socket.has_dualstack_ipv6():
            self._listener = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        else:
            self._listener = socket.create_server(("" if everywhere else "127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.secret = secrets.token_bytes(16)
        self._others: dict[socket.socket, int] = {}
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        for sock in (self._listener, self._woken):
            self._selector.register(sock, selectors.EVENT_READ)
        self._thread.start()

    def _listen(self) -> None:
        while not self._closing:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj in self._others:
                    self._read(key.fileobj)

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        sock.settimeout(CONNECT)  # whoever else connects says nothing
        greeting = _receive(sock, len(self.secret) + 4)
        if greeting is None or not secrets.compare_digest(greeting[:-4], self.secret):
            sock.close()
            return
        _keep_alive(sock)
        missed = [(LOST, self.lost), (STOP, self.signum)]  # by one that connects late
        with suppress(OSError):
            sock.sendall(self.secret + b"".join(MESSAGE.pack(*news) for news in missed if news[1] is not None))
        self._others[sock] = int.from_bytes(greeting[-4:], "big")
        self._selector.register(sock, selectors.EVENT_READ)

    def _read(self, sock: socket.socket) -> None:
        received = _receive(sock, MESSAGE.size)
        what, number = MESSAGE.unpack(received) if received else (LOST, self._others[sock])
        if what == STOP:
            self._send(STOP, number, but=sock)
            self._hear_signal(number)
            return
        self._selector.unregister(sock)
        del self._others[sock]
        sock.close()
        if what == LOST:
            self._send(LOST, number)
            self._hear_end(number)

    def _send(self, what: int, number: int, but: socket.socket | None = None) -> None:
        for sock in list(self._others):
            if sock is not but:
                with suppress(OSError):
                    sock.sendall(MESSAGE.pack(what, number))

    def tell(self, signum: int) -> None:
        if self.signum is None:
            self.signum = signum
            self._send(STOP, signum)

    def _leave(self, bye: bool) -> None:
        if bye:
            self._send(BYE, 0)
        self._wake.send(b"x")

    def forget(self) -> None:
        for sock in (*self._others, self._listener, self._wake, self._woken):
            sock.close()
        self._selector.close()


class _Other(_Line):
    """The end of another process."""

    def __init__(self, addresses: list[str], port: int, secret: bytes):
        super().__init__()
        self._sock = self._find(addresses, port, secret)
        if self._sock is None:
            logger.warning(
                "Process %d cannot connect with the first one at %s, port %d: it will notice late that another one has "
                "ended",
                *(comm.get_rank(), " or ".join(addresses), port),
            )
        else:
            self._thread.start()

    @staticmethod
    def _find(addresses: list[str], port: int, secret: bytes) -> socket.socket | None:
        for address in addresses:
            with suppress(OSError):
                sock = socket.create_connection((address, port), CONNECT)
                with suppress(OSError):
                    sock.sendall(secret + comm.get_rank().to_bytes(4, "big"))
                    if _receive(sock, len(secret)) == secret:
                        sock.settimeout(None)
                        _keep_alive(sock)
                        return sock
                sock.close()
        return None

    def _listen(self) -> None:
        while received := _receive(self._sock, MESSAGE.size):
            what, number = MESSAGE.unpack(received)
            if what == BYE:
                return
            if what == STOP:
                self._hear_signal(number)
            else:
                self._hear_end(number)
        self._hear_end(0)

    def tell(self, signum: int) -> None:
        if self.signum is None:
            self.signum = signum
            if self._sock is not None:
                with suppress(OSError):
                    self._sock.sendall(MESSAGE.pack(STOP, signum))

    def _leave(self, bye: bool) -> None:
        if self._sock is not None:
            with suppress(OSError):
                if bye:
                    self._sock.sendall(MESSAGE.pack(BYE, 0))
                self._sock.shutdown(socket.SHUT_RDWR)

    def forget(self) -> None:
        if self._sock is not None:
            self._sock.close()


def _connect(host: str) -> _Line:
    if comm.is_main_process():
        line = _First(everywhere=host != "127.0.0.1")
        comm.all_gather((_own_addresses(host), line.port, line.secret))
        return line
    return _Other(*comm.all_gather(None)[0])


def _own_addresses(host: str) -> list[str]:
    """Names by which the others may find this machine. Where a job's meeting point is on another one, `host` is not."""
    if host == "127.0.0.1":
        return [host]
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # sends nothing
        return [host, socket.gethostname(), probe.getsockname()[0]]
    return [host, socket.gethostname()]


def _receive(sock: socket.socket, size: int) -> bytes | None:
    """`size` bytes; None if the other end is gone."""
    received = b""
    try:
        while len(received) < size:
            part = sock.recv(size - len(received))
            if not part:
                return None
            received += part
    except OSError:
        return None
    return received


def _keep_alive(sock: socket.socket) -> None:
    """Let the system ask whether the other machine is there: a connection to one that is gone breaks."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, seconds in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), seconds)


def _forget_in_child() -> None:
    """Data workers outlive a process that is killed, and would hold its connection open."""
    global _current
    if _current is not None:
        line, _current = _current, None
        line.forget()


os.register_at_fork(after_in_child=_forget_in_child)
