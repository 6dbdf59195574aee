"""From records whose segments are listed one by one, several of a class, to training samples."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from fasegr.data.image_cache import DecodedCache
from fasegr.data.image_io import BadFile, check_label_size
from fasegr.data.instance_masks import window_mask
from fasegr.data.panoptic_png import class_map, read_segment_ids
from fasegr.data.sample_transform import Labels, View
from fasegr.data.source_image import read_photograph

__all__ = ["InstanceSegments", "PanopticSegments", "SegmentMapper"]


class DrawsViews(Protocol):
    def draw(self, rng: np.random.Generator, size: tuple[int, int], labels: Labels) -> View: ...


class Segments(Protocol):
    """What is known about the segments of one image."""

    classes: list[int]

    def class_map(self) -> np.ndarray:
        """The class of each pixel, (H, W)."""

    def masks(self, view: View) -> np.ndarray:
        """What `view` shows of each segment: bool (len(classes), *view.padded)."""


class InstanceSegments:
    """Objects of a record of instances, crowds left out."""

    def __init__(self, record: dict, size: tuple[int, int], cache: DecodedCache | None):
        if "annotations" not in record:
            raise BadFile(f"{record['file_name']}: its record has no 'annotations'; training needs the objects")
        objects = [o for o in record["annotations"] if not o.get("iscrowd", 0)]
        self.classes = [o["category_id"] for o in objects]
        self._outlines = [o["segmentation"] for o in objects]
        self._file_name, self._size = record["file_name"], size

    def class_map(self) -> np.ndarray:
        raise ValueError(
            "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA is below 1, and objects do not give every pixel a class; set it to 1"
        )

    def masks(self, view: View) -> np.ndarray:
        masks = np.zeros((len(self._outlines), *view.padded), dtype=bool)
        try:
            for mask, outline in zip(masks, self._outlines, strict=True):
                mask[:] = view.place(window_mask(outline, self._size, view.size, view.box), 0)
        except BadFile as error:
            raise BadFile(f"{self._file_name}: {error}") from error
        return masks


class PanopticSegments:
    """Segments of a panoptic record, crowds left out."""

    def __init__(self, record: dict, size: tuple[int, int], cache: DecodedCache | None):
        path = record.get("pan_seg_file_name")
        if path is None:
            raise BadFile(f"{record['file_name']}: its record has no 'pan_seg_file_name'; training needs the segments")
        self._ids = read_segment_ids(path) if cache is None else cache.get(path, lambda: read_segment_ids(path))
        check_label_size(path, self._ids.shape, record["file_name"], size)
        self._segments = [segment for segment in record["segments_info"] if not segment.get("iscrowd", 0)]
        self.classes = [segment["category_id"] for segment in self._segments]

    def class_map(self) -> np.ndarray:
        return class_map(self._ids, self._segments)

    def masks(self, view: View) -> np.ndarray:
        numbers = np.array([segment["id"] for segment in self._segments], dtype=self._ids.dtype)
        return view.labels(self._ids, 0) == numbers[:, None, None]


class SegmentMapper:
    """Reads one image and its segments, shows a view of them, and packs it. For training.

    view: draws what is shown. segments: makes the segments of (record, size, cache). num_classes: of the model.
    cache: where decoded files are kept.
    """

    def __init__(
        self,
        view: DrawsViews,
        segments: type[InstanceSegments] | type[PanopticSegments],
        num_classes: int,
        cache: DecodedCache | None = None,
    ):
        self.view, self.segments, self.num_classes, self.cache = view, segments, num_classes, cache

    def __call__(self, record: dict, rng: np.random.Generator | None = None) -> dict:
        """record: of `fasegr.data.datasets.coco_json`. Returns "file_name", "image_id" where the record has one,
        "height" and "width" (of the file), "image" (uint8, 3 x H x W, RGB), and for each segment that is in view (none
        is fine) its class in "labels" (int64, K) and its "masks" (bool, K x H x W). All randomness comes from `rng`.
        """
        if rng is None:
            # in a loader that passes none, numpy's global state is what its workers have seeded
            rng = np.random.default_rng(np.random.randint(2**31))
        path = record["file_name"]
        image = read_photograph(path, self.cache)
        stated = (record.get("height", image.size[0]), record.get("width", image.size[1]))
        if stated != image.size:
            raise BadFile(
                f"{path}: is {image.size[1]} x {image.size[0]} (width x height), but its annotations are for "
                f"{stated[1]} x {stated[0]}; images and annotations must be of one release"
            )
        segments = self.segments(record, image.size, self.cache)
        classes = np.array(segments.classes, dtype=np.int64)
        if classes.max(initial=0) >= self.num_classes:
            raise BadFile(
                f"{path}: holds the class {classes.max()}; with MODEL.SEM_SEG_HEAD.NUM_CLASSES {self.num_classes} "
                f"expected 0..{self.num_classes - 1}"
            )
        view = self.view.draw(rng, image.size, segments.class_map)
        masks = segments.masks(view)
        # what is out of view has no pixel to be found by; Mask2Former keeps some of these, with empty masks
        seen = masks.any((1, 2))
        identity = {key: record[key] for key in ("file_name", "image_id") if key in record}
        return {
            **identity,
            "height": image.size[0],
            "width": image.size[1],
            "image": torch.from_numpy(view.pixels(image)),
            "labels": torch.from_numpy(classes[seen]),
            "masks": torch.from_numpy(masks if seen.all() else masks[seen]),
        }
