"""What is in the splits of a dataset, read as training reads them: sizes, classes, objects, label values, copies.

A file that cannot be read is a `Problem`, and the rest is inspected all the same.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask
from torch.utils.data import DataLoader, Dataset

from fasegr.analysis.image_copies import NearCopy, grey_thumbnail, near_copies, perceptual_hash
from fasegr.analysis.segment_objects import Objects, components, segments
from fasegr.d2 import CfgNode, DatasetCatalog, MetadataCatalog
from fasegr.data.class_counts import ClassCounts
from fasegr.data.dataset_mappers import InstanceMapper, PanopticMapper, build_mapper
from fasegr.data.dataset_mappers.dataset_mapper import ImageCount, TrainingMapper
from fasegr.data.datasets.folder import BadFiles
from fasegr.data.image_io import BadFile, check_image_size, image_size, open_file
from fasegr.data.semantic_labels import label_source
from fasegr.data.serialized_list import SerializedList
from fasegr.data.transform import Box, Transform

__all__ = [
    "Extreme",
    "Problem",
    "Split",
    "class_mask",
    "classes_of",
    "exact_copies",
    "inspect_split",
    "near_copies_of",
    "reader",
]

BINS = 4 * 32  # of areas of objects: four to an octave
_ALL_VALUES = 65536
_UNREADABLE = (BadFile, OSError, ValueError, KeyError)


class Problem(NamedTuple):
    """A file, or a whole dataset, that cannot be read, and why."""

    file: str
    reason: str


class Extreme(NamedTuple):
    """The smallest or the largest object of a class: area in pixels, the image's index, and the box (top, left, bottom,
    right)."""

    area: int
    image: int
    box: tuple[int, int, int, int]


_LARGEST = np.dtype([("image", "i4"), ("class", "i4"), ("area", "i8"), ("box", "i4", 4)])


class _Image(NamedTuple):
    """What a worker finds in one record. Of the annotation, None where there is none or it cannot be read."""

    problems: list[Problem]
    size: tuple[int, int] | None = None
    thumbnail: np.ndarray | None = None
    digest: bytes = b""
    values: ImageCount | None = None  # also of label values that are no class
    label_pixels: int = 0
    objects: Objects | None = None
    palette: tuple[tuple[int, int, int], ...] = ()


class Split:
    """The records of a dataset and what was found in them.

    counts: by image and class, of classes that the model has. ignored: (N,) pixels. areas: (C, BINS) objects by area,
    bin b from 2^(b / 4) pixels on. strange: {label value that is no class: (pixels, images, the first file)}.
    """

    def __init__(self, name: str, records: Sequence[dict], num_classes: int):
        self.name, self.records, self.num_classes = name, SerializedList(records), num_classes
        self.problems: list[Problem] = []
        self.sizes = np.zeros((len(records), 2), np.int64)
        self.readable = np.zeros(len(records), bool)
        self.labelled = np.zeros(len(records), bool)
        self.ignored = np.zeros(len(records), np.int64)
        self.label_pixels = np.zeros(len(records), np.int64)
        self.objects_in_image = np.zeros(len(records), np.int64)
        self.hashes = np.zeros(len(records), np.uint64)
        self.thumbnails = np.zeros((len(records), 32, 32), np.uint8)
        self.digests: list[bytes] = [b""] * len(records)
        self.areas = np.zeros((num_classes, BINS), np.int64)
        self.smallest: dict[int, Extreme] = {}
        self.largest: dict[int, Extreme] = {}
        self.strange: dict[int, list] = {}
        self.values: Counter[int] = Counter()  # images by label value
        self.palettes: Counter[tuple] = Counter()
        self._counts: list[ImageCount] = []
        self._largest: list[np.ndarray] = []

    def add(self, index: int, found: _Image, ignore_label: int) -> None:
        self.problems += found.problems
        if found.size is not None:
            self.sizes[index] = found.size
        if found.thumbnail is not None:
            self.readable[index] = True
            self.thumbnails[index], self.hashes[index] = found.thumbnail, perceptual_hash(found.thumbnail)
            self.digests[index] = found.digest
        empty = np.empty(0, np.int64)
        counts = ImageCount(empty, empty, empty)
        if found.values is not None:
            classes = found.values.classes
            self.labelled[index], self.label_pixels[index] = True, found.label_pixels
            self.values.update(classes.tolist())
            known = classes < self.num_classes
            counts = ImageCount(*(column[known] for column in found.values))
            self.ignored[index] = max(0, found.label_pixels - int(found.values.pixels.sum()))
            for value, pixels in zip(classes[~known].tolist(), found.values.pixels[~known].tolist(), strict=True):
                entry = self.strange.setdefault(value, [0, 0, _label_file(self.records[index])])
                entry[0] += pixels
                entry[1] += 1
        self._counts.append(counts)
        if found.palette:
            self.palettes[found.palette] += 1
        if found.objects is not None:
            self._add_objects(index, found.objects, ignore_label)

    def _add_objects(self, index: int, objects: Objects, ignore_label: int) -> None:
        known = (objects.classes < self.num_classes) & (objects.classes != ignore_label) & (objects.areas > 0)
        classes, areas, boxes = (column[known] for column in objects)
        self.objects_in_image[index] = len(classes)
        np.add.at(self.areas, (classes, np.floor(4 * np.log2(areas)).astype(int).clip(0, BINS - 1)), 1)
        order = np.lexsort((areas, classes))
        ends = np.flatnonzero(np.diff(classes[order], append=-1))
        begins = np.concatenate([[0], ends[:-1] + 1])[: len(ends)]
        largest = np.zeros(len(ends), _LARGEST)
        for row, (first, last) in enumerate(zip(order[begins], order[ends], strict=True)):
            c = int(classes[first])
            low = Extreme(int(areas[first]), index, tuple(boxes[first].tolist()))
            high = Extreme(int(areas[last]), index, tuple(boxes[last].tolist()))
            self.smallest[c] = min(self.smallest.get(c, low), low)
            self.largest[c] = max(self.largest.get(c, high), high, key=lambda extreme: extreme.area)
            largest[row] = (index, c, high.area, high.box)
        self._largest.append(largest)

    def finish(self) -> None:
        """After the last `add`."""
        self.counts = ClassCounts.of(self._counts, self.num_classes)
        self.largest_objects = np.concatenate([np.empty(0, _LARGEST), *self._largest])  # of each class in each image
        del self._counts, self._largest

    @property
    def pixels(self) -> np.ndarray:
        """(C,) pixels of each class."""
        return self.counts.pixels.sum(0)

    @property
    def objects(self) -> np.ndarray:
        """(C,) objects of each class: annotated ones, or connected regions of label maps."""
        return self.areas.sum(1)

    def area_quantile(self, class_index: int | slice, share: float) -> float:
        """The area that a share of the objects of a class do not exceed, to a fifth; nan where there are none."""
        counts = self.areas[class_index]
        counts = counts if counts.ndim == 1 else counts.sum(0)
        if not counts.sum():
            return float("nan")
        return float(2 ** ((np.searchsorted(counts.cumsum(), share * counts.sum()) + 0.5) / 4))


def reader(cfg: CfgNode) -> TrainingMapper:
    """The mapper of a config, which reads annotations but refuses no label value."""
    mapper = build_mapper(cfg, is_train=True)
    mapper.cache, mapper.num_classes = None, _ALL_VALUES
    return mapper


def objects_of(mapper: TrainingMapper, annotation: Any, record: dict) -> Objects:
    """Annotated objects or segments, or the connected regions of a label map."""
    if isinstance(mapper, InstanceMapper):
        codes = [_code(item["segmentation"], (record["height"], record["width"])) for item in annotation]
        boxes = coco_mask.toBbox(codes).reshape(-1, 4) if codes else np.empty((0, 4))
        x, y, width, height = boxes.astype(np.int64).T
        classes = np.array([item["category_id"] for item in annotation], np.int64)
        areas = coco_mask.area(codes).astype(np.int64) if codes else np.empty(0, np.int64)
        return Objects(classes, areas, np.stack([y, x, y + height, x + width], 1))
    if isinstance(mapper, PanopticMapper):
        ids, info = annotation
        numbers, classes = (np.array([segment[key] for segment in info], np.int64) for key in ("id", "category_id"))
        return segments(ids, numbers, classes)
    return components(np.asarray(mapper.sem_seg(annotation)))


def _code(segmentation: Any, size: tuple[int, int]) -> dict:
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
    return coco_mask.frPyObjects(segmentation, *size) if isinstance(segmentation["counts"], list) else segmentation


class _Records(Dataset):
    """What is found in each record."""

    def __init__(self, records: SerializedList, mapper: TrainingMapper):
        self.records, self.mapper = records, mapper

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> _Image:
        record = self.records[index]
        found = _Image([])
        try:
            size = image_size(record["file_name"])
            found = found._replace(size=size)
            check_image_size(record["file_name"], size, (record.get("height", size[0]), record.get("width", size[1])))
            record = {**record, "height": size[0], "width": size[1]}
            digest = hashlib.blake2b(Path(record["file_name"]).read_bytes(), digest_size=16).digest()
            found = found._replace(thumbnail=grey_thumbnail(record["file_name"]), digest=digest)
        except _UNREADABLE as error:
            found.problems.append(Problem(record["file_name"], _reason(error)))
        if found.size is None or not (label_source(record) or "annotations" in record):
            return found
        record = {"height": found.size[0], "width": found.size[1], **record}
        try:
            annotation = self.mapper.read_annotation(record)
            values = self.mapper.count(annotation, record)
            pixels = record["height"] * record["width"]
            if isinstance(self.mapper, InstanceMapper):
                pixels = 0  # what no object has is not ignored there
            objects = objects_of(self.mapper, annotation, record)
            return found._replace(values=values, label_pixels=pixels, objects=objects, palette=_palette(record))
        except _UNREADABLE as error:
            found.problems.append(Problem(_label_file(record), _reason(error)))
        return found


def _label_file(record: dict) -> str:
    return label_source(record) or record["file_name"]


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _palette(record: dict) -> tuple[tuple[int, int, int], ...]:
    """The colours of a label map that is a palette image."""
    if "sem_seg_file_name" not in record or "label_map" in record:  # which may look at colours, not at indices
        return ()
    with open_file(record["sem_seg_file_name"]) as image:
        if image.mode != "P":
            return ()
        colours = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    used = 1 + np.flatnonzero(colours.any(1)).max(initial=-1)
    return tuple(map(tuple, colours[:used].tolist()))


def _alone(batch: list) -> Any:
    return batch


def inspect_split(
    name: str,
    mapper: TrainingMapper,
    num_classes: int,
    ignore_label: int,
    workers: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Split:
    """All records of the registered dataset `name`. workers: processes; 0 reads in this one. progress: called with the
    number of images that are done, and of all.

    A dataset of which no list of images can be made has one problem, that of its loader, and no images.
    """
    try:
        records, problems = DatasetCatalog.get(name), []
    except BadFiles as error:
        records, problems = error.records, [Problem(*problem) for problem in error.problems]
    except _UNREADABLE as error:
        records, problems = [], [Problem(name, _reason(error))]
    split = Split(name, records, num_classes)
    split.problems += problems
    loader = DataLoader(
        _Records(split.records, mapper), batch_size=8, num_workers=workers, collate_fn=_alone, persistent_workers=False
    )
    done = 0
    for batch in loader:
        for found in batch:
            split.add(done, found, ignore_label)
            done += 1
        progress(done, len(records))
    split.finish()
    return split


def exact_copies(splits: Sequence[Split]) -> list[list[str]]:
    """Groups of image files with the same bytes, in one split or several."""
    groups: dict[bytes, list[str]] = {}
    for split in splits:
        for index in np.flatnonzero(split.readable).tolist():
            groups.setdefault(split.digests[index], []).append(split.records[index]["file_name"])
    return [sorted(set(files)) for files in groups.values() if len(set(files)) > 1]


def near_copies_of(train: Split, other: Split) -> list[NearCopy]:
    """Images of `other` that are also, or nearly, in `train`; indices of the records of both."""
    mine, theirs = np.flatnonzero(train.readable), np.flatnonzero(other.readable)
    pairs = near_copies(train.hashes[mine], train.thumbnails[mine], other.hashes[theirs], other.thumbnails[theirs])
    return [pair._replace(first=int(mine[pair.first]), second=int(theirs[pair.second])) for pair in pairs]


def classes_of(cfg: CfgNode) -> tuple[list[str], list | None]:
    """Names of the classes, and their colours if the dataset has some."""
    num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        metadata = MetadataCatalog.get(name)
        for kind in ("stuff", "thing"):
            names = metadata.get(f"{kind}_classes")
            if names is not None and len(names) == num_classes:
                return list(names), metadata.get(f"{kind}_colors")
    return [f"class {i}" for i in range(num_classes)], None


def class_mask(mapper: TrainingMapper, record: dict, class_index: int) -> np.ndarray:
    """(H, W) bool: where the annotation of a record has a class."""
    size = (record["height"], record["width"])
    whole = Transform(size, Box(0, 0, *size), size)
    labels, masks = mapper.apply(whole, mapper.read_annotation(record), record)
    return masks[labels == class_index].any(0)
