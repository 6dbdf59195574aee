"""Decoded images and label maps on disk, so that a file is decompressed once and not in every epoch.

A decoded array is memory-mapped: only the part of a large photograph that the crop keeps is read, and processes share
the operating system's copy.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tokenize
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch.utils.data
from PIL import Image

from fasegr.data.image_io import Reading, open_image, read_image, reading
from fasegr.utils.files import replacing

__all__ = ["ImageCache", "load_image", "read_cached"]

logger = logging.getLogger(__name__)


class ImageCache:
    """Arrays by the file that they were decoded from, in a folder that may be deleted at any time.

    A cache that cannot be used, or no longer, is one warning, and files are decoded. An entry is valid for the size and
    modification time that its file had; a file that has changed is decoded again, and its old entry removed. Any number
    of processes may fill one folder, since entries appear complete. An RGB image takes 3 bytes a pixel: 21 GB for
    ADE20K, 19 GB for Cityscapes; their label maps a third of it. The segments of a panoptic PNG take 4 bytes a pixel.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder).expanduser()
        self._warned = False

    def make_folder(self) -> None:
        """Raises OSError if there is none and none can be made."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"INPUT.CACHE is {str(self.folder)!r}, and this folder cannot be made: {error}") from error

    def get(self, path: str | os.PathLike, decode: Callable[[], np.ndarray], variant: str = "") -> np.ndarray:
        """The read-only array of the file at `path`; `decode()` makes it if there is no entry yet.

        variant: what else the array depends on.
        """
        entry = self._entry(path, variant)
        if entry is None:
            return decode()  # whose error says that the file is missing
        try:
            return _open_entry(entry)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            self._warn(error)
        except _DAMAGED_ENTRY:
            pass  # by a full disk or a crash; a good one replaces it
        array = decode()
        self._write(entry, array)
        return array

    def _entry(self, path: str | os.PathLike, variant: str) -> Path | None:
        """FOLDER/ab/PATH-SIZE-TIME.npy, None if the file is missing."""
        try:
            source = os.stat(path)
        except OSError:
            return None
        settings = reading()._replace(max_pixels=Reading().max_pixels)  # which changes no pixel
        variant += "" if settings == Reading() else repr(settings[1:])
        name = hashlib.sha256((os.path.abspath(path) + variant).encode()).hexdigest()[:32]
        return self.folder / name[:2] / f"{name}-{source.st_size}-{source.st_mtime_ns}.npy"

    def _write(self, entry: Path, array: np.ndarray) -> None:
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            with replacing(entry, "wb") as file:
                np.save(file, array, allow_pickle=False)
            for old in entry.parent.glob(f"{entry.name.split('-')[0]}-*.npy"):
                if old != entry:
                    old.unlink(missing_ok=True)
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        worker = torch.utils.data.get_worker_info()
        if not self._warned and (worker is None or worker.id == 0):
            logger.warning(
                "INPUT.CACHE %s cannot be used (%s); images that are not in it are decoded, which takes longer",
                *(self.folder, error),
            )
        self._warned = True


_DTYPES = (np.uint8, np.uint16, np.int32)  # of images, label maps and segment ids
_DAMAGED_ENTRY = (ValueError, EOFError, TypeError, SyntaxError, LookupError, ArithmeticError, tokenize.TokenError)


def _open_entry(entry: Path) -> np.ndarray:
    """The array of an entry, memory-mapped. Raises OSError, or _DAMAGED_ENTRY if it is none that `_write` wrote."""
    array = np.lib.format.open_memmap(entry, mode="r")
    if array.dtype not in _DTYPES or array.offset + array.nbytes != os.path.getsize(entry):
        raise ValueError(f"{entry}: {array.dtype} of shape {array.shape} does not fill the file")
    return array


def read_cached(
    path: str | os.PathLike,
    read: Callable[[str | os.PathLike], np.ndarray],
    cache: ImageCache | None,
    variant: str = "",
) -> np.ndarray:
    """`read(path)`, from the cache if there is one. variant: of `ImageCache.get`."""
    return read(path) if cache is None else cache.get(path, lambda: read(path), variant)


def load_image(path: str | os.PathLike, cache: ImageCache | None = None) -> Image.Image | np.ndarray:
    """An upright RGB image in the form that takes least time, PIL's or uint8 (H, W, 3). Raises as `open_image`."""
    return open_image(path) if cache is None else read_cached(path, read_image, cache)
