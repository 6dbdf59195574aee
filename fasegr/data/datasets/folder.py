"""Datasets that are folders: images here, label maps there, a text file of classes; all of it named in the config.

    ROOT/images/train/a.jpg    ROOT/annotations/train/a.png    (and so on; folders inside are kept)

Splits become the names NAME_train, NAME_val, ... What lies on disk is looked at when a dataset is first asked for, so a
config can be loaded, and a model built, where the data is not.
"""

import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from fasegr.d2 import DatasetCatalog, MetadataCatalog
from fasegr.data.image_io import BadFile, check_label_size, image_size, label_size

__all__ = [
    "ClassList",
    "datasets_root",
    "find_pairs",
    "load_folder",
    "load_images",
    "read_classes",
    "read_records",
    "register_folder",
    "register_from_config",
    "where_datasets_are",
]

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_CLASS_LINE = re.compile(r"(.*?\S)\s*[,\t]\s*([0-9]+)[\s,]+([0-9]+)[\s,]+([0-9]+)")
_NAMED = 3  # how many files an error names before it counts the rest


class ClassList(NamedTuple):
    """names[i] is what label i means; colours[i] its (r, g, b) of 0..255. `colours` is empty where the file has
    none."""

    names: list[str]
    colours: list[tuple[int, int, int]]


def datasets_root() -> Path:
    """Where datasets are kept: $DETECTRON2_DATASETS, or `datasets` in the working directory."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def where_datasets_are() -> str:
    """For messages: what DETECTRON2_DATASETS is, and what it should be."""
    variable = os.environ.get("DETECTRON2_DATASETS")
    state = f"is {variable}" if variable else "is not set, so ./datasets is used"
    return f"DETECTRON2_DATASETS {state}; set it to the directory that holds the datasets"


def read_classes(path: str | Path) -> ClassList:
    """A text file of classes in the order of their labels: on each line a name and, after a comma or a tab, its colour.

        road, 128 64 128
        sky, 70 130 180

    Empty lines and lines that start with # say nothing. Colours are for all classes or for none. Raises BadFile with
    the number of the line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such list of classes; it is a text file with one class a line")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise BadFile(f"{path}: is not text in UTF-8 ({error}); expected one class a line") from error
    names, colours = [], []
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        parts = _CLASS_LINE.fullmatch(line)
        levels = tuple(map(int, parts.groups()[1:])) if parts else ()
        name = parts[1] if parts else line
        if max(levels, default=0) > 255 or (not parts and re.search("[,\t]", line)):
            raise BadFile(
                f"{path}, line {number}: {line!r} is not a class; expected a name or, after a comma or a tab, "
                "also red, green and blue of 0..255, such as `road, 128 64 128`"
            )
        if name in names:
            raise BadFile(f"{path}, line {number}: {name!r} is there already; give each class a name of its own")
        names.append(name)
        colours += [levels] if levels else []
    if not names:
        raise BadFile(f"{path}: names no class; expected one a line")
    if colours and len(colours) != len(names):
        raise BadFile(f"{path}: has {len(names)} classes, {len(colours)} with a colour; give one to all or to none")
    return ClassList(names, colours)


def _files_by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files anywhere below `folder`, by their relative path without suffix. Hidden files and folders are passed
    over."""
    files: dict[str, Path] = {}
    for directory, inner, names in os.walk(folder, followlinks=True):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in sorted(names):
            path = Path(directory, name)
            if name.startswith(".") or path.suffix.lower() not in suffixes:
                continue
            stem = path.relative_to(folder).with_suffix("").as_posix()
            if stem in files:
                raise BadFile(f"{path} and {files[stem]}: both would have the label map {stem}.png; rename one")
            files[stem] = path
    return dict(sorted(files.items()))


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def find_pairs(name: str, image_dir: str | Path, label_dir: str | Path) -> list[tuple[Path, Path]]:
    """Each image of `image_dir` with its label map, a PNG of the same relative path in `label_dir`, in order of names.

    Raises FileNotFoundError for a folder that is not there, BadFile where one is empty or either side has a file
    without its counterpart; `name` is the dataset that the message is about.
    """
    image_dir, label_dir = Path(image_dir), Path(label_dir)
    missing = [str(folder) for folder in (image_dir, label_dir) if not folder.is_dir()]
    if missing:
        raise FileNotFoundError(
            f"dataset {name}: no folder {' and no folder '.join(missing)} (from {Path.cwd()}). {where_datasets_are()}, "
            "or correct DATASETS.FOLDER"
        )
    if image_dir.resolve() == label_dir.resolve():
        raise BadFile(f"dataset {name}: images and label maps are both in {image_dir}; give each a folder of its own")
    images = _files_by_stem(image_dir, IMAGE_SUFFIXES)
    labels = _files_by_stem(label_dir, (".png",))
    if not images:
        raise BadFile(f"dataset {name}: no image in {image_dir}; looked for {', '.join(IMAGE_SUFFIXES)}")
    alone = [str(path.relative_to(image_dir)) for stem, path in images.items() if stem not in labels]
    if alone:
        raise BadFile(
            f"dataset {name}: {len(alone)} of {len(images)} images have no label map in {label_dir}: {_some(alone)}; "
            f"expected {Path(alone[0]).with_suffix('.png')} and so on. Add them or take the images away"
        )
    alone = [str(path.relative_to(label_dir)) for stem, path in labels.items() if stem not in images]
    if alone:
        raise BadFile(
            f"dataset {name}: {len(alone)} of {len(labels)} label maps have no image in {image_dir}: {_some(alone)}; "
            "add the images or take the label maps away"
        )
    return [(path, labels[stem]) for stem, path in images.items()]


def _record(pair: tuple[Path, Path | None]) -> dict:
    image, label = pair
    height, width = image_size(image)
    record = {"file_name": str(image), "height": height, "width": width}
    if label is not None:
        check_label_size(label, label_size(label), image, (height, width))
        record["sem_seg_file_name"] = str(label)
    return record


def read_records(pairs: list[tuple[Path, Path | None]]) -> list[dict]:
    """Records in detectron2's form of images and their label maps (None: it has none), from the headers of the files,
    which must be readable and agree in size.

    Each is {"file_name", "sem_seg_file_name", "height", "width"}. Raises BadFile for a single file.
    """
    with ThreadPoolExecutor(8) as pool:  # waits for the disk, not for the processor
        return list(pool.map(_record, pairs, chunksize=64))


def load_folder(name: str, image_dir: str | Path, label_dir: str | Path) -> list[dict]:
    """Records of a dataset of two folders. Raises as `find_pairs` and `read_records`."""
    return read_records(find_pairs(name, image_dir, label_dir))


def load_images(name: str, image_dir: str | Path) -> list[dict]:
    """Records of images without label maps: what a benchmark keeps the truth of, or what is only to be segmented."""
    images = _files_by_stem(Path(image_dir), IMAGE_SUFFIXES)
    if not images:
        raise FileNotFoundError(f"dataset {name}: no image in {image_dir} (from {Path.cwd()}). {where_datasets_are()}")
    return read_records([(path, None) for path in images.values()])


def register_folder(
    name: str, load: Callable[[], list[dict]], classes: ClassList, ignore_label: int = 255, **metadata: Any
) -> None:
    """Adds a dataset to the catalogs under `name`; `load` returns its records when they are first asked for.
    `metadata` is kept with the classes.

    Again under the same name, it replaces what an earlier call registered, and raises ValueError where somebody else
    did.
    """
    if name in DatasetCatalog.list():
        if getattr(MetadataCatalog.get(name), "registered_by", None) != __name__:
            raise ValueError(f"DATASETS.FOLDER: another dataset is registered as {name} already; choose another NAME")
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        stuff_classes=list(classes.names),
        ignore_label=ignore_label,
        registered_by=__name__,
        **({"stuff_colors": list(classes.colours)} if classes.colours else {}),
        **{"evaluator_type": "sem_seg", **metadata},
    )


def register_from_config(cfg) -> list[str]:
    """Registers the dataset that cfg.DATASETS.FOLDER describes, if it does; returns the names, one for each split."""
    folder = cfg.DATASETS.FOLDER
    if not folder.NAME:
        return []
    if not folder.CLASSES:
        raise ValueError(
            "DATASETS.FOLDER.CLASSES is empty; it must name a text file with one class a line, in order of the labels"
        )
    for key in ("IMAGES", "LABELS"):
        if len(folder.SPLITS) > 1 and "{split}" not in folder[key]:
            raise ValueError(
                f"DATASETS.FOLDER.{key} is {folder[key]!r} for the splits {', '.join(folder.SPLITS)}; "
                "it must contain {split}, which stands for the name of the split"
            )
    classes = read_classes(folder.CLASSES)
    if not 0 <= folder.IGNORE_LABEL <= 65535 or len(classes.names) > folder.IGNORE_LABEL:
        raise ValueError(
            f"DATASETS.FOLDER.IGNORE_LABEL is {folder.IGNORE_LABEL}; it must be in 0..65535 (255 is usual) "
            f"and not one of the {len(classes.names)} classes of {folder.CLASSES}"
        )
    names = []
    for split in folder.SPLITS:
        name = f"{folder.NAME}_{split}"

        def load(name: str = name, split: str = split) -> list[dict]:
            root = datasets_root() / Path(folder.ROOT).expanduser()  # looked up at the time of use
            return load_folder(name, *(root / folder[key].replace("{split}", split) for key in ("IMAGES", "LABELS")))

        register_folder(name, load, classes, folder.IGNORE_LABEL)
        names.append(name)
    return names
