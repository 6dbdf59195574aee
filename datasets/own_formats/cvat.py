"""CVAT's export "CVAT for images 1.1": annotations.xml, and images/ beside it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from functools import partial
from pathlib import Path

import numpy as np

from fasegr.data.image_io import BadFile
from own_formats.export import Export, Picture, Shape, ellipse, find_image, numbers, rectangle

__all__ = ["find", "read"]


def find(export: Path) -> list[Path]:
    """Annotation files of this format."""
    files = [export] if export.is_file() else sorted(export.rglob("*.xml"))
    return [path for path in files if path.suffix == ".xml" and b"<annotations" in path.read_bytes()[:2000]]


def read(files: list[Path], folders: list[Path]) -> Export:
    """folders: where images may be."""
    export = Export()
    for file in files:
        try:
            root = ET.parse(file).getroot()
        except ET.ParseError as error:
            export.problems.append(f"{file}: is not XML ({error}); export it again as CVAT for images 1.1")
            continue
        if root.find("track") is not None:
            export.problems.append(f"{file}: has tracks; export it as CVAT for images 1.1, not for video")
            continue
        for label in root.iterfind("meta//label/name"):
            if label.text and label.text not in export.classes:
                export.classes.append(label.text)
        for image in root.iterfind("image"):
            name = image.get("name", "")
            try:
                size = tuple(int(n) for n in numbers([image.get("height"), image.get("width")], "size", 2))
                shapes = [
                    shape for i, element in enumerate(image) if (shape := _shape(element, i, name, export)) is not None
                ]
                subset = image.get("subset", "").lower()
                path = find_image([file.parent / "images", file.parent, *folders], name)
            except BadFile as error:
                export.problems.append(f"{file}: image {name}: {error}")
                continue
            stem = Path(name).with_suffix("").as_posix()
            export.pictures.append(Picture(path, file, stem, shapes, size, "" if subset == "default" else subset))
    return export


def _shape(element: ET.Element, index: int, image: str, export: Export) -> Shape | None:
    kind, get = element.tag, element.get
    where = f"image {image}: {kind} {index} ({get('label')})"
    try:
        front = numbers([get("z_order", 0)], "z_order", 1)[0]
        degrees = numbers([get("rotation", 0)], "rotation", 1)[0]
        if kind == "polygon":
            points = [numbers(point.split(","), "point", 2) for point in get("points", "").split(";") if point]
            outline = [[v for point in points for v in point]]
        elif kind == "box":
            outline = rectangle(*numbers([get(k) for k in ("xtl", "ytl", "xbr", "ybr")], "corners", 4), degrees)
        elif kind == "ellipse":
            outline = ellipse(*numbers([get(k) for k in ("cx", "cy", "rx", "ry")], "ellipse", 4), degrees)
        elif kind == "mask":
            box = [int(n) for n in numbers([get(k) for k in ("left", "top", "width", "height")], "box", 4)]
            runs = [int(n) for n in numbers(get("rle", "").split(","), "rle")]
            if min(runs, default=0) < 0 or sum(runs) != box[2] * box[3]:
                raise BadFile(f"has runs of {sum(runs)} pixels for a mask of {box[2]} x {box[3]}")
            outline = partial(_mask, runs, box)
        else:
            export.left_out[f"{kind} (no area)"] += 1
            return None
    except BadFile as error:
        raise BadFile(f"{kind} {index} ({get('label')}) {error}") from error
    return Shape(get("label", ""), outline, where, front)


def _mask(runs: list[int], box: list[int], size: tuple[int, int]) -> np.ndarray:
    left, top, width, height = box
    values = np.repeat(np.arange(len(runs)) % 2, runs).reshape(height, width).astype(bool)
    mask = np.zeros(size, bool)
    y, x = max(top, 0), max(left, 0)
    inside = values[y - top : max(size[0] - top, 0), x - left : max(size[1] - left, 0)]
    mask[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    return mask
