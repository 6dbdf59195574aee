"""Datasets of semantic segmentation: a folder of images, a folder of label maps and a text file of classes.

ROOT/images/train/a.jpg    ROOT/annotations/train/a.png    (subfolders are searched too)
"""

import logging
import re
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from fasegr.d2 import DatasetCatalog, MetadataCatalog
from fasegr.data.datasets.image_files import IMAGE_SUFFIXES, find_files, some
from fasegr.data.datasets.label_map import LabelMap, record_label_size
from fasegr.data.datasets.root import where_datasets_are
from fasegr.data.image_io import BadFile, check_label_size, image_header, reading

__all__ = [
    "BadFiles",
    "ClassList",
    "class_list",
    "find_pairs",
    "load_folder",
    "load_images",
    "read_classes",
    "read_records",
    "register_folder",
    "register_public",
]

logger = logging.getLogger(__name__)

LABEL_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif", ".webp")
_LOSSY_SUFFIXES = (".jpg", ".jpeg", ".jp2")
_CLASS_LINE = re.compile(r"(.*?\S)\s*[,\t]\s*([0-9]{1,3})[\s,]+([0-9]{1,3})[\s,]+([0-9]{1,3})")
_LONGEST_LINE = 200  # the expression would take minutes for a long one of commas


class BadFiles(BadFile):
    """Files of a dataset that cannot be used. problems: (file, why) of each. records: of the other images."""

    def __init__(self, problems: list[tuple[str, str]], records: list[dict]):
        more = f" (and {len(problems) - 1} more: tools/inspect_dataset.py lists all)" if len(problems) > 1 else ""
        super().__init__(problems[0][1] + more)
        self.problems, self.records = problems, records


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


def class_list(entries: Sequence[str | Sequence], source: str) -> ClassList:
    """The same of names, or pairs of a name and its colour, that `source` has. Raises BadFile."""
    names = [entry if isinstance(entry, str) else entry[0] for entry in entries]
    colours = [tuple(entry[1]) for entry in entries if not isinstance(entry, str)]
    if len(set(names)) < len(names):
        raise BadFile(f"{source}: names a class twice; names must be different")
    if colours and len(colours) != len(names):
        raise BadFile(f"{source}: has {len(names)} classes, {len(colours)} with a colour; give one to all or to none")
    return ClassList(names, colours)


def _by_stem(files: list[Path], folder: Path, suffix: str = "") -> dict[str, Path]:
    """`files` by their relative path without extension and without `suffix`, those that lack that left out.

    Raises BadFile for two of one name.
    """
    found: dict[str, Path] = {}
    for path in files:
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if not stem.endswith(suffix):
            continue
        stem = stem[: len(stem) - len(suffix)]
        if stem in found:
            raise BadFile(f"{path} and {found[stem]}: both are called {stem}; rename one, with its label map")
        found[stem] = path
    return found


def _images(name: str, image_dir: Path, without: str = "") -> dict[str, Path]:
    """without: what the names of label files in the same folder end with."""
    found = find_files(image_dir)
    found.say_what_is_left_out(image_dir)
    files = [path for path in found.files if not (without and path.stem.endswith(without))]
    if not files:
        raise BadFile(f"dataset {name}: no image in {image_dir}; looked for {', '.join(IMAGE_SUFFIXES)}")
    return _by_stem(files, image_dir)


def _labels(label_dir: Path, suffix: str) -> dict[str, Path]:
    """A file whose compression changes values is only taken where there is no other, to be refused by its name."""
    files = find_files(label_dir, (*LABEL_SUFFIXES, *_LOSSY_SUFFIXES)).files
    labels = _by_stem([path for path in files if path.suffix.lower() in LABEL_SUFFIXES], label_dir, suffix)
    lossy = _by_stem([path for path in files if path.suffix.lower() in _LOSSY_SUFFIXES], label_dir, suffix)
    return lossy | labels


def find_pairs(
    name: str, image_dir: str | Path, label_dir: str | Path, label_suffix: str = ""
) -> list[tuple[Path, Path]]:
    """Each image of `image_dir` with its label map, a file of the same relative path in `label_dir`, in order of names.

    label_suffix: what names of label maps have behind that of their image (rose.jpg, rose_mask.png); with it both may
    be in one folder. Raises FileNotFoundError for a missing folder, BadFile if one is empty or either has a file
    without its counterpart. name: of the dataset, for the message.
    """
    image_dir, label_dir = Path(image_dir), Path(label_dir)
    missing = [str(folder) for folder in (image_dir, label_dir) if not folder.is_dir()]
    if missing:
        raise FileNotFoundError(
            f"dataset {name}: no folder {' and no folder '.join(missing)} (from {Path.cwd()}). {where_datasets_are()}, "
            "or correct DATASETS.FOLDER"
        )
    together = image_dir.resolve() == label_dir.resolve()
    if together and not label_suffix:
        raise BadFile(
            f"dataset {name}: images and label maps are both in {image_dir}; they need a folder each, or names that "
            "differ by DATASETS.FOLDER.LABEL_SUFFIX"
        )
    images = _images(name, image_dir, label_suffix if together else "")
    labels = _labels(label_dir, label_suffix)
    unpaired = [str(path.relative_to(image_dir)) for stem, path in images.items() if stem not in labels]
    if unpaired:
        expected = Path(unpaired[0]).with_suffix("")
        raise BadFile(
            f"dataset {name}: {len(unpaired)} of {len(images)} images have no label map in {label_dir}: "
            f"{some(unpaired)}; expected {expected}{label_suffix}.png (or {', '.join(LABEL_SUFFIXES[1:])}) and so on. "
            f"{_suffix_hint(list(images), label_dir)}Add them or remove the images"
        )
    unpaired = [str(path.relative_to(label_dir)) for stem, path in labels.items() if stem not in images]
    if unpaired:
        raise BadFile(
            f"dataset {name}: {len(unpaired)} of {len(labels)} label maps have no image in {image_dir}: "
            f"{some(unpaired)}; add the images or remove the label maps"
        )
    return [(path, labels[stem]) for stem, path in images.items()]


