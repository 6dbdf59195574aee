"""What is wrong in an inspected dataset, and which config keys its numbers speak for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fasegr.analysis.dataset_inspection import Split
from fasegr.analysis.image_copies import NearCopy
from fasegr.d2 import CfgNode

__all__ = ["Finding", "findings", "scale_in_training"]

RARE_IMAGES = 0.1  # share of training images below which a class is rare
RARE_PIXELS = 0.01  # share of the labelled pixels
CELL = 16  # pixels of a cell of the 1/4 map, the finest that masks are predicted on
DOMINANT = 0.6  # share of pixels from which a class fills crops
NOISY = 2000  # regions of a label map from which it was hardly drawn by hand


class Finding(NamedTuple):
    """kind: "error" (training or evaluation would fail, or learn the wrong thing), "warning" or "advice". keys: what to
    set in the config, by dotted name."""

    kind: str
    title: str
    text: str
    keys: dict[str, Any] = {}  # noqa: RUF012 (read only)


def findings(
    cfg: CfgNode,
    train: Sequence[Split],
    test: Sequence[Split],
    names: Sequence[str],
    colours: Sequence | None,
    copies: Sequence[tuple[Split, Split, Sequence[NearCopy]]],
    same_files: Sequence[Sequence[str]],
) -> list[Finding]:
    """Errors first, then warnings, then advice. copies: (training set, test set, pairs)."""
    splits = [*train, *test]
    found = [
        *_unreadable(splits),
        *(finding for split in splits for finding in _values(cfg, split, names, colours)),
        *_missing(train, test, names),
        *_copied(copies, same_files),
        *_regions(splits),
    ]
    if any(split.labelled.any() for split in train):
        found += [*_rare(cfg, train, names), *_sizes(cfg, train), *_dominant(cfg, train, names)]
    order = ("error", "warning", "advice")
    return sorted(found, key=lambda finding: order.index(finding.kind))


def _unreadable(splits: Sequence[Split]):
    problems = [problem for split in splits for problem in split.problems]
    if problems:
        more = f" and {len(problems) - 1} more, listed below" if len(problems) > 1 else ""
        yield Finding(
            "error",
            f"{len(problems)} {'file' if len(problems) == 1 else 'files'} cannot be read",
            f"{problems[0].reason}{more}. Training and evaluation stop at such a file: mend or remove it.",
        )
    for split in splits:
        if not len(split.records) and not split.problems:
            yield Finding("error", f"{split.name} has no images", "Its folder or its list of images is empty.")


def _values(cfg: CfgNode, split: Split, names: Sequence[str], colours: Sequence | None):
    """Label values that mean something else than they should."""
    labelled = int(split.labelled.sum())
    ignore = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    classes = len(names)
    if not labelled or not split.label_pixels.any():
        return
    values = set(split.values)
    if split.strange:
        total = sum(pixels for pixels, _, _ in split.strange.values())
        listed = ", ".join(
            f"{value} ({pixels} pixels in {images} {'image' if images == 1 else 'images'}, first {file})"
            for value, (pixels, images, file) in sorted(split.strange.items())[:5]
        )
        text = f"With {classes} classes, labels are 0..{classes - 1}, or {ignore} for pixels to ignore. Found: {listed}"
        text += ", ..." if len(split.strange) > 5 else ""
        keys: dict[str, Any] = {}
        if set(split.strange) == {classes} and 0 not in values:
            text += f". No pixel has 0: the labels seem to be counted from 1. Subtract 1 from each but {ignore}."
            keys = _label_map(cfg, split, "from_one")
        elif set(split.strange) == {classes}:
            text += (
                f". There are {classes + 1} values from 0 on: 0 may stand for 'no class', and the classes be counted "
                f"from 1. Then subtract 1 and make 0 to {ignore}; else a class is missing from the list."
            )
            keys = _label_map(cfg, split, "from_one")
        elif set(split.strange) == {255} and values <= {0, 255}:
            text += ". Masks of 0 and 255 need the values 0 and 1."
            keys = _label_map(cfg, split, [[0, 0], [255, 1]])
        elif set(split.strange) == {254} and ignore == 255:
            text += (
                ". 254 beside 255 is what subtracting 1 from labels makes of 255: these pixels were to be ignored. "
                "Make them 255."
            )
        elif len(split.strange) > 20:
            text += (
                ". So many values are of a picture that was resized with interpolation, saved with loss (JPEG), or "
                "holds colours or distances, not of a label map."
            )
        else:
            text += ". Correct the labels, or add the classes to the list."
        yield Finding(
            "error", f"{split.name}: label values that are no class, {_share(total, split)} of pixels", text, keys
        )
    elif values <= {0} and ignore == 255 and split.ignored.any() and classes > 1:
        yield Finding(
            "error",
            f"{split.name}: the labels are 0 and {ignore} only",
            f"{ignore} is ignored, so there is one class and nothing to tell it from. If these are masks of 0 and 255, "
            "255 must become class 1.",
            _label_map(cfg, split, [[0, 0], [255, 1]]),
        )
    elif values and 0 not in values and max(values) == classes - 1 and classes > 2 and labelled > 20:
        yield Finding(
            "warning",
            f"{split.name}: no pixel has the label 0",
            f"Class 0 ({names[0]}) is in no image. If the labels are counted from 1, subtract 1; the last class of the "
            "list then is missing instead.",
        )
    yield from _palettes(cfg, split, names, colours)


def _label_map(cfg: CfgNode, split: Split, value: Any) -> dict[str, Any]:
    """The key that reads labels as they are, where the dataset is one that it is for."""
    folder = cfg.DATASETS.FOLDER
    is_folder = folder.NAME and split.name in [f"{folder.NAME}_{name}" for name in folder.SPLITS]
    return {"DATASETS.FOLDER.LABEL_MAP": value} if is_folder and not folder.LABEL_MAP else {}


def _palettes(cfg: CfgNode, split: Split, names: Sequence[str], colours: Sequence | None):
    if len(split.palettes) > 1:
        different = {palette[: len(names)] for palette in split.palettes}
        if len(different) > 1:
            yield Finding(
                "warning",
                f"{split.name}: the label files have {len(different)} different palettes",
                "What is read are the indices. If a program gave each file a palette of the colours that it needed, an "
                "index means another class in each file; look at the samples below.",
            )
    if colours and split.palettes:
        palette, files = split.palettes.most_common(1)[0]
        mine = [tuple(map(int, colour)) for colour in colours]
        theirs = list(palette[: len(mine)])
        if theirs != mine and Counter(theirs) == Counter(mine):
            wrong = next(i for i in range(len(mine)) if theirs[i] != mine[i])
            meant = names[mine.index(theirs[wrong])]
            yield Finding(
                "error",
                f"{split.name}: the palette of {files} label files has the classes in another order",
                f"Index {wrong} has the colour of {meant} there, and is {names[wrong]} in the list of classes. Put the "
                "list into the order of the palette, or read labels by their colours.",
                _label_map(cfg, split, "colours"),
            )


def _share(pixels: int, split: Split) -> str:
    share = pixels / max(1, int(split.label_pixels.sum()))
    return f"{100 * share:.2g} %" if share >= 1e-4 else "under 0.01 %"


def _missing(train: Sequence[Split], test: Sequence[Split], names: Sequence[str]):
    for kind, splits in (("error", train), ("warning", test)):
        labelled = [split for split in splits if split.labelled.any()]
        if not labelled:
            continue
        absent = np.flatnonzero(sum(split.pixels for split in labelled) == 0)
        where = "the training set" if kind == "error" else "the validation set"
        if len(absent):
            kind = "warning" if len(absent) < len(names) else "error"
            listed = ", ".join(names[c] for c in absent[:12]) + (", ..." if len(absent) > 12 else "")
            yield Finding(
                kind,
                f"{len(absent)} of {len(names)} classes {'is' if len(absent) == 1 else 'are'} not in {where}",
                f"{listed}: "
                + (
                    "nothing can be learnt about them. Add images that show them, or take them off the list of classes."
                    if splits is train
                    else "their score will be missing, and the mean is over the other classes."
                ),
            )


def _copied(copies: Sequence[tuple[Split, Split, Sequence[NearCopy]]], same_files: Sequence[Sequence[str]]):
    for train, test, pairs in copies:
        if not pairs:
            continue
        equal = sum(train.digests[pair.first] == test.digests[pair.second] for pair in pairs)
        share = len(pairs) / max(1, int(test.readable.sum()))
        yield Finding(
            "warning",
            f"{len(pairs)} of {int(test.readable.sum())} images of {test.name} are nearly in {train.name}",
            f"{equal} are the same files, the others look alike, as frames of one film do. Scores on "
            f"{100 * share:.0f} % of the images then say little about new ones: keep a scene's frames in one split.",
        )
    within = [group for group in same_files if len(group) > 1]
    if within:
        count = sum(map(len, within)) - len(within)
        yield Finding(
            "warning",
            f"{count} image {'file is a copy' if count == 1 else 'files are copies'} of others",
            f"The same bytes under several names, as {' and '.join(within[0][:2])}. Check that their labels agree.",
        )


def _regions(splits: Sequence[Split]):
    for split in splits:
        noisy = int((split.objects_in_image > NOISY).sum())
        if noisy:
            yield Finding(
                "warning",
                f"{split.name}: {noisy} label maps have more than {NOISY} separate regions",
                f"The first is of {split.records[int(np.argmax(split.objects_in_image > NOISY))]['file_name']}. Labels "
                "that were resized with interpolation or saved with loss look like this; resize them by the nearest "
                "pixel and save them as PNG.",
            )


def _rare(cfg: CfgNode, train: Sequence[Split], names: Sequence[str]):
    pixels = sum(split.pixels for split in train)
    images = sum(split.counts.images for split in train)
    total = sum(int(split.labelled.sum()) for split in train)
    in_few = np.flatnonzero((images > 0) & (images < RARE_IMAGES * total))
    small = np.flatnonzero((pixels > 0) & (pixels < RARE_PIXELS * pixels.sum()))
    if len(in_few) and cfg.DATALOADER.SAMPLER_TRAIN != "RepeatFactorTrainingSampler":
        rarest = in_few[images[in_few].argmin()]
        factor = math.sqrt(RARE_IMAGES * total / images[rarest])
        yield Finding(
            "advice",
            f"{_classes(in_few, 'is', 'are')} in fewer than {100 * RARE_IMAGES:.0f} % of the training images",
            f"{_some(names, in_few)}. Repeating such images shows them more often: those of {names[rarest]} "
            f"({images[rarest]} images) would come {factor:.1f} times an epoch.",
            {
                "DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler",
                "DATALOADER.REPEAT_THRESHOLD": RARE_IMAGES,
            },
        )
    if len(small):
        text = f"{_some(names, small)}. "
        keys: dict[str, Any] = {}
        if not cfg.MODEL.MASK_FORMER.CLASS_WEIGHTS:
            keys["MODEL.MASK_FORMER.CLASS_WEIGHTS"] = "inverse_sqrt"
            text += "Weights let their mistakes in the classification count more. "
        crops = cfg.INPUT.DATASET_MAPPER_NAME in ("mask_former_semantic", "mask_former_panoptic")
        if cfg.INPUT.CROP.ENABLED and crops and not cfg.INPUT.CROP.RARE_CLASS_PROB:
            keys["INPUT.CROP.RARE_CLASS_PROB"] = 0.5
            text += "Half of the crops can be drawn around them. "
        if keys:
            yield Finding(
                "advice",
                f"{_classes(small, 'has', 'have')} less than {100 * RARE_PIXELS:g} % of the labelled pixels",
                text + "What is gained for them may be lost elsewhere: compare the scores of all classes.",
                keys,
            )


def _classes(indices: np.ndarray, one: str, several: str) -> str:
    return f"1 class {one}" if len(indices) == 1 else f"{len(indices)} classes {several}"


def _some(names: Sequence[str], indices: np.ndarray) -> str:
    return ", ".join(names[c] for c in indices[:8]) + (f" and {len(indices) - 8} more" if len(indices) > 8 else "")


def scale_in_training(cfg: CfgNode, sizes: np.ndarray) -> float:
    """How much larger a typical image is in training than in its file. sizes: (N, 2)."""
    height, width = np.median(sizes, axis=0)
    if cfg.INPUT.DATASET_MAPPER_NAME.endswith("lsj"):
        return cfg.INPUT.IMAGE_SIZE * (cfg.INPUT.MIN_SCALE + cfg.INPUT.MAX_SCALE) / 2 / max(height, width)
    short = float(np.median(cfg.INPUT.MIN_SIZE_TRAIN))
    if short == 0:
        return 1.0
    return min(short / min(height, width), cfg.INPUT.MAX_SIZE_TRAIN / max(height, width))


def _sizes(cfg: CfgNode, train: Sequence[Split]):
    sizes = np.concatenate([split.sizes[split.readable] for split in train])
    if not len(sizes):
        return
    short = float(np.median(sizes.min(1)))
    scale = scale_in_training(cfg, sizes)
    given = cfg.INPUT
    areas = sum(split.areas for split in train).sum(0)
    specks = math.ceil(4 * math.log2(CELL))
    areas[:specks] = 0  # most of them are crumbs of the drawing, and no size would keep them
    if areas.sum():
        edge = CELL / scale**2  # pixels of the file that become one cell
        lost = areas[: max(0, math.ceil(4 * math.log2(max(edge, 1))))].sum() / areas.sum()
        if lost > 0.2 and scale < 0.9:
            yield Finding(
                "advice",
                f"{100 * lost:.0f} % of the objects become smaller than a cell of the 1/4 map",
                f"Images are {short:.0f} pixels on their shorter side and are trained at {scale:.2g} of that, where an "
                f"object of {edge:.0f} pixels fills one cell of the finest map. Larger training sizes keep more of "
                "them, and cost time in proportion to the pixels.",
                {} if given.DATASET_MAPPER_NAME.endswith("lsj") else {"INPUT.MIN_SIZE_TRAIN": _around(short)},
            )
    if given.DATASET_MAPPER_NAME.endswith("lsj"):
        return
    typical = float(np.median(given.MIN_SIZE_TRAIN))
    fixed = given.FIXED_SIZE_TEST or not given.MIN_SIZE_TEST  # not by the shorter side
    if typical and not fixed and not 2 / 3 <= given.MIN_SIZE_TEST / typical <= 1.5:
        yield Finding(
            "advice",
            "Images are tested at another size than they are trained at",
            f"The shorter side is {typical:.0f} in the middle of INPUT.MIN_SIZE_TRAIN, {given.MIN_SIZE_TEST} in tests.",
            {"INPUT.MIN_SIZE_TEST": round(typical)},
        )
    if given.CROP.ENABLED and given.CROP.TYPE == "absolute":
        resized = np.median(sizes, axis=0) * scale
        wasted = 1 - np.minimum(given.CROP.SIZE, resized).prod() / np.prod(given.CROP.SIZE)
        if wasted > 0.25:
            fitting = [
                max(32, int(min(side, have)) // 32 * 32) for side, have in zip(given.CROP.SIZE, resized, strict=True)
            ]
            yield Finding(
                "advice",
                "Crops are larger than the images",
                f"A typical image is {resized[0]:.0f} x {resized[1]:.0f} (height x width) in training and the crop "
                f"{given.CROP.SIZE[0]:g} x {given.CROP.SIZE[1]:g}: {100 * wasted:.0f} % of it can be padding.",
                {"INPUT.CROP.SIZE": fitting},
            )
    if sizes.min(1).max() > 1536 and not cfg.TEST.SLIDING_WINDOW.ENABLED and given.MIN_SIZE_TEST > 1536:
        yield Finding(
            "advice",
            "Tests at this size need much memory",
            f"Images have up to {sizes.min(1).max()} pixels on the shorter side. Windows bound the memory.",
            {"TEST.SLIDING_WINDOW.ENABLED": True, "TEST.SLIDING_WINDOW.SIZE": [int(side) for side in given.CROP.SIZE]},
        )


def _around(short: float) -> list[int]:
    """Half to twice a size, in steps of a tenth, as Mask2Former's recipes have them."""
    return [int(short * tenth / 10) for tenth in range(5, 21)]


def _dominant(cfg: CfgNode, train: Sequence[Split], names: Sequence[str]):
    pixels = sum(split.pixels for split in train)
    crop = cfg.INPUT.CROP
    fits = crop.ENABLED and cfg.INPUT.DATASET_MAPPER_NAME == "mask_former_semantic"
    if fits and crop.SINGLE_CATEGORY_MAX_AREA >= 1 and pixels.max() > DOMINANT * pixels.sum():
        yield Finding(
            "advice",
            f"{names[int(pixels.argmax())]} has {100 * pixels.max() / pixels.sum():.0f} % of the labelled pixels",
            "Crops in which one class fills more than 75 % can be drawn again, up to ten times.",
            {"INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": 0.75},
        )
