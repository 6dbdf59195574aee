"""LabelMe: a JSON for each image."""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from fasegr.data.image_io import BadFile
from own_formats.export import Export, Picture, Shape, ellipse, find_image, numbers, rectangle

__all__ = ["find", "read"]


def find(export: Path) -> list[Path]:
    files = [export] if export.is_file() else sorted(export.rglob("*.json"))
    return [path for path in files if path.suffix == ".json" and b'"shapes"' in path.read_bytes()]


def read(files: list[Path], folders: list[Path]) -> Export:
    export, root = Export(), files[0].parent if len(files) == 1 else Path(_common(files))
    for file in files:
        try:
            content = json.loads(file.read_bytes())
            if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
                raise BadFile("is not of LabelMe; expected an object with 'shapes' and 'imagePath'")
            image = find_image([file.parent, *folders], str(content.get("imagePath") or file.with_suffix(".jpg").name))
            shapes = [
                shape for i, item in enumerate(content["shapes"]) if (shape := _shape(item, i, export)) is not None
            ]
            size = None
            if content.get("imageHeight") and content.get("imageWidth"):
                size = tuple(int(n) for n in numbers([content["imageHeight"], content["imageWidth"]], "size", 2))
        except (BadFile, ValueError) as error:
            export.problems.append(f"{file}: {error}")
            continue
        name = file.relative_to(root).with_suffix("").as_posix()
        export.pictures.append(Picture(image, file, name, shapes, size))
    export.classes = sorted({shape.label for picture in export.pictures for shape in picture.shapes})
    return export


def _common(files: list[Path]) -> Path:
    shared = files[0].parent
    while not all(shared in file.parents for file in files):
        shared = shared.parent
    return shared


def _shape(item: Any, index: int, export: Export) -> Shape | None:
    where = f"shapes[{index}]"
    if not isinstance(item, dict) or not isinstance(item.get("label"), str) or not isinstance(item.get("points"), list):
        raise BadFile(f"{where} has no 'label', text, and 'points', a list")
    kind = item.get("shape_type") or "polygon"
    where += f" ({item['label']}, {kind})"
    try:
        points = [numbers(point, "point", 2) for point in item["points"]]
        if kind in ("rectangle", "circle", "mask") and len(points) != 2:
            raise BadFile(f"has {len(points)} points; expected 2")
        if kind == "polygon":
            outline = [[v for point in points for v in point]]
        elif kind == "rectangle":
            outline = rectangle(*points[0], *points[1])
        elif kind == "circle":
            radius = math.dist(*points)
            outline = ellipse(*points[0], radius, radius)
        elif kind == "mask":
            try:
                with Image.open(io.BytesIO(base64.b64decode(item.get("mask") or "")), formats=["PNG"]) as image:
                    outline = partial(_mask, np.array(image) > 0, round(points[0][0]), round(points[0][1]))
            except (binascii.Error, UnidentifiedImageError, OSError, TypeError) as error:
                raise BadFile("has a mask that is no PNG in base64") from error
        else:
            export.left_out[f"{kind} (no area)"] += 1
            return None
    except BadFile as error:
        raise BadFile(f"{where} {error}") from error
    return Shape(item["label"], outline, where)


def _mask(values: np.ndarray, left: int, top: int, size: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size, bool)
    inside = values[: max(size[0] - top, 0), : max(size[1] - left, 0)]
    if top < 0 or left < 0 or inside.shape != values.shape:
        raise BadFile("has a mask that reaches out of the image")
    mask[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return mask
