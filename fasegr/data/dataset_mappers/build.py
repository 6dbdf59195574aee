"""The training mappers by name: what INPUT.DATASET_MAPPER_NAME chooses from, with Mask2Former's names."""

from collections.abc import Callable

import numpy as np

from fasegr.d2 import CfgNode
from fasegr.data.augmentation import RandomCrop, ShortestEdge, SSDColour
from fasegr.data.dataset_mappers.segments import InstanceSegments, PanopticSegments, SegmentMapper
from fasegr.data.dataset_mappers.semantic import SemanticMapper
from fasegr.data.image_cache import DecodedCache
from fasegr.data.sample_transform import LargeScaleJitter, ResizedCrop

__all__ = ["TRAINING_MAPPERS"]


def _resized_crop(cfg: CfgNode, max_area: float) -> ResizedCrop:
    given, crop = cfg.INPUT, cfg.INPUT.CROP
    return ResizedCrop(
        ShortestEdge(given.MIN_SIZE_TRAIN, given.MAX_SIZE_TRAIN, given.MIN_SIZE_TRAIN_SAMPLING),
        RandomCrop(crop.TYPE, crop.SIZE, max_area, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE) if crop.ENABLED else None,
        SSDColour() if given.COLOR_AUG_SSD else None,
        given.RANDOM_FLIP,
        given.SIZE_DIVISIBILITY,
    )


def _jitter(cfg: CfgNode) -> LargeScaleJitter:
    return LargeScaleJitter(cfg.INPUT.IMAGE_SIZE, cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE, cfg.INPUT.RANDOM_FLIP)


def _segment_mapper(cfg: CfgNode, view, segments) -> SegmentMapper:
    if cfg.INPUT.FORMAT != "RGB":
        raise ValueError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}; FASeg's weights and means are for 'RGB'")
    cache = DecodedCache(cfg.INPUT.CACHE) if cfg.INPUT.CACHE else None
    return SegmentMapper(view, segments, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cache)


# a mapper takes (record, random generator) and returns the sample
TRAINING_MAPPERS: dict[str, Callable[[CfgNode], Callable[[dict, np.random.Generator], dict]]] = {
    "mask_former_semantic": lambda cfg: SemanticMapper(cfg, True),
    "mask_former_instance": lambda cfg: _segment_mapper(cfg, _resized_crop(cfg, 1.0), InstanceSegments),
    "mask_former_panoptic": lambda cfg: _segment_mapper(
        cfg, _resized_crop(cfg, cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA), PanopticSegments
    ),
    "coco_instance_lsj": lambda cfg: _segment_mapper(cfg, _jitter(cfg), InstanceSegments),
    "coco_panoptic_lsj": lambda cfg: _segment_mapper(cfg, _jitter(cfg), PanopticSegments),
}
