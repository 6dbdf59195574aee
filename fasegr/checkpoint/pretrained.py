"""A model as a folder that says all about itself: config.yaml, model.safetensors and a card, README.md.

The config depends on no file and no path of the machine that wrote it: classes are in it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import safetensors.torch
import yaml
from torch import nn

from fasegr.config.load import load_cfg
from fasegr.config.validate import BACKBONES, KEYS
from fasegr.d2 import CfgNode, MetadataCatalog
from fasegr.utils.nested import lookup

from .hub import HUB, check_installed, check_repository, upload
from .model_card import Run, model_card, read_run

__all__ = ["push_to_hub", "save_pretrained"]

FILES = ("config.yaml", "model.safetensors", "README.md")
# What depends on the machine, and paths on it.
_DEFAULTS = {
    "MODEL.WEIGHTS": "",
    "MODEL.WEIGHTS_PARTIAL": False,
    "MODEL.DEVICE": "cuda",
    "MODEL.TIMM.PRETRAINED": False,
    "MODEL.VIT.PRETRAINED": False,
    "TRACKERS": [],
    "OUTPUT_DIR": "./output",
    "INPUT.CACHE": "",
    "DATALOADER.NUM_WORKERS": 4,
    "SPEED.THREADS": 0,
    "TEST.SAVE_PREDICTIONS": [],
    "TEST.REPORT": False,
}
BUILT_IN = ("ade20k_sem_seg_", "cityscapes_fine_sem_seg_", "coco_2017_", "scenes_")  # datasets that fasegr registers
_UNKNOWN = "pretrained"  # what the dataset is called of which only the classes are known


def save_pretrained(
    model: nn.Module,
    cfg: CfgNode,
    folder: str | os.PathLike,
    *,
    license: str = "",
    run: str | os.PathLike | None = None,
    force: bool = False,
    name: str = "",
) -> None:
    """Write the model to `folder`, which `fasegr.load_cfg` and `fasegr.from_pretrained` take; see `FASeg`.

    name: OWNER/NAME on the hub, for the card. Raises FileExistsError for a folder that is not empty (force: replace its
    files of these names), and OSError, which has the name, if it cannot be written. Then it is as it was before.
    """
    folder = os.path.abspath(os.path.expanduser(os.fspath(folder)))
    held = os.listdir(folder) if os.path.isdir(folder) else []
    if held and not force:
        some = ", ".join(sorted(held)[:3])
        raise FileExistsError(f"{folder} is not empty ({some}); name another folder, or force it to replace its files")
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise FileExistsError(f"{folder} is a file; name a folder")
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    with _sibling(folder) as written:
        _write(model, cfg, written, license=license, run=run, name=name or os.path.basename(folder))
        if held:
            for file in FILES:
                os.replace(os.path.join(written, file), os.path.join(folder, file))
        else:
            os.replace(written, folder)


def push_to_hub(
    model: nn.Module,
    cfg: CfgNode,
    name: str,
    *,
    private: bool = False,
    license: str = "",
    run: str | os.PathLike | None = None,
) -> str:
    """Upload what `save_pretrained` writes as the model OWNER/NAME of Hugging Face's hub; returns its address."""
    name = name.removeprefix(HUB)
    check_repository(name)
    check_installed()
    with tempfile.TemporaryDirectory() as folder:
        _write(model, cfg, folder, license=license, run=run, name=name)
        return upload(folder, name, private=private, message="Model of fasegr")


@contextlib.contextmanager
def _sibling(folder: str) -> Iterator[str]:
    """A folder beside `folder`, deleted at the end if it is still there."""
    path = f"{folder}.{os.getpid()}.partial"
    try:
        os.mkdir(path)
        yield path
    except OSError as error:
        error.filename = error.filename or folder
        raise
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _write(
    model: nn.Module, cfg: CfgNode, folder: str, *, license: str, run: str | os.PathLike | None, name: str
) -> None:
    facts = read_run(cfg.MODEL.WEIGHTS, run)
    values = portable_values(cfg)
    # cloned, because the format does not allow tensors that share memory
    weights = {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
    with open(os.path.join(folder, "model.safetensors"), "wb") as file:
        file.write(safetensors.torch.save(weights, {"format": "pt"}))
    with open(os.path.join(folder, "config.yaml"), "w", encoding="utf-8") as file:
        file.write(f"# Written by fasegr. `fasegr predict --config-file FOLDER` reads it with {FILES[1]}.\n")
        yaml.safe_dump(_nested(values), file, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)
    load_cfg(folder, ["MODEL.DEVICE", "cpu"])  # raises what a user would meet
    card = _card(model, cfg, values, facts, license, name)
    with open(os.path.join(folder, "README.md"), "w", encoding="utf-8") as file:
        file.write(card)


def _card(model: nn.Module, cfg: CfgNode, values: Mapping[str, Any], run: Run, license: str, name: str) -> str:
    metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0]) if cfg.DATASETS.TEST else {}
    return model_card(
        name=name,
        license=license,
        classes=_class_names(metadata) or [],
        values=values,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        run=run,
    )