def _suffix_hint(stems: list[str], label_dir: Path) -> str:
    """A sentence on the key that helps, where label maps have the images' names with one ending."""
    files = find_files(label_dir, (*LABEL_SUFFIXES, *_LOSSY_SUFFIXES)).files
    names = {path.relative_to(label_dir).with_suffix("").as_posix() for path in files}
    endings = {name[len(stems[0]) :] for name in names if name.startswith(stems[0]) and name != stems[0]}
    for ending in sorted(endings, key=len):
        if all(stem + ending in names for stem in stems):
            return f"The names of the files there end with {ending}: set DATASETS.FOLDER.LABEL_SUFFIX {ending}. "
    return ""


def _record(pair: tuple[Path, Path | None], label_map: LabelMap | None) -> tuple[dict, bool]:
    """The record, and whether the image is turned by EXIF in a way that sizes do not show."""
    image, label = pair
    size, orientation = image_header(image)
    record = {"file_name": str(image), "height": size[0], "width": size[1]}
    if label is not None:
        record["sem_seg_file_name"] = str(label)
        if label_map is not None:
            record["label_map"] = label_map
        check_label_size(label, record_label_size(record), image, size)
    unseen = orientation in (2, 3, 4) or (orientation in (5, 6, 7, 8) and size[0] == size[1])
    return record, unseen and label is not None


def read_records(pairs: list[tuple[Path, Path | None]], label_map: LabelMap | None = None) -> list[dict]:
    """detectron2's records of images and their label maps (or None), from the headers of the files.

    Each is {"file_name", "sem_seg_file_name", "height", "width"}, with "label_map" if the files need one. Raises
    BadFiles for files that cannot be read, and label maps of another size than their images.
    """

    def read(pair: tuple[Path, Path | None]) -> tuple[dict, bool] | tuple[str, str]:
        try:
            return _record(pair, label_map)
        except (BadFile, FileNotFoundError) as error:
            return str(pair[0]), str(error)

    with ThreadPoolExecutor(8) as pool:  # waits for the disk, not for the processor
        found = list(pool.map(read, pairs, chunksize=64))
    problems = [entry for entry in found if isinstance(entry[0], str)]
    if problems:
        raise BadFiles(problems, [entry[0] for entry in found if not isinstance(entry[0], str)])
    records, unseen = zip(*found, strict=True)
    turned = [record["file_name"] for record, is_turned in zip(records, unseen, strict=True) if is_turned]
    if turned and reading().use_exif:
        logger.warning(
            "%d of %d images are stored turned or mirrored (EXIF), which their sizes do not show: %s. Their label maps "
            "are taken to be of the upright image, as viewers show it; INPUT.USE_EXIF False takes both as stored",
            *(len(turned), len(records), some(turned)),
        )
    return list(records)


def load_folder(
    name: str,
    image_dir: str | Path,
    label_dir: str | Path,
    *,
    label_suffix: str = "",
    label_map: LabelMap | None = None,
    choose: Callable[[list[str]], Collection[str]] | None = None,
    unlabelled: bool = False,
) -> list[dict]:
    """Records of a dataset of two folders. Raises as `find_pairs` and `read_records`.

    choose: returns those of the images (paths without extension) that belong to the dataset. unlabelled: accept a
    folder without any label map, with a warning; its records are images alone.
    """
    image_dir, label_dir = Path(image_dir), Path(label_dir)
    if unlabelled and image_dir.is_dir() and not (label_dir.is_dir() and _labels(label_dir, label_suffix)):
        logger.warning(
            "%s: there are no label maps in %s, so its images can be predicted for, but not scored", name, label_dir
        )
        pairs = [(path, None) for path in _images(name, image_dir).values()]
    else:
        pairs = find_pairs(name, image_dir, label_dir, label_suffix)
    if choose is not None:
        chosen = set(choose([_stem_of(image, image_dir) for image, _ in pairs]))
        pairs = [pair for pair in pairs if _stem_of(pair[0], image_dir) in chosen]
    return read_records(pairs, label_map)


def _stem_of(image: Path, folder: Path) -> str:
    return image.relative_to(folder).with_suffix("").as_posix()


def load_images(name: str, image_dir: str | Path) -> list[dict]:
    """Records of images without label maps: test images of a benchmark, or images that are only to be segmented."""
    image_dir = Path(image_dir)
    if not image_dir.is_dir() or not (found := find_files(image_dir)).files:
        raise FileNotFoundError(f"dataset {name}: no image in {image_dir} (from {Path.cwd()}). {where_datasets_are()}")
    found.say_what_is_left_out(image_dir)
    return read_records([(path, None) for path in _by_stem(found.files, image_dir).values()])


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
