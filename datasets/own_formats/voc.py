"""Pascal VOC's segmentation: JPEGImages, SegmentationClass, ImageSets/Segmentation and, from tools, labelmap.txt."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from fasegr.data.datasets.image_files import IMAGE_SUFFIXES
from fasegr.data.datasets.label_map import LabelMap, make_label_map
from fasegr.data.image_io import BadFile, check_label_values, read_label
from own_formats.export import Export, Picture, find_image

__all__ = ["find", "read"]

_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_VOID = (224, 224, 192)


def find(export: Path) -> list[Path]:
    if export.is_file():
        return []
    return [folder for folder in (export, *sorted(export.iterdir())) if (folder / "SegmentationClass").is_dir()]


def read(files: list[Path], folders: list[Path]) -> Export:
    export = Export()
    for root in files:
        label_map, classes = _label_map(root, export)
        export.classes = export.classes or classes
        splits = {
            line.split()[0]: path.stem
            for path in sorted((root / "ImageSets" / "Segmentation").glob("*.txt"))
            if path.stem not in ("trainval", "default")
            for line in path.read_text().splitlines()
            if line.strip()
        }
        for path in sorted((root / "SegmentationClass").rglob("*.png")):
            stem = path.relative_to(root / "SegmentationClass").with_suffix("").as_posix()
            try:
                image = _image([root / "JPEGImages", *folders], stem)
            except BadFile as error:
                export.problems.append(f"{path}: {error}")
                continue
            picture = Picture(image, path, stem, split=splits.get(stem, ""))
            picture.labels = partial(_labels, path, label_map)
            export.pictures.append(picture)
    if any(picture.split for picture in export.pictures):
        unlisted = [picture for picture in export.pictures if not picture.split]
        export.left_out["images in no list of ImageSets/Segmentation"] += len(unlisted)
        export.pictures = [picture for picture in export.pictures if picture.split]
    return export


def _image(folders: list[Path], stem: str) -> Path:
    for suffix in IMAGE_SUFFIXES:
        for name in (stem + suffix, stem + suffix.upper()):
            try:
                return find_image(folders, name)
            except BadFile:
                continue
    raise BadFile(f"has no image {stem} in {', '.join(map(str, folders))}; --images says where")


def _label_map(root: Path, export: Export) -> tuple[LabelMap | None, list[str]]:
    """By the colours of labelmap.txt (name:R,G,B:parts:actions), else None for VOC's own numbers."""
    path = root / "labelmap.txt"
    if not path.is_file():
        return None, list(_CLASSES)
    names, colours = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            name, colour = line.split(":")[:2]
            levels = tuple(int(level) for level in colour.split(","))
            if len(levels) != 3 or not all(0 <= level < 256 for level in levels):
                raise ValueError
        except ValueError:
            raise BadFile(f"{path}, line {number}: expected name:R,G,B:parts:actions") from None
        names.append(name)
        colours.append(levels)
    pairs = [[list(colour), i] for i, colour in enumerate(colours)]
    if _VOID not in colours:
        pairs.append([list(_VOID), 255])
    return make_label_map(pairs, names, colours, 255), names


def _labels(path: Path, label_map: LabelMap | None, classes: Sequence[str]) -> np.ndarray:
    if label_map is not None:
        return label_map.read(path)
    labels = read_label(path)
    check_label_values(labels, len(classes), 255, path)
    return labels
