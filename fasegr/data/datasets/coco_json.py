"""Datasets in COCO's two formats: instances (one JSON) and panoptic segments (a JSON and a PNG for each image).

Records are detectron2's. Of instances: "file_name", "image_id", "height", "width" and "annotations", each with "bbox",
"bbox_mode", "category_id", "iscrowd" and "segmentation" (polygons, or a run-length code). Of panoptic segments:
"pan_seg_file_name" and "segments_info", each with "id", "category_id", "isthing", "iscrowd". In both, category_id is
the class that a model predicts, counted from 0; the files have other ids. A crowd is a region whose objects were not
annotated one by one: records keep it, training leaves it out, and evaluation neither expects it nor counts it against
a prediction.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fasegr.d2 import DatasetCatalog, MetadataCatalog
from fasegr.data.datasets.coco_file import (
    check_exists,
    check_same_categories,
    files_inside,
    read_instances,
    read_json,
    read_segments,
)
from fasegr.data.datasets.root import where_datasets_are
from fasegr.data.image_io import BadFile

__all__ = [
    "Category",
    "category_list",
    "instance_metadata",
    "load_instances",
    "load_panoptic",
    "panoptic_metadata",
    "read_categories",
    "register_instances",
    "register_panoptic",
    "register_semantic",
    "without_crowds",
]

logger = logging.getLogger(__name__)

_XYWH = 1  # detectron2's BoxMode.XYWH_ABS


class Category(NamedTuple):
    """id: in the files. is_thing: whether its objects are counted one by one. colour: (r, g, b) of 0..255, or None."""

    id: int
    name: str
    is_thing: bool
    colour: tuple[int, int, int] | None


def without_crowds(segments: Iterable[dict]) -> list[dict]:
    """The objects or segments of a record that are no crowds."""
    return [segment for segment in segments if not segment.get("iscrowd", 0)]


def read_categories(path: str | os.PathLike) -> list[Category]:
    """The "categories" of an annotation file, or a file that is only their list, in order of their ids.

    Each has "id" and "name", and may have "isthing" (1 where it is not stated) and "color".
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: there is no such list of categories (from {Path.cwd()}); it is a JSON file in COCO's format, "
            f"an annotation file or only its 'categories'. {where_datasets_are()}"
        )
    try:
        content = read_json(path)
    except BadFile as error:
        raise BadFile(f"{path} {error}") from error
    return category_list(content.get("categories") if isinstance(content, dict) else content, str(path))


def category_list(entries: Any, path: str) -> list[Category]:
    """The same of the list of `path`, a file or a key of the config. Raises BadFile."""
    # What is in the file is not quoted: a config from strangers may name any file of this machine.
    if not isinstance(entries, list) or not all(map(_is_category, entries)):
        raise BadFile(
            f"{path}: cannot be read as categories; expected a JSON list of objects with 'id', an integer, and 'name', "
            "text, or an object that has it as 'categories'; 'isthing' may be 0 or 1, and 'color' three of 0..255"
        )
    categories = [
        Category(c["id"], c["name"], bool(c.get("isthing", 1)), tuple(c["color"]) if c.get("color") else None)
        for c in sorted(entries, key=lambda entry: entry["id"])
    ]
    if not categories or len({category.id for category in categories}) < len(categories):
        raise BadFile(f"{path}: has {len(categories)} categories; expected one or more with different ids")
    names: dict[str, int] = {}
    for category in categories:
        if category.name in names:
            raise BadFile(
                f"{path}: the categories {names[category.name]} and {category.id} have the same name; give each its "
                "own, or make them one category"
            )
        names[category.name] = category.id
    return categories


def _is_category(entry: Any) -> bool:
    if not isinstance(entry, dict) or type(entry.get("id")) is not int or not isinstance(entry.get("name"), str):
        return False
    colour = entry.get("color") or [0, 0, 0]
    if not isinstance(colour, list) or not all(type(level) is int and 0 <= level < 256 for level in colour):
        return False
    return len(colour) == 3 and entry.get("isthing", 1) in (0, 1)


def _names(categories: Sequence[Category]) -> dict[int, str]:
    return {category.id: category.name for category in categories}


