"""Checks of a config's values: the only place whose errors name YAML keys."""

from __future__ import annotations

from collections.abc import Iterator

from fasegr.d2 import CfgNode
from fasegr.utils.nested import lookup

__all__ = ["validate"]

CHOICES: dict[str, tuple] = {
    "MODEL.META_ARCHITECTURE": ("FASeg",),
    "MODEL.SEM_SEG_HEAD.NAME": ("FASegHead",),
    "MODEL.FASEG.POSITIONAL_QUERY": ("dfpq", "learnable", "grid_anchor", "dynamic_anchor", "dynamic_foreground"),
    "MODEL.FASEG.KEY_POSITION": ("conditional", "sinusoidal", "learnable"),
    "MODEL.FASEG.FIRST_QUERY_REGION": ("background", "foreground"),
    "MODEL.FASEG.HIGH_RES.ATTENTION": ("hrca", "vanilla", "random", "rcda", "none"),
    "MODEL.FASEG.HIGH_RES.LEVELS": ([4], [8], [4, 8]),
    "MODEL.FASEG.HIGH_RES.SELECTION": ("window", "pixel"),
    "MODEL.FASEG.HIGH_RES.QUERY": ("static", "dynamic"),
    "MODEL.MASK_FORMER.TEST.SEMANTIC_OUTPUT": ("scores", "labels"),
    "INPUT.FORMAT": ("RGB",),  # of the weights and of PIXEL_MEAN
    "INPUT.DATASET_MAPPER_NAME": (
        "mask_former_semantic",
        "mask_former_instance",
        "mask_former_panoptic",
        "coco_instance_lsj",
        "coco_panoptic_lsj",
    ),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
    "INPUT.CROP.TYPE": ("absolute", "absolute_range", "relative", "relative_range"),
    "SOLVER.OPTIMIZER": ("ADAMW", "SGD"),
    "SOLVER.AMP.DTYPE": ("float16", "bfloat16"),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("full_model", "norm", "value"),
    # Keys of Mask2Former that have only one meaning here.
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": ("multi_scale_pixel_decoder",),
    "MODEL.MASK_FORMER.ENC_LAYERS": (0,),
    "MODEL.MASK_FORMER.PRE_NORM": (False,),
}

# Further choices with one backbone.
BACKBONE_CHOICES: dict[str, dict[str, tuple]] = {
    "build_fasegr_resnet_backbone": {
        "MODEL.RESNETS.DEPTH": (18, 34, 50, 101),
        "MODEL.RESNETS.NORM": ("FrozenBN", "BN", "SyncBN", "GN", ""),
        "MODEL.RESNETS.NUM_GROUPS": (1,),
        "MODEL.RESNETS.WIDTH_PER_GROUP": (64,),
        "MODEL.RESNETS.RES4_DILATION": (1,),
        "MODEL.RESNETS.RES5_DILATION": (1,),
        "MODEL.RESNETS.RES5_MULTI_GRID": ([1, 1, 1],),  # released files set it; it multiplies the dilation of res5
        "MODEL.RESNETS.DEFORM_ON_PER_STAGE": ([False] * 4,),
    },
    "build_fasegr_swin_backbone": {"MODEL.SWIN.PATCH_SIZE": (4,), "MODEL.BACKBONE.FREEZE_AT": (0,)},
    "build_timm_backbone": {"MODEL.BACKBONE.FREEZE_AT": (0,)},
}

# Least values, and a remark on those that are not plain counts.
MINIMA: dict[str, tuple[int, str]] = {
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": (1, ""),
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": (1, ""),
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": (1, ""),
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": (1, ""),
    "MODEL.MASK_FORMER.DEC_LAYERS": (2, ": the layers plus the prediction before the first (FASeg 14, Mask2Former 10)"),
    "MODEL.FASEG.HIGH_RES.OMEGA": (1, ""),
    "SOLVER.IMS_PER_BATCH": (1, ""),
    "SOLVER.REFERENCE_BATCH": (0, "; 0 keeps the schedule as it is"),
    "SOLVER.ACCUMULATE": (1, ""),
    "SOLVER.MAX_ITER": (1, ""),
    "SOLVER.CHECKPOINT_PERIOD": (1, ""),
    "INPUT.MIN_SIZE_TEST": (1, ""),
    "INPUT.IMAGE_SIZE": (1, ""),
    "SPEED.THREADS": (0, "; 0 is torch's default"),
}

STAGES = ["res2", "res3", "res4", "res5"]


def validate(cfg: CfgNode) -> None:
    """Raise one ValueError that lists every value of `cfg` that cannot work, with what is allowed."""
    problems = [*_choices(cfg), *_model(cfg), *_backbone(cfg), *_input(cfg), *_solver(cfg), *_test(cfg)]
    if problems:
        raise ValueError("the configuration cannot work:\n  " + "\n  ".join(problems))


