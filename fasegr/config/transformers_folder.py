"""Mask2Former as Hugging Face's transformers saves it, a folder with config.json, as a config.

Source of the names and their defaults: `Mask2FormerConfig`, `SwinConfig` and `Mask2FormerImageProcessor` of
transformers 4.27 to 5.24. What has another meaning than here is refused, with the file and the key.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from typing import Any

from fasegr.config.validate import KEYS, UNPRINTABLE, shown

__all__ = ["TASKS", "transformers_values"]

logger = logging.getLogger(__name__)

TASKS = ("semantic", "instance", "panoptic")
DATASET = "transformers"  # the name of the dataset that holds the classes
_MAX_BYTES = 2**24

# Their key, our key, their default.
_MODEL = (
    ("feature_size", "MODEL.SEM_SEG_HEAD.CONVS_DIM", 256),
    ("mask_feature_size", "MODEL.SEM_SEG_HEAD.MASK_DIM", 256),
    ("hidden_dim", "MODEL.MASK_FORMER.HIDDEN_DIM", 256),
    ("encoder_feedforward_dim", "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD", 1024),
    ("encoder_layers", "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 6),
    ("decoder_layers", "MODEL.MASK_FORMER.DEC_LAYERS", 10),
    ("num_attention_heads", "MODEL.MASK_FORMER.NHEADS", 8),
    ("num_attention_heads", "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS", 8),
    ("dropout", "MODEL.MASK_FORMER.DROPOUT", 0.0),
    ("dim_feedforward", "MODEL.MASK_FORMER.DIM_FEEDFORWARD", 2048),
    ("enforce_input_projection", "MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ", False),
    ("num_queries", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 100),
    ("no_object_weight", "MODEL.MASK_FORMER.NO_OBJECT_WEIGHT", 0.1),
    ("class_weight", "MODEL.MASK_FORMER.CLASS_WEIGHT", 2.0),
    ("mask_weight", "MODEL.MASK_FORMER.MASK_WEIGHT", 5.0),
    ("dice_weight", "MODEL.MASK_FORMER.DICE_WEIGHT", 5.0),
    ("train_num_points", "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 12544),
    ("oversample_ratio", "MODEL.MASK_FORMER.OVERSAMPLE_RATIO", 3.0),
    ("importance_sample_ratio", "MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO", 0.75),
    ("use_auxiliary_loss", "MODEL.MASK_FORMER.DEEP_SUPERVISION", True),
)
_SWIN = (
    ("embed_dim", "MODEL.SWIN.EMBED_DIM", 96),
    ("depths", "MODEL.SWIN.DEPTHS", [2, 2, 6, 2]),
    ("num_heads", "MODEL.SWIN.NUM_HEADS", [3, 6, 12, 24]),
    ("window_size", "MODEL.SWIN.WINDOW_SIZE", 7),
    ("mlp_ratio", "MODEL.SWIN.MLP_RATIO", 4.0),
    ("qkv_bias", "MODEL.SWIN.QKV_BIAS", True),
    ("hidden_dropout_prob", "MODEL.SWIN.DROP_RATE", 0.0),
    ("attention_probs_dropout_prob", "MODEL.SWIN.ATTN_DROP_RATE", 0.0),
    ("drop_path_rate", "MODEL.SWIN.DROP_PATH_RATE", 0.1),
)
# Their key and the only value that means what this program computes.
_FIXED = (
    ("activation_function", "relu"),
    ("pre_norm", False),
    ("common_stride", 4),
    ("feature_strides", [4, 8, 16, 32]),
)
_FIXED_SWIN = (
    ("hidden_act", "gelu"),
    ("layer_norm_eps", 1e-5),
    ("num_channels", 3),
    ("patch_size", 4),
    ("use_absolute_embeddings", False),
    ("out_features", ["stage1", "stage2", "stage3", "stage4"]),
)
_DEFAULT_SWIN = {"depths": [2, 2, 18, 2], "drop_path_rate": 0.3}  # where config.json names no backbone
# As configs/models/mask2former.yaml; DEC_LAYERS is in the file.
_MASK2FORMER = {
    "MODEL.BACKBONE.NAME": "build_fasegr_swin_backbone",
    "MODEL.SEM_SEG_HEAD.NORM": "GN",
    "MODEL.FASEG.POSITIONAL_QUERY": "learnable",
    "MODEL.FASEG.KEY_POSITION": "sinusoidal",
    "MODEL.FASEG.MASK_THRESHOLD": 0.5,
    "MODEL.FASEG.HIGH_RES.ATTENTION": "none",
}
_IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
_BILINEAR = 2  # PIL's number


def transformers_values(folder: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The config, by dotted key, of the model in `folder`, whose config.json says what it is.

    options: those of the command line. Which results the model makes is not in its files: if `options` switch none of
    MODEL.MASK_FORMER.TEST.*_ON on, it is the one of TASKS that the folder's name has, or the name of the model that it
    was fine-tuned from, and semantic otherwise. Raises ValueError for another architecture, and for what cannot be
    computed here.
    """
    path = os.path.join(folder, "config.json")
    config = _read_json(path)
    if config.get("model_type") != "mask2former":
        raise ValueError(
            f"{path}: model_type is {shown(config.get('model_type'))}; of the models of transformers only mask2former "
            "(Mask2FormerForUniversalSegmentation) can be loaded"
        )
    swin = config.get("backbone_config")
    swin = _DEFAULT_SWIN if swin is None else swin
    kind = swin.get("model_type", "swin") if isinstance(swin, dict) else None
    if kind != "swin" or config.get("use_timm_backbone") or config.get("backbone"):
        other = config.get("backbone") or kind
        raise ValueError(f"{path}: the backbone is {shown(other)}; of transformers' backbones only swin can be loaded")
    values = dict(_MASK2FORMER)
    values |= _taken(path, "", config, _MODEL, _FIXED)
    values |= _taken(path, "backbone_config.", swin, _SWIN, _FIXED_SWIN)
    names = _names(path, config)
    ignored = config.get("ignore_value", 255)
    ignored = ignored if type(ignored) is int and len(names) <= ignored <= 65535 else 65535
    values |= {"MODEL.SEM_SEG_HEAD.NUM_CLASSES": len(names), "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": ignored}
    task, why = _task(folder, config, options)
    logger.info("%s: Mask2Former of transformers with %d classes, %s (%s)", folder, len(names), task, why)
    return values | _results(task) | _dataset(task, names, ignored) | _preprocessing(folder)


