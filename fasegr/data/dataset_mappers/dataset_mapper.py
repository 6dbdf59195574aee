"""What the training mappers have in common, and the mapper for testing."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from fasegr.data.augmentation import LargeScaleJitter, ResizeCropFlip, ResizeShortestEdge, ResizeTo
from fasegr.data.image_cache import ImageCache, load_image
from fasegr.data.image_io import BadFile, check_image_size
from fasegr.data.torchvision_transforms import TorchvisionTransforms
from fasegr.data.transform import Transform, channels_first, height_and_width, resize_image

__all__ = ["ImageCount", "InferenceMapper", "TrainingMapper"]


class ImageCount(NamedTuple):
    """What an annotation has of each class: classes (K,), ascending, and their pixels and segments (K,), all int64."""

    classes: np.ndarray
    pixels: np.ndarray
    segments: np.ndarray


class TrainingMapper:
    """Reads one image and its annotation, augments both and packs them.

    augmentation: draws the transform. num_classes, ignore_label: what annotations may hold. cache: where decoded files
    are kept. further: transforms that come after all others.
    """

    def __init__(
        self,
        augmentation: ResizeCropFlip | LargeScaleJitter,
        num_classes: int,
        ignore_label: int = 255,
        cache: ImageCache | None = None,
        further: TorchvisionTransforms | None = None,
    ):
        self.augmentation, self.cache, self.further = augmentation, cache, further
        self.num_classes, self.ignore_label = num_classes, ignore_label

    def __call__(self, record: dict, rng: np.random.Generator | None = None) -> dict:
        """record: detectron2's, of a dataset. Returns "file_name", "image_id" if the record has one, "height" and
        "width" (of the file), "image" (uint8, 3 x H x W, RGB), and of each class or segment that the crop shows (there
        may be none) its class in "labels" (int64, K) and its "masks" (bool, K x H x W). All randomness comes from
        `rng`.
        """
        if rng is None:
            # in a loader that passes none, numpy's global state is what its workers have seeded
            rng = np.random.default_rng(np.random.randint(2**31))
        image = load_image(record["file_name"], self.cache)
        height, width = size = height_and_width(image)
        check_image_size(record["file_name"], size, stated_size(record, size))
        record = {**record, "height": height, "width": width}
        annotation = self.read_annotation(record)
        sem_seg = self.sem_seg(annotation) if self.augmentation.needs_sem_seg else None
        transform = self.augmentation.get_transform(rng, size, sem_seg)
        labels, masks = self.apply(transform, annotation, record)
        pixels = transform.apply_image(image)
        if self.further is not None:
            pixels, masks = self.further(rng, pixels, masks)
            labels, masks = _without_empty(labels, masks)
        return {
            **_identity(record),
            "image": torch.from_numpy(pixels),
            "labels": torch.from_numpy(labels),
            "masks": torch.from_numpy(masks),
        }

    def read_annotation(self, record: dict) -> Any:
        """What the record, or a file that it names, says about the image of its "height" and "width"."""
        raise NotImplementedError

    def sem_seg(self, annotation: Any) -> np.ndarray:
        """The class of each pixel, (H, W), for augmentation that looks at classes."""
        raise NotImplementedError

    def count(self, annotation: Any, record: dict) -> ImageCount:
        """The pixels and the masks (segments, objects) of each class of an annotation. Raises BadFile for a class that
        the model does not have."""
        raise NotImplementedError

    def apply(self, transform: Transform, annotation: Any, record: dict) -> tuple[np.ndarray, np.ndarray]:
        """labels (K,) int64 and masks (K, *transform.padded_size) bool."""
        raise NotImplementedError


class InferenceMapper:
    """Reads one image and resizes it for testing; of annotations, only the size is looked at."""

    def __init__(self, resize: ResizeShortestEdge | ResizeTo, cache: ImageCache | None = None):
        self.resize, self.cache = resize, cache

    def __call__(self, record: dict) -> dict:
        """Returns "file_name", "image_id" if the record has one, "height" and "width" (of the file) and "image"
        (uint8, 3 x H x W, RGB)."""
        image = load_image(record["file_name"], self.cache)
        height, width = size = height_and_width(image)
        check_image_size(record["file_name"], size, stated_size(record, size))
        resized = resize_image(image, self.resize.output_size(size))
        return {
            **_identity({**record, "height": height, "width": width}),
            "image": torch.from_numpy(channels_first(resized)),
        }


def stated_size(record: dict, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) that the record states, or `size`."""
    return record.get("height", size[0]), record.get("width", size[1])


def _identity(record: dict) -> dict:
    # COCO's evaluators ask for "image_id"
    return {key: record[key] for key in ("file_name", "image_id", "height", "width") if key in record}


def count_segments(segments: list[dict], pixels: np.ndarray, num_classes: int, file_name: str) -> ImageCount:
    """pixels: (segments,) of each. Raises as `visible`."""
    labels = np.array([segment["category_id"] for segment in segments], dtype=np.int64)
    _check_classes(labels, num_classes, file_name)
    of_class = np.bincount(labels)
    classes = np.flatnonzero(of_class)
    return ImageCount(classes, np.bincount(labels, pixels)[classes].astype(np.int64), of_class[classes])


def visible(segments: list[dict], masks: np.ndarray, num_classes: int, file_name: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels (K,) and masks (K, H, W) of the segments that have a pixel left after the crop.

    Mask2Former keeps some of the others, with empty masks. Raises BadFile for a class that the model does not have.
    """
    labels = np.array([segment["category_id"] for segment in segments], dtype=np.int64)
    _check_classes(labels, num_classes, file_name)
    return _without_empty(labels, masks)


def _without_empty(labels: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    kept = masks.any((1, 2))
    return labels[kept], masks if kept.all() else masks[kept]


def _check_classes(labels: np.ndarray, num_classes: int, file_name: str) -> None:
    if labels.max(initial=0) >= num_classes:
        raise BadFile(
            f"{file_name}: holds the class {labels.max()}; with MODEL.SEM_SEG_HEAD.NUM_CLASSES {num_classes} "
            f"expected 0..{num_classes - 1}"
        )