def _choices(cfg: CfgNode) -> Iterator[str]:
    for key, allowed in (CHOICES | BACKBONE_CHOICES.get(cfg.MODEL.BACKBONE.NAME, {})).items():
        if lookup(cfg, key) not in allowed:
            yield f"{key} is {lookup(cfg, key)!r}; it must be {' or '.join(map(repr, allowed))}"
    for key, (least, remark) in MINIMA.items():
        if lookup(cfg, key) < least:
            yield f"{key} is {lookup(cfg, key)}; it must be an int >= {least}{remark}"
    if cfg.MODEL.DEVICE.split(":")[0] not in ("cuda", "cpu", "mps"):
        yield f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}; it must be one of cuda, cpu, mps"


def _model(cfg: CfgNode) -> Iterator[str]:
    former, head, faseg = cfg.MODEL.MASK_FORMER, cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.FASEG
    if not 0 < faseg.MASK_THRESHOLD < 1:
        yield f"MODEL.FASEG.MASK_THRESHOLD is {faseg.MASK_THRESHOLD}; it must lie between 0 and 1 (0.15 in FASeg)"
    if faseg.HIGH_RES.SELECTION == "pixel" and faseg.HIGH_RES.ATTENTION in ("vanilla", "random", "rcda"):
        yield (
            f"MODEL.FASEG.HIGH_RES.SELECTION is 'pixel' with ATTENTION {faseg.HIGH_RES.ATTENTION!r}; "
            "only hrca selects pixels by attention"
        )
    if faseg.HIGH_RES.ATTENTION == "none" and faseg.HIGH_RES.LEVELS != [4]:
        yield f"MODEL.FASEG.HIGH_RES.LEVELS is {faseg.HIGH_RES.LEVELS}, unused with ATTENTION 'none'; leave it at [4]"
    if former.SIZE_DIVISIBILITY > 0 and former.SIZE_DIVISIBILITY % 32:
        yield (
            f"MODEL.MASK_FORMER.SIZE_DIVISIBILITY is {former.SIZE_DIVISIBILITY}; it must be a multiple of 32, "
            "the stride of the coarsest map"
        )
    for key, channels in (
        ("MODEL.MASK_FORMER.NHEADS", former.HIDDEN_DIM),
        ("MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS", head.CONVS_DIM),
    ):
        if lookup(cfg, key) < 1 or channels % lookup(cfg, key):
            yield f"{key} is {lookup(cfg, key)}; it must divide the {channels} channels"
    if head.CONVS_DIM % 32:
        yield f"MODEL.SEM_SEG_HEAD.CONVS_DIM is {head.CONVS_DIM}; it must be a multiple of 32, GroupNorm's groups"
    if head.CONVS_DIM != former.HIDDEN_DIM:
        yield (
            f"MODEL.SEM_SEG_HEAD.CONVS_DIM is {head.CONVS_DIM} and MODEL.MASK_FORMER.HIDDEN_DIM {former.HIDDEN_DIM}; "
            "they must be equal, as key positions of the former are added to keys of the latter"
        )
    if not (former.TEST.SEMANTIC_ON or former.TEST.PANOPTIC_ON or former.TEST.INSTANCE_ON):
        yield (
            "MODEL.MASK_FORMER.TEST.SEMANTIC_ON, PANOPTIC_ON and INSTANCE_ON are all False; "
            "set one of them to True, or there is no result"
        )


def _backbone(cfg: CfgNode) -> Iterator[str]:
    name, freeze_at, norm = cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT, cfg.MODEL.RESNETS.NORM
    if name == "build_fasegr_resnet_backbone":
        yield from _out_features("MODEL.RESNETS", cfg.MODEL.RESNETS)
        if freeze_at and norm not in ("FrozenBN", "GN"):
            yield (
                f"MODEL.BACKBONE.FREEZE_AT is {freeze_at} with MODEL.RESNETS.NORM {norm!r}, whose running statistics "
                "would still change; set FREEZE_AT to 0 or NORM to FrozenBN"
            )
    if name == "build_fasegr_swin_backbone":
        yield from _swin(cfg.MODEL.SWIN)


