"""Checks of a config's values: the only place whose errors name YAML keys.

KEYS has every key that is read and says what its value may be, RULES what several keys must be together. A key that is
not in KEYS is one of detectron2's that mean nothing here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fasegr.d2 import BACKBONE_REGISTRY, CfgNode
from fasegr.utils.nested import lookup

__all__ = ["KEYS", "problems", "shown", "validate"]


UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # the last: bytes of a command line that are not UTF-8


class Allowed(NamedTuple):
    """What a value may be, as a function and in words. choices: all of them, where they can be counted."""

    accepts: Callable[[Any], bool]
    words: str
    choices: tuple = ()


def one_of(*choices: Any) -> Allowed:
    texts = [repr(choice) for choice in choices]  # 1 and 1.0 equal True, but not in writing
    return Allowed(lambda value: repr(value) in texts, " or ".join(texts), choices)


def integer(least: int, most: int, note: str = "", step: int = 1) -> Allowed:
    kind = "an int" if step == 1 else f"a multiple of {step}"
    return Allowed(
        lambda value: type(value) is int and least <= value <= most and value % step == 0,
        f"{kind} >= {least} and <= {most}{note}",
    )


def number(low: float, high: float, ends: str = "[]", note: str = "", *, optional: bool = False) -> Allowed:
    """ends: "(" or ")" for a bound that is not allowed itself. NaN and infinity are in no such range."""

    def accepts(value: Any) -> bool:
        if type(value) not in (int, float):
            return optional and value is None
        return low <= value <= high and (value > low or ends[0] == "[") and (value < high or ends[1] == "]")

    return Allowed(accepts, f"a number in {ends[0]}{low:g}, {high:g}{ends[1]}{' or None' if optional else ''}{note}")


def text(pattern: str = ".*", note: str = "") -> Allowed:
    """One line of Unicode, all of which matches `pattern`."""
    return Allowed(
        lambda value: isinstance(value, str) and not UNPRINTABLE.search(value) and re.fullmatch(pattern, value),
        f"a line of text{note}",
    )


def several(item: Allowed, least: int, most: int, note: str = "") -> Allowed:
    count = least if least == most else f"{least} to {most}"
    return Allowed(
        lambda value: (
            isinstance(value, (list, tuple)) and least <= len(value) <= most and all(map(item.accepts, value))
        ),
        f"a list of {count} values, each {item.words}{note}",
    )


def either(*items: Allowed) -> Allowed:
    return Allowed(lambda value: any(item.accepts(value) for item in items), " or ".join(item.words for item in items))


FLAG = one_of(True, False)
CHANNELS, SIDE, ITERATIONS = integer(1, 16384), integer(1, 65535, " pixels"), integer(1, 10**9)
NAME = text(r".*\S.*", " that is not empty")
PROBABILITY = number(0, 1, "[)")
WEIGHT, DECAY = number(0, 1e6), number(0, 10)
STAGES = ["res2", "res3", "res4", "res5"]
STAGE_LIST = several(one_of(*STAGES), 1, 4)


def _is_list(value: Any, length: int) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == length


def _is_colour(value: Any) -> bool:
    return _is_list(value, 3) and all(type(level) is int and 0 <= level < 256 for level in value)


def _is_pattern(value: Any) -> bool:
    try:
        return (
            isinstance(value, str)
            and len(value) <= 200
            and not UNPRINTABLE.search(value)
            and re.compile(value) is not None
        )
    except (re.error, RecursionError, OverflowError):
        return False


# A dataset of two folders; fasegr/data/datasets/label_map.py says what LABEL_MAP's pairs may be.
FOLDER: dict[str, Allowed] = {
    **{key: text() for key in ("NAME", "ROOT", "IMAGES", "LABELS", "LABEL_SUFFIX", "SPLIT_LISTS")},
    "CLASSES": either(
        text(),
        several(
            Allowed(
                lambda entry: (
                    NAME.accepts(entry) or (_is_list(entry, 2) and NAME.accepts(entry[0]) and _is_colour(entry[1]))
                ),
                "a name, or a name and its colour as [road, [128, 64, 128]]",
            ),
            *(1, 65535),
        ),
    ),
    "SPLITS": several(NAME, 1, 1000),
    "IGNORE_LABEL": integer(0, 65535),
    "LABEL_MAP": Allowed(
        lambda value: (
            value in ("colours", "from_one")
            if isinstance(value, str)
            else isinstance(value, (list, tuple))
            and all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in value)
        ),
        "colours, from_one, or a list of pairs such as [255, object], [[128, 64, 128], road], [0, ignore]",
        ("colours", "from_one", []),
    ),
    "VAL_SHARE": number(0, 0.9),
    "VAL_SEED": integer(0, 2**31 - 1),
    "VAL_GROUP": Allowed(_is_pattern, "'auto', '' or a regular expression of at most 200 characters"),
}

KEYS: dict[str, Allowed] = {
    "MODEL.DEVICE": text(r"cpu|mps|cuda(:\d{1,3})?", ", one of cuda, cpu, mps, or one GPU, as cuda:1"),
    "MODEL.META_ARCHITECTURE": one_of("FASeg"),
    "MODEL.WEIGHTS": text(),
    "MODEL.WEIGHTS_PARTIAL": FLAG,
    "MODEL.PIXEL_MEAN": several(number(-1e6, 1e6), 3, 3),
    "MODEL.PIXEL_STD": several(number(1e-6, 1e6), 3, 3),
    "MODEL.BACKBONE.NAME": NAME,
    "MODEL.BACKBONE.FREEZE_AT": integer(0, 5, ": the stages that are frozen, the stem being the first"),
    "MODEL.BACKBONE.FREEZE": either(
        integer(0, 1000, " (stages, the stem being the first)"), one_of("all", "all but norms")
    ),
    "MODEL.RESNETS.DEPTH": one_of(18, 34, 50, 101),
    "MODEL.RESNETS.OUT_FEATURES": STAGE_LIST,
    "MODEL.RESNETS.NORM": one_of("FrozenBN", "BN", "SyncBN", "GN", ""),
    "MODEL.RESNETS.NUM_GROUPS": one_of(1),
    "MODEL.RESNETS.WIDTH_PER_GROUP": one_of(64),
    "MODEL.RESNETS.STRIDE_IN_1X1": FLAG,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": integer(4, 4096, step=4),
    "MODEL.RESNETS.STEM_OUT_CHANNELS": integer(1, 4096),
    "MODEL.RESNETS.STEM_TYPE": one_of("basic"),
    "MODEL.RESNETS.RES4_DILATION": one_of(1),
    "MODEL.RESNETS.RES5_DILATION": one_of(1),
    "MODEL.RESNETS.RES5_MULTI_GRID": one_of([1, 1, 1]),  # released files set it; it multiplies the dilation of res5
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": one_of([False] * 4),
    "MODEL.SWIN.PRETRAIN_IMG_SIZE": integer(4, 4096),
    "MODEL.SWIN.PATCH_SIZE": one_of(4),
    "MODEL.SWIN.EMBED_DIM": integer(1, 4096),
    "MODEL.SWIN.DEPTHS": several(integer(1, 100), 4, 4, ", one for each stage"),
    "MODEL.SWIN.NUM_HEADS": several(integer(1, 1024), 4, 4, ", one for each stage"),
    "MODEL.SWIN.WINDOW_SIZE": integer(1, 64, " (7 in Swin-T)"),
    "MODEL.SWIN.MLP_RATIO": number(0, 100, "(]", " (4.0 in the paper)"),
    "MODEL.SWIN.QKV_BIAS": FLAG,
    "MODEL.SWIN.QK_SCALE": number(0, 1e6, "(]", optional=True),
    "MODEL.SWIN.DROP_RATE": PROBABILITY,
    "MODEL.SWIN.ATTN_DROP_RATE": PROBABILITY,
    "MODEL.SWIN.DROP_PATH_RATE": PROBABILITY,
    "MODEL.SWIN.APE": FLAG,
    "MODEL.SWIN.PATCH_NORM": FLAG,
    "MODEL.SWIN.OUT_FEATURES": STAGE_LIST,
    "MODEL.SWIN.USE_CHECKPOINT": FLAG,
    "MODEL.TIMM.NAME": NAME,
    "MODEL.TIMM.PRETRAINED": FLAG,
    "MODEL.TIMM.DROP_PATH_RATE": PROBABILITY,
    "MODEL.VIT.NAME": NAME,
    "MODEL.VIT.PRETRAINED": FLAG,
    "MODEL.VIT.DROP_PATH_RATE": PROBABILITY,
    "MODEL.VIT.OUT_CHANNELS": CHANNELS,
    "MODEL.VIT.WINDOW_SIZE": integer(0, 1024, " tokens; 0 attends everywhere"),
    "MODEL.SEM_SEG_HEAD.NAME": one_of("FASegHead"),
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": several(NAME, 1, 10),
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": integer(0, 65535),
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": integer(1, 65535),
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": integer(32, 8192, ", which has GroupNorm's groups", step=32),
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": one_of(4),
    "MODEL.SEM_SEG_HEAD.NORM": one_of("FrozenBN", "BN", "SyncBN", "GN", ""),
    "MODEL.SEM_SEG_HEAD.MASK_DIM": CHANNELS,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": integer(1, 200),
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": several(NAME, 1, 10),
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS": integer(1, 64),
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": integer(1, 1024),
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD": CHANNELS,
    "MODEL.MASK_FORMER.DEEP_SUPERVISION": FLAG,
    "MODEL.MASK_FORMER.NO_OBJECT_WEIGHT": number(0, 1e6, "(]", " (0.1 in the paper)"),
    "MODEL.MASK_FORMER.CLASS_WEIGHT": WEIGHT,
    "MODEL.MASK_FORMER.CLASS_WEIGHTS": either(
        one_of("inverse_sqrt"), several(number(0, 1e6, "(]"), 0, 65535, ", one for each class, or [] for 1")
    ),
    "MODEL.MASK_FORMER.DICE_WEIGHT": WEIGHT,
    "MODEL.MASK_FORMER.MASK_WEIGHT": WEIGHT,
    "MODEL.MASK_FORMER.NHEADS": integer(1, 1024),
    "MODEL.MASK_FORMER.DROPOUT": PROBABILITY,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": CHANNELS,
    "MODEL.MASK_FORMER.ENC_LAYERS": one_of(0),  # this, PRE_NORM and TRANSFORMER_IN_FEATURE have only one meaning here
    "MODEL.MASK_FORMER.DEC_LAYERS": integer(
        2, 200, ": the layers plus the prediction before the first (FASeg 14, Mask2Former 10)"
    ),
    "MODEL.MASK_FORMER.PRE_NORM": one_of(False),
    "MODEL.MASK_FORMER.HIDDEN_DIM": CHANNELS,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": integer(1, 10000),
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": one_of("multi_scale_pixel_decoder"),
    "MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ": FLAG,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": integer(1, 10**6),
    "MODEL.MASK_FORMER.OVERSAMPLE_RATIO": number(1, 100),
    "MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO": number(0, 1),
    "MODEL.MASK_FORMER.MASK_PILOT.ENABLED": FLAG,
    "MODEL.MASK_FORMER.MASK_PILOT.NUM_QUERIES": integer(1, 10000),
    "MODEL.MASK_FORMER.MASK_PILOT.LABEL_NOISE": number(0, 1),
    "MODEL.MASK_FORMER.MASK_PILOT.MASK_NOISE": number(0, 1),
    "MODEL.MASK_FORMER.SIZE_DIVISIBILITY": integer(-1, 16384, "; below 1 it is the backbone's"),
    "MODEL.MASK_FORMER.TEST.SEMANTIC_ON": FLAG,
    "MODEL.MASK_FORMER.TEST.INSTANCE_ON": FLAG,
    "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": FLAG,
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": number(0, 1),
    "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": number(0, 1),
    "MODEL.MASK_FORMER.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE": FLAG,
    "MODEL.MASK_FORMER.TEST.SEMANTIC_OUTPUT": one_of("scores", "labels"),
    "MODEL.FASEG.POSITIONAL_QUERY": one_of("dfpq", "learnable", "grid_anchor", "dynamic_anchor", "dynamic_foreground"),
    "MODEL.FASEG.KEY_POSITION": one_of("conditional", "sinusoidal", "learnable"),
    "MODEL.FASEG.FIRST_QUERY_REGION": one_of("background", "foreground"),
    "MODEL.FASEG.MASK_THRESHOLD": number(0, 1, "()", " (0.15 in FASeg)"),
    "MODEL.FASEG.HIGH_RES.ATTENTION": one_of("hrca", "vanilla", "random", "rcda", "none"),
    "MODEL.FASEG.HIGH_RES.LEVELS": one_of([4], [8], [4, 8]),
    "MODEL.FASEG.HIGH_RES.OMEGA": integer(1, 10**6),
    "MODEL.FASEG.HIGH_RES.SELECTION": one_of("window", "pixel"),
    "MODEL.FASEG.HIGH_RES.QUERY": one_of("static", "dynamic"),
    "INPUT.FORMAT": one_of("RGB"),  # of the weights and of PIXEL_MEAN
    "INPUT.DATASET_MAPPER_NAME": one_of(
        "mask_former_semantic",
        "mask_former_instance",
        "mask_former_panoptic",
        "coco_instance_lsj",
        "coco_panoptic_lsj",
    ),
    "INPUT.MIN_SIZE_TRAIN": several(SIDE, 1, 1000),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": one_of("choice", "range"),
    "INPUT.MAX_SIZE_TRAIN": SIDE,
    "INPUT.MIN_SIZE_TEST": integer(0, 65535, " pixels; 0 keeps the size of images"),
    "INPUT.MAX_SIZE_TEST": SIDE,
    "INPUT.FIXED_SIZE_TEST": either(one_of([], ()), several(SIDE, 2, 2, ": height and width")),
    "INPUT.SIZE_MULTIPLE_TEST": integer(1, 1024, " pixels"),
    "INPUT.RANDOM_FLIP": one_of("horizontal", "vertical", "none"),
    "INPUT.COLOR_AUG_SSD": FLAG,
    "INPUT.CROP.ENABLED": FLAG,
    "INPUT.CROP.TYPE": one_of("absolute", "absolute_range", "relative", "relative_range"),
    "INPUT.CROP.SIZE": several(number(0, 65535, "(]"), 2, 2),
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": number(0, 1, "(]"),
    "INPUT.CROP.RARE_CLASS_PROB": number(0, 1),
    "INPUT.AUGMENTATIONS": several(
        Allowed(
            lambda value: isinstance(value, dict) and len(value) == 1,
            "one transform of torchvision.transforms.v2, as {RandomRotation: {degrees: 10}}",
        ),
        *(0, 100),
    ),
    "INPUT.SIZE_DIVISIBILITY": integer(-1, 16384, "; below 1 nothing is padded"),
    "INPUT.IMAGE_SIZE": integer(1, 16384, " pixels"),
    "INPUT.MIN_SCALE": number(0, 100, "(]"),
    "INPUT.MAX_SCALE": number(0, 100, "(]"),
    "INPUT.MAX_PIXELS": integer(1, 2**31 - 1),
    "INPUT.BIT_DEPTH": one_of(0, 8, 10, 12, 14, 16),
    "INPUT.USE_EXIF": FLAG,
    "INPUT.CACHE": text(),
    "DATASETS.TRAIN": several(NAME, 0, 1000, ", as ('ade20k_sem_seg_train',)"),
    "DATASETS.TEST": several(NAME, 0, 1000, ", as ('ade20k_sem_seg_val',)"),
    **{f"DATASETS.FOLDER.{key}": allowed for key, allowed in FOLDER.items()},
    "DATASETS.FOLDERS": several(
        Allowed(
            lambda entry: (
                isinstance(entry, Mapping) and all(key in FOLDER and FOLDER[key].accepts(entry[key]) for key in entry)
            ),
            f"a mapping of the keys of DATASETS.FOLDER ({', '.join(FOLDER)}) to what they may be there",
        ),
        0,
        1000,
    ),
    **{f"DATASETS.COCO.{key}": text() for key in ("NAME", "ROOT", "IMAGES", "INSTANCES", "PANOPTIC", "SEGMENTS")},
    "DATASETS.COCO.CATEGORIES": either(
        text(),
        several(
            Allowed(lambda entry: isinstance(entry, Mapping), "a category of COCO's files, as {id: 1, name: person}"),
            *(1, 65535),
        ),
    ),
    "DATASETS.COCO.SPLITS": several(NAME, 1, 1000),
    "DATASETS.COCO.SEMANTIC": FLAG,
    "DATASETS.COCO.BACKGROUND": text(),
    "DATALOADER.NUM_WORKERS": integer(0, 1024, " processes"),
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": FLAG,
    "DATALOADER.SAMPLER_TRAIN": one_of("TrainingSampler", "RepeatFactorTrainingSampler"),
    "DATALOADER.REPEAT_THRESHOLD": number(0, 1, note=", the share of images below which a class is rare"),
    "DATALOADER.REPEAT_SQRT": one_of(True),
    "DATALOADER.TIMEOUT": number(0, 1e6, note=" seconds; 0 waits for ever"),
    "SOLVER.OPTIMIZER": one_of("ADAMW", "SGD"),
    "SOLVER.BASE_LR": number(0, 1000, "(]", " (0.0001 in the paper)"),
    "SOLVER.BASE_LR_END": number(0, 1000),
    "SOLVER.MOMENTUM": PROBABILITY,
    "SOLVER.NESTEROV": FLAG,
    "SOLVER.WEIGHT_DECAY": DECAY,
    "SOLVER.WEIGHT_DECAY_NORM": DECAY,
    "SOLVER.WEIGHT_DECAY_EMBED": DECAY,
    "SOLVER.BACKBONE_MULTIPLIER": number(0, 100),
    "SOLVER.LAYER_DECAY": number(0, 1, "(]", "; 1 is none"),
    "SOLVER.LR_SCHEDULER_NAME": one_of("WarmupPolyLR", "WarmupMultiStepLR", "WarmupCosineLR"),
    "SOLVER.POLY_LR_POWER": number(0, 100),
    "SOLVER.POLY_LR_CONSTANT_ENDING": number(0, 1),
    "SOLVER.GAMMA": number(0, 1),
    "SOLVER.STEPS": several(ITERATIONS, 0, 1000),
    "SOLVER.WARMUP_FACTOR": number(0, 1),
    "SOLVER.WARMUP_ITERS": integer(0, 10**9),
    "SOLVER.WARMUP_METHOD": one_of("linear", "constant"),
    "SOLVER.MAX_ITER": ITERATIONS,
    "SOLVER.CHECKPOINT_PERIOD": ITERATIONS,
    "SOLVER.IMS_PER_BATCH": integer(1, 65536),
    "SOLVER.REFERENCE_BATCH": integer(0, 65536, "; 0 keeps the schedule as it is"),
    "SOLVER.REFERENCE_WORLD_SIZE": one_of(0),
    "SOLVER.ACCUMULATE": integer(1, 65536),
    "SOLVER.CLIP_GRADIENTS.ENABLED": FLAG,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": one_of("full_model", "norm", "value"),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": number(
        0, 1e6, "(]", " (0.01 in the paper); SOLVER.CLIP_GRADIENTS.ENABLED False turns clipping off"
    ),
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": number(1, 100),
    "SOLVER.AMP.ENABLED": FLAG,
    "SOLVER.COMPRESS_GRADIENTS": FLAG,
    "SOLVER.AMP.DTYPE": one_of("float16", "bfloat16"),
    "SOLVER.GRADIENT_CHECKPOINTING": FLAG,
    "SOLVER.EMA.ENABLED": FLAG,
    "SOLVER.EMA.DECAY": number(0, 1, "[)", " (0.9998 keeps about 5,000 iterations)"),
    "SOLVER.PATIENCE": integer(0, 10**6, " evaluations; 0 never ends a training early"),
    "TEST.EVAL_PERIOD": integer(0, 10**9, "; 0 evaluates only at the end"),
    "TEST.EXPECTED_RESULTS": one_of([]),
    "TEST.PRECISE_BN.ENABLED": one_of(False),
    "TEST.DETECTIONS_PER_IMAGE": integer(1, 10**6),
    "TEST.SAVE_LABELS": FLAG,
    "TEST.SAVE_SUBMISSION": FLAG,
    "TEST.SAVE_JSON": FLAG,
    "TEST.SAVE_PREDICTIONS": several(one_of("coco", "cvat", "labelme", "png", "confidence"), 0, 5),
    "TEST.BOUNDARY_IOU": FLAG,
    "TEST.REPORT": FLAG,
    "TEST.AUG.ENABLED": FLAG,
    "TEST.AUG.MIN_SIZES": several(SIDE, 1, 100),
    "TEST.AUG.MAX_SIZE": SIDE,
    "TEST.AUG.FLIP": FLAG,
    "TEST.AUG.FROM_ORIGINAL": FLAG,
    "TEST.SLIDING_WINDOW.ENABLED": FLAG,
    "TEST.SLIDING_WINDOW.SIZE": several(SIDE, 2, 2, ": height and width"),
    "TEST.SLIDING_WINDOW.OVERLAP": number(0, 1, "[)", ": the share of a window that the next one covers again"),
    "OUTPUT_DIR": text(),
    "SEED": integer(-1, 2**31 - 1, "; -1 draws one"),
    "CUDNN_BENCHMARK": FLAG,
    "FLOAT32_PRECISION": one_of("", "highest", "high", "medium"),
    "TRACKERS": several(one_of("wandb", "mlflow"), 0, 2),
    "SPEED.TUNED_ALLOCATOR": FLAG,
    "SPEED.THREADS": integer(0, 1024, "; 0 is torch's default"),
    "SPEED.COMPILE": FLAG,
    "SPEED.GATHER_METRICS_PERIOD": integer(1, 10**9),
    "SPEED.DETERMINISTIC": FLAG,
    "SPEED.DTYPE": one_of("float32", "bfloat16", "float16"),
}

# Sections that only one backbone reads. With another one they are not checked.
BACKBONES = {
    "MODEL.RESNETS.": "build_fasegr_resnet_backbone",
    "MODEL.SWIN.": "build_fasegr_swin_backbone",
    "MODEL.TIMM.": "build_timm_backbone",
    "MODEL.VIT.": "build_timm_vit_backbone",
}

HEAD, FORMER, HIGH_RES = "MODEL.SEM_SEG_HEAD.", "MODEL.MASK_FORMER.", "MODEL.FASEG.HIGH_RES."
ENCODER = HEAD + "DEFORMABLE_TRANSFORMER_ENCODER_"
RESULTS = [f"{FORMER}TEST.{kind}_ON" for kind in ("SEMANTIC", "PANOPTIC", "INSTANCE")]
FREEZE_AT_NOT_READ = tuple(builder for builder in BACKBONES.values() if builder != "build_fasegr_resnet_backbone")


def _is_whole(maps: list[str]) -> bool:
    """Whether a list with the usual names of maps has all of them, once. Other backbones may have other names."""
    return sorted(maps) == STAGES or not set(maps) & set(STAGES)


def _is_coarse(encoder: list[str], maps: list[str]) -> bool:
    """Whether the encoder reads the coarsest maps, one to three of them."""
    return sorted(encoder) in [STAGES[i:] for i in (1, 2, 3)] if sorted(maps) == STAGES else set(encoder) <= set(maps)


def _fits(size: Sequence[float], kind: str) -> bool:
    if kind.startswith("relative"):
        return max(size) <= 1
    return all(side == int(side) for side in size) and (kind == "absolute" or size[0] <= size[1])


# Keys, whether their values are wrong together, and what to do.
RULES: list[tuple[Sequence[str], Callable[..., Any], str]] = [
    (
        ["MODEL.BACKBONE.NAME"],
        lambda name: name not in [registered for registered, _ in BACKBONE_REGISTRY],
        f"no such backbone is registered; there are {', '.join(BACKBONES.values())}",
    ),
    (
        ["MODEL.BACKBONE.FREEZE_AT", "MODEL.BACKBONE.NAME"],
        lambda freeze_at, name: freeze_at and name in FREEZE_AT_NOT_READ,
        "it must be 0 there; MODEL.BACKBONE.FREEZE freezes stages of any backbone",
    ),
    (
        ["MODEL.BACKBONE.FREEZE_AT", "MODEL.RESNETS.NORM"],
        lambda freeze_at, norm: freeze_at and norm not in ("FrozenBN", "GN"),
        "running statistics would still change; set FREEZE_AT to 0 or NORM to FrozenBN",
    ),
    (
        ["MODEL.BACKBONE.FREEZE", "MODEL.RESNETS.NORM"],
        lambda freeze, norm: freeze == "all but norms" and norm in ("FrozenBN", ""),
        "there is no norm to train; it must be 'all', or NORM be BN, SyncBN or GN",
    ),
    (
        [f"MODEL.RESNETS.{key}" for key in ("NORM", "STEM_OUT_CHANNELS", "RES2_OUT_CHANNELS", "DEPTH")],
        lambda norm, stem, res2, depth: norm == "GN" and (stem % 32 or res2 % (128 if depth >= 50 else 32)),
        "the channels must be multiples of GN's 32 groups, those of res2 four times as many from depth 50 on",
    ),
    *(
        (
            [f"{section}.OUT_FEATURES", HEAD + "IN_FEATURES"],
            lambda given, read: set(given) != set(read),
            "they must name the same maps: what is made for others is not trained",
        )
        for section in ("MODEL.RESNETS", "MODEL.SWIN")
    ),
    ([HEAD + "IN_FEATURES"], lambda maps: not _is_whole(maps), f"it must be {STAGES}, of strides 4 to 32"),
    (
        [ENCODER + "IN_FEATURES", HEAD + "IN_FEATURES"],
        lambda encoder, maps: not _is_coarse(encoder, maps) or len(set(encoder)) < len(encoder),
        f"it must be {STAGES[1:]}, or fewer of the coarsest",
    ),
    (
        ["MODEL.SWIN.NUM_HEADS", "MODEL.SWIN.EMBED_DIM"],
        lambda num_heads, dim: any(dim * 2**i % heads for i, heads in enumerate(num_heads)),
        "the heads of a stage must divide its channels, which are EMBED_DIM times 1, 2, 4 and 8",
    ),
    *(
        ([heads, channels], lambda heads, channels: channels % heads, "the heads must divide the channels")
        for heads, channels in (
            (FORMER + "NHEADS", FORMER + "HIDDEN_DIM"),
            (ENCODER + "N_HEADS", HEAD + "CONVS_DIM"),
        )
    ),
    (
        [HEAD + "CONVS_DIM", FORMER + "HIDDEN_DIM"],
        lambda convs_dim, hidden_dim: convs_dim != hidden_dim,
        "they must be equal, as key positions of the former are added to keys of the latter",
    ),
    (
        [FORMER + "SIZE_DIVISIBILITY"],
        lambda divisor: divisor > 0 and divisor % 32,
        "it must be a multiple of 32, the stride of the coarsest map",
    ),
    (
        [f"{FORMER}{loss}_WEIGHT" for loss in ("CLASS", "DICE", "MASK")],
        lambda *weights: not any(weights),
        "one of them must be above 0",
    ),
    (RESULTS, lambda *results: not any(results), "set one of them to True, or there is no result"),
    (
        [HIGH_RES + "SELECTION", HIGH_RES + "ATTENTION"],
        lambda selection, attention: selection == "pixel" and attention in ("vanilla", "random", "rcda"),
        "only hrca selects pixels by attention",
    ),
    (
        [HIGH_RES + "LEVELS", HIGH_RES + "ATTENTION"],
        lambda levels, attention: attention == "none" and levels != [4],
        "LEVELS is not used there; leave it at [4]",
    ),
    (
        [HEAD + "IGNORE_VALUE", HEAD + "NUM_CLASSES", "INPUT.DATASET_MAPPER_NAME"],
        lambda ignored, classes, mapper: mapper == "mask_former_semantic" and ignored < classes,
        "it must not be one of the classes (255 and 65535 are usual)",
    ),
    (
        ["INPUT.MIN_SIZE_TRAIN", "INPUT.MIN_SIZE_TRAIN_SAMPLING"],
        lambda sizes, sampling: sampling == "range" and (len(sizes) > 2 or list(sizes) != sorted(sizes)),
        "'range' takes two sizes, the smaller first",
    ),
    (
        ["INPUT.CROP.SIZE", "INPUT.CROP.TYPE", "INPUT.CROP.ENABLED"],
        lambda size, kind, enabled: enabled and not _fits(size, kind),
        "it must be two shares of the image in (0, 1] for a relative TYPE, else two sizes in whole pixels, of which "
        "absolute_range takes the smaller first",
    ),
    (
        [FORMER + "CLASS_WEIGHTS", HEAD + "NUM_CLASSES"],
        lambda weights, classes: weights != "inverse_sqrt" and len(weights) not in (0, classes),
        "it must have one number for each class",
    ),
    (
        ["INPUT.CROP.RARE_CLASS_PROB", "INPUT.CROP.ENABLED", "INPUT.DATASET_MAPPER_NAME"],
        lambda prob, enabled, mapper: (
            prob > 0 and not (enabled and mapper in ("mask_former_semantic", "mask_former_panoptic"))
        ),
        "only crops of mask_former_semantic and mask_former_panoptic know where classes are; objects and large-scale "
        "jittering have DATALOADER.SAMPLER_TRAIN RepeatFactorTrainingSampler",
    ),
    (
        ["DATALOADER.REPEAT_THRESHOLD", "DATALOADER.SAMPLER_TRAIN"],
        lambda threshold, sampler: (threshold > 0) != (sampler == "RepeatFactorTrainingSampler"),
        "RepeatFactorTrainingSampler, and only it, needs the share of images below which a class is rare (LVIS 0.001)",
    ),
    (
        ["INPUT.MIN_SCALE", "INPUT.MAX_SCALE"],
        lambda low, high: low > high,
        "the smaller comes first (0.1 and 2.0 are usual)",
    ),
    *(
        ([f"DATASETS.{kind}.SPLITS"], lambda splits: len(set(splits)) < len(splits), "each split must be named once")
        for kind in ("FOLDER", "COCO")
    ),
    (
        ["DATASETS.FOLDER.VAL_SHARE", "DATASETS.FOLDER.SPLITS"],
        lambda share, splits: share > 0 and len(splits) != 2,
        "there must be two SPLITS, the second of which gets that share",
    ),
    (
        ["DATASETS.COCO.SEMANTIC", "DATASETS.COCO.PANOPTIC"],
        lambda semantic, panoptic: semantic and panoptic,
        "panoptic segments give every pixel a class already; leave SEMANTIC False",
    ),
    (
        ["SOLVER.ACCUMULATE", "SOLVER.IMS_PER_BATCH"],
        lambda parts, batch: batch % parts,
        "it must divide the batch",
    ),
    (
        ["MODEL.SWIN.USE_CHECKPOINT", "SOLVER.GRADIENT_CHECKPOINTING"],
        lambda swin, every: swin and every,
        "GRADIENT_CHECKPOINTING does the same for every backbone; set USE_CHECKPOINT False, or blocks are computed "
        "three times",
    ),
    (
        ["SOLVER.PATIENCE", "TEST.EVAL_PERIOD", "DATASETS.TEST"],
        lambda patience, period, names: patience and not (period and names),
        "it counts evaluations during training: TEST.EVAL_PERIOD must be above 0, with a dataset in DATASETS.TEST",
    ),
    (
        ["SPEED.COMPILE", "SOLVER.GRADIENT_CHECKPOINTING"],
        lambda compiled, checkpointing: compiled and checkpointing,
        "torch.compile cannot follow it; set one of them to False",
    ),
    (
        ["SOLVER.NESTEROV", "SOLVER.MOMENTUM", "SOLVER.OPTIMIZER"],
        lambda nesterov, momentum, optimizer: optimizer == "SGD" and nesterov and not momentum,
        "MOMENTUM must be above 0 (0.9 is usual)",
    ),
    (
        ["TEST.SLIDING_WINDOW.ENABLED", *RESULTS],
        lambda enabled, semantic, panoptic, instances: enabled and (panoptic or instances or not semantic),
        "segments cannot be merged across windows, so SEMANTIC_ON alone may be True",
    ),
    (
        ["TEST.REPORT", RESULTS[0]],
        lambda report, semantic: report and not semantic,
        "the report is about the class of each pixel; set SEMANTIC_ON True, or REPORT False",
    ),
    (
        ["TEST.SAVE_PREDICTIONS", RESULTS[0]],
        lambda formats, semantic: not semantic and {"png", "confidence"} & set(formats),
        "png and confidence are of the classes of pixels; set SEMANTIC_ON True or leave them out",
    ),
    (
        ["TEST.SAVE_PREDICTIONS", FORMER + "TEST.SEMANTIC_OUTPUT"],
        lambda formats, output: output == "labels" and "confidence" in formats,
        "confidence is computed from scores; set SEMANTIC_OUTPUT scores or leave it out",
    ),
    (
        ["TEST.AUG.ENABLED", RESULTS[0]],
        lambda enabled, semantic: enabled and not semantic,
        "only semantic scores are averaged",
    ),
]


def validate(cfg: CfgNode, known: Sequence[str] = ()) -> None:
    """Raise one ValueError that lists every value of `cfg` that cannot work, with what is allowed.

    known: problems that were found before, to be listed too.
    """
    found = [*known, *problems(cfg)]
    if found:
        raise ValueError("the configuration cannot work:\n  " + "\n  ".join(found))


def problems(cfg: CfgNode) -> Iterator[str]:
    """One sentence for each value that cannot work. A rule is only asked if each of its keys is right by itself."""
    name = cfg.MODEL.BACKBONE.NAME
    other = tuple(section for section, builder in BACKBONES.items() if builder != name)
    right = {}
    for key, allowed in KEYS.items():
        value = lookup(cfg, key)
        if key.startswith(other):
            continue
        if allowed.accepts(value):
            right[key] = value
        else:
            yield f"{key} is {shown(value)}; it must be {allowed.words}"
    for keys, is_wrong, words in RULES:
        if right.keys() >= set(keys) and is_wrong(*(right[key] for key in keys)):
            (key, value), *others = ((key, shown(right[key])) for key in keys)
            given = " and ".join(f"{key} {value}" for key, value in others)
            yield f"{key} is {value}{' with ' if given else ''}{given}; {words}"


def shown(value: Any) -> str:
    """`value` as it stands in an error, which a long one does not fill."""
    line = repr(value)
    return line if len(line) <= 200 else f"{line[:150]} ... ({len(line)} characters)"
