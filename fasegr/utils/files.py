"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

__all__ = ["remove_partial", "replacing", "replacing_name", "write_json"]


@contextlib.contextmanager
def replacing(
    path: str | os.PathLike, mode: str = "w", check: Callable[[str], None] | None = None, *, durable: bool = False
) -> Iterator[IO[Any]]:
    """A file that takes the name `path` when the block ends without an error, and is deleted otherwise.

    mode: "w" (UTF-8 text) or "wb". check: called with the name of the finished file before it is renamed; an error that
    it raises leaves `path` as it was. durable: wait until the bytes and the new name are on disk, so that a power cut
    leaves the old file or the new one, and the new one after the block; files that can be made again do without.

    Until then the file is called `path` + ".PID.partial": several processes may write the same path. Of an OSError, the
    message has the name.
    """
    partial = f"{os.fspath(path)}.{os.getpid()}.partial"
    try:
        with open(partial, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        if check is not None:
            check(partial)
        os.replace(partial, path)
        if durable:
            _flush_folder(os.path.dirname(os.path.abspath(path)))
    except OSError as error:
        error.filename = error.filename or os.fspath(path)  # writing and flushing know only a number
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(partial)


@contextlib.contextmanager
def replacing_name(path: str | os.PathLike) -> Iterator[str]:
    """The name of a file that takes the name `path` when the block ends without an error, and is deleted otherwise: for
    libraries that open files themselves. It has the suffix of `path`, by which they choose the format."""
    stem, suffix = os.path.splitext(os.fspath(path))
    partial = f"{stem}.{os.getpid()}.partial{suffix}"
    try:
        yield partial
        os.replace(partial, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(partial)


def remove_partial(folder: str | os.PathLike) -> None:
    """Delete what processes left in `folder` that were killed inside `replacing`. Nobody may be writing there."""
    for path in Path(folder).glob("*.partial"):
        path.unlink(missing_ok=True)


def _flush_folder(folder: str) -> None:
    """Wait until the names in `folder` are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot do that
            raise
    finally:
        os.close(descriptor)


def write_json(content: Any, path: str | os.PathLike, **options: Any) -> None:
    """Write `content` as JSON with `replacing`; the folder is created. options: those of `json.dump`."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        json.dump(content, file, **options)
