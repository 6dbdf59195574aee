"""Configuration: our keys and their defaults, reading YAML without running code, released names, validation."""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from fasegr.config.batch_scaling import scale_to_batch
from fasegr.d2 import CfgNode as CN
from fasegr.d2 import get_cfg
from fasegr.data.build import check_num_classes
from fasegr.data.datasets import register_from_config
from fasegr.inference.sliding_window import check_window
from fasegr.modeling.backbone.swin import swin_arguments, swin_problems

logger = logging.getLogger(__name__)

DEVICES = ("cuda", "cpu", "mps")


def add_fasegr_config(cfg: CN) -> None:
    """Add every key beyond detectron2's own to `cfg`, in place. Names that Mask2Former has mean what they mean there.

    detectron2's defaults are those of a box detector; where FASeg's recipes agree on a value, it becomes the default.
    """
    # fmt: off
    cfg.MODEL.META_ARCHITECTURE = "FASeg"
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.280, 103.530]
    cfg.MODEL.PIXEL_STD = [58.395, 57.120, 57.375]
    cfg.MODEL.BACKBONE.NAME = "build_fasegr_resnet_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.SEM_SEG_HEAD.NAME = "FASegHead"
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 256
    cfg.INPUT.FORMAT = "RGB"
    cfg.SOLVER.BASE_LR = 0.0001
    cfg.SOLVER.WEIGHT_DECAY = 0.05
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupPolyLR"
    cfg.SOLVER.WARMUP_FACTOR = 1.0
    cfg.SOLVER.WARMUP_ITERS = 0
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.01

    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    cfg.INPUT.COLOR_AUG_SSD = False
    cfg.INPUT.SIZE_DIVISIBILITY = -1               # training samples are padded to a multiple of it; -1: not at all
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0  # a crop with more of one class is drawn anew; 1.0: never
    cfg.INPUT.CACHE = ""                           # folder to keep decoded images and labels in; empty: none are kept
    cfg.INPUT.IMAGE_SIZE = 1024                    # this and the next two: large-scale jittering, of the coco_* mappers
    cfg.INPUT.MIN_SCALE = 0.1
    cfg.INPUT.MAX_SCALE = 2.0

    cfg.DATASETS.FOLDER = CN()                     # a dataset of two folders, registered as NAME_SPLIT for each split
    cfg.DATASETS.FOLDER.NAME = ""                  # empty: none
    cfg.DATASETS.FOLDER.ROOT = ""                  # relative to $DETECTRON2_DATASETS, which is "datasets" by default
    cfg.DATASETS.FOLDER.IMAGES = "images/{split}"
    cfg.DATASETS.FOLDER.LABELS = "annotations/{split}"
    cfg.DATASETS.FOLDER.SPLITS = ["train", "val"]
    cfg.DATASETS.FOLDER.CLASSES = ""               # file of class names, relative to the YAML file that names it
    cfg.DATASETS.FOLDER.IGNORE_LABEL = 255

    cfg.DATASETS.COCO = CN()                       # a dataset in COCO's formats, registered likewise; paths below ROOT
    cfg.DATASETS.COCO.NAME = ""                    # empty: none
    cfg.DATASETS.COCO.ROOT = ""
    cfg.DATASETS.COCO.IMAGES = "{split}"
    cfg.DATASETS.COCO.INSTANCES = "annotations/instances_{split}.json"
    cfg.DATASETS.COCO.PANOPTIC = ""                # e.g. "annotations/panoptic_{split}.json"; empty: instances alone
    cfg.DATASETS.COCO.SEGMENTS = "panoptic_{split}"  # the PNGs that PANOPTIC names
    cfg.DATASETS.COCO.SPLITS = ["train", "val"]
    cfg.DATASETS.COCO.CATEGORIES = ""              # JSON, relative to the YAML; empty: of the first annotation file

    cfg.SOLVER.OPTIMIZER = "ADAMW"
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0
    cfg.SOLVER.POLY_LR_POWER = 0.9
    cfg.SOLVER.POLY_LR_CONSTANT_ENDING = 0.0
    cfg.SOLVER.REFERENCE_BATCH = 0                 # the batch a schedule is for (fasegr/batch_scaling.py); 0: any
    cfg.SOLVER.ACCUMULATE = 1                      # parts that a batch of IMS_PER_BATCH is computed in, to save memory
    cfg.SOLVER.AMP.DTYPE = "float16"

    cfg.TEST.SAVE_LABELS = False                   # predictions as label PNGs in OUTPUT_DIR/inference
    cfg.TEST.SAVE_SUBMISSION = False               # and as the benchmark's server wants them (ADE20K, Cityscapes)
    cfg.TEST.SAVE_JSON = False                     # and in detectron2's sem_seg_predictions.json
    cfg.TEST.BOUNDARY_IOU = True
    cfg.TEST.AUG.FROM_ORIGINAL = False             # sizes made from the image as it is, not as resized for testing
    cfg.TEST.SLIDING_WINDOW = CN()                 # images larger than the memory allows
    cfg.TEST.SLIDING_WINDOW.ENABLED = False
    cfg.TEST.SLIDING_WINDOW.SIZE = [512, 512]      # height, width; best what the model was trained on
    cfg.TEST.SLIDING_WINDOW.OVERLAP = 0.5          # share of a window that the next one covers too, at least

    cfg.MODEL.RESNETS.RES4_DILATION = 1            # of detectron2's DeepLab: released files set these three
    cfg.MODEL.RESNETS.RES5_MULTI_GRID = [1, 1, 1]
    cfg.MODEL.RESNETS.STEM_TYPE = "basic"

    cfg.MODEL.SWIN = swin = CN()                   # of build_fasegr_swin_backbone; the defaults are Swin-T
    swin.PRETRAIN_IMG_SIZE = 224                   # read with APE alone
    swin.PATCH_SIZE = 4
    swin.EMBED_DIM = 96
    swin.DEPTHS = [2, 2, 6, 2]
    swin.NUM_HEADS = [3, 6, 12, 24]
    swin.WINDOW_SIZE = 7
    swin.MLP_RATIO = 4.0
    swin.QKV_BIAS = True
    swin.QK_SCALE = None                           # None: 1 / sqrt(channels of a head)
    swin.DROP_RATE = 0.0
    swin.ATTN_DROP_RATE = 0.0
    swin.DROP_PATH_RATE = 0.3
    swin.APE = False                               # an absolute position for each token
    swin.PATCH_NORM = True
    swin.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    swin.USE_CHECKPOINT = False                    # compute blocks again in the backward pass instead of keeping them

    cfg.MODEL.TIMM = CN()                          # of build_timm_backbone
    cfg.MODEL.TIMM.NAME = ""                       # as in timm.list_models(), e.g. "convnext_tiny.in12k_ft_in1k"
    cfg.MODEL.TIMM.PRETRAINED = False              # timm's weights; not fetched where MODEL.WEIGHTS names others
    cfg.MODEL.TIMM.DROP_PATH_RATE = 0.0

    head = cfg.MODEL.SEM_SEG_HEAD
    head.MASK_DIM = 256
    head.TRANSFORMER_ENC_LAYERS = 6
    head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES = ["res3", "res4", "res5"]
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS = 4
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS = 8
    head.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD = 1024

    cfg.MODEL.MASK_FORMER = former = CN()
    former.DEEP_SUPERVISION = True
    former.NO_OBJECT_WEIGHT = 0.1
    former.CLASS_WEIGHT = 2.0
    former.MASK_WEIGHT = 5.0
    former.DICE_WEIGHT = 5.0
    former.HIDDEN_DIM = 256
    former.NUM_OBJECT_QUERIES = 100
    former.NHEADS = 8
    former.DROPOUT = 0.0                           # of the pixel decoder
    former.DIM_FEEDFORWARD = 2048
    former.DEC_LAYERS = 14                         # decoder layers, plus one: the prediction from the learnable queries
    former.ENC_LAYERS = 0
    former.PRE_NORM = False
    former.ENFORCE_INPUT_PROJ = False
    former.TRANSFORMER_IN_FEATURE = "multi_scale_pixel_decoder"
    former.SIZE_DIVISIBILITY = 32                  # images are padded to a multiple of it
    former.TRAIN_NUM_POINTS = 112 * 112
    former.OVERSAMPLE_RATIO = 3.0
    former.IMPORTANCE_SAMPLE_RATIO = 0.75
    former.TEST = CN()
    former.TEST.SEMANTIC_ON = True
    former.TEST.INSTANCE_ON = False
    former.TEST.PANOPTIC_ON = False
    former.TEST.OBJECT_MASK_THRESHOLD = 0.8        # this and the next two speak of instances and segments
    former.TEST.OVERLAP_THRESHOLD = 0.8
    former.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE = False
    former.TEST.SEMANTIC_OUTPUT = "scores"         # "labels": the most likely class alone, in a fraction of the memory

    cfg.SPEED = CN()
    cfg.SPEED.TUNED_ALLOCATOR = True               # freed memory stays with the process (glibc, programs only)
    cfg.SPEED.THREADS = 0                          # of torch on the CPU (programs only); 0: as many as torch takes
    cfg.SPEED.COMPILE = False                      # backbone and head through torch.compile, at their first call
    cfg.SPEED.DETERMINISTIC = False                # the same numbers in each run on a GPU, more slowly (programs only)

    cfg.MODEL.FASEG = faseg = CN()
    faseg.POSITIONAL_QUERY = "dfpq"
    faseg.KEY_POSITION = "conditional"
    faseg.FIRST_QUERY_REGION = "background"        # release; the paper pools over the foreground
    faseg.MASK_THRESHOLD = 0.15                    # Mask2Former 0.5
    faseg.HIGH_RES = CN()
    faseg.HIGH_RES.ATTENTION = "hrca"
    faseg.HIGH_RES.LEVELS = [4]                    # strides of the maps that it reads; the 1/4 map is read by it alone
    faseg.HIGH_RES.OMEGA = 32                      # one key in OMEGA is attended
    faseg.HIGH_RES.SELECTION = "window"            # release; the paper selects pixels
    faseg.HIGH_RES.QUERY = "static"                # release; the paper uses the dynamic one
    # fmt: on


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
    # Keys that released files set and that have one meaning here.
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": ("multi_scale_pixel_decoder",),
    "MODEL.MASK_FORMER.ENC_LAYERS": (0,),
    "MODEL.MASK_FORMER.PRE_NORM": (False,),
    "MODEL.RESNETS.RES4_DILATION": (1,),
    "MODEL.SWIN.PATCH_SIZE": (4,),
    "SOLVER.OPTIMIZER": ("ADAMW", "SGD"),
    "SOLVER.AMP.DTYPE": ("float16", "bfloat16"),
    "INPUT.FORMAT": ("RGB",),
    "INPUT.DATASET_MAPPER_NAME": (
        "mask_former_semantic",
        "mask_former_instance",
        "mask_former_panoptic",
        "coco_instance_lsj",
        "coco_panoptic_lsj",
    ),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
}

