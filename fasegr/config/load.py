"""Configs from YAML files, ours or released ones, and command-line options."""

from __future__ import annotations

import ast
import copy
import difflib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch

from fasegr.config.batch_scaling import scale_to_batch
from fasegr.config.defaults import add_fasegr_config
from fasegr.config.packaged import find_config, similar_configs
from fasegr.config.released import with_our_names
from fasegr.config.transformers_folder import transformers_values
from fasegr.config.validate import KEYS, shown, validate
from fasegr.config.yaml_loader import load_mapping
from fasegr.d2 import CfgNode, get_cfg
from fasegr.utils.gpu import no_gpu_reason, unusable_gpu
from fasegr.utils.nested import flatten, lookup

__all__ = ["load_cfg", "read_yaml"]

logger = logging.getLogger(__name__)

MAX_BASES, MAX_PROBLEMS = 35, 50


def load_cfg(path: str | os.PathLike, opts: Sequence[Any] = ()) -> CfgNode:
    """The config of a YAML file and, on top of it, `opts` (key, value, key, value, ...).

    path: a file, or the name of a packaged config, such as quickstart/faseg_scenes.yaml; files go first. Or a folder
    of a model, as `FASeg.save_pretrained` or Hugging Face's transformers writes it; MODEL.WEIGHTS are then its weights.
    MODEL.DEVICE becomes the CPU if no GPU is available. Raises FileNotFoundError for a missing file and ValueError for
    anything wrong in it or in `opts`, and for a GPU that this torch has no kernels for.
    """
    if len(opts) % 2:
        raise ValueError(f"options come in pairs KEY VALUE; {opts[-1]!r} has no value in {' '.join(map(str, opts))}")
    options = with_our_names(dict(zip(map(str, opts[0::2]), opts[1::2], strict=True)), "command line")
    values = _read_folder(os.fspath(path), options) if os.path.isdir(path) else read_yaml(path)
    cfg = get_cfg()
    add_fasegr_config(cfg)
    defaults = flatten(cfg)
    problems = chain(_merge(cfg, values, str(path)), _merge(cfg, options, "command line"))
    validate(cfg, list(islice(problems, MAX_PROBLEMS)))
    unread = [key for key in (values | options) if key not in KEYS and lookup(cfg, key) != defaults[key]]
    if unread:
        logger.warning("Keys of detectron2 that mean nothing here and have no effect: %s", ", ".join(unread))
    scale_to_batch(cfg, explicit=options)
    _check_device(cfg)
    return cfg


