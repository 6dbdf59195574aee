"""Procedural landscapes as a dataset: `scenes_train` and `scenes_val`, painted to disk when first asked for."""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from iopath.common.file_io import file_lock
from PIL import Image
from tqdm import tqdm

from fasegr.d2 import DatasetCatalog
from fasegr.data.datasets.folder import ClassList, datasets_root, load_folder, register_folder
from fasegr.data.datasets.scenes.painter import CLASSES, COLOURS, paint_scene

__all__ = ["SPLITS", "generate_scenes", "make_folder_once", "register_scenes", "scenes_folder"]

VERSION = "v1"  # to be raised with any change of what is painted, so that old files are not taken for new ones
SEED = 2022
SIZE = 128
SPLITS = {"train": 512, "val": 64}


def scenes_folder() -> Path:
    """Where the scenes are, or will be."""
    return datasets_root() / "fasegr_scenes" / VERSION


def generate_scenes(folder: str | Path, splits: dict[str, int] | None = None, size: int = SIZE) -> None:
    """Paints `splits` (number of scenes of each) into `folder`, in the layout of a folder dataset, unless it is there.

    The folder appears complete or not at all. Of several processes that ask at once, one paints and the others wait.
    """
    make_folder_once(Path(folder), lambda work: _paint(work, splits or SPLITS, size))


def make_folder_once(folder: Path, paint: Callable[[Path], None]) -> None:
    """Makes `folder` with what `paint` writes into the folder it is given, unless it is there."""
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


def _paint(folder: Path, splits: dict[str, int], size: int) -> None:
    with tqdm(total=sum(splits.values()), desc="painting scenes", unit="scene", mininterval=1) as bar:
        for number, (split, count) in enumerate(splits.items()):
            for kind in ("images", "annotations"):
                (folder / kind / split).mkdir(parents=True)
            for index in range(count):
                scene = paint_scene(SEED, number, index, size, size)
                name = f"{split}/{index:04d}.png"
                # a low level: noise packs no better with more effort, and reading gets faster
                Image.fromarray(scene.image).save(folder / "images" / name, compress_level=3)
                Image.fromarray(scene.labels).save(folder / "annotations" / name)
                bar.update()
    lines = [f"{name}, {red} {green} {blue}\n" for name, (red, green, blue) in zip(CLASSES, COLOURS, strict=True)]
    (folder / "classes.txt").write_text("".join(lines), encoding="utf-8")


def register_scenes() -> None:
    """Adds `scenes_train` and `scenes_val` to the catalogs, unless they are there."""
    for split in SPLITS:
        name = f"scenes_{split}"
        if name in DatasetCatalog.list():
            continue

        def load(name: str = name, split: str = split) -> list[dict]:
            folder = scenes_folder()
            generate_scenes(folder)
            return load_folder(name, folder / "images" / split, folder / "annotations" / split)

        register_folder(name, load, ClassList(CLASSES, COLOURS))