POSITIVE = (
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS",
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES",
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS",
    "MODEL.FASEG.HIGH_RES.OMEGA",
    "SOLVER.IMS_PER_BATCH",
    "SOLVER.ACCUMULATE",
    "SOLVER.MAX_ITER",
    "SOLVER.CHECKPOINT_PERIOD",
    "INPUT.MIN_SIZE_TEST",
)


def load_cfg(path: str | os.PathLike, opts: Sequence[Any] = ()) -> CN:
    """The configuration of a YAML file, ours or a released one, and of `opts` (key, value, key, value, ...).

    A dataset that DATASETS.FOLDER or COCO describes is registered. MODEL.DEVICE becomes the CPU where no GPU is to be
    seen. Raises FileNotFoundError for a file that is not there, ValueError for all that is wrong in it or in `opts`.
    """
    cfg = get_cfg()
    add_fasegr_config(cfg)
    content = read_yaml(path)
    content.pop("VERSION", None)
    _refuse_unknown_keys(content, cfg, str(path))
    try:
        cfg.merge_from_other_cfg(CN(content))
    except (ValueError, AssertionError) as error:
        raise ValueError(f"{path}: {error}") from error

    opts = list(opts)
    if len(opts) % 2:
        raise ValueError(f"options come in pairs KEY VALUE; {opts[-1]!r} has no partner in {' '.join(map(str, opts))}")
    opts = _translate_options(opts)
    for key in opts[0::2]:
        _refuse_unknown_keys(_nested(key, None), cfg, "command line")
    try:
        cfg.merge_from_list(opts)
    except (ValueError, AssertionError) as error:
        raise ValueError(f"command line: {error}") from error

    validate(cfg)
    scale_to_batch(cfg, stated=opts[0::2])
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("MODEL.DEVICE is %s and no GPU is to be seen; using the CPU", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"
    register_from_config(cfg)
    check_num_classes(cfg)
    return cfg


def validate(cfg: CN) -> None:
    """Raise one ValueError that lists every value of `cfg` that cannot work, with what is allowed."""
    problems = []
    for key, allowed in CHOICES.items():
        value = _get(cfg, key)
        if value not in allowed:
            problems.append(f"{key} is {value!r}; it must be {' or '.join(repr(a) for a in allowed)}")
    for key in POSITIVE:
        if _get(cfg, key) < 1:
            problems.append(f"{key} is {_get(cfg, key)}; it must be an int >= 1")

    former, head, faseg = cfg.MODEL.MASK_FORMER, cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.FASEG
    if former.DEC_LAYERS < 2:
        problems.append(
            f"MODEL.MASK_FORMER.DEC_LAYERS is {former.DEC_LAYERS}; it counts the prediction from the learnable queries "
            "and then the layers, so it must be >= 2 (14 in FASeg, 10 in Mask2Former)"
        )
    if not 0 < faseg.MASK_THRESHOLD < 1:
        problems.append(
            f"MODEL.FASEG.MASK_THRESHOLD is {faseg.MASK_THRESHOLD}; it must lie between 0 and 1 (0.15 in FASeg)"
        )
    if faseg.HIGH_RES.SELECTION == "pixel" and faseg.HIGH_RES.ATTENTION in ("vanilla", "random", "rcda"):
        problems.append(
            f"MODEL.FASEG.HIGH_RES.SELECTION is 'pixel' with ATTENTION {faseg.HIGH_RES.ATTENTION!r}; "
            "only hrca selects pixels by attention"
        )
    if faseg.HIGH_RES.ATTENTION == "none" and faseg.HIGH_RES.LEVELS != [4]:
        problems.append(
            f"MODEL.FASEG.HIGH_RES.LEVELS is {faseg.HIGH_RES.LEVELS} with ATTENTION 'none', which reads no level so; "
            "leave it at [4]"
        )
    if former.SIZE_DIVISIBILITY > 0 and former.SIZE_DIVISIBILITY % 32:
        problems.append(
            f"MODEL.MASK_FORMER.SIZE_DIVISIBILITY is {former.SIZE_DIVISIBILITY}; the coarsest map has stride 32, "
            "so it must be a multiple of 32"
        )
    for key, dim, heads in (
        ("MODEL.MASK_FORMER.NHEADS", former.HIDDEN_DIM, former.NHEADS),
        (
            "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS",
            head.CONVS_DIM,
            head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS,
        ),
    ):
        if heads < 1 or dim % heads:
            problems.append(f"{key} is {heads}; it must divide the {dim} channels")
    if head.CONVS_DIM % 32:
        problems.append(f"MODEL.SEM_SEG_HEAD.CONVS_DIM is {head.CONVS_DIM}; GroupNorm wants a multiple of 32")
    if head.CONVS_DIM != former.HIDDEN_DIM:
        problems.append(
            f"MODEL.SEM_SEG_HEAD.CONVS_DIM is {head.CONVS_DIM} and MODEL.MASK_FORMER.HIDDEN_DIM {former.HIDDEN_DIM}; "
            "key positions have the former and are added to keys of the latter, so they must be equal"
        )
    if cfg.MODEL.BACKBONE.NAME == "build_fasegr_swin_backbone":
        problems += swin_problems(**swin_arguments(cfg))
    if cfg.SOLVER.IMS_PER_BATCH % cfg.SOLVER.ACCUMULATE:
        problems.append(
            f"SOLVER.ACCUMULATE is {cfg.SOLVER.ACCUMULATE}; it must divide SOLVER.IMS_PER_BATCH, "
            f"which is {cfg.SOLVER.IMS_PER_BATCH}"
        )
    if cfg.TEST.SLIDING_WINDOW.ENABLED:
        try:
            check_window(cfg.TEST.SLIDING_WINDOW.SIZE, cfg.TEST.SLIDING_WINDOW.OVERLAP)
        except ValueError as error:
            problems.append(str(error))
        if former.TEST.PANOPTIC_ON or former.TEST.INSTANCE_ON:
            problems.append(
                "TEST.SLIDING_WINDOW.ENABLED is True with MODEL.MASK_FORMER.TEST.PANOPTIC_ON or INSTANCE_ON; "
                "segments cannot be put together from windows, so SEMANTIC_ON must be the only one"
            )
    if cfg.TEST.AUG.ENABLED and not former.TEST.SEMANTIC_ON:
        problems.append(
            "TEST.AUG.ENABLED is True with MODEL.MASK_FORMER.TEST.SEMANTIC_ON False; only semantic scores are averaged"
        )
    if cfg.SPEED.THREADS < 0:
        problems.append(f"SPEED.THREADS is {cfg.SPEED.THREADS}; it must be a number of threads, or 0 for torch's own")
    if cfg.SOLVER.REFERENCE_BATCH < 0:
        problems.append(
            f"SOLVER.REFERENCE_BATCH is {cfg.SOLVER.REFERENCE_BATCH}; it must be the batch size that the schedule is "
            "for, or 0 to train it as it stands with any"
        )
    if cfg.MODEL.DEVICE.split(":")[0] not in DEVICES:
        problems.append(f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}; it must be one of {', '.join(DEVICES)}")
    if problems:
        raise ValueError("the configuration cannot work:\n  " + "\n  ".join(problems))


def read_yaml(path: str | os.PathLike) -> dict:
    """Content of a YAML file merged over that of its `_BASE_`, as plain data under our names; no code is run.

    `_BASE_` is a file, relative to this one, or a list of files, each merged over those before it.
    `DATASETS.FOLDER.CLASSES` and `DATASETS.COCO.CATEGORIES` become absolute, relative to the file that states them.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"config file {path} does not exist (working directory: {Path.cwd()})")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML that can be read safely: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; a config file is a mapping of keys to values")

    for section, key in (("FOLDER", "CLASSES"), ("COCO", "CATEGORIES")):
        described = (content.get("DATASETS") or {}).get(section) or {}
        if described.get(key):
            described[key] = str((path.resolve().parent / Path(described[key]).expanduser()).resolve())

    bases = content.pop("_BASE_", [])
    merged: dict = {}
    for base in [bases] if isinstance(bases, str) else bases:
        merged = _merge(merged, read_yaml(path.parent / Path(base).expanduser()))
    return _merge(merged, _translate_released_names(content, str(path)))


class _Loader(yaml.SafeLoader):
    """Safe YAML, and the one expression that the released files of Mask2Former and FASeg hold."""


_SIZES = re.compile(r"\[int\(x \* 0\.1 \* (\d+)\) for x in range\((\d+), (\d+)\)\]")


def _sizes(loader: _Loader, node: yaml.Node) -> list[int]:
    argument = loader.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else [None]
    match = _SIZES.fullmatch(str(argument[0])) if len(argument) == 1 else None
    if match is None:
        raise yaml.constructor.ConstructorError(
            None,
            None,
            f"the expression {argument} is not run: of Python, only '[int(x * 0.1 * N) for x in range(A, B)]' "
            "is understood; write the values out",
            node.start_mark,
        )
    size, start, stop = map(int, match.groups())
    return [int(x * 0.1 * size) for x in range(start, stop)]


_Loader.add_constructor("tag:yaml.org,2002:python/object/apply:eval", _sizes)


# Names in the released files of FASeg and Mask2Former, and what they mean here.
_RELEASED = {
    "MODEL.META_ARCHITECTURE": {"MaskFormer": "FASeg"},
    "MODEL.BACKBONE.NAME": {
        "build_resnet_backbone": "build_fasegr_resnet_backbone",
        "D2SwinTransformer": "build_fasegr_swin_backbone",
    },
    "MODEL.SEM_SEG_HEAD.NAME": {"MaskFormerHeadFASeg": "FASegHead", "MaskFormerHead": "FASegHead"},
}
# Released parts that are not a part here but a setting of MODEL.FASEG.
_RELEASED_PARTS: dict[str, dict[str, dict]] = {
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": {
        "MSDeformAttnPixelDecoder4ScalesFASeg": {"KEY_POSITION": "conditional"},
        "MSDeformAttnPixelDecoder": {"KEY_POSITION": "sinusoidal"},
    },
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": {
        "MultiScaleMaskedTransformerDecoderFASeg": {
            "POSITIONAL_QUERY": "dfpq",
            "MASK_THRESHOLD": 0.15,
            "HIGH_RES": {"ATTENTION": "hrca"},
        },
        "MultiScaleMaskedTransformerDecoder": {
            "POSITIONAL_QUERY": "learnable",
            "MASK_THRESHOLD": 0.5,
            "HIGH_RES": {"ATTENTION": "none"},
        },
    },
}


def _translate_released_names(content: dict, source: str) -> dict:
    """The content of one file under our names. What a part implies gives way to keys that the same file states."""
    for key, names in _RELEASED.items():
        section, leaf = _section(content, key)
        if isinstance(section.get(leaf), str):
            section[leaf] = names.get(section[leaf], section[leaf])
    implied: dict = {}
    for key, names in _RELEASED_PARTS.items():
        section, leaf = _section(content, key)
        if leaf not in section:
            continue
        name = section.pop(leaf)
        if name not in names:
            raise ValueError(f"{source}: {key} is {name!r}; of the released names, {sorted(names)} are understood")
        implied = _merge(implied, names[name])
    if implied:
        content["MODEL"]["FASEG"] = _merge(implied, content["MODEL"].get("FASEG") or {})
    solver, _ = _section(content, "SOLVER.STEPS")
    if "STEPS" in solver:
        # Released files that name no schedule have detectron2's, which has steps; ours, FASeg's, has none.
        solver.setdefault("LR_SCHEDULER_NAME", "WarmupMultiStepLR")
    return content


def _section(content: dict, key: str) -> tuple[dict, str]:
    """The mapping in `content` that holds the last part of `key`, an empty one if there is none; and that part."""
    *parents, leaf = key.split(".")
    for parent in parents:
        content = content.get(parent)
        if not isinstance(content, dict):
            return {}, leaf
    return content, leaf


def _translate_options(opts: list) -> list:
    """`opts` under our names; an option that names a released part becomes the options that it implies."""
    translated: list = []
    for key, value in zip(opts[0::2], opts[1::2], strict=True):
        if key in _RELEASED or key in _RELEASED_PARTS:
            translated += _flat(_translate_released_names(_nested(key, value), "command line"))
        else:
            translated += [key, value]
    return translated


def _flat(content: dict, prefix: str = "") -> list:
    """{"A": {"B": 1}} to ["A.B", 1]; empty sections vanish."""
    pairs: list = []
    for key, value in content.items():
        pairs += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}", value]
    return pairs


def _merge(base: dict, over: dict) -> dict:
    """`base` with `over` on top, mappings merged key by key."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _refuse_unknown_keys(content: dict, cfg: CN, source: str, prefix: str = "") -> None:
    for key, value in content.items():
        name = f"{prefix}{key}"
        if key not in cfg:
            close = difflib.get_close_matches(str(key), list(cfg), n=1)
            hint = f"; did you mean {prefix}{close[0]}?" if close else f"; {prefix or 'the root.'}* has {sorted(cfg)}"
            raise ValueError(f"{source}: the key {name} does not exist{hint}")
        if isinstance(cfg[key], CN):
            if not isinstance(value, dict):
                raise ValueError(f"{source}: {name} is a section, not a value; it has the keys {sorted(cfg[key])}")
            _refuse_unknown_keys(value, cfg[key], source, f"{name}.")


def _nested(key: str, value: Any) -> dict:
    *parents, leaf = str(key).split(".")
    content: dict = {leaf: value}
    for parent in reversed(parents):
        content = {parent: content}
    return content


def _get(cfg: CN, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg
