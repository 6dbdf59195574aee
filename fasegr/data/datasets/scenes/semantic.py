"""The painted scenes for semantic segmentation: `scenes_train` and `scenes_val`, painted when first asked for."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from iopath.common.file_io import file_lock
from PIL import Image
from tqdm import tqdm

from fasegr.data.datasets.folder import ClassList, load_folder, register_folder
from fasegr.data.datasets.root import datasets_root
from fasegr.data.datasets.scenes.painter import CLASSES, COLOURS, Scene, paint_scene

__all__ = ["SPLITS", "generate_scenes", "make_folder_once", "paint_splits", "register_scenes", "scenes_folder"]

VERSION = "v1"  # raise it with any change of what is painted, so that old files are not taken for new ones
SEED = 2022
SIZE = 128
SPLITS = {"train": 512, "val": 64}


def scenes_folder() -> Path:
    """Where the scenes are, or will be."""
    return datasets_root() / "fasegr_scenes" / VERSION


def generate_scenes(folder: str | Path, splits: dict[str, int] | None = None, size: int = SIZE) -> None:
    """Paints `splits` (number of scenes of each) into `folder`, in the layout of a folder dataset, unless it exists.

    The folder appears complete or not at all. Of several processes that ask at once, one paints and the others wait.
    """
    make_folder_once(Path(folder), lambda work: _paint(work, splits or SPLITS, size))


def make_folder_once(folder: Path, paint: Callable[[Path], None]) -> None:
    """Makes `folder` with what `paint` writes into the folder it is given, unless it exists."""
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(str(folder.parent / f".{folder.name}")):
        if folder.is_dir():  # painted by another process in the meantime
            return
        logging.getLogger(__name__).info("Painting scenes into %s", folder)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            paint(work)
            work.chmod(0o755)  # mkdtemp lets nobody else in
            os.replace(work, folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def paint_splits(splits: dict[str, int], size: int) -> Iterator[tuple[str, int, Scene]]:
    """(split, index, scene) of all scenes of `splits`, with a progress bar."""
    with tqdm(total=sum(splits.values()), desc="painting scenes", unit="scene", mininterval=1) as bar:
        for number, (split, count) in enumerate(splits.items()):
            for index in range(count):
                yield split, index, paint_scene(SEED, number, index, size, size)
                bar.update()


def write_image(scene: Scene, path: Path) -> None:
    # a low level: noise compresses no better with more effort, and reading gets faster
    Image.fromarray(scene.image).save(path, compress_level=3)


def _paint(folder: Path, splits: dict[str, int], size: int) -> None:
    for split in splits:
        for kind in ("images", "annotations"):
            (folder / kind / split).mkdir(parents=True)
    for split, index, scene in paint_splits(splits, size):
        name = f"{split}/{index:04d}.png"
        write_image(scene, folder / "images" / name)
        Image.fromarray(scene.labels).save(folder / "annotations" / name)
    lines = [f"{name}, {red} {green} {blue}\n" for name, (red, green, blue) in zip(CLASSES, COLOURS, strict=True)]
    (folder / "classes.txt").write_text("".join(lines), encoding="utf-8")


def register_scenes() -> None:
    """Adds `scenes_train` and `scenes_val` to the catalogs, unless they are there."""
    for split in SPLITS:

        def load(name: str = f"scenes_{split}", split: str = split) -> list[dict]:
            folder = scenes_folder()
            generate_scenes(folder)
            return load_folder(name, folder / "images" / split, folder / "annotations" / split)

        register_folder(f"scenes_{split}", load, ClassList(CLASSES, COLOURS))