def _read_json(path: str) -> dict[str, Any]:
    with open(path, "rb") as file:
        data = file.read(_MAX_BYTES + 1)
    try:
        content = json.loads(data) if len(data) <= _MAX_BYTES else None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not JSON with an object of keys; get the file again")
    return content


def _taken(path: str, section: str, given: Mapping[str, Any], keys: tuple, fixed: tuple) -> dict[str, Any]:
    for key, value in fixed:
        found = given.get(key, value)
        if found != value:
            raise ValueError(f"{path}: {section}{key} is {shown(found)}; a model can be loaded if it is {shown(value)}")
    values = {}
    for key, ours, default in keys:
        value = given.get(key, default)
        if not KEYS[ours].accepts(value):
            raise ValueError(f"{path}: {section}{key} is {shown(value)}; it must be {KEYS[ours].words}")
        values[ours] = value
    return values


def _names(path: str, config: Mapping[str, Any]) -> list[str]:
    """The classes in order of their numbers. Of several with one name, the later ones get a number."""
    given = config.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})
    try:
        labels = {int(number): str(name) for number, name in given.items()}
    except (AttributeError, ValueError):
        labels = {}
    if not labels or sorted(labels) != list(range(len(labels))):
        raise ValueError(f"{path}: id2label is {shown(given)}; it must name the classes from 0 on, as {{'0': 'road'}}")
    names: list[str] = []
    for number in range(len(labels)):
        name = UNPRINTABLE.sub(" ", labels[number]).strip() or f"class {number}"
        same = sum(other == name or other.startswith(f"{name} (") for other in names)
        names.append(f"{name} ({number})" if same and name in names else name)
    return names


