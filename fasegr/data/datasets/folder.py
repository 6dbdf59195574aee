"""Datasets of semantic segmentation: a folder of images, a folder of label maps and a text file of classes.

ROOT/images/train/a.jpg    ROOT/annotations/train/a.png    (subfolders are searched too)
"""

import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from fasegr.d2 import DatasetCatalog, MetadataCatalog
from fasegr.data.datasets.root import where_datasets_are
from fasegr.data.image_io import BadFile, check_label_size, image_size, label_size

__all__ = [
    "ClassList",
    "find_pairs",
    "load_folder",
    "load_images",
    "read_classes",
    "read_records",
    "register_folder",
    "register_public",
]

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_CLASS_LINE = re.compile(r"(.*?\S)\s*[,\t]\s*([0-9]{1,3})[\s,]+([0-9]{1,3})[\s,]+([0-9]{1,3})")
_LONGEST_LINE = 200  # the expression would take minutes for a long one of commas
_NAMED = 3  # how many files an error names before it counts the rest


class ClassList(NamedTuple):
    """names[i] is what label i means; colours[i] its (r, g, b) of 0..255. `colours` is empty if the file has none."""

    names: list[str]
    colours: list[tuple[int, int, int]]


def read_classes(path: str | Path) -> ClassList:
    """A text file of classes in the order of their labels: on each line a name and, after a comma or a tab, its colour.

        road, 128 64 128
        sky, 70 130 180

    Empty lines and lines that start with # are skipped. All classes have colours, or none. Raises BadFile with the
    number of the line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such list of classes; it is a text file with one class a line")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise BadFile(f"{path}: is not text in UTF-8; expected one class a line") from None
    # The lines are not quoted: a config from strangers may name any file of this machine.
    names, colours = {}, []
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        parts = _CLASS_LINE.fullmatch(line[: _LONGEST_LINE + 1])
        levels = tuple(map(int, parts.groups()[1:])) if parts else ()
        name = parts[1] if parts else line
        if len(line) > _LONGEST_LINE or max(levels, default=0) > 255 or (not parts and re.search("[,\t]", line)):
            raise BadFile(
                f"{path}, line {number}: is not a class; expected a name or, after a comma or a tab, "
                "also red, green and blue of 0..255, such as `road, 128 64 128`"
            )
        if name in names:
            raise BadFile(f"{path}, line {number}: has the name of line {names[name]}; names must be different")
        names[name] = number
        colours += [levels] if levels else []
    if not names:
        raise BadFile(f"{path}: names no class; expected one a line")
    if colours and len(colours) != len(names):
        raise BadFile(f"{path}: has {len(names)} classes, {len(colours)} with a colour; give one to all or to none")
    return ClassList(list(names), colours)


def _files_by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files anywhere below `folder`, by their relative path without suffix. Hidden files and folders are skipped."""
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

    Raises FileNotFoundError for a missing folder, BadFile if one is empty or either has a file without its counterpart.
    name: of the dataset, for the message.
    """
    image_dir, label_dir = Path(image_dir), Path(label_dir)
    missing = [str(folder) for folder in (image_dir, label_dir) if not folder.is_dir()]
    if missing:
        raise FileNotFoundError(
            f"dataset {name}: no folder {' and no folder '.join(missing)} (from {Path.cwd()}). {where_datasets_are()}, "
            "or correct DATASETS.FOLDER"
        )
    if image_dir.resolve() == label_dir.resolve():
        raise BadFile(f"dataset {name}: images and label maps are both in {image_dir}; they need a folder each")
    images = _files_by_stem(image_dir, IMAGE_SUFFIXES)
    labels = _files_by_stem(label_dir, (".png",))
    if not images:
        raise BadFile(f"dataset {name}: no image in {image_dir}; looked for {', '.join(IMAGE_SUFFIXES)}")
    unpaired = [str(path.relative_to(image_dir)) for stem, path in images.items() if stem not in labels]
    if unpaired:
        raise BadFile(
            f"dataset {name}: {len(unpaired)} of {len(images)} images have no label map in {label_dir}: "
            f"{_some(unpaired)}; expected {Path(unpaired[0]).with_suffix('.png')} and so on. Add them or remove the "
            "images"
        )
    unpaired = [str(path.relative_to(label_dir)) for stem, path in labels.items() if stem not in images]
    if unpaired:
        raise BadFile(
            f"dataset {name}: {len(unpaired)} of {len(labels)} label maps have no image in {image_dir}: "
            f"{_some(unpaired)}; add the images or remove the label maps"
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
    """detectron2's records of images and their label maps (or None), from the headers of the files.

    Each is {"file_name", "sem_seg_file_name", "height", "width"}. Raises BadFile for a file that cannot be read, or a
    label map of another size than its image.
    """
    with ThreadPoolExecutor(8) as pool:  # waits for the disk, not for the processor
        return list(pool.map(_record, pairs, chunksize=64))


def load_folder(name: str, image_dir: str | Path, label_dir: str | Path) -> list[dict]:
    """Records of a dataset of two folders. Raises as `find_pairs` and `read_records`."""
    return read_records(find_pairs(name, image_dir, label_dir))


def load_images(name: str, image_dir: str | Path) -> list[dict]:
    """Records of images without label maps: test images of a benchmark, or images that are only to be segmented."""
    images = _files_by_stem(Path(image_dir), IMAGE_SUFFIXES)
    if not images:
        raise FileNotFoundError(f"dataset {name}: no image in {image_dir} (from {Path.cwd()}). {where_datasets_are()}")
    return read_records([(path, None) for path in images.values()])


def register_folder(
    name: str, load: Callable[[], list[dict]], classes: ClassList, ignore_label: int = 255, **metadata: Any
) -> None:
    """Adds a dataset to the catalogs, unless the name is taken; `load` returns its records when they are first asked
    for. metadata: kept with the classes."""
    if name in DatasetCatalog.list():
        return
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        stuff_classes=list(classes.names),
        ignore_label=ignore_label,
        **({"stuff_colors": list(classes.colours)} if classes.colours else {}),
        **{"evaluator_type": "sem_seg", **metadata},
    )


def register_public(
    name: str,
    load: Callable[[], list[dict]],
    classes: ClassList,
    submission_ids: list[int],
    evaluator_type: str = "sem_seg",
) -> None:
    """Adds a public dataset as `register_folder` does. If the name is taken, by detectron2 for instance, the dataset
    stays as it is, and only gets the colours and `submission_ids` if it has none.

    submission_ids: for each class, the value that the benchmark's server expects in submitted files.
    """
    register_folder(name, load, classes, evaluator_type=evaluator_type, submission_ids=submission_ids)
    metadata = MetadataCatalog.get(name)
    if len(metadata.get("stuff_classes", ())) != len(classes.names):
        return  # another dataset of this name
    # Lists, in which Mask2Former sets the same colours: a catalog refuses to change a value.
    colours = [list(colour) for colour in classes.colours]
    for key, value in (("stuff_colors", colours), ("submission_ids", submission_ids)):
        if metadata.get(key) is None:
            metadata.set(**{key: value})
