"""Predictions on disk: label PNGs and the run lengths of COCO's result format."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco


def label_file_names(image_files: Iterable[str]) -> dict[str, str]:
    """Names for the label PNGs of a dataset, a different one for each image.

    A name is the image's path below the folder that all of them share, with .png for its extension; where images in one
    folder differ in nothing but the extension (a.jpg, a.png), theirs stays (a.jpg.png).

    image_files: paths, all absolute or all relative. Returns {image file: relative path of the PNG}.
    """
    files = list(dict.fromkeys(image_files))
    if not files:
        return {}
    root = os.path.commonpath([os.path.dirname(file) for file in files])
    relative = {file: os.path.relpath(file, root or os.curdir) for file in files}
    uses = Counter(os.path.splitext(path)[0] for path in relative.values())
    names = {}
    for file, path in relative.items():
        stem = os.path.splitext(path)[0]
        names[file] = f"{stem if uses[stem] == 1 else path}.png"
    return names


def submission_file_names(image_files: Iterable[str]) -> dict[str, str]:
    """Names of the PNGs that a benchmark's server is sent: the images' own, all in one folder.

    Returns {image file: name}. Raises ValueError where two images in different folders have one name.
    """
    names = {file: f"{Path(file).stem}.png" for file in image_files}
    twice = [name for name, uses in Counter(names.values()).items() if uses > 1]
    if twice:
        raise ValueError(f"several images are named {twice[0]}, and a submission is one folder; rename them")
    return names


def write_label_png(labels: np.ndarray, path: str | os.PathLike, num_classes: int) -> None:
    """Write (H, W) class indices as a grey PNG of 8 bits a pixel, or 16 with more than 255 classes.

    Of 8 bits, 255 is kept free: readers take it for "ignored".
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(labels, np.uint8 if num_classes <= 255 else np.uint16)).save(path)


def run_lengths(labels: np.ndarray) -> dict[int, dict]:
    """COCO's compressed run-length code of every class in a label map, in one pass over the map.

    labels: (H, W) integers. Returns {label: {"size": [H, W], "counts": str}}, labels rising.
    """
    size = [int(side) for side in labels.shape]
    columns = labels.T.ravel()  # COCO runs down the columns
    starts = np.concatenate([[0], np.flatnonzero(columns[1:] != columns[:-1]) + 1])
    ends = np.append(starts[1:], columns.size)
    order = np.argsort(columns[starts], kind="stable")  # runs by label, and in their place within a label
    present, first = np.unique(columns[starts][order], return_index=True)
    codes = {}
    for label, runs in zip(present, np.split(order, first[1:]), strict=True):
        # Lengths of zeros and ones in turn, beginning with zeros: the differences of the places where the mask turns.
        turns = np.stack([starts[runs], ends[runs]], 1).ravel()
        counts = np.diff(turns, prepend=0).tolist()
        if ends[runs[-1]] < columns.size:
            counts.append(int(columns.size - ends[runs[-1]]))
        code = coco.frPyObjects({"size": size, "counts": counts}, *size)
        codes[int(label)] = {"size": size, "counts": code["counts"].decode("ascii")}
    return codes


def write_json(content: object, path: str | os.PathLike) -> None:
    """Write JSON so that a reader finds the old file or the whole new one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(content, file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
