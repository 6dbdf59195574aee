"""Label Studio's JSON export: polygons, boxes, ellipses and brushes."""

from __future__ import annotations

import json
import urllib.parse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fasegr.data.image_io import BadFile
from own_formats.export import Export, Picture, Shape, ellipse, find_image, numbers, rectangle

__all__ = ["decode_brush", "find", "read"]

_KINDS = ("polygonlabels", "brushlabels", "rectanglelabels", "ellipselabels")


def find(export: Path) -> list[Path]:
    files = [export] if export.is_file() else sorted(export.rglob("*.json"))
    return [
        path
        for path in files
        if path.suffix == ".json" and (data := path.read_bytes()).lstrip()[:1] == b"[" and b'"annotations"' in data
    ]


def read(files: list[Path], folders: list[Path]) -> Export:
    export = Export()
    for file in files:
        try:
            tasks = json.loads(file.read_bytes())
        except ValueError as error:
            export.problems.append(f"{file}: is not JSON ({error}); export it again as JSON")
            continue
        for i, task in enumerate(tasks):
            try:
                export.pictures.append(_picture(task, file, folders, export))
            except (BadFile, KeyError, TypeError, AttributeError) as error:
                what = (
                    str(error) if isinstance(error, BadFile) else "is not as Label Studio's JSON (not JSON-MIN) has it"
                )
                export.problems.append(f"{file}: task {i}: {what}")
    export.classes = sorted({shape.label for picture in export.pictures for shape in picture.shapes})
    return export


def _picture(task: Any, file: Path, folders: list[Path], export: Export) -> Picture:
    reference = next((v for v in task["data"].values() if isinstance(v, str)), "")
    url = urllib.parse.urlsplit(reference)
    name = urllib.parse.unquote(urllib.parse.parse_qs(url.query).get("d", [url.path])[0])
    try:
        image = find_image([file.parent / "images", file.parent, *folders], name)
    except BadFile:
        plain = Path(name).name.partition("-")[2]  # uploads have eight characters and a dash before their name
        if not plain:
            raise
        image = find_image([file.parent / "images", file.parent, *folders], plain)
    kept = [annotation for annotation in task["annotations"] if not annotation.get("was_cancelled")]
    if len(kept) > 1:
        export.left_out["second annotations of a task"] += len(kept) - 1
    shapes, size = [], None
    for i, item in enumerate(kept[0]["result"] if kept else []):
        if item["type"] not in _KINDS:
            export.left_out[f"{item['type']} (no area)"] += 1
            continue
        size = int(item["original_height"]), int(item["original_width"])
        where = f"result[{i}] ({item['type']})"
        try:
            outline = _outline(item["type"], item["value"], size)
        except BadFile as error:
            raise BadFile(f"{where} {error}") from error
        for label in item["value"][item["type"]]:
            shapes.append(Shape(label, outline, f"task {task.get('id')}, {where}"))
    return Picture(image, file, Path(image.name).stem, shapes, size)


def _outline(kind: str, value: dict, size: tuple[int, int]) -> Any:
    """Coordinates are in percent of the image."""
    height, width = size
    if kind == "polygonlabels":
        points = [numbers(point, "point", 2) for point in value["points"]]
        return [[v for x, y in points for v in (x * width / 100, y * height / 100)]]
    if kind == "brushlabels":
        if value.get("format") != "rle" or not isinstance(value.get("rle"), list):
            raise BadFile("has no 'rle', a list of bytes")
        return partial(_brush, value["rle"])
    degrees = numbers([value.get("rotation", 0)], "rotation", 1)[0]
    x, y = (
        n / 100 * side for n, side in zip(numbers([value["x"], value["y"]], "place", 2), (width, height), strict=True)
    )
    if kind == "rectanglelabels":
        w, h = numbers([value["width"], value["height"]], "size", 2)
        return rectangle(x, y, x + w * width / 100, y + h * height / 100, degrees, about=(x, y))
    rx, ry = numbers([value["radiusX"], value["radiusY"]], "radii", 2)
    return ellipse(x, y, rx * width / 100, ry * height / 100, degrees)


def _brush(rle: list[int], size: tuple[int, int]) -> np.ndarray:
    return decode_brush(rle, size)


def decode_brush(rle: list[int], size: tuple[int, int]) -> np.ndarray:
    """The mask of a brush, bool `size`: the alpha of an RGBA image in the packing of @thi.ng/rle-pack.

    A head (32 bits: number of values; 5: bits of a value, less one; four times 4: bits of a length, less one), and
    blocks: one bit (a value repeated, or values), two bits (which of the four lengths), the length less one, values.
    """
    try:
        bits = np.unpackbits(np.array(rle, np.uint8))
    except (TypeError, ValueError, OverflowError):
        raise BadFile("has an 'rle' that is no list of bytes") from None
    position = 0

    def take(count: int) -> int:
        nonlocal position
        if position + count > len(bits):
            raise BadFile("has an 'rle' that ends early")
        value = int(bits[position : position + count] @ (1 << np.arange(count - 1, -1, -1)))
        position += count
        return value

    total = take(32)
    if total != 4 * size[0] * size[1]:
        raise BadFile(f"has an 'rle' of {total} values; an image of {size[0]} x {size[1]} has {4 * size[0] * size[1]}")
    value_bits = take(5) + 1
    lengths = [take(4) + 1 for _ in range(4)]
    values, i = np.zeros(total, np.uint8), 0
    while i < total:
        repeated = take(1)
        end = i + 1 + take(lengths[take(2)])
        if end > total:
            raise BadFile("has an 'rle' whose runs are longer than the image")
        if repeated:
            values[i:end] = take(value_bits)
        else:
            values[i:end] = [take(value_bits) for _ in range(end - i)]
        i = end
    return values.reshape(*size, 4)[..., 3] > 0
