"""Segments of an image as COCO's panoptic format keeps them: a PNG whose colours are numbers."""

from pathlib import Path

import numpy as np
from PIL import Image

from fasegr.data.image_io import BadFile

__all__ = ["class_map", "read_segment_ids", "write_segment_ids"]


def read_segment_ids(path: str | Path) -> np.ndarray:
    """The segment of each pixel, int32 (H, W): R + 256 G + 65536 B, 0 where there is none.

    Raises FileNotFoundError, or BadFile for what is no RGB image.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: there is no such file; expected a PNG of segments (panoptic format)")
    try:
        with Image.open(path) as image:
            if image.mode != "RGB":
                raise BadFile(
                    f"{path}: is an image of mode {image.mode}; a PNG of segments is RGB, "
                    "with red + 256 green + 65536 blue the number of the segment"
                )
            red, green, blue = (np.asarray(channel, dtype=np.int32) for channel in image.split())
    except BadFile:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadFile(f"{path}: cannot be read as a PNG of segments ({error}); restore the file") from error
    return red + 256 * green + 65536 * blue


def class_map(ids: np.ndarray, segments_info: list[dict], ignore_label: int = 255) -> np.ndarray:
    """The class of each pixel, (H, W), `ignore_label` where there is none: a panoptic image as a label map.

    ids: (H, W). segments_info: of the record; crowds have a class too. uint8 where 8 bits hold all values.
    """
    highest = max((segment["category_id"] for segment in segments_info), default=0)
    labels = np.full(ids.shape, ignore_label, np.uint8 if max(highest, ignore_label) < 256 else np.uint16)
    for segment in segments_info:
        labels[ids == segment["id"]] = segment["category_id"]
    return labels


def write_segment_ids(path: str | Path, ids: np.ndarray) -> None:
    """Writes `ids`, integers (H, W) of 0..16777215, as `read_segment_ids` reads them."""
    ids = np.asarray(ids)
    if ids.min(initial=0) < 0 or ids.max(initial=0) >= 256**3:
        raise ValueError(f"segments are numbered {ids.min()}..{ids.max()}; three bytes hold 0..{256**3 - 1}")
    Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)).save(path)
