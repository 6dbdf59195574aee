"""What all formats are read into, and how it becomes a label map."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fasegr.data.image_io import BadFile
from fasegr.data.instance_masks import usable_segmentation, window_mask
from fasegr.data.transform import Box

__all__ = ["Export", "Picture", "Shape", "ellipse", "find_image", "numbers", "rectangle"]

ACCEPTED = "polygons of three or more corners, boxes, ellipses and masks"


@dataclass
class Shape:
    """One object. outline: polygons or a run-length code in COCO's form, or a function of the image's size (height,
    width) that returns its mask. where: what an error calls it. front: objects with more are in front."""

    label: str
    outline: list | dict | Callable[[tuple[int, int]], np.ndarray]
    where: str
    front: float = 0

    def mask(self, size: tuple[int, int]) -> np.ndarray:
        """(height, width) bool. Raises BadFile without the name of a file."""
        if callable(self.outline):
            return self.outline(size)
        outline = usable_segmentation(self.outline, size)
        if outline is None:
            raise BadFile(f"encloses nothing; accepted are {ACCEPTED}")
        return window_mask(outline, size, size, Box(0, 0, *size))


@dataclass
class Picture:
    """An image and its objects, or `labels`, a function that returns its label map. source: the file that says so.

    name: path of the output without extension. size: (height, width) that the export states, or None.
    """

    image: Path
    source: Path
    name: str
    shapes: list[Shape] = field(default_factory=list)
    size: tuple[int, int] | None = None
    split: str = ""
    labels: Callable[[Sequence[str]], np.ndarray] | None = None

    def label_map(self, classes: Sequence[str], nothing: int, size: tuple[int, int]) -> np.ndarray:
        """uint8 or uint16 (height, width): `nothing` where there is no object; of overlapping objects the tool's order
        (CVAT's z_order), else the smaller one in front."""
        if self.labels is not None:
            return self.labels(classes)
        painted = np.full(size, nothing, np.uint8 if len(classes) <= 255 else np.uint16)
        layers = []
        for shape in self.shapes:
            try:
                mask = shape.mask(size)
            except BadFile as error:
                raise BadFile(f"{self.source}: {shape.where}: {error}") from error
            layers.append((shape.front, -int(mask.sum()), np.packbits(mask), classes.index(shape.label)))
        for _, _, packed, label in sorted(layers, key=lambda layer: layer[:2]):
            mask = np.unpackbits(packed, count=size[0] * size[1]).reshape(size).astype(bool)
            painted[mask] = label
        return painted


@dataclass
class Export:
    """classes: in the export's order, empty if it has none. problems: one line for each bad file. left_out: what cannot
    be segmented, counted."""

    pictures: list[Picture] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    left_out: Counter = field(default_factory=Counter)


def numbers(value: Any, what: str, count: int | None = None) -> list[float]:
    """Finite numbers of a list, or of texts that hold them. Raises BadFile without a name."""
    try:
        found = [float(item) for item in value]
    except (TypeError, ValueError):
        found = [np.nan]
    if not np.isfinite(found).all() or (count is not None and len(found) != count):
        raise BadFile(f"has the {what} {str(value)[:60]}; expected {'' if count is None else f'{count} '}numbers")
    return found


def _turned(points: np.ndarray, centre: tuple[float, float], degrees: float) -> list[list[float]]:
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return [((points - centre) @ turn + centre).ravel().tolist()]


def rectangle(
    left: float, top: float, right: float, bottom: float, degrees: float = 0, about: tuple[float, float] | None = None
) -> list[list[float]]:
    """A polygon; degrees: clockwise, about its centre or the point `about`."""
    points = np.array([[left, top], [right, top], [right, bottom], [left, bottom]], float)
    return _turned(points, about or ((left + right) / 2, (top + bottom) / 2), degrees)


def ellipse(x: float, y: float, radius_x: float, radius_y: float, degrees: float = 0) -> list[list[float]]:
    """A polygon of 64 corners."""
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    return _turned(np.stack([x + radius_x * np.cos(t), y + radius_y * np.sin(t)], 1), (x, y), degrees)


def find_image(folders: Sequence[Path], name: str) -> Path:
    """The file `name`, with its folders or without, in one of `folders`. Raises BadFile."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    for folder in folders:
        for candidate in (folder.joinpath(*parts), folder / parts[-1]) if parts else ():
            if candidate.is_file():
                return candidate
    raise BadFile(f"names the image {name[:100]}, which is not in {', '.join(map(str, folders))}; --images says where")
