"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

__all__ = ["replacing", "write_json"]


@contextlib.contextmanager
def replacing(
    path: str | os.PathLike, mode: str = "w", check: Callable[[str], None] | None = None, *, durable: bool = False
) -> Iterator[IO[Any]]:
    """A file that takes the name `path` when the block ends without an error, and is deleted otherwise.

    mode: "w" (UTF-8 text) or "wb". check: called with the name of the finished file before it is renamed; an error that
    it raises leaves `path` as it was. durable: wait until the bytes are on disk, so that a power cut leaves the old
    file or the new one; it costs time, so files that can be made again do without.

    Until then the file is called `path` + ".PID.partial": several processes may write the same path.
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
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(partial)


def write_json(content: Any, path: str | os.PathLike, **options: Any) -> None:
    """Write `content` as JSON with `replacing`; the folder is created. options: those of `json.dump`."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        json.dump(content, file, **options)
