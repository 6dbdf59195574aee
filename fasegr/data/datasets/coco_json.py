"""Datasets in COCO's two formats: instances (one JSON) and panoptic segments (a JSON and a PNG for each image).

Records are detectron2's. Of instances: "file_name", "image_id", "height", "width" and "annotations", each with "bbox",
"bbox_mode", "category_id", "iscrowd" and "segmentation" (polygons, or a run-length code). Of panoptic segments:
"pan_seg_file_name" and "segments_info", each with "id", "category_id", "isthing", "iscrowd". In both, category_id is
the class that a model predicts, counted from 0; the files have ids of their own. A crowd is a region in which objects
were not told apart: records keep it, training leaves it out, and evaluation neither asks for it nor holds it against
a prediction.
"""

import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from fasegr.d2 import DatasetCatalog, MetadataCatalog
from fasegr.data.datasets.folder import datasets_root, where_datasets_are
from fasegr.data.image_io import BadFile

__all__ = [
    "BelowRoot",
    "Category",
    "categories_from_json",
    "instance_metadata",
    "load_instances",
    "load_panoptic",
    "panoptic_metadata",
    "read_categories",
    "register_instances",
    "register_panoptic",
]

logger = logging.getLogger(__name__)

_XYWH = 1  # detectron2's BoxMode.XYWH_ABS


class Category(NamedTuple):
    """id: in the files. is_thing: of which single objects are told apart. colour: (r, g, b) of 0..255, or None."""

    id: int
    name: str
    is_thing: bool
    colour: tuple[int, int, int] | None


@dataclass(frozen=True)
class BelowRoot(os.PathLike):
    """A path below $DETECTRON2_DATASETS as that is when the path is used, and not when a dataset is registered."""

    path: str

    def __fspath__(self) -> str:
        return str(datasets_root() / Path(self.path).expanduser())

    __str__ = __fspath__


def read_categories(path: str | Path) -> list[Category]:
    """A text file of categories, one a line: id, name, `thing` or `stuff`, and the colour as three numbers."""
    categories = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            number, name, kind, colour = (part.strip() for part in line.split(","))
            red, green, blue = map(int, colour.split())
            categories.append(Category(int(number), name, kind == "thing", (red, green, blue)))
    return categories


