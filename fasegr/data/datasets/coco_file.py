"""COCO's JSON files, every entry checked when it is read: training and evaluation meet no bad one.

Errors name the dataset, the file and the entry.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from fasegr.data.datasets.root import where_datasets_are
from fasegr.data.image_io import BadFile
from fasegr.data.instance_masks import usable_segmentation

__all__ = [
    "CocoFile",
    "check_exists",
    "check_same_categories",
    "files_inside",
    "read_instances",
    "read_json",
    "read_segments",
    "shown",
]

_PIXELS = 2**31 - 1  # pycocotools counts them in 32 bits
_SEGMENTS = 256**3  # numbers that three bytes hold


class CocoFile(NamedTuple):
    """images: the entries by id, in order of ids. annotations: None if the file has none, as for test images.
    names: of its categories by id, as far as it states them."""

    images: dict[int | str, dict]
    annotations: list[dict] | None
    names: dict[int, str]


def shown(value: Any) -> str:
    """A value of a file, for a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def read_json(path: str | os.PathLike) -> Any:
    """Raises BadFile, without a name."""
    try:
        return json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:  # also bytes that are no text
        raise BadFile(f"is not valid JSON ({error}); get the file again") from error


def check_exists(name: str, what: str, path: str | os.PathLike, source: str) -> None:
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"dataset {name}: no {what} {os.fspath(path)} (from {Path.cwd()}). {source}{where_datasets_are()}"
        )


def read_instances(name: str, path: str | os.PathLike, categories: Collection[int], source: str = "") -> CocoFile:
    """The images and objects of a file. categories: the ids that objects may have.

    The segmentation of an object is what `window_mask` takes, or None where it encloses nothing; its iscrowd 0 or 1,
    and its area, if it has one, a number. Raises FileNotFoundError, or BadFile for the first bad entry, or if no object
    has an outline.
    """

    def check(annotation: dict, images: dict) -> dict:
        _require(("image_id", "category_id"), annotation)
        segmentation = None
        if annotation["image_id"] in images:
            image = images[annotation["image_id"]]
            segmentation = usable_segmentation(annotation.get("segmentation"), (image["height"], image["width"]))
        area = annotation.get("area", 0)
        if type(area) not in (int, float) or not 0 <= area < math.inf:
            raise BadFile(f"has the area {shown(area)}; expected a number of pixels, or none")
        return {**annotation, **_class_and_crowd(annotation, categories), "segmentation": segmentation}

    file = _read(name, path, source, check)
    if file.annotations and all(annotation["segmentation"] is None for annotation in file.annotations):
        raise BadFile(
            f"dataset {name}: {os.fspath(path)}: none of its {len(file.annotations)} objects has an outline; boxes are "
            "not enough, an object needs polygons or a run-length code as its 'segmentation'"
        )
    return file


def read_segments(name: str, path: str | os.PathLike, categories: Collection[int], source: str = "") -> CocoFile:
    """The images and panoptic segments of a file, one annotation for each image. Raises as `read_instances`."""

    def check(annotation: dict, images: dict) -> dict:
        _require(("image_id", "file_name", "segments_info"), annotation)
        segments, numbers = [], set()
        for segment in _list_of_dicts(annotation["segments_info"], "segments_info"):
            number = _whole(segment.get("id"))
            if number is None or not 0 < number < _SEGMENTS or number in numbers:
                raise BadFile(
                    f"has a segment with the id {shown(segment.get('id'))}; expected different integers of "
                    f"1..{_SEGMENTS - 1}"
                )
            numbers.add(number)
            segments.append({**segment, "id": number, **_class_and_crowd(segment, categories)})
        return {**annotation, "segments_info": segments}

    return _read(name, path, source, check)


def _read(name: str, path: str | os.PathLike, source: str, check: Callable[[dict, dict], dict]) -> CocoFile:
    check_exists(name, "file", path, source)
    entry = ""
    try:
        content = read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("images"), list) or not content["images"]:
            raise BadFile("lists no images; expected COCO's format, an object with 'images'")
        images = {}
        for i, image in enumerate(_list_of_dicts(content["images"], "images")):
            entry = f"images[{i}] "
            image = _image(image)
            if image["id"] in images:
                raise BadFile(f"has the id {shown(image['id'])} of an image before it; ids must be different")
            images[image["id"]] = image
        if len({type(number) for number in images}) > 1:
            raise BadFile("has ids of images that are numbers and some that are text; expected one kind")
        entry, annotations = "", None
        if "annotations" in content:
            annotations = _list_of_dicts(content["annotations"], "annotations")
            for i, annotation in enumerate(annotations):
                entry = f"annotations[{i}] (id {shown(annotation.get('id'))}) "
                if type(annotation.get("image_id", 0)) not in (int, str):
                    raise BadFile(f"has the image_id {shown(annotation['image_id'])}; expected the id of an image")
                annotations[i] = check(annotation, images)
            entry = ""
            unknown = [a["image_id"] for a in annotations if a["image_id"] not in images]
            if unknown:
                raise BadFile(
                    f"has annotations of the image {shown(unknown[0])}, which is not among its images (and of "
                    f"{len(unknown) - 1} more)"
                )
    except BadFile as error:
        raise BadFile(f"dataset {name}: {os.fspath(path)}: {entry}{error}") from error
    stated = content.get("categories")
    names = {
        entry["id"]: entry["name"]
        for entry in (stated if isinstance(stated, list) else ())
        if isinstance(entry, dict) and type(entry.get("id")) is int and isinstance(entry.get("name"), str)
    }
    return CocoFile({number: images[number] for number in sorted(images)}, annotations, names)


