"""The PNGs of COCO's panoptic format, whose colours are the ids of segments."""

from pathlib import Path

import numpy as np
from PIL import Image

from fasegr.data.image_io import BadFile, decode, open_file

__all__ = ["class_map", "read_segment_ids", "write_segment_ids"]


def read_segment_ids(path: str | Path) -> np.ndarray:
    """The segment of each pixel, int32 (H, W): R + 256 G + 65536 B, 0 for none.

    Raises FileNotFoundError, or BadFile if it is not an RGB image.
    """
    with open_file(path) as image:
        if image.mode != "RGB":
            raise BadFile(
                f"{path}: is an image of mode {image.mode}; a PNG of segments is RGB, "
                "with red + 256 green + 65536 blue the number of the segment"
            )
        red, green, blue = (np.asarray(channel, dtype=np.int32) for channel in decode(image, path).split())
    return red + 256 * green + 65536 * blue


def class_map(ids: np.ndarray, segments_info: list[dict], ignore_label: int = 255) -> np.ndarray:
    """The class of each pixel, (H, W), or `ignore_label`: a panoptic image as a label map.

    ids: (H, W) integers from 0. segments_info: of the record; crowds have a class too. Returns uint8 if 8 bits hold all
    values, else uint16.
    """
    numbers = np.array([segment["id"] for segment in segments_info], np.int64)
    classes = np.array([segment["category_id"] for segment in segments_info], np.int64)
    size = max(ids.max(initial=0), numbers.max(initial=0)) + 1  # at most 256^3
    dtype = np.uint8 if max(classes.max(initial=0), ignore_label) < 256 else np.uint16
    class_of_id = np.full(size, ignore_label, dtype)
    class_of_id[numbers] = classes
    return class_of_id[ids]


def write_segment_ids(path: str | Path, ids: np.ndarray) -> None:
    """Writes `ids`, integers (H, W) of 0..16777215, as `read_segment_ids` reads them."""
    ids = np.asarray(ids)
    if ids.min(initial=0) < 0 or ids.max(initial=0) >= 256**3:
        raise ValueError(f"segment ids are {ids.min()}..{ids.max()}; three bytes hold 0..{256**3 - 1}")
    Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)).save(path)