def _task(folder: str, config: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[str, str]:
    """One of TASKS, and how it is known."""
    switched = [
        task for task in reversed(TASKS) if str(options.get(f"MODEL.MASK_FORMER.TEST.{task.upper()}_ON")) == "True"
    ]
    if switched:
        return switched[0], "as the options say"
    # A downloaded model lies in models--OWNER--NAME/snapshots/REVISION.
    parts = os.path.abspath(folder).split(os.sep)
    downloaded = [part for part in parts if part.startswith("models--")]
    for name, source in (
        ((downloaded or parts)[-1], "its name"),
        (str(config.get("_name_or_path", "")), "_name_or_path"),
    ):
        found = [task for task in TASKS if re.search(task, name, re.IGNORECASE)]
        if len(found) == 1:
            return found[0], f"by {source}"
    return "semantic", (
        "as nothing says otherwise; MODEL.MASK_FORMER.TEST.INSTANCE_ON True or PANOPTIC_ON True makes it another"
    )


def _results(task: str) -> dict[str, Any]:
    """The switches as Mask2Former's recipes have them."""
    test = "MODEL.MASK_FORMER.TEST."
    return {
        f"{test}SEMANTIC_ON": task != "instance",
        f"{test}INSTANCE_ON": task != "semantic",
        f"{test}PANOPTIC_ON": task == "panoptic",
        "INPUT.DATASET_MAPPER_NAME": f"mask_former_{task}",
    }


def _dataset(task: str, names: list[str], ignored: int) -> dict[str, Any]:
    """A dataset of these classes, whose files a user may name. Which classes are things is not in transformers' files;
    as there, each object counts by itself."""
    test = {"DATASETS.TEST": (f"{DATASET}_val",), "DATASETS.TRAIN": ()}
    if task == "semantic":
        folder = {"NAME": DATASET, "ROOT": DATASET, "CLASSES": names, "IGNORE_LABEL": ignored}
        return test | {f"DATASETS.FOLDER.{key}": value for key, value in folder.items()}
    coco = {"NAME": DATASET, "ROOT": DATASET, "CATEGORIES": [{"id": i, "name": name} for i, name in enumerate(names)]}
    if task == "panoptic":
        coco["PANOPTIC"] = "annotations/panoptic_{split}.json"
        test["DATASETS.TRAIN"] = (f"{DATASET}_train",)  # whose things the model asks for
    return test | {f"DATASETS.COCO.{key}": value for key, value in coco.items()}


def _preprocessing(folder: str) -> dict[str, Any]:
    """Size, mean and deviation of images, as preprocessor_config.json says."""
    path = os.path.join(folder, "preprocessor_config.json")
    given: Mapping[str, Any] = {}
    if os.path.isfile(path):
        given = _read_json(path)
    elif os.path.isfile(whole := os.path.join(folder, "processor_config.json")):
        given = _read_json(whole).get("image_processor", {})
    else:
        logger.warning("%s has no preprocessor_config.json; images are prepared by transformers' defaults", folder)
    try:
        return _statistics(given) | _size(given)
    except (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise ValueError(
            f"{path}: size is {shown(given.get('size'))}, image_mean {shown(given.get('image_mean'))}, image_std "
            f"{shown(given.get('image_std'))}; expected what Mask2FormerImageProcessor writes [{error}]"
        ) from error


def _statistics(given: Mapping[str, Any]) -> dict[str, Any]:
    """Ours are in units of 0..255."""
    scale = float(given.get("rescale_factor", 1 / 255)) if given.get("do_rescale", True) else 1.0
    mean, std = given.get("image_mean") or _IMAGENET[0], given.get("image_std") or _IMAGENET[1]
    if not given.get("do_normalize", True):
        mean, std = [0.0] * 3, [1.0] * 3
    return {
        "MODEL.PIXEL_MEAN": [float(value) / scale for value in mean],
        "MODEL.PIXEL_STD": [float(value) / scale for value in std],
    }


def _size(given: Mapping[str, Any]) -> dict[str, Any]:
    if not given.get("do_resize", True):
        return {"INPUT.MIN_SIZE_TEST": 0}
    if given.get("resample", _BILINEAR) != _BILINEAR:
        logger.warning(
            "images were resized with PIL's filter %s for this model; here it is bilinear (2)", given["resample"]
        )
    # Older files have the names size_divisibility, and numbers for size and max_size.
    multiple = int(given.get("size_divisor", given.get("size_divisibility", 32)) or 1)
    size = given.get("size") or {"shortest_edge": 800, "longest_edge": 1333}
    if isinstance(size, (list, tuple)):
        size = {"height": size[0], "width": size[1]}
    if not isinstance(size, dict):
        size = {"shortest_edge": size, "longest_edge": given.get("max_size", 1333)}
    if "height" in size:
        sides = [-(-int(size[side]) // multiple) * multiple for side in ("height", "width")]
        return {"INPUT.FIXED_SIZE_TEST": sides}
    return {
        "INPUT.MIN_SIZE_TEST": int(size["shortest_edge"]),
        "INPUT.MAX_SIZE_TEST": int(size.get("longest_edge") or given.get("max_size") or 65535),
        "INPUT.SIZE_MULTIPLE_TEST": multiple,
    }