def _colours(kind: str, categories: Sequence[Category]) -> dict[str, list]:
    colours = [category.colour for category in categories]
    return {} if None in colours else {f"{kind}_colors": colours}


def instance_metadata(categories: Sequence[Category]) -> dict[str, Any]:
    """What the catalog keeps of a dataset of instances: its things, numbered from 0 in the order given."""
    things = [category for category in categories if category.is_thing]
    return {
        "thing_classes": [category.name for category in things],
        **_colours("thing", things),
        "thing_dataset_id_to_contiguous_id": {category.id: i for i, category in enumerate(things)},
    }


def panoptic_metadata(categories: Sequence[Category]) -> dict[str, Any]:
    """The same of a panoptic dataset, whose things and stuff share one numbering, in the order given.

    As in Mask2Former, "stuff_classes" and its ids are all the classes, as a semantic segmentation has them, and
    "thing_dataset_id_to_contiguous_id" tells which of them are things.
    """
    things = [category for category in categories if category.is_thing]
    return {
        "thing_classes": [category.name for category in things],
        **_colours("thing", things),
        "stuff_classes": [category.name for category in categories],
        **_colours("stuff", categories),
        "thing_dataset_id_to_contiguous_id": {c.id: i for i, c in enumerate(categories) if c.is_thing},
        "stuff_dataset_id_to_contiguous_id": {c.id: i for i, c in enumerate(categories)},
        "ignore_label": 255,
        "label_divisor": 1000,
    }


# reading


def load_instances(
    name: str,
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    ids: dict[int, int],
    source: str = "",
    names: dict[int, str] | None = None,
) -> list[dict]:
    """Records of instances, in order of the images' ids.

    ids: the file's category ids, and the classes they stand for. names: what the file must call them, if it does.
    source: how to get the files, a sentence and a space
    for the error that says that they are missing. Objects without an outline are left out, with a warning that counts
    them. Raises FileNotFoundError, or BadFile naming the file and what is wrong in it.
    """
    file = read_instances(name, json_file, ids, source)
    check_same_categories(name, json_file, file.names, names or {})
    by_image, shapeless = defaultdict(list), 0
    for annotation in file.annotations or ():
        if annotation["segmentation"] is None:
            shapeless += 1
            continue
        by_image[annotation["image_id"]].append(
            {
                "bbox": annotation.get("bbox"),
                "bbox_mode": _XYWH,
                "category_id": ids[annotation["category_id"]],
                "iscrowd": annotation["iscrowd"],
                "segmentation": annotation["segmentation"],
            }
        )
    if shapeless:
        logger.warning("%s: %d objects of %s have no outline and are left out", name, shapeless, os.fspath(json_file))
    records = _image_records(name, json_file, image_root, list(file.images.values()))
    # only the first image is looked for: looking for each takes minutes on a network disk
    check_exists(name, "image", records[0]["file_name"], source)
    return [{**record, "annotations": by_image[record["image_id"]]} for record in records]


def load_panoptic(
    name: str,
    panoptic_json: str | os.PathLike,
    panoptic_root: str | os.PathLike,
    image_root: str | os.PathLike,
    things: dict[int, int],
    classes: dict[int, int],
    source: str = "",
    names: dict[int, str] | None = None,
) -> list[dict]:
    """Records of panoptic segments, in order of the images' ids; arguments and errors as of `load_instances`.

    things, classes: the file's category ids of things, and of all, and the classes they stand for.
    """
    file = read_segments(name, panoptic_json, classes, source)
    check_same_categories(name, panoptic_json, file.names, names or {})
    if not file.annotations:
        raise BadFile(f"dataset {name}: {os.fspath(panoptic_json)} has no segments of its images ('annotations')")
    annotations = sorted(file.annotations, key=lambda annotation: annotation["image_id"])
    repeated = [number for number, n in Counter(a["image_id"] for a in annotations).items() if n > 1]
    if repeated:
        raise BadFile(
            f"dataset {name}: {os.fspath(panoptic_json)} has annotations of the image {repeated[0]} more than once"
        )
    images = _image_records(name, panoptic_json, image_root, [file.images[a["image_id"]] for a in annotations])
    segments = files_inside(name, panoptic_json, panoptic_root, [a["file_name"] for a in annotations])
    records = [
        {
            **image,
            "pan_seg_file_name": segment_file,
            "segments_info": [
                {
                    "id": segment["id"],
                    "category_id": classes[segment["category_id"]],
                    "isthing": segment["category_id"] in things,
                    "iscrowd": segment["iscrowd"],
                }
                for segment in annotation["segments_info"]
            ],
        }
        for image, segment_file, annotation in zip(images, segments, annotations, strict=True)
    ]
    for key in ("file_name", "pan_seg_file_name"):
        check_exists(name, "image", records[0][key], source)
    return records


