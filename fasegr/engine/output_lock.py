"""One training at a time in an OUTPUT_DIR."""

import errno
import fcntl
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from fasegr.d2 import comm

__all__ = ["locked"]

logger = logging.getLogger(__name__)

_held: dict[str, int] = {}  # by this process: name of the locked file -> its descriptor


def _let_go() -> None:
    """In a data worker that was forked: outliving a killed training, it must not keep that from being resumed."""
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def locked(output_dir: str) -> Iterator[None]:
    """A block in which no other training, on any machine that shares the disk, can enter one for `output_dir`.

    All processes of a run call this; the main one holds the lock, which ends with that process however it ends. Blocks
    may be nested. If another training has it, the main process raises OSError saying who, and the others exit with 2.
    """
    path, descriptor, error = os.path.join(os.path.realpath(output_dir), ".lock"), None, None
    if comm.is_main_process() and path not in _held:
        try:
            descriptor = _lock(path, output_dir)
        except OSError as caught:
            error = caught
    if any(comm.all_gather(error is not None)):
        if error is None:
            sys.exit(2)  # one message is enough
        raise error
    if descriptor is None:
        yield
        return
    _held[path] = descriptor
    try:
        yield
    finally:
        if _held.pop(path, None) is not None:  # None in a forked process
            with suppress(FileNotFoundError):
                os.remove(path)
            os.close(descriptor)


def _lock(path: str, output_dir: str) -> int | None:
    """The descriptor of `path`, locked; None where the file system has no locks. Raises OSError if it is taken."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_file(path, descriptor):
                break
            os.close(descriptor)  # the training before ended and removed it just now
        except OSError as error:
            holder = os.read(descriptor, 200).decode(errors="replace")
            os.close(descriptor)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                logger.warning("%s cannot be locked (%s): take care that no other training uses it", output_dir, error)
                return None
            raise OSError(
                f"OUTPUT_DIR {output_dir} is in use by another training ({holder}); two would overwrite each other's "
                "files. Wait for it, stop it, or set another OUTPUT_DIR"
            ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}, since {time.asctime()}".encode())
    return descriptor


def _is_file(path: str, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
