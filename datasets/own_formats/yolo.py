"""YOLO's polygons: data.yaml, images/ and labels/ with a text file for each image."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import yaml

from fasegr.data.datasets.image_files import find_files
from fasegr.data.image_io import BadFile
from fasegr.data.instance_masks import window_mask
from fasegr.data.transform import Box
from own_formats.export import Export, Picture, Shape, numbers

__all__ = ["find", "read"]


def find(export: Path) -> list[Path]:
    files = [export] if export.is_file() else [*sorted(export.glob("*.yaml")), *sorted(export.glob("*.yml"))]
    return [path for path in files if path.suffix in (".yaml", ".yml") and b"names" in path.read_bytes()][:1]


def read(files: list[Path], folders: list[Path]) -> Export:
    (file,) = files
    export, root = Export(), file.parent
    try:
        content = yaml.safe_load(file.read_bytes())
        names = content["names"]
        names = [names[i] for i in range(len(names))]  # a list, or a mapping from 0 on
    except (yaml.YAMLError, LookupError, TypeError) as error:
        raise BadFile(f"{file}: has no 'names' of classes numbered from 0, as YOLO's data.yaml ({error})") from error
    export.classes = [str(name) for name in names]
    for label_dir in sorted({path.parent for path in root.rglob("*.txt") if "labels" in path.parts}):
        if label_dir.is_symlink():
            continue
        parts = list(label_dir.relative_to(root).parts)
        place = len(parts) - 1 - parts[::-1].index("labels")
        image_dir = root.joinpath(*parts[:place], "images", *parts[place + 1 :])
        others = [part for part in parts if part != "labels"]
        split = {"valid": "val", "validation": "val"}.get(others[0], others[0]) if others else ""
        if not image_dir.is_dir():
            export.problems.append(f"{label_dir}: has no folder {image_dir} of images")
            continue
        images = find_files(image_dir).files
        for image in images:
            path = label_dir / image.relative_to(image_dir).with_suffix(".txt")
            stem = image.relative_to(image_dir).with_suffix("").as_posix()
            try:
                shapes = _shapes(path, export) if path.is_file() else []
            except BadFile as error:
                export.problems.append(str(error))
                continue
            source = path if path.is_file() else file
            export.pictures.append(Picture(image, source, stem, shapes, split=split))
    return export


def _shapes(path: Path, export: Export) -> list[Shape]:
    shapes = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        values = line.split()
        if not values:
            continue
        try:
            label, *points = numbers(values, "line")
        except BadFile as error:
            raise BadFile(f"{path}, line {number}: {error}") from error
        if label != int(label) or not 0 <= label < len(export.classes):
            raise BadFile(
                f"{path}, line {number}: has the class {values[0]}; data.yaml has 0..{len(export.classes) - 1}"
            )
        if len(points) == 4:
            export.left_out["box without outline"] += 1
            continue
        if len(points) < 6 or len(points) % 2 or not all(-0.1 <= v <= 1.1 for v in points):
            raise BadFile(
                f"{path}, line {number}: has {len(points)} numbers after the class, {min(points, default=0):g} to "
                f"{max(points, default=0):g}; expected x y of three or more corners, as shares of 0..1"
            )
        shapes.append(Shape(export.classes[int(label)], partial(_mask, points), f"line {number}"))
    return shapes


def _mask(points: list[float], size: tuple[int, int]) -> np.ndarray:
    corners = (np.reshape(points, (-1, 2)) * (size[1], size[0])).ravel().tolist()
    return window_mask([corners], size, size, Box(0, 0, *size))