def _class_names(metadata: Mapping[str, Any] | Any) -> list[str] | None:
    return metadata.get("stuff_classes") or metadata.get("thing_classes")


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    root: dict[str, Any] = {}
    for key, value in values.items():
        *sections, last = key.split(".")
        section = root
        for part in sections:
            section = section.setdefault(part, {})
        section[last] = _plain(value)
    return root


def _plain(value: Any) -> Any:
    """With lists in place of tuples, for YAML."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def portable_values(cfg: CfgNode) -> dict[str, Any]:
    """The keys that are read, without what belongs to one machine; datasets have their classes in the config."""
    other = tuple(section for section, builder in BACKBONES.items() if builder != cfg.MODEL.BACKBONE.NAME)
    values = {key: lookup(cfg, key) for key in KEYS if not key.startswith(other)}
    values |= {key: value for key, value in _DEFAULTS.items() if key in values}
    folder = {key.rpartition(".")[2]: value for key, value in values.items() if key.startswith("DATASETS.FOLDER.")}
    described: set[str] = set()
    if folder["NAME"]:
        values |= {f"DATASETS.FOLDER.{key}": value for key, value in _portable_folder(folder, described).items()}
    values["DATASETS.FOLDERS"] = [
        _portable_folder({**folder, "NAME": "", **entry}, described) for entry in cfg.DATASETS.FOLDERS
    ]
    coco = {key.rpartition(".")[2]: value for key, value in values.items() if key.startswith("DATASETS.COCO.")}
    if coco["NAME"]:
        names = [f"{coco['NAME']}_{split}" for split in coco["SPLITS"]]
        described |= set(names)
        values["DATASETS.COCO.ROOT"] = _short(coco["ROOT"])
        if not isinstance(coco["CATEGORIES"], (list, tuple)):
            first = 1 if coco["SEMANTIC"] and coco["BACKGROUND"] else 0  # the background is no category
            values["DATASETS.COCO.CATEGORIES"] = _categories(names[0], first)
    return values | _stand_in(cfg, described)


def _portable_folder(folder: Mapping[str, Any], described: set[str]) -> dict[str, Any]:
    names = [f"{folder['NAME']}_{split}" for split in folder["SPLITS"]]
    described |= set(names)
    written = isinstance(folder["CLASSES"], (list, tuple))
    return {**folder, "ROOT": _short(folder["ROOT"]), "CLASSES": folder["CLASSES"] if written else _classes(names[0])}


def _short(path: str) -> str:
    """A path of this machine by its last part; one below the folder of datasets as it is."""
    return os.path.basename(os.path.normpath(path)) if os.path.isabs(os.path.expanduser(path)) else path


def _stand_in(cfg: CfgNode, described: set[str]) -> dict[str, Any]:
    """In place of datasets that only a program of the user registers, one that has their classes."""
    used = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    if all(name in described or name.startswith(BUILT_IN) for name in used):
        return {}
    test = cfg.MODEL.MASK_FORMER.TEST
    name = (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)[0]
    values: dict[str, Any] = {
        "DATASETS.TEST": [f"{_UNKNOWN}_val"],
        "DATASETS.TRAIN": [f"{_UNKNOWN}_train"] if test.PANOPTIC_ON else [],
    }
    if test.PANOPTIC_ON or not test.SEMANTIC_ON:
        coco = {"NAME": _UNKNOWN, "ROOT": _UNKNOWN, "CATEGORIES": _categories(name)}
        coco["PANOPTIC"] = "annotations/panoptic_{split}.json" if test.PANOPTIC_ON else ""
        return values | {f"DATASETS.COCO.{key}": value for key, value in coco.items()}
    ignored = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    folder = {"NAME": _UNKNOWN, "ROOT": _UNKNOWN, "CLASSES": _classes(name), "IGNORE_LABEL": ignored}
    return values | {f"DATASETS.FOLDER.{key}": value for key, value in folder.items()}


def _known(name: str) -> Any:
    metadata = MetadataCatalog.get(name)
    if not _class_names(metadata):
        raise ValueError(
            f"the dataset {name} has no list of classes (stuff_classes or thing_classes in its metadata), so the model "
            "could not say what its results mean; load the config with fasegr.load_cfg, which registers it"
        )
    return metadata


def _classes(name: str) -> list:
    metadata = _known(name)
    colours = metadata.get("stuff_colors")
    names = list(_class_names(metadata))
    return names if not colours else [[n, list(map(int, c))] for n, c in zip(names, colours, strict=True)]


def _categories(name: str, first: int = 0) -> list[dict[str, Any]]:
    """The categories of COCO's files, from class `first` on."""
    metadata = _known(name)
    kind = "stuff" if metadata.get("stuff_classes") else "thing"
    names, colours = _class_names(metadata)[first:], metadata.get(f"{kind}_colors")
    ids = metadata.get(f"{kind}_dataset_id_to_contiguous_id") or {i + 1: i for i in range(len(names))}
    things = set((metadata.get("thing_dataset_id_to_contiguous_id") or ids).values())
    return [
        {
            "id": int(number),
            "name": names[i],
            "isthing": int(i in things),
            **({"color": list(map(int, colours[i]))} if colours else {}),
        }
        for number, i in sorted(ids.items(), key=lambda pair: pair[1])
    ]