def _read_folder(folder: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the model in `folder`."""
    own, theirs = (os.path.join(folder, name) for name in ("config.yaml", "config.json"))
    if os.path.isfile(own):
        values = read_yaml(own)
    elif os.path.isfile(theirs):
        values = transformers_values(folder, options)
    else:
        raise FileNotFoundError(
            f"config file {folder} is a folder (working directory: {Path.cwd()}), and no model is in it: there is "
            "neither a config.yaml, as fasegr writes it, nor a config.json, as transformers does; name a file"
        )
    return values | {"MODEL.WEIGHTS": folder}


def _check_device(cfg: CfgNode) -> None:
    """Takes the CPU where there is no GPU. Raises ValueError for one that this torch cannot use."""
    name = cfg.MODEL.DEVICE
    device = torch.device(name)
    is_there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available, "cpu": lambda: True}
    if not is_there[device.type]():
        reason = no_gpu_reason() if device.type == "cuda" else ""
        note = "MODEL.DEVICE is %s, but no such GPU is available; using the CPU%s"
        logger.warning(note, name, f". {reason}" if reason else "")
        cfg.MODEL.DEVICE = "cpu"
    elif device.type == "cuda":
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise ValueError(f"MODEL.DEVICE is {name}; GPUs count from 0, and there are {torch.cuda.device_count()}")
        if problem := unusable_gpu(device.index):
            raise ValueError(f"MODEL.DEVICE is {name}, but {problem}")


def read_yaml(path: str | os.PathLike) -> dict[str, Any]:
    """The values of a YAML file merged over those of its `_BASE_`, by dotted key, under our names; no code is run.

    path: as for `load_cfg`. `_BASE_` is a file or a list of files, relative to this one or packaged, each merged over
    those before it.
    `DATASETS.FOLDER.CLASSES` and `DATASETS.COCO.CATEGORIES` are relative to the file that sets them.
    """
    return _read(find_config(os.fspath(path)), (), {})


def _read(path: str, users: tuple[str, ...], done: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """users: the files whose `_BASE_` leads to this one. done: files that have been read, by their absolute path."""
    absolute = os.path.abspath(path)
    if absolute in done:
        return done[absolute]
    whose = f", _BASE_ of {users[-1]}," if users else ""
    if absolute in map(os.path.abspath, users) or len(users) >= MAX_BASES:
        raise ValueError(f"{users[0]}: its _BASE_ leads back to a file or through more than {MAX_BASES}: {path}{whose}")
    if not os.path.isfile(path):
        problem = "is a folder" if os.path.isdir(path) else "does not exist"
        similar = similar_configs(path)
        hint = f"; did you mean {' or '.join(similar)}, of those that come with fasegr?" if similar else ""
        raise FileNotFoundError(f"config file {path}{whose} {problem} (working directory: {Path.cwd()}){hint}")
    content = load_mapping(path)

    bases = content.pop("_BASE_", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ValueError(f"{path}: _BASE_ is {shown(bases)}; it must be a file or a list of files")
    content.pop("VERSION", None)
    values = with_our_names(flatten(content), path)
    folder = os.path.dirname(path)
    for key in ("DATASETS.FOLDER.CLASSES", "DATASETS.COCO.CATEGORIES"):
        if isinstance(values.get(key), str) and KEYS[key].accepts(values[key]) and values[key]:
            values[key] = _beside(folder, values[key])
    entries = values.get("DATASETS.FOLDERS")
    if isinstance(entries, list):
        values["DATASETS.FOLDERS"] = [
            {**entry, "CLASSES": _beside(folder, entry["CLASSES"])}
            if isinstance(entry, dict) and isinstance(entry.get("CLASSES"), str) and entry["CLASSES"]
            else entry
            for entry in entries
        ]
    if "SOLVER.STEPS" in values:
        # Released files that name no schedule have detectron2's default, which has steps; FASeg's, ours, has none.
        values.setdefault("SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR")

    merged: dict[str, Any] = {}
    for base in bases:
        merged |= _read(find_config(base, folder), (*users, path), done)
    done[absolute] = merged | values
    return done[absolute]


def _beside(folder: str, path: str) -> str:
    """`path`, relative to the folder of the YAML file that names it."""
    return os.path.realpath(os.path.join(os.path.realpath(folder), os.path.expanduser(path)))


def _merge(cfg: CfgNode, values: Mapping[str, Any], source: str) -> Iterator[str]:
    """Set `values`, by dotted key, in `cfg`, those of KEYS unchecked. Yields one problem for each other key that `cfg`
    does not have, or has with another type."""
    known = flatten(cfg)
    for key, value in values.items():
        if key not in known:
            yield f"{source}: {_unknown(key, known)}"
            continue
        value = _as(known[key], _decoded(value))
        if key in KEYS or type(value) is type(known[key]) or None in (value, known[key]):
            section, _, name = key.rpartition(".")
            (lookup(cfg, section) if section else cfg)[name] = copy.deepcopy(value)
        else:
            kind = type(known[key]).__name__
            yield f"{source}: {key} is {shown(value)}; it must be of the type {kind}, as {known[key]!r}"


def _unknown(key: str, known: Mapping[str, Any]) -> str:
    section = {name[len(key) + 1 :].split(".")[0] for name in known if name.startswith(f"{key}.")}
    if section:
        return f"{key} is a section, not a value; its keys are {', '.join(sorted(section))}"
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]}?" if close else "all keys are in fasegr/config/defaults.py"
    return f"the key {repr(key)[1:-1][:200]} does not exist; {hint}"


def _decoded(value: Any) -> Any:
    """`value`, or what a text says as a Python literal: "1e-4", "(512, 512)". As detectron2 reads options and YAML."""
    if not isinstance(value, str):
        return value
    try:
        literal = ast.literal_eval(value)
        repr(literal)  # raises ValueError for an int that is too long to be written into config.yaml
        return literal
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # what it raises for a text like "cpu"
        return value


def _as(default: Any, value: Any) -> Any:
    """`value` as a tuple, list or float where `default` is one and it is written as a list or an int."""
    if isinstance(default, (list, tuple)) and isinstance(value, (list, tuple)):
        return type(default)(value)
    if type(default) is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    return value
