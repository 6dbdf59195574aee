"""From a record of a dataset to what the segmentor takes, for semantic segmentation."""

from pathlib import Path

import numpy as np
import torch

from fasegr.d2 import MetadataCatalog, configurable
from fasegr.data.augmentation import Box, RandomCrop, ShortestEdge, SSDColour
from fasegr.data.image_cache import DecodedCache
from fasegr.data.image_io import BadFile, check_label_size, check_label_values, read_label
from fasegr.data.sample_transform import ResizedCrop, channels_first
from fasegr.data.source_image import read_photograph

__all__ = ["SemanticMapper"]


class SemanticMapper:
    """Reads, augments and packs one image and its label map.

    Training: the shorter side is drawn, a window cropped, colours distorted, the image flipped and padded, and one
    binary mask made for each class present. Testing: the shorter side is set, and labels are not read.
    """

    @configurable
    def __init__(
        self,
        is_train: bool = True,
        *,
        resize: ShortestEdge,
        crop: RandomCrop | None = None,
        colour: SSDColour | None = None,
        flip: str = "none",
        size_divisibility: int = -1,
        num_classes: int = 0,
        ignore_label: int = 255,
        cache: DecodedCache | None = None,
    ):
        """flip: "horizontal", "vertical" or "none". size_divisibility: sides are padded to a multiple; -1 does not pad.
        num_classes, ignore_label: what label maps may hold. All but `resize` and `cache` concern training.
        cache: where decoded files are kept."""
        if not 0 <= ignore_label <= 65535:
            raise ValueError(f"the ignore label is {ignore_label}; label maps can hold 0..65535 (255 is usual)")
        self.is_train = is_train
        self.resize = resize
        self.view = ResizedCrop(resize, crop, colour, flip, size_divisibility)
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.cache = cache

    @classmethod
    def from_config(cls, cfg, is_train: bool = True) -> dict:
        if cfg.INPUT.FORMAT != "RGB":
            raise ValueError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}; FASeg's weights and means are for 'RGB'")
        cache = DecodedCache(cfg.INPUT.CACHE) if cfg.INPUT.CACHE else None
        if not is_train:
            resize = ShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
            return {"is_train": False, "resize": resize, "cache": cache}
        ignore_label = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
        if cfg.DATASETS.TRAIN:
            ignore_label = getattr(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]), "ignore_label", ignore_label)
        crop = cfg.INPUT.CROP
        return {
            "is_train": True,
            "resize": ShortestEdge(
                cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
            ),
            "crop": RandomCrop(crop.TYPE, crop.SIZE, crop.SINGLE_CATEGORY_MAX_AREA, ignore_label)
            if crop.ENABLED
            else None,
            "colour": SSDColour() if cfg.INPUT.COLOR_AUG_SSD else None,
            "flip": cfg.INPUT.RANDOM_FLIP,
            "size_divisibility": cfg.INPUT.SIZE_DIVISIBILITY,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "ignore_label": ignore_label,
            "cache": cache,
        }

    def __call__(self, record: dict, rng: np.random.Generator | None = None) -> dict:
        """record: "file_name" and, for training, "sem_seg_file_name".

        Returns "file_name", "image_id" where the record has one, "image" (uint8, 3 x H x W, RGB), "height" and "width"
        (of the file), and for training "labels" (int64, K; the classes present, ascending) and "masks" (bool, K x H x
        W). All randomness comes from `rng`.
        """
        path = record["file_name"]
        image = read_photograph(path, self.cache)
        height, width = image.size
        sample = {"file_name": path, "height": height, "width": width}
        if "image_id" in record:
            sample["image_id"] = record["image_id"]  # detectron2's own COCO evaluators ask for it
        if not self.is_train:
            size = self.resize.scaled(image.size, self.resize.lengths[0])
            return {**sample, "image": torch.from_numpy(channels_first(image.resized(size, Box(0, 0, *size))))}
        if rng is None:
            # in a loader that passes none, numpy's global state is what its workers have seeded
            rng = np.random.default_rng(np.random.randint(2**31))
        labels = self._read_label(record, image.size)
        view = self.view.draw(rng, image.size, lambda: labels)
        pixels, labels = view.pixels(image), view.labels(labels, self.ignore_label)
        classes = np.flatnonzero(np.bincount(labels.ravel()))
        classes = classes[classes != self.ignore_label]
        # A map from the cache was checked when it was decoded, which may have been for more classes than these.
        check_label_values(classes.astype(np.uint16), self.num_classes, self.ignore_label, record["sem_seg_file_name"])
        return {
            **sample,
            "image": torch.from_numpy(pixels),
            "labels": torch.from_numpy(classes),
            "masks": torch.from_numpy(labels == classes.astype(labels.dtype)[:, None, None]),
        }

    def _read_label(self, record: dict, image_size: tuple[int, int]) -> np.ndarray:
        path: str | Path | None = record.get("sem_seg_file_name")
        if path is None:
            raise BadFile(f"{record['file_name']}: its record has no 'sem_seg_file_name'; training needs a label map")

        def decode() -> np.ndarray:
            labels = read_label(path)
            check_label_values(labels, self.num_classes, self.ignore_label, path)
            return labels

        labels = decode() if self.cache is None else self.cache.get(path, decode)
        if self.ignore_label > 255:
            labels = labels.astype(np.uint16)  # padding needs room for the ignore label
        check_label_size(path, labels.shape, record["file_name"], image_size)
        return labels
