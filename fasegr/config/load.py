"""Configs from YAML files, ours or released ones, and command-line options."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from fasegr.config.batch_scaling import scale_to_batch
from fasegr.config.defaults import add_fasegr_config
from fasegr.config.released import Loader, with_our_names
from fasegr.config.validate import validate
from fasegr.d2 import CfgNode, get_cfg
from fasegr.utils.nested import flatten

__all__ = ["load_cfg", "read_yaml"]

logger = logging.getLogger(__name__)


def load_cfg(path: str | os.PathLike, opts: Sequence[Any] = ()) -> CfgNode:
    """The config of a YAML file and, on top of it, `opts` (key, value, key, value, ...).

    MODEL.DEVICE becomes the CPU if no GPU is available. Raises FileNotFoundError for a missing file and ValueError for
    anything wrong in it or in `opts`.
    """
    if len(opts) % 2:
        raise ValueError(f"options come in pairs KEY VALUE; {opts[-1]!r} has no value in {' '.join(map(str, opts))}")
    options = with_our_names(dict(zip(opts[0::2], opts[1::2], strict=True)), "command line")
    cfg = get_cfg()
    add_fasegr_config(cfg)
    _merge(cfg, read_yaml(path), str(path))
    _merge(cfg, options, "command line")
    validate(cfg)
    scale_to_batch(cfg, explicit=options)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("MODEL.DEVICE is %s, but no GPU is available; using the CPU", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"
    return cfg


def read_yaml(path: str | os.PathLike) -> dict[str, Any]:
    """The values of a YAML file merged over those of its `_BASE_`, by dotted key, under our names; no code is run.

    `_BASE_` is a file or a list of files, relative to this one, each merged over those before it.
    `DATASETS.FOLDER.CLASSES` and `DATASETS.COCO.CATEGORIES` are relative to the file that sets them.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"config file {path} does not exist (working directory: {Path.cwd()})")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML that can be read safely: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; a config file is a mapping of keys to values")

    bases = content.pop("_BASE_", [])
    content.pop("VERSION", None)
    values = with_our_names(flatten(content), str(path))
    for key in ("DATASETS.FOLDER.CLASSES", "DATASETS.COCO.CATEGORIES"):
        if values.get(key):
            values[key] = str((path.resolve().parent / Path(values[key]).expanduser()).resolve())
    if "SOLVER.STEPS" in values:
        # Released files that name no schedule have detectron2's default, which has steps; FASeg's, ours, has none.
        values.setdefault("SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR")

    merged: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        merged |= read_yaml(path.parent / Path(base).expanduser())
    return merged | values


def _merge(cfg: CfgNode, values: Mapping[str, Any], source: str) -> None:
    """Set `values`, by dotted key, in `cfg`. Raises ValueError for keys and types that `cfg` does not have."""
    known = flatten(cfg)
    for key in values:
        if key in known:
            continue
        section = [name for name in known if name.startswith(f"{key}.")]
        if section:
            raise ValueError(f"{source}: {key} is a section, not a value; its keys are {', '.join(section)}")
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {close[0]}?" if close else "all keys are in fasegr/config/defaults.py"
        raise ValueError(f"{source}: the key {key} does not exist; {hint}")
    try:
        cfg.merge_from_list([word for pair in values.items() for word in pair])
    except (ValueError, AssertionError) as error:
        raise ValueError(f"{source}: {error}") from error
