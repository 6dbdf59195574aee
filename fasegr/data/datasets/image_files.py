"""The image files of a folder: one reader, for datasets and for the demo."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import NamedTuple

__all__ = ["IMAGE_SUFFIXES", "FoundFiles", "find_files", "some"]

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_NAMED = 3  # how many files a message names before it counts the rest


class FoundFiles(NamedTuple):
    """files: in order of their paths. left_out: paths of files and folders that were passed over, with the reason."""

    files: list[Path]
    left_out: dict[Path, str]

    def say_what_is_left_out(self, folder: str | os.PathLike) -> None:
        """One line in the log for each reason."""
        for reason in dict.fromkeys(self.left_out.values()):
            paths = [os.path.relpath(path, folder) for path, why in self.left_out.items() if why == reason]
            logger.info("%s: %d left out, %s: %s", folder, len(paths), reason, some(paths))


def some(names: list[str]) -> str:
    """The first names of a long list, for a message."""
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def find_files(
    folder: str | os.PathLike, suffixes: tuple[str, ...] = IMAGE_SUFFIXES, but: str | os.PathLike | None = None
) -> FoundFiles:
    """Files with one of the `suffixes` (of any case) anywhere below `folder`.

    Links are followed, but not back to a folder that leads to them. Hidden files and folders, whose names begin with a
    dot (.ipynb_checkpoints, the ._NAME that macOS writes), are left out. but: a folder that is passed over.
    """
    found = FoundFiles([], {})
    passed_over = None if but is None else os.path.realpath(but)
    _search(Path(folder), (os.path.realpath(folder),), suffixes, passed_over, found)
    return FoundFiles(sorted(found.files), found.left_out)


def _search(
    folder: Path, parents: tuple[str, ...], suffixes: tuple[str, ...], but: str | None, found: FoundFiles
) -> None:
    """parents: where `folder` and those above it really are."""
    with os.scandir(folder) as listed:
        entries = sorted(listed, key=lambda entry: entry.name)
    for entry in entries:
        path = folder / entry.name
        wanted = path.suffix.lower() in suffixes
        is_folder = entry.is_dir()
        if entry.name.startswith("."):
            if wanted or is_folder:
                found.left_out[path] = "hidden (the name begins with a dot)"
        elif is_folder:
            real = os.path.realpath(path) if entry.is_symlink() else os.path.join(parents[-1], entry.name)
            if real == but:
                continue
            if real in parents:
                found.left_out[path] = "links back to a folder above"
            else:
                _search(path, (*parents, real), suffixes, but, found)
        elif wanted and entry.is_file():
            found.files.append(path)
        elif wanted:
            found.left_out[path] = "links to nothing"
