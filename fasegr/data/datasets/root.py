"""Where datasets lie: below $DETECTRON2_DATASETS."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["DatasetPath", "datasets_root", "where_datasets_are"]


def datasets_root() -> Path:
    """$DETECTRON2_DATASETS, or `datasets` in the working directory."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def where_datasets_are() -> str:
    """For messages: what DETECTRON2_DATASETS is, and what it should be."""
    variable = os.environ.get("DETECTRON2_DATASETS")
    state = f"is {variable}" if variable else "is not set, so ./datasets is used"
    return f"DETECTRON2_DATASETS {state}; set it to the directory that holds the datasets"


@dataclass(frozen=True)
class DatasetPath(os.PathLike):
    """A path below `datasets_root()` as that is when the path is used, not when a dataset is registered."""

    path: str

    def __fspath__(self) -> str:
        return str(datasets_root() / Path(self.path).expanduser())

    __str__ = __fspath__
