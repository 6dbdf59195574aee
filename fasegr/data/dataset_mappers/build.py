"""The mapper that a config asks for; INPUT.DATASET_MAPPER_NAME has Mask2Former's names."""

from __future__ import annotations

import numpy as np

from fasegr.d2 import CfgNode
from fasegr.data.augmentation import (
    ColorAugSSD,
    LargeScaleJitter,
    RandomCrop,
    RareClasses,
    ResizeCropFlip,
    ResizeShortestEdge,
    ResizeTo,
)
from fasegr.data.dataset_mappers.dataset_mapper import InferenceMapper, TrainingMapper
from fasegr.data.dataset_mappers.instance import InstanceMapper
from fasegr.data.dataset_mappers.panoptic import PanopticMapper
from fasegr.data.dataset_mappers.semantic import SemanticMapper
from fasegr.data.image_cache import ImageCache
from fasegr.data.torchvision_transforms import TorchvisionTransforms

__all__ = ["TRAINING_MAPPERS", "build_mapper"]

# the class, and whether it has large-scale jittering instead of a resize and a crop
TRAINING_MAPPERS: dict[str, tuple[type[TrainingMapper], bool]] = {
    "mask_former_semantic": (SemanticMapper, False),
    "mask_former_instance": (InstanceMapper, False),
    "mask_former_panoptic": (PanopticMapper, False),
    "coco_instance_lsj": (InstanceMapper, True),
    "coco_panoptic_lsj": (PanopticMapper, True),
}


def test_resize(cfg: CfgNode) -> ResizeShortestEdge | ResizeTo:
    """How images are resized for testing and in predictions."""
    given = cfg.INPUT
    if given.FIXED_SIZE_TEST:
        return ResizeTo(tuple(given.FIXED_SIZE_TEST))
    return ResizeShortestEdge(given.MIN_SIZE_TEST, given.MAX_SIZE_TEST, multiple=given.SIZE_MULTIPLE_TEST)


def build_mapper(
    cfg: CfgNode, is_train: bool, class_pixels: np.ndarray | None = None
) -> TrainingMapper | InferenceMapper:
    """Takes (record, random generator) in training and (record) in testing, and returns the sample.

    class_pixels: (C,) pixels of each class in the training set, for INPUT.CROP.RARE_CLASS_PROB; without them crops do
    not look for rare classes.
    """
    given, head = cfg.INPUT, cfg.MODEL.SEM_SEG_HEAD
    cache = ImageCache(given.CACHE) if given.CACHE else None
    if not is_train:
        return InferenceMapper(test_resize(cfg), cache)
    if cache:
        cache.make_folder()
    mapper, jitter = TRAINING_MAPPERS[given.DATASET_MAPPER_NAME]
    if jitter:
        augmentation = LargeScaleJitter(given.IMAGE_SIZE, given.MIN_SCALE, given.MAX_SCALE, given.RANDOM_FLIP)
        size = (given.IMAGE_SIZE, given.IMAGE_SIZE)
    else:
        # objects do not give every pixel a class, so crops do not look at classes there, as in Mask2Former
        max_area = 1.0 if mapper is InstanceMapper else given.CROP.SINGLE_CATEGORY_MAX_AREA
        rare = None
        if class_pixels is not None and given.CROP.RARE_CLASS_PROB > 0:
            rare = RareClasses(given.CROP.RARE_CLASS_PROB, class_pixels)
        augmentation = ResizeCropFlip(
            ResizeShortestEdge(given.MIN_SIZE_TRAIN, given.MAX_SIZE_TRAIN, given.MIN_SIZE_TRAIN_SAMPLING),
            RandomCrop(given.CROP.TYPE, given.CROP.SIZE, max_area, head.IGNORE_VALUE, rare)
            if given.CROP.ENABLED
            else None,
            ColorAugSSD() if given.COLOR_AUG_SSD else None,
            given.RANDOM_FLIP,
            given.SIZE_DIVISIBILITY,
        )
        absolute = given.CROP.ENABLED and given.CROP.TYPE.startswith("absolute")
        size = tuple(map(int, given.CROP.SIZE)) if absolute else (min(given.MIN_SIZE_TRAIN),) * 2
    further = TorchvisionTransforms(given.AUGMENTATIONS, size) if given.AUGMENTATIONS else None
    return mapper(augmentation, head.NUM_CLASSES, head.IGNORE_VALUE, cache, further)
