"""The datasets that a config describes as DATASETS.FOLDER and DATASETS.COCO, and the check that datasets fit the model.

Splits become the names NAME_train, NAME_val, ... Files are read when a dataset is first asked for, except class lists:
a config can be loaded, and a model built, without the data.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from functools import partial

from fasegr.d2 import CfgNode, DatasetCatalog, MetadataCatalog
from fasegr.data.datasets.coco_json import (
    category_list,
    read_categories,
    register_instances,
    register_panoptic,
    register_semantic,
)
from fasegr.data.datasets.folder import class_list, load_folder, read_classes, register_folder
from fasegr.data.datasets.label_map import make_label_map
from fasegr.data.datasets.root import DatasetPath
from fasegr.data.datasets.split_lists import draw_validation, read_split_list
from fasegr.data.image_io import Reading, configure_reading

__all__ = ["check_num_classes", "register_from_config"]


def register_from_config(cfg: CfgNode) -> list[str]:
    """Registers the datasets that cfg.DATASETS.FOLDER and COCO describe; returns their names, one for each split.

    A call with the same names replaces what an earlier call registered. INPUT.MAX_PIXELS, BIT_DEPTH and USE_EXIF hold
    for all images that are read from now on.
    """
    configure_reading(Reading(cfg.INPUT.MAX_PIXELS, cfg.INPUT.BIT_DEPTH, cfg.INPUT.USE_EXIF))
    folders = [cfg.DATASETS.FOLDER, *(_entry(cfg.DATASETS.FOLDER, entry) for entry in cfg.DATASETS.FOLDERS)]
    named = [folder.NAME for folder in folders if folder.NAME]
    if len(set(named)) < len(named) or any(not folder.NAME for folder in folders[1:]):
        raise ValueError(f"DATASETS.FOLDERS: the datasets are called {', '.join(named)}; each needs a NAME of its own")
    names = [name for folder in folders for name in _register_folder(folder, cfg.DATASETS.TRAIN)]
    return [*names, *_register_coco(cfg.DATASETS.COCO)]


def _entry(folder: CfgNode, entry: Mapping) -> CfgNode:
    """DATASETS.FOLDER with the keys of an entry of DATASETS.FOLDERS; the name is not inherited."""
    merged = folder.clone()
    merged.defrost()
    merged.NAME = ""
    for key, value in entry.items():
        merged[key] = value
    return merged


def _register_folder(folder: CfgNode, trained: Collection[str]) -> list[str]:
    """trained: the names of DATASETS.TRAIN, whose images must have labels."""
    if not folder.NAME:
        return []
    if not folder.CLASSES:
        raise ValueError(
            "DATASETS.FOLDER.CLASSES is empty; it must name a text file with one class a line, in order of the labels, "
            "or be the list of names"
        )
    if not folder.SPLIT_LISTS and not folder.VAL_SHARE:
        _check_splits("FOLDER", folder, ("IMAGES", "LABELS"))
    _check_splits("FOLDER", folder, ("SPLIT_LISTS",))
    if folder.VAL_SHARE and (folder.SPLIT_LISTS or "{split}" in folder.IMAGES or "{split}" in folder.LABELS):
        raise ValueError(
            f"DATASETS.FOLDER.VAL_SHARE is {folder.VAL_SHARE} with IMAGES {folder.IMAGES!r}, LABELS {folder.LABELS!r} "
            f"and SPLIT_LISTS {folder.SPLIT_LISTS!r}; a share is drawn from one folder, so none may have {{split}}, "
            "and there are no lists. Name the folders (IMAGES images, LABELS annotations) or set VAL_SHARE 0"
        )
    written = isinstance(folder.CLASSES, (list, tuple))
    classes = class_list(folder.CLASSES, "DATASETS.FOLDER.CLASSES") if written else read_classes(folder.CLASSES)
    if not 0 <= folder.IGNORE_LABEL <= 65535 or len(classes.names) > folder.IGNORE_LABEL:
        raise ValueError(
            f"DATASETS.FOLDER.IGNORE_LABEL is {folder.IGNORE_LABEL}; it must be in 0..65535 (255 is usual) "
            f"and not one of the {len(classes.names)} classes{'' if written else f' of {folder.CLASSES}'}"
        )
    label_map = make_label_map(folder.LABEL_MAP, classes.names, classes.colours, folder.IGNORE_LABEL)
    names = _free_names("FOLDER", folder)
    for name, split in zip(names, folder.SPLITS, strict=True):
        load = partial(
            load_folder,
            name,
            _path(folder, "IMAGES", split),
            _path(folder, "LABELS", split),
            label_suffix=folder.LABEL_SUFFIX,
            label_map=label_map,
            choose=_chooser(folder, split),
            unlabelled=name not in trained,
        )
        register_folder(name, load, classes, ignore_label=folder.IGNORE_LABEL)
        MetadataCatalog.get(name).registered_by = __name__
    return names


def _chooser(folder: CfgNode, split: str) -> Callable[[list[str]], Collection[str]] | None:
    """Which images of the folder belong to a split; None: all."""
    if folder.SPLIT_LISTS:
        path, images = _path(folder, "SPLIT_LISTS", split), _path(folder, "IMAGES", split)
        return lambda stems: read_split_list(path, stems, images)
    if folder.VAL_SHARE:
        draw = partial(draw_validation, folder.NAME)
        options = {"share": folder.VAL_SHARE, "seed": folder.VAL_SEED, "group": folder.VAL_GROUP}
        if split == folder.SPLITS[1]:
            return lambda stems: draw(stems, **options)
        return lambda stems: set(stems) - draw(stems, **options)
    return None


def _register_coco(coco: CfgNode) -> list[str]:
    """With PANOPTIC a dataset of panoptic segments, else of instances."""
    if not coco.NAME:
        return []
    _check_splits("COCO", coco, ("IMAGES", "INSTANCES", "PANOPTIC", "SEGMENTS"))
    kind = "PANOPTIC" if coco.PANOPTIC else "INSTANCES"
    if not coco[kind]:
        raise ValueError("DATASETS.COCO.INSTANCES and PANOPTIC are empty; one must name the annotation files")
    if isinstance(coco.CATEGORIES, (list, tuple)):
        categories = category_list(list(coco.CATEGORIES), "DATASETS.COCO.CATEGORIES")
    else:
        categories = read_categories(coco.CATEGORIES or _path(coco, kind, coco.SPLITS[0]))
    names = _free_names("COCO", coco)
    for name, split in zip(names, coco.SPLITS, strict=True):
        images = _path(coco, "IMAGES", split)
        objects = _path(coco, "INSTANCES", split) if coco.INSTANCES else None
        source = "Correct DATASETS.COCO. "
        if coco.PANOPTIC:
            segments = _path(coco, "PANOPTIC", split), _path(coco, "SEGMENTS", split)
            register_panoptic(name, categories, *segments, images, objects, source=source)
        elif coco.SEMANTIC:
            register_semantic(name, categories, objects, images, coco.BACKGROUND, source=source)
        else:
            register_instances(name, categories, objects, images, source=source)
        MetadataCatalog.get(name).registered_by = __name__
    return names


def _path(section: CfgNode, key: str, split: str) -> DatasetPath:
    return DatasetPath(os.path.join(section.ROOT, section[key].replace("{split}", split)))


def _check_splits(title: str, section: CfgNode, keys: tuple[str, ...]) -> None:
    for key in keys:
        if section[key] and len(section.SPLITS) > 1 and "{split}" not in section[key]:
            raise ValueError(
                f"DATASETS.{title}.{key} is {section[key]!r} for the splits {', '.join(section.SPLITS)}; "
                "it must contain {split}, which stands for the name of the split"
            )


def _free_names(title: str, section: CfgNode) -> list[str]:
    """NAME_SPLIT for each split. What an earlier config registered under these names is removed."""
    names = [f"{section.NAME}_{split}" for split in section.SPLITS]
    taken = [name for name in names if name in DatasetCatalog.list()]
    for name in taken:
        if MetadataCatalog.get(name).get("registered_by") != __name__:
            raise ValueError(f"DATASETS.{title}: another dataset is registered as {name} already; choose another NAME")
    for name in taken:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    return names


def check_num_classes(cfg: CfgNode) -> None:
    """Raises ValueError if a dataset of the config has other classes than the model, or than another dataset.

    Datasets without a list of classes, or that are not registered (yet), are not checked.
    """
    head, results = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER.TEST
    # a model that gives only instances has a dataset's things as its classes
    kind = "stuff_classes" if results.SEMANTIC_ON or results.PANOPTIC_ON else "thing_classes"
    first = None
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        if name not in DatasetCatalog.list():
            continue
        metadata = MetadataCatalog.get(name)
        classes = metadata.get(kind) or metadata.get("thing_classes")  # a dataset of instances has only things
        if classes is None:
            continue
        if len(classes) != head.NUM_CLASSES:
            # names are not quoted: the list may be any file that a config names
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {head.NUM_CLASSES}, but {name} has {len(classes)} classes; "
                f"set NUM_CLASSES to {len(classes)} or correct the list of classes"
            )
        first = first or (name, list(classes))
        if list(classes) != first[1]:
            different = next(i for i, pair in enumerate(zip(classes, first[1], strict=True)) if pair[0] != pair[1])
            raise ValueError(
                f"{name} and {first[0]} have different classes, of which class {different} is the first; all datasets "
                "of a config must have the same list"
            )
        ignore_label = metadata.get("ignore_label", head.IGNORE_VALUE)
        if ignore_label != head.IGNORE_VALUE:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE is {head.IGNORE_VALUE}, but {name} ignores {ignore_label}; "
                "they must be equal"
            )