def check_same_categories(name: str, path: str | os.PathLike, stated: dict[int, str], expected: dict[int, str]) -> None:
    """Raises BadFile where a file calls a category otherwise than the dataset does, as files of splits that were
    exported one by one may."""
    different = [number for number in stated if number in expected and stated[number] != expected[number]]
    if different:
        raise BadFile(
            f"dataset {name}: {os.fspath(path)}: {len(different)} categories have other names than in the list of the "
            f"dataset (DATASETS.COCO.CATEGORIES, or the first split's file), the id {different[0]} first; all files "
            "must have the same ids for the same names: export them together"
        )


def _list_of_dicts(value: Any, what: str) -> list[dict]:
    if not isinstance(value, list):
        raise BadFile(f"has {what!r} that are {shown(value)}; expected a list")
    for item in value:
        if not isinstance(item, dict):
            raise BadFile(f"has {shown(item)} among {what!r}; expected objects of names and values")
    return value


def _require(keys: Iterable[str], entry: dict) -> None:
    missing = [key for key in keys if key not in entry]
    if missing:
        raise BadFile(
            f"has {shown(sorted(entry))} and no {' or '.join(missing)}; "
            "instances and panoptic segments are in files of their own formats"
        )


def _whole(value: Any) -> int | None:
    """The integer that a number of JSON is, if it is one; some programs write 3.0."""
    return int(value) if type(value) is int or (type(value) is float and value.is_integer()) else None


def _image(image: dict) -> dict:
    _require(("id", "file_name", "height", "width"), image)
    if type(image["id"]) not in (int, str):
        raise BadFile(f"has the id {shown(image['id'])}; expected an integer or text")
    size = [_whole(image[side]) for side in ("height", "width")]
    if None in size or min(size) < 1 or size[0] * size[1] > _PIXELS:
        raise BadFile(
            f"has the height {shown(image['height'])} and the width {shown(image['width'])}; expected numbers of pixels"
        )
    return {**image, "height": size[0], "width": size[1]}


def _class_and_crowd(entry: dict, categories: Collection[int]) -> dict[str, int]:
    category, crowd = _whole(entry.get("category_id")), entry.get("iscrowd", 0)
    if category is None or category not in categories:
        raise BadFile(
            f"has the category_id {shown(entry.get('category_id'))}, which is none of the {len(categories)} categories "
            "of the dataset"
        )
    if type(crowd) not in (int, float, bool) or crowd not in (0, 1):
        raise BadFile(f"has the iscrowd {shown(crowd)}; expected 0 or 1")
    return {"category_id": category, "iscrowd": int(crowd)}


def files_inside(name: str, path: str | os.PathLike, folder: str | os.PathLike, names: Collection[Any]) -> list[str]:
    """FOLDER/NAME for each of the files that the JSON file at `path` names.

    Raises BadFile for one that lies elsewhere, by its name or through a link: a file from strangers is not to say what
    is read of this machine. The folder itself may be a link. Links are found by listing the folders, since to look for
    each file takes minutes on a network disk.
    """
    root, real = os.path.abspath(folder), os.path.realpath(folder)
    roots = os.path.join(root, ""), os.path.join(real, "")
    links: dict[str, set[str]] = {}  # by folder
    for file_name in names:
        try:
            file = os.path.normpath(os.path.join(root, file_name))
            # where the system goes after LINK/.. is not where the text leads
            inside = file.startswith(roots) and ".." not in file_name.split("/") and b"\0" not in os.fsencode(file)
        except (TypeError, ValueError, AttributeError):  # no text, or none that a file can be called
            inside = False
        if inside:
            parent, last = os.path.split(file)
            if parent not in links:
                links[parent] = _links(parent) if _below(parent, real) else {last}
            inside = last not in links[parent] or _below(file, real)
        if not inside:
            raise BadFile(
                f"dataset {name}: {os.fspath(path)} names the file {shown(file_name)}, which is not in the folder "
                f"{os.fspath(folder)}, or is a link that leaves it; names are relative to that folder. Put the file "
                "there, or set the folder (DATASETS.COCO.IMAGES or SEGMENTS) to one that has all of them"
            )
    return [os.path.join(os.fspath(folder), file_name) for file_name in names]


def _below(path: str, real: str) -> bool:
    return os.path.join(os.path.realpath(path), "").startswith(os.path.join(real, ""))


def _links(folder: str) -> set[str]:
    """The names of the links in a folder, if it is there."""
    if not os.path.isdir(folder):
        return set()
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if entry.is_symlink()}
