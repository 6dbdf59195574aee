"""Decoded images and label maps on disk, so that a file is decompressed once and not in every epoch.

A decoded array is memory-mapped: only the part of a large photograph that the crop keeps is read, and processes share
the operating system's copy.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from fasegr.data.image_io import open_image, read_image, read_png
from fasegr.utils.files import replacing

__all__ = ["ImageCache", "load_image", "read_cached"]


class ImageCache:
    """Arrays by the file that they were decoded from, in a folder that may be deleted at any time.

    An entry is valid for the size and modification time that its file had; a file that has changed is decoded again,
    and its old entry removed. Any number of processes may fill one folder, since entries appear complete. An RGB image
    takes 3 bytes a pixel: 21 GB for ADE20K, 19 GB for Cityscapes; their label maps a third of it. The segments of a
    panoptic PNG take 4 bytes a pixel.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder).expanduser()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"INPUT.CACHE is {str(folder)!r}, and this folder cannot be made: {error}") from error

    def get(self, path: str | os.PathLike, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """The read-only array of the file at `path`; `decode()` makes it if there is no entry yet."""
        entry = self._entry(path)
        if entry is None:
            return decode()  # whose error says that the file is missing
        try:
            return np.load(entry, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            pass
        except (ValueError, EOFError, OSError):
            entry.unlink(missing_ok=True)  # cut short by a full disk or a crash
        array = decode()
        self._write(entry, array)
        return array

    def _entry(self, path: str | os.PathLike) -> Path | None:
        """FOLDER/ab/PATH-SIZE-TIME.npy, None if the file is missing."""
        try:
            source = os.stat(path)
        except OSError:
            return None
        name = hashlib.sha256(os.path.abspath(path).encode()).hexdigest()[:32]
        return self.folder / name[:2] / f"{name}-{source.st_size}-{source.st_mtime_ns}.npy"

    def _write(self, entry: Path, array: np.ndarray) -> None:
        entry.parent.mkdir(exist_ok=True)
        try:
            with replacing(entry, "wb") as file:
                np.save(file, array, allow_pickle=False)
        except OSError as error:
            raise OSError(
                f"a decoded image cannot be kept in INPUT.CACHE {self.folder}: {error}; free some space, or train "
                "without a cache (INPUT.CACHE '')"
            ) from error
        for old in entry.parent.glob(f"{entry.name.split('-')[0]}-*.npy"):
            if old != entry:
                old.unlink(missing_ok=True)


def read_cached(
    path: str | os.PathLike, read: Callable[[str | os.PathLike], np.ndarray], cache: ImageCache | None
) -> np.ndarray:
    """`read(path)`, from the cache if there is one."""
    return read(path) if cache is None else cache.get(path, lambda: read(path))


def load_image(path: str | os.PathLike, cache: ImageCache | None = None) -> Image.Image | np.ndarray:
    """An upright RGB image in the form that takes least time, PIL's or uint8 (H, W, 3). Raises as `open_image`."""
    if cache is not None:
        return read_cached(path, read_image, cache)
    pixels = read_png(path)
    return open_image(path) if pixels is None else pixels
