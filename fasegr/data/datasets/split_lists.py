"""Which images belong to a split: lists of names, or a share that is drawn."""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from fasegr.data.datasets.image_files import IMAGE_SUFFIXES, some
from fasegr.data.image_io import BadFile

__all__ = ["draw_validation", "group_of", "read_split_list"]

logger = logging.getLogger(__name__)

_LAST_NUMBER = re.compile(r"(.*?)\d+\D*")  # frame_000123: the name without its last number


def read_split_list(path: str | os.PathLike, stems: Sequence[str], folder: str | os.PathLike) -> list[str]:
    """Those of `stems`, paths without suffix below `folder`, that a text file names, in its order.

    A line is the name of an image, with or without suffix, with its folders below `folder`; only the part before the
    first white space counts if the whole line is no name (Pascal VOC adds numbers, others the label file). Empty lines
    and lines that start with # are skipped. Raises BadFile with the line of the first name that is not there or there
    twice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} (from {Path.cwd()}): there is no such list of images (DATASETS.FOLDER.SPLIT_LISTS); it is a text "
            "file with the name of one image a line"
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise BadFile(f"{path}: is not text in UTF-8; expected the name of one image a line") from None
    known, chosen, missing = set(stems), {}, []
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        names = [_stem(line), *map(_stem, line.split()[:1])]
        stem = next((name for name in names if name in known), None)
        if stem is None:
            missing.append(number)
        elif stem in chosen:
            raise BadFile(f"{path}, line {number}: names the image of line {chosen[stem]} again")
        else:
            chosen[stem] = number
    if missing:  # the lines are not quoted: a config from strangers may name any file of this machine
        raise BadFile(
            f"{path}: {len(missing)} of its names are no images of {folder}, that of line {missing[0]} first; expected "
            "paths below that folder, with or without suffix"
        )
    if not chosen:
        raise BadFile(f"{path}: names no image; expected one a line")
    return list(chosen)


def _stem(name: str) -> str:
    path = name.replace("\\", "/").removeprefix("./")
    root, suffix = os.path.splitext(path)
    return root if suffix.lower() in IMAGE_SUFFIXES else path


def group_of(stem: str, pattern: str) -> str:
    """What images must share to stay together: what `pattern`, a regular expression, matches at the start of the path
    (its first group, if it has one); the whole path where it does not match."""
    match = re.match(pattern, stem)
    return stem if match is None else match[1] if match.re.groups and match[1] is not None else match[0]


def draw_validation(name: str, stems: Sequence[str], share: float, seed: int, group: str) -> set[str]:
    """The `stems` that a share of about `share` for validation consists of: the same for the same arguments.

    group: of `group_of`; "auto" is the path without its last number, where that leaves several groups and not one for
    each image: frames of a video must not be on both sides. "" draws images one by one. Raises BadFile where there is
    only one group.
    """
    members: dict[str, list[str]] = defaultdict(list)
    for stem in sorted(stems):
        members[_without_last_number(stem) if group == "auto" else group_of(stem, group) if group else stem].append(
            stem
        )
    if group == "auto" and len(members) == 1:
        members = {stem: [stem] for stem in sorted(stems)}
    groups = list(members)
    if len(groups) < 2:
        raise BadFile(
            f"dataset {name}: its {len(stems)} images are {len(groups)} group, so no share of them can be drawn for "
            "validation (DATASETS.FOLDER.VAL_SHARE, VAL_GROUP)"
        )
    drawn: list[str] = []
    wanted = max(1, round(share * len(stems)))
    for i in np.random.default_rng(seed).permutation(len(groups)):
        more = len(drawn) + len(members[groups[i]])
        if abs(more - wanted) < abs(len(drawn) - wanted) and more < len(stems):
            drawn += members[groups[i]]
    drawn = drawn or min(members.values(), key=len)  # all are more than twice the share
    if len(groups) < len(stems):
        _say_groups(name, len(stems), len(groups), some(groups), len(drawn))
    return set(drawn)


def _without_last_number(stem: str) -> str:
    match = _LAST_NUMBER.fullmatch(stem)
    return match[1] if match else stem


@lru_cache(maxsize=64)
def _say_groups(name: str, images: int, groups: int, such_as: str, drawn: int) -> None:
    """Once, although both splits are drawn, and a dataset is read several times."""
    logger.info(
        "%s: %d images in %d groups that stay together (such as %s), %d images drawn for validation; "
        "DATASETS.FOLDER.VAL_GROUP '' draws images one by one, or a regular expression says what a group is",
        *(name, images, groups, such_as, drawn),
    )