def _swin(swin: CfgNode) -> Iterator[str]:
    yield from _out_features("MODEL.SWIN", swin)
    for key in ("DEPTHS", "NUM_HEADS"):
        if len(swin[key]) != 4 or not all(isinstance(number, int) and number >= 1 for number in swin[key]):
            yield f"MODEL.SWIN.{key} is {swin[key]}; it must be 4 ints >= 1, one for each stage"
        elif key == "NUM_HEADS":
            for i, heads in enumerate(swin.NUM_HEADS):
                if swin.EMBED_DIM * 2**i % heads:
                    yield f"MODEL.SWIN.NUM_HEADS[{i}] is {heads}; it must divide the {swin.EMBED_DIM * 2**i} channels"
    for key, least in (("EMBED_DIM", 1), ("WINDOW_SIZE", 1), ("PRETRAIN_IMG_SIZE", 4)):
        if swin[key] < least:
            yield f"MODEL.SWIN.{key} is {swin[key]}; it must be an int >= {least} (96, 7 and 224 in Swin-T)"
    if swin.MLP_RATIO <= 0:
        yield f"MODEL.SWIN.MLP_RATIO is {swin.MLP_RATIO}; it must be > 0 (4.0 in the paper)"
    for key in ("DROP_RATE", "ATTN_DROP_RATE", "DROP_PATH_RATE"):
        if not 0 <= swin[key] < 1:
            yield f"MODEL.SWIN.{key} is {swin[key]}; it is a probability, 0 <= rate < 1"


def _out_features(section: str, keys: CfgNode) -> Iterator[str]:
    if not keys.OUT_FEATURES or not set(keys.OUT_FEATURES) <= set(STAGES):
        yield f"{section}.OUT_FEATURES is {keys.OUT_FEATURES}; it must be chosen from {STAGES}"


def _input(cfg: CfgNode) -> Iterator[str]:
    given, crop = cfg.INPUT, cfg.INPUT.CROP
    if crop.ENABLED:
        relative = crop.TYPE.startswith("relative")
        if len(crop.SIZE) != 2 or min(crop.SIZE) <= 0 or (relative and max(crop.SIZE) > 1):
            unit = "shares of the image in (0, 1]" if relative else "sizes in pixels, at least 1"
            yield f"INPUT.CROP.SIZE is {tuple(crop.SIZE)} with TYPE {crop.TYPE!r}; it must be two {unit}"
        elif crop.TYPE == "absolute_range" and crop.SIZE[0] > crop.SIZE[1]:
            yield f"INPUT.CROP.SIZE is {tuple(crop.SIZE)}; TYPE 'absolute_range' takes the smaller size first"
    if not 0 < crop.SINGLE_CATEGORY_MAX_AREA <= 1:
        yield f"INPUT.CROP.SINGLE_CATEGORY_MAX_AREA is {crop.SINGLE_CATEGORY_MAX_AREA}; it must be in (0, 1]"
    if not 0 < given.MIN_SCALE <= given.MAX_SCALE:
        yield (
            f"INPUT.MIN_SCALE is {given.MIN_SCALE} and MAX_SCALE {given.MAX_SCALE}; they must be factors of IMAGE_SIZE "
            "above 0, the smaller first (0.1 and 2.0 are usual)"
        )


def _solver(cfg: CfgNode) -> Iterator[str]:
    solver, clip = cfg.SOLVER, cfg.SOLVER.CLIP_GRADIENTS
    if solver.ACCUMULATE > 0 and solver.IMS_PER_BATCH % solver.ACCUMULATE:
        yield (
            f"SOLVER.ACCUMULATE is {solver.ACCUMULATE}; it must divide SOLVER.IMS_PER_BATCH, "
            f"which is {solver.IMS_PER_BATCH}"
        )
    if clip.ENABLED and clip.CLIP_VALUE <= 0:
        yield (
            f"SOLVER.CLIP_GRADIENTS.CLIP_VALUE is {clip.CLIP_VALUE}; it must be > 0 (0.01 in the paper); "
            "SOLVER.CLIP_GRADIENTS.ENABLED False turns clipping off"
        )


def _test(cfg: CfgNode) -> Iterator[str]:
    test, window = cfg.MODEL.MASK_FORMER.TEST, cfg.TEST.SLIDING_WINDOW
    if window.ENABLED:
        if len(window.SIZE) != 2 or not all(isinstance(side, int) and side >= 1 for side in window.SIZE):
            yield f"TEST.SLIDING_WINDOW.SIZE is {window.SIZE}; it must be height and width in pixels, each an int >= 1"
        if not 0 <= window.OVERLAP < 1:
            yield (
                f"TEST.SLIDING_WINDOW.OVERLAP is {window.OVERLAP}; it must be the share of a window that the next one "
                "covers again, at least 0 and below 1 (0.5 is usual)"
            )
        if test.PANOPTIC_ON or test.INSTANCE_ON:
            yield (
                "TEST.SLIDING_WINDOW.ENABLED is True with MODEL.MASK_FORMER.TEST.PANOPTIC_ON or INSTANCE_ON; "
                "segments cannot be merged across windows, so only SEMANTIC_ON may be True"
            )
    if cfg.TEST.AUG.ENABLED and not test.SEMANTIC_ON:
        yield (
            "TEST.AUG.ENABLED is True with MODEL.MASK_FORMER.TEST.SEMANTIC_ON False; only semantic scores are averaged"
        )
