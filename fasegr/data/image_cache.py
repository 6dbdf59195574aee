"""Decoded images and label maps on disk, so that a file is decompressed once and not in every epoch.

A decoded array is memory-mapped: of a large photograph only the part that the crop keeps is read, and processes share
the operating system's copy.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

__all__ = ["DecodedCache"]


class DecodedCache:
    """Arrays by the file that they were decoded from, in a folder that may be deleted at any time.

    An entry holds for the size and modification time that its source had; a source that has changed is decoded again,
    and its old entry removed. Entries appear whole, under their name, so any number of processes may fill one folder.
    An RGB image takes 3 bytes a pixel: 21 GB for ADE20K, 19 GB for Cityscapes; their label maps a third of it.
    The segments of a panoptic PNG take 4 bytes a pixel.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder).expanduser()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"INPUT.CACHE is {str(folder)!r}, and this folder cannot be made: {error}") from error

    def get(self, path: str | os.PathLike, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """The array of the file at `path`, not to be written to; `decode()` makes it where there is no entry yet."""
        entry = self._entry(path)
        if entry is None:
            return decode()  # `decode` has the words for a file that is not there
        try:
            return np.load(entry, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            pass
        except (ValueError, EOFError, OSError):
            entry.unlink(missing_ok=True)  # cut short by a full disk or a crash: it is made anew
        array = decode()
        self._write(entry, array)
        return array

    def _entry(self, path: str | os.PathLike) -> Path | None:
        """FOLDER/ab/PATH-SIZE-TIME.npy, None where the source is not there."""
        try:
            source = os.stat(path)
        except OSError:
            return None
        name = hashlib.sha256(os.path.abspath(path).encode()).hexdigest()[:32]
        return self.folder / name[:2] / f"{name}-{source.st_size}-{source.st_mtime_ns}.npy"

    def _write(self, entry: Path, array: np.ndarray) -> None:
        entry.parent.mkdir(exist_ok=True)
        temporary = entry.with_name(f"{entry.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as file:
                np.save(file, array, allow_pickle=False)
            for old in entry.parent.glob(f"{entry.name.split('-')[0]}-*.npy"):
                old.unlink(missing_ok=True)
            os.replace(temporary, entry)
        except OSError as error:
            raise OSError(
                f"a decoded image cannot be kept in INPUT.CACHE {self.folder}: {error}; give it room, or train without "
                "a cache (INPUT.CACHE '')"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