def categories_from_json(path: str | os.PathLike) -> list[Category]:
    """The "categories" of an annotation file, or a file that is their list alone, in order of their ids.

    Each has "id" and "name", and may have "isthing" (1 where it is not stated) and "color".
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: there is no such list of categories (from {Path.cwd()}); it is a JSON file in COCO's format, "
            f"an annotation file or its 'categories' alone. {where_datasets_are()}"
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
        raise BadFile(f"{path}: has {len(categories)} categories; expected one or more, each with an id of its own")
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


def _read_json(name: str, path: str | os.PathLike, source: str) -> dict:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"dataset {name}: no file {path} (from {Path.cwd()}). {source}{where_datasets_are()}")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:  # also bytes that are no text
        raise BadFile(f"dataset {name}: {path} is no JSON that can be read ({error}); get the file again") from error
    if not isinstance(content, dict) or not isinstance(content.get("images"), list) or not content["images"]:
        raise BadFile(f"dataset {name}: {path} lists no images; expected COCO's format, an object with 'images'")
    for image in content["images"]:
        _require(("id", "file_name", "height", "width"), image, "an image", name, path)
    return content


def _require(keys: tuple[str, ...], item: dict, what: str, name: str, path: str | os.PathLike) -> None:
    missing = [key for key in keys if key not in item]
    if missing:
        raise BadFile(
            f"dataset {name}: {os.fspath(path)}: {what} has {', '.join(sorted(item))} and no {' or '.join(missing)}; "
            "instances and panoptic segments are in files of their own formats"
        )


def _check_images(name: str, image: str, source: str) -> None:
    """That the images are there, by the first of them: looking for each takes minutes on a network disk."""
    if not Path(image).is_file():
        raise FileNotFoundError(f"dataset {name}: no image {image} (from {Path.cwd()}). {source}{where_datasets_are()}")


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

    ids: the file's category ids, and the classes they stand for. source: where the files are to be had, a sentence and
    a space for the error where they are not there. Objects without an outline are left out, with a warning that counts
    them. Raises FileNotFoundError, or BadFile naming the file and what is wrong in it.
    """
    content = _read_json(name, json_file, source)
    by_image, shapeless = defaultdict(list), 0
    for annotation in content.get("annotations", ()):
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
    root = os.fspath(image_root)
    records = [
        {
            "file_name": os.path.join(root, image["file_name"]),
            "image_id": image["id"],
            "height": image["height"],
            "width": image["width"],
            "annotations": by_image.pop(image["id"], []),
        }
        for image in sorted(content["images"], key=lambda image: image["id"])
    ]
    _check_ids(name, json_file, records, by_image)
    _check_images(name, records[0]["file_name"], source)
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
    content = _read_json(name, panoptic_json, source)
    images = {image["id"]: image for image in content["images"]}
    root, segment_root = os.fspath(image_root), os.fspath(panoptic_root)
    records, strange = [], {}
    for annotation in content.get("annotations", ()):
        _require(("image_id", "file_name", "segments_info"), annotation, "an annotation", name, panoptic_json)
    for annotation in sorted(content.get("annotations", ()), key=lambda annotation: annotation["image_id"]):
        image = images.get(annotation["image_id"])
        if image is None:
            strange[annotation["image_id"]] = annotation
            continue
        records.append(
            {
                "file_name": os.path.join(root, image["file_name"]),
                "image_id": image["id"],
                "height": image["height"],
                "width": image["width"],
                "pan_seg_file_name": os.path.join(segment_root, annotation["file_name"]),
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
        )
    if not records:
        raise BadFile(f"dataset {name}: {os.fspath(panoptic_json)} has no segments of its images ('annotations')")
    _check_ids(name, panoptic_json, records, strange)
    _check_images(name, records[0]["file_name"], source)
    _check_images(name, records[0]["pan_seg_file_name"], source)
    return records


def _check_ids(name: str, path: str | os.PathLike, records: list[dict], strange: dict) -> None:
    repeated = [number for number, count in Counter(record["image_id"] for record in records).items() if count > 1]
    if repeated:
        raise BadFile(f"dataset {name}: {os.fspath(path)} has the image {repeated[0]} more than once")
    if strange:
        raise BadFile(
            f"dataset {name}: {os.fspath(path)} has annotations of the image {next(iter(strange))}, "
            f"which is not among its images (and of {len(strange) - 1} more such)"
        )


# registration; names that are taken are left alone


def _prepare_and_load(prepare: Callable[[], None] | None, load: Callable[[], list[dict]]) -> list[dict]:
    if prepare is not None:
        prepare()
    return load()


def register_instances(
    name: str,
    categories: Sequence[Category],
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    source: str = "",
    prepare: Callable[[], None] | None = None,
) -> None:
    """Adds a dataset of instances to the catalogs, unless the name is taken. Nothing on disk is looked at.

    prepare: called before the files are read; it may make them.
    """
    if name in DatasetCatalog.list():
        return
    metadata = instance_metadata(categories)
    ids = metadata["thing_dataset_id_to_contiguous_id"]
    load = partial(load_instances, name, json_file, image_root, ids, source)
    DatasetCatalog.register(name, partial(_prepare_and_load, prepare, load))
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="coco", **metadata)


def register_panoptic(
    name: str,
    categories: Sequence[Category],
    panoptic_json: str | os.PathLike,
    panoptic_root: str | os.PathLike,
    image_root: str | os.PathLike,
    instances_json: str | os.PathLike | None = None,
    source: str = "",
    prepare: Callable[[], None] | None = None,
) -> None:
    """The same for panoptic segments. instances_json: the same images' things, for the scores of instances."""
    if name in DatasetCatalog.list():
        return
    metadata = panoptic_metadata(categories)
    things, classes = metadata["thing_dataset_id_to_contiguous_id"], metadata["stuff_dataset_id_to_contiguous_id"]
    load = partial(load_panoptic, name, panoptic_json, panoptic_root, image_root, things, classes, source)
    DatasetCatalog.register(name, partial(_prepare_and_load, prepare, load))
    MetadataCatalog.get(name).set(
        panoptic_json=panoptic_json,
        panoptic_root=panoptic_root,
        image_root=image_root,
        json_file=instances_json,
        evaluator_type="coco_panoptic_seg",
        **metadata,
    )
