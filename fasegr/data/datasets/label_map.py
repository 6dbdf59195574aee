"""DATASETS.FOLDER.LABEL_MAP: what the values or colours of label files mean, so that files need not be converted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from fasegr.data.image_io import BadFile, label_size, read_label, read_label_colours

__all__ = ["LabelMap", "make_label_map", "read_record_labels", "record_label_size"]

_SHOWN = 3  # unknown values that an error names
_COLOURS, _VALUES, _UNKNOWN = 2**24, 2**16, 2**32 - 1

EXAMPLES = "as [[0, background], [255, object]], [[[128, 64, 128], road], [[0, 0, 0], ignore]], colours, or from_one"


class LabelMap(NamedTuple):
    """entries: (value, class), a colour being the value 65536 R + 256 G + B. colours: whether values are colours.

    Pickled with every record of the dataset, so it holds no table.
    """

    entries: tuple[tuple[int, int], ...]
    colours: bool
    ignore_label: int

    def read(self, path: str | os.PathLike) -> np.ndarray:
        """The label file as class numbers, (H, W), uint8 or uint16.

        Raises BadFile naming each value or colour that is not mapped, and how many pixels have it.
        """
        codes = _colour_codes(read_label_colours(path)) if self.colours else read_label(path, "values")
        labels = _table(self)[codes]
        unknown = labels == _UNKNOWN
        if unknown.any():
            raise BadFile(self._problem(path, codes[unknown], codes.size))
        eight_bits = max(self.ignore_label, *(label for _, label in self.entries)) < 256
        return labels.astype(np.uint8 if eight_bits else np.uint16)

    def _problem(self, path: str | os.PathLike, codes: np.ndarray, pixels: int) -> str:
        values, counts = np.unique(codes, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        shown = ", ".join(f"{self._shown(values[i])} ({counts[i]} pixels)" for i in order[:_SHOWN])
        more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
        kind = "colours" if self.colours else "values"
        return (
            f"{path}: holds {kind} that DATASETS.FOLDER.LABEL_MAP does not have: {shown}{more}, {counts.sum()} of "
            f"{pixels} pixels. Add them to it, as a class or as ignore; values between others, along edges, come from "
            "smoothing or from JPEG"
        )

    def _shown(self, code: int) -> str:
        return f"[{code >> 16}, {code >> 8 & 255}, {code & 255}]" if self.colours else str(code)


def _colour_codes(colours: np.ndarray) -> np.ndarray:
    red, green, blue = (colours[..., i].astype(np.uint32) for i in range(3))
    return red << 16 | green << 8 | blue


@lru_cache(maxsize=4)
def _table(label_map: LabelMap) -> np.ndarray:
    """The class of each value, _UNKNOWN where there is none: 64 MB for colours, in the processes that read them."""
    table = np.full(_COLOURS if label_map.colours else _VALUES, _UNKNOWN, np.uint32)
    for value, label in label_map.entries:
        table[value] = label
    return table


def make_label_map(
    given: str | Sequence, class_names: Sequence[str], colours: Sequence[Sequence[int]], ignore_label: int
) -> LabelMap | None:
    """The map that a config describes, None for an empty one.

    given: pairs of a value, or a colour [R, G, B], and a class by name or number, `ignore` or ignore_label. Or
    "colours": the colours of the list of classes; or "from_one": classes counted from 1, and 0 ignored. Raises
    ValueError naming the pair.
    """
    if not given:
        return None
    if given == "colours":
        if not colours:
            raise ValueError("DATASETS.FOLDER.LABEL_MAP is 'colours', but the list of classes has none")
        if len(set(map(tuple, colours))) < len(colours):
            raise ValueError("DATASETS.FOLDER.LABEL_MAP is 'colours', but two classes of the list have the same one")
        given = [[list(colour), i] for i, colour in enumerate(colours)]
    elif given == "from_one":
        given = [[0, ignore_label], *([i + 1, i] for i in range(len(class_names)))]
    entries: dict[int, int] = {}
    kinds = set()
    for pair in given:
        value, is_colour = _value(pair)
        label = _class(pair, class_names, ignore_label)
        kinds.add(is_colour)
        if entries.get(value, label) != label:
            raise _wrong(pair, "has a value that an earlier pair maps to another class")
        entries[value] = label
    if len(kinds) > 1:
        raise ValueError("DATASETS.FOLDER.LABEL_MAP has both values and colours; a label file has one kind")
    is_colour = kinds.pop()
    if not is_colour:
        entries.setdefault(ignore_label, ignore_label)
    return LabelMap(tuple(sorted(entries.items())), is_colour, ignore_label)


def _value(pair: Any) -> tuple[int, bool]:
    """The code of what a pair begins with, and whether that is a colour."""
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        raise _wrong(pair, "is no pair")
    value = pair[0]
    if type(value) is int and 0 <= value < _VALUES:
        return value, False
    if isinstance(value, (list, tuple)) and len(value) == 3 and all(type(v) is int and 0 <= v < 256 for v in value):
        return value[0] << 16 | value[1] << 8 | value[2], True
    raise _wrong(pair, "must begin with a value of 0..65535, or a colour, three of 0..255")


def _class(pair: Any, class_names: Sequence[str], ignore_label: int) -> int:
    name = pair[1]
    if isinstance(name, str) and name in class_names:
        return list(class_names).index(name)
    if name == "ignore" or name == ignore_label:
        return ignore_label
    if type(name) is int and 0 <= name < len(class_names):
        return name
    # the list of classes is not quoted: a config from strangers may name any file as one
    raise _wrong(pair, f"must end with one of the {len(class_names)} classes, by name or number, or with ignore")


def _wrong(pair: Any, problem: str) -> ValueError:
    return ValueError(f"DATASETS.FOLDER.LABEL_MAP: {str(pair)[:80]} {problem}; it may be {EXAMPLES}")


def read_record_labels(record: dict) -> np.ndarray:
    """The class numbers of a record with "sem_seg_file_name", and "label_map" if its files need one: (H, W), uint8 or
    uint16."""
    path = record["sem_seg_file_name"]
    label_map = record.get("label_map")
    return read_label(path) if label_map is None else label_map.read(path)


def record_label_size(record: dict) -> tuple[int, int]:
    """(height, width) of the label file of `read_record_labels`, from its header."""
    label_map = record.get("label_map")
    holds = "numbers" if label_map is None else "colours" if label_map.colours else "values"
    return label_size(record["sem_seg_file_name"], holds)