def _image_records(name: str, path: str | os.PathLike, image_root: str | os.PathLike, images: list[dict]) -> list[dict]:
    files = files_inside(name, path, image_root, [image["file_name"] for image in images])
    if len(set(files)) < len(files):  # evaluators know an image by its file
        twice = next(file for file, uses in Counter(files).items() if uses > 1)
        raise BadFile(
            f"dataset {name}: {os.fspath(path)}: several images have the file {twice}; expected one entry each"
        )
    return [
        {"file_name": file, "image_id": image["id"], "height": image["height"], "width": image["width"]}
        for file, image in zip(files, images, strict=True)
    ]


# registration; names that are taken are left alone


def register_instances(
    name: str,
    categories: Sequence[Category],
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    source: str = "",
    prepare: Callable[[], None] = lambda: None,
) -> None:
    """Adds a dataset of instances to the catalogs, unless the name is taken. Nothing on disk is read.

    source: of `load_instances`. prepare: called before the files are read; it may make them.
    """
    metadata = instance_metadata(categories)
    ids = metadata["thing_dataset_id_to_contiguous_id"]

    def load() -> list[dict]:
        prepare()
        return load_instances(name, json_file, image_root, ids, source, _names(categories))

    if name not in DatasetCatalog.list():
        DatasetCatalog.register(name, load)
        MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="coco", **metadata)


def register_semantic(
    name: str,
    categories: Sequence[Category],
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    background: str = "",
    source: str = "",
) -> None:
    """Adds a dataset whose pixels have the class of the object that they show (`fasegr.data.semantic_labels`).

    background: the name of class 0, of pixels that show none; empty: these are ignored. Raises ValueError where a
    category has that name.
    """
    things = [category for category in categories if category.is_thing]
    if background in [category.name for category in things]:
        raise ValueError(
            f"DATASETS.COCO.BACKGROUND is {background!r}, which is a category already; choose another name"
        )
    first = 1 if background else 0
    ids = {category.id: i + first for i, category in enumerate(things)}
    arguments = (name, json_file, image_root, ids, source)
    extra = {"sem_seg_objects": os.fspath(json_file), "background": 0 if background else None}

    def load() -> list[dict]:
        return [{**record, **extra} for record in load_instances(*arguments, _names(categories))]

    if name not in DatasetCatalog.list():
        DatasetCatalog.register(name, load)
        colours = {} if background else _colours("stuff", things)
        names = [*([background] if background else []), *(category.name for category in things)]
        MetadataCatalog.get(name).set(stuff_classes=names, ignore_label=255, evaluator_type="sem_seg", **colours)


def register_panoptic(
    name: str,
    categories: Sequence[Category],
    panoptic_json: str | os.PathLike,
    panoptic_root: str | os.PathLike,
    image_root: str | os.PathLike,
    instances_json: str | os.PathLike | None = None,
    source: str = "",
    prepare: Callable[[], None] = lambda: None,
) -> None:
    """The same for panoptic segments. instances_json: the same images' things, for the scores of instances."""
    metadata = panoptic_metadata(categories)
    things, classes = metadata["thing_dataset_id_to_contiguous_id"], metadata["stuff_dataset_id_to_contiguous_id"]

    def load() -> list[dict]:
        prepare()
        return load_panoptic(
            name, panoptic_json, panoptic_root, image_root, things, classes, source, _names(categories)
        )

    if name not in DatasetCatalog.list():
        DatasetCatalog.register(name, load)
        MetadataCatalog.get(name).set(
            panoptic_json=panoptic_json,
            panoptic_root=panoptic_root,
            image_root=image_root,
            json_file=instances_json,
            evaluator_type="coco_panoptic_seg",
            **metadata,
        )
