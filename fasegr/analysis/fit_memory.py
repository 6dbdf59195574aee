"""How a recipe fits into a memory: images at once and SOLVER.ACCUMULATE, then gradient checkpointing, then the crop.

The first two keep the recipe: a step has the same images, gradients and result. A smaller crop does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from fasegr.analysis.memory import count_training_peak
from fasegr.d2 import CfgNode, build_model

__all__ = ["Fit", "Recipe", "fit", "training_size"]

STEP = 32  # sides of images, of which the coarsest map has one cell
Size = tuple[int, int]


class Recipe(NamedTuple):
    """What is asked for. images: of a step, in one process. size: (height, width). processes: more keep gradients."""

    images: int
    size: Size
    processes: int


class Fit(NamedTuple):
    """One way. images: at once, in one process. size: as asked for, or smaller. most: images for which there would be
    room at once, by the difference between one and two. memory: bytes of the way at its peak."""

    images: int
    accumulate: int
    size: Size
    most: int
    memory: int


Count = Callable[[Size, int, bool], int]
"""(size, images, whether gradients are kept from before) -> bytes at the peak of a step."""


def fit(recipe: Recipe, memory: int, count: Count) -> Fit | None:
    """The way with the fewest micro-batches whose counted peak is at most `memory` bytes; if one image is too large,
    the largest size of these proportions; None if even one of STEP pixels is."""
    together = recipe.processes > 1
    divisors = [d for d in range(recipe.images, 0, -1) if recipe.images % d == 0]
    known: dict[int, int] = {}

    def peak(images: int) -> int:
        if images not in known:
            known[images] = count(recipe.size, images, together or images < recipe.images)
        return known[images]

    one = peak(1)
    if one > memory:
        return _smaller(recipe, memory, count)
    each = peak(2) - one if recipe.images > 1 else one
    for images in divisors:
        # almost linear in the number of images: what is clearly too large is not counted
        if one + 0.95 * (images - 1) * each <= memory and peak(images) <= memory:
            most = max(images, 1 + (memory - one) // each)
            return Fit(images, recipe.images // images, recipe.size, most, peak(images))
    raise AssertionError("one image fits")


def _smaller(recipe: Recipe, memory: int, count: Count) -> Fit | None:
    together = recipe.processes > 1 or recipe.images > 1
    longest = max(recipe.size)
    known: dict[int, int] = {}

    def scaled(cells: int) -> Size:
        return tuple(max(1, round(side / longest * cells)) * STEP for side in recipe.size)

    low, high = 0, longest // STEP  # the most that is known to fit, the least that is not
    while high - low > 1:
        middle = (low + high) // 2
        known[middle] = count(scaled(middle), 1, together)
        low, high = (middle, high) if known[middle] <= memory else (low, middle)
    return Fit(1, recipe.images, scaled(low), 1, known[low]) if low else None


def counter(cfg: CfgNode, segments: int, checkpointing: bool) -> Count:
    """Counts the model of `cfg`, whose weights are random and on the CPU; images have `segments` targets."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.TIMM.PRETRAINED = cfg.MODEL.VIT.PRETRAINED = False
    cfg.SOLVER.GRADIENT_CHECKPOINTING = checkpointing
    if cfg.MODEL.MASK_FORMER.CLASS_WEIGHTS == "inverse_sqrt":  # as large as any
        cfg.MODEL.MASK_FORMER.CLASS_WEIGHTS = []
    dtypes = {"float16": torch.float16, "bfloat16": torch.bfloat16}
    amp_dtype = dtypes[cfg.SOLVER.AMP.DTYPE] if cfg.SOLVER.AMP.ENABLED else None
    copies = (2 if cfg.SOLVER.OPTIMIZER == "ADAMW" else 1) + cfg.SOLVER.EMA.ENABLED
    model = build_model(cfg)

    def count(size: Size, images: int, keeps_gradients: bool) -> int:
        return count_training_peak(
            *(model, size),
            batch=images,
            segments=segments,
            amp_dtype=amp_dtype,
            keeps_gradients=keeps_gradients,
            copies=copies,
        )

    return count


def training_size(cfg: CfgNode) -> Size:
    """Height and width of the largest batch that `cfg` trains with."""
    given, crop = cfg.INPUT, cfg.INPUT.CROP
    if given.DATASET_MAPPER_NAME.startswith("coco_"):
        height = width = given.IMAGE_SIZE
    elif crop.ENABLED and crop.TYPE == "absolute":
        height, width = crop.SIZE
    elif crop.ENABLED and crop.TYPE == "absolute_range":
        height = width = max(crop.SIZE)
    else:  # a landscape; a portrait is as large
        height, width = max(given.MIN_SIZE_TRAIN), given.MAX_SIZE_TRAIN
        if crop.ENABLED and crop.TYPE == "relative":
            height, width = height * crop.SIZE[0], width * crop.SIZE[1]
    step = max(given.SIZE_DIVISIBILITY, STEP)
    return tuple(math.ceil(side / step) * step for side in (height, width))
