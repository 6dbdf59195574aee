"""Predictions on disk: label PNGs, and the run-length codes of COCO's format of results."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor


def label_file_names(image_files: Iterable[str]) -> dict[str, str]:
    """Names for the label PNGs of a dataset, a different one for each image.

    A name is the image's path below the folder that all of them share, with the extension .png; images of one folder
    that differ only in their extension keep it (a.jpg.png).

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
    """Names of the PNGs for a benchmark's server: those of the images, all in one folder.

    Returns {image file: name}. Raises ValueError where images in different folders have the same name.
    """
    names = {file: f"{Path(file).stem}.png" for file in image_files}
    twice = [name for name, uses in Counter(names.values()).items() if uses > 1]
    if twice:
        raise ValueError(f"several images are named {twice[0]}, and a submission is one folder; rename them")
    return names


def write_label_png(labels: np.ndarray, path: str | os.PathLike, num_classes: int) -> None:
    """Write (H, W) class indices as a grey PNG of 8 bits a pixel, or 16 with more than 255 classes.

    With 8 bits, 255 is not used for a class: readers take it for "ignored".
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(labels, np.uint8 if num_classes <= 255 else np.uint16)).save(path)


def encode_masks(masks: Tensor) -> list[dict]:
    """COCO's compressed run-length codes of masks (N, H, W) bool: N of {"size": [H, W], "counts": str}."""
    # COCO's runs go down the columns of an (H, W, N) array in Fortran order: one of (N, W, H) in C order, transposed.
    columns = masks.transpose(1, 2).contiguous().cpu().numpy().view(np.uint8).T
    return [code | {"counts": code["counts"].decode("ascii")} for code in coco_mask.encode(columns)]
