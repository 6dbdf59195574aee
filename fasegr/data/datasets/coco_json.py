"""Datasets in COCO's two formats: instances (one JSON) and panoptic segments (a JSON and a PNG for each image).

Records are detectron2's. Of instances: "file_name", "image_id", "height", "width" and "annotations", each with "bbox",
"bbox_mode", "category_id", "iscrowd" and "segmentation" (polygons, or a run-length code). Of panoptic segments:
"pan_seg_file_name" and "segments_info", each with "id", "category_id", "isthing", "iscrowd". In both, category_id is
the class that a model predicts, counted from 0; the files have other ids. A crowd is a region whose objects were not
annotated one by one: records keep it, training leaves it out, and evaluation neither expects it nor counts it against
a prediction.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fasegr.d2 import DatasetCatalog, MetadataCatalog
from fasegr.data.datasets.root import where_datasets_are
from fasegr.data.image_io import BadFile

__all__ = [
    "Category",
    "instance_metadata",
    "load_instances",
    "load_panoptic",
    "panoptic_metadata",
    "read_categories",
    "register_instances",
    "register_panoptic",
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
        content = json.loads(path.read_bytes())
        entries = content["categories"] if isinstance(content, dict) else content
        categories = [
            Category(c["id"], c["name"], bool(c.get("isthing", 1)), tuple(c["color"]) if "color" in c else None)
            for c in sorted(entries, key=lambda entry: entry["id"])
        ]
    except (ValueError, TypeError, KeyError) as error:
        raise BadFile(
            f"{path}: cannot be read as categories ({type(error).__name__}: {error}); expected a JSON list of "
            "objects with 'id' and 'name', or an object that has it as 'categories'"
        ) from error
    if not categories or len({category.id for category in categories}) < len(categories):
        raise BadFile(f"{path}: has {len(categories)} categories; expected one or more with different ids")
    return categories


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


def _check_file(name: str, what: str, path: str | os.PathLike, source: str) -> None:
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"dataset {name}: no {what} {os.fspath(path)} (from {Path.cwd()}). {source}{where_datasets_are()}"
        )


def _read_json(name: str, path: str | os.PathLike, source: str) -> tuple[list[dict], list[dict]]:
    """The "images" and "annotations" of a file."""
    _check_file(name, "file", path, source)
    try:
        content = json.loads(Path(path).read_bytes())
    except ValueError as error:  # also bytes that are no text
        raise BadFile(f"dataset {name}: {path} is not valid JSON ({error}); get the file again") from error
    if not isinstance(content, dict) or not isinstance(content.get("images"), list) or not content["images"]:
        raise BadFile(f"dataset {name}: {path} lists no images; expected COCO's format, an object with 'images'")
    for image in content["images"]:
        _require(("id", "file_name", "height", "width"), image, "an image", name, path)
    return content["images"], content.get("annotations", [])


def _require(keys: tuple[str, ...], item: dict, what: str, name: str, path: str | os.PathLike) -> None:
    missing = [key for key in keys if key not in item]
    if missing:
        raise BadFile(
            f"dataset {name}: {os.fspath(path)}: {what} has {', '.join(sorted(item))} and no {' or '.join(missing)}; "
            "instances and panoptic segments are in files of their own formats"
        )


def _class_of(annotation: dict, ids: dict[int, int], name: str, path: str | os.PathLike) -> int:
    category = annotation.get("category_id")
    if category not in ids:
        raise BadFile(
            f"dataset {name}: {os.fspath(path)}: the segment {annotation.get('id')} has the category_id {category}, "
            f"which is none of the {len(ids)} categories of the dataset"
        )
    return ids[category]


def _usable(segmentation: Any) -> Any:
    """`segmentation` without polygons of fewer than three corners; None where nothing is left."""
    if isinstance(segmentation, list):
        return [polygon for polygon in segmentation if len(polygon) >= 6 and len(polygon) % 2 == 0] or None
    return segmentation or None


def load_instances(
    name: str, json_file: str | os.PathLike, image_root: str | os.PathLike, ids: dict[int, int], source: str = ""
) -> list[dict]:
    """Records of instances, in order of the images' ids.

    ids: the file's category ids, and the classes they stand for. source: how to get the files, a sentence and a space
    for the error that says that they are missing. Objects without an outline are left out, with a warning that counts
    them. Raises FileNotFoundError, or BadFile naming the file and what is wrong in it.
    """
    images, annotations = _read_json(name, json_file, source)
    by_image, shapeless = defaultdict(list), 0
    for annotation in annotations:
        _require(("image_id", "category_id"), annotation, "an object", name, json_file)
        segmentation = _usable(annotation.get("segmentation"))
        if segmentation is None:
            shapeless += 1
            continue
        by_image[annotation["image_id"]].append(
            {
                "bbox": annotation.get("bbox"),
                "bbox_mode": _XYWH,
                "category_id": _class_of(annotation, ids, name, json_file),
                "iscrowd": int(annotation.get("iscrowd", 0)),
                "segmentation": segmentation,
            }
        )
    if shapeless:
        logger.warning("%s: %d objects of %s have no outline and are left out", name, shapeless, os.fspath(json_file))
    images = sorted(images, key=lambda image: image["id"])
    records = [{**_image_record(image, image_root), "annotations": by_image.pop(image["id"], [])} for image in images]
    _check_ids(name, json_file, records, by_image)
    # only the first image is looked for: looking for each takes minutes on a network disk
    _check_file(name, "image", records[0]["file_name"], source)
    return records


def load_panoptic(
    name: str,
    panoptic_json: str | os.PathLike,
    panoptic_root: str | os.PathLike,
    image_root: str | os.PathLike,
    things: dict[int, int],
    classes: dict[int, int],
    source: str = "",
) -> list[dict]:
    """Records of panoptic segments, in order of the images' ids; arguments and errors as of `load_instances`.

    things, classes: the file's category ids of things, and of all, and the classes they stand for.
    """
    images, annotations = _read_json(name, panoptic_json, source)
    for annotation in annotations:
        _require(("image_id", "file_name", "segments_info"), annotation, "an annotation", name, panoptic_json)
    by_id = {image["id"]: image for image in images}
    unknown = [annotation["image_id"] for annotation in annotations if annotation["image_id"] not in by_id]
    annotations = [annotation for annotation in annotations if annotation["image_id"] in by_id]
    if not annotations:
        raise BadFile(f"dataset {name}: {os.fspath(panoptic_json)} has no segments of its images ('annotations')")
    records = [
        {
            **_image_record(by_id[annotation["image_id"]], image_root),
            "pan_seg_file_name": os.path.join(os.fspath(panoptic_root), annotation["file_name"]),
            "segments_info": [
                {
                    "id": segment["id"],
                    "category_id": _class_of(segment, classes, name, panoptic_json),
                    "isthing": segment["category_id"] in things,
                    "iscrowd": int(segment.get("iscrowd", 0)),
                }
                for segment in annotation["segments_info"]
            ],
        }
        for annotation in sorted(annotations, key=lambda annotation: annotation["image_id"])
    ]
    _check_ids(name, panoptic_json, records, unknown)
    for key in ("file_name", "pan_seg_file_name"):
        _check_file(name, "image", records[0][key], source)
    return records


def _image_record(image: dict, image_root: str | os.PathLike) -> dict:
    file_name = os.path.join(os.fspath(image_root), image["file_name"])
    return {"file_name": file_name, "image_id": image["id"], "height": image["height"], "width": image["width"]}


def _check_ids(name: str, path: str | os.PathLike, records: list[dict], unknown: Iterable) -> None:
    repeated = [number for number, count in Counter(record["image_id"] for record in records).items() if count > 1]
    if repeated:
        raise BadFile(f"dataset {name}: {os.fspath(path)} has the image {repeated[0]} more than once")
    unknown = list(unknown)
    if unknown:
        raise BadFile(
            f"dataset {name}: {os.fspath(path)} has annotations of the image {unknown[0]}, "
            f"which is not among its images (and of {len(unknown) - 1} more)"
        )


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
        return load_instances(name, json_file, image_root, ids, source)

    if name not in DatasetCatalog.list():
        DatasetCatalog.register(name, load)
        MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="coco", **metadata)


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
        return load_panoptic(name, panoptic_json, panoptic_root, image_root, things, classes, source)

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
