"""How many pixels and segments of each class the images of a dataset have, and what follows for rare classes.

The mapper of a config counts, so that what is counted is what training reads. Three keys use the counts:
MODEL.MASK_FORMER.CLASS_WEIGHTS inverse_sqrt, DATALOADER.SAMPLER_TRAIN RepeatFactorTrainingSampler and
INPUT.CROP.RARE_CLASS_PROB. tools/inspect_dataset.py shows them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import sparse
from tqdm import tqdm

from fasegr.d2 import CfgNode, MetadataCatalog, comm
from fasegr.data.dataset_mappers.dataset_mapper import ImageCount, TrainingMapper
from fasegr.data.image_io import image_size
from fasegr.utils.files import replacing

__all__ = [
    "ClassCounts",
    "cached_counts",
    "class_names",
    "count_classes",
    "inverse_sqrt_weights",
    "repeat_factors",
    "with_size",
]

logger = logging.getLogger(__name__)

FILE = "class_counts.npz"  # in OUTPUT_DIR


class ClassCounts(NamedTuple):
    """pixels, segments: int64 sparse arrays (images, classes), rows in the order of the records. A segment is what
    training has a mask of: a class in an image, or an object."""

    pixels: sparse.csr_array
    segments: sparse.csr_array

    @classmethod
    def of(cls, images: Iterable[ImageCount], num_classes: int) -> ClassCounts:
        """From the counts of each image, in order."""
        images = list(images)
        ends = np.cumsum([0, *(len(image.classes) for image in images)])
        classes = np.concatenate([np.empty(0, np.int64), *(image.classes for image in images)])
        columns = (
            np.concatenate([np.empty(0, np.int64), *(getattr(image, name) for image in images)]) for name in cls._fields
        )
        shape = (len(images), num_classes)
        return cls(*(sparse.csr_array((column, classes, ends), shape) for column in columns))

    @property
    def images(self) -> np.ndarray:
        """The number of images that have a pixel of each class, (classes,)."""
        return (self.pixels > 0).sum(0)


def with_size(record: dict) -> dict:
    """The record with "height" and "width", from the header of its image if it does not state them."""
    if "height" in record and "width" in record:
        return record
    height, width = image_size(record["file_name"])
    return {**record, "height": height, "width": width}


def count_classes(
    records: Sequence[dict], mapper: TrainingMapper, description: str = "Counting classes"
) -> ClassCounts:
    """Counts all annotations, with a bar. Raises as the mapper does for one that training could not read."""

    def count(record: dict) -> ImageCount:
        record = with_size(record)
        return mapper.count(mapper.read_annotation(record), record)

    threads = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:  # decoding lets other threads run
        counted = tqdm(
            pool.map(count, records),
            description,
            total=len(records),
            unit="image",
            dynamic_ncols=True,
            disable=None,
        )
        return ClassCounts.of(counted, mapper.num_classes)


def cached_counts(cfg: CfgNode, records: Sequence[dict], mapper: TrainingMapper) -> ClassCounts:
    """`count_classes` of training records, once: they are kept in OUTPUT_DIR and counted again if a record, a file of
    labels or a key that says what labels mean has changed. The main process counts for all."""
    counts = None
    if comm.is_main_process():
        path, key = Path(cfg.OUTPUT_DIR, FILE), _key(cfg, records)
        counts = _read(path, key)
        if counts is None:
            counts = count_classes(records, mapper)
            _write(path, key, counts)
    return comm.all_gather(counts)[0]


def _key(cfg: CfgNode, records: Sequence[dict]) -> str:
    head = cfg.MODEL.SEM_SEG_HEAD
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{cfg.INPUT.DATASET_MAPPER_NAME} {head.NUM_CLASSES} {head.IGNORE_VALUE} {cfg.DATASETS}".encode())
    for record in records:
        digest.update(json.dumps(record, sort_keys=True, default=str).encode())
        for name in ("sem_seg_file_name", "pan_seg_file_name"):
            if name in record:
                file = os.stat(record[name])
                digest.update(f"{file.st_size} {file.st_mtime_ns}".encode())
    return digest.hexdigest()


def _read(path: Path, key: str) -> ClassCounts | None:
    """None if there are none, or of other data."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if str(arrays["key"]) != key:
                return None
            shape = tuple(arrays["shape"].tolist())
            index = arrays["indices"], arrays["indptr"]
            return ClassCounts(*(sparse.csr_array((arrays[name], *index), shape) for name in ClassCounts._fields))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # damaged, or written by another program
        return None


def _write(path: Path, key: str, counts: ClassCounts) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = counts.pixels
    arrays = {name: array.data for name, array in counts._asdict().items()}
    with replacing(path, "wb") as file:
        np.savez(file, key=key, shape=pixels.shape, indices=pixels.indices, indptr=pixels.indptr, **arrays)


def class_names(cfg: CfgNode) -> list[str]:
    """Of the training set, or the numbers of classes that have no names."""
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    for key in ("stuff_classes", "thing_classes"):
        names = metadata.get(key)
        if names is not None and len(names) == num_classes:
            return list(names)
    return [f"class {i}" for i in range(num_classes)]


def inverse_sqrt_weights(counts: ClassCounts) -> np.ndarray:
    """(classes,) weights a / sqrt(s_c), s_c being the share of class c in the labelled pixels.

    a makes the mean over all segments of the set 1: the queries that are matched to a segment weigh as much in all as
    without weights, and so the no-object weight means what it did. A class without a pixel is never a target; its
    weight is 1.
    """
    pixels, segments = counts.pixels.sum(0), counts.segments.sum(0)
    present = pixels > 0
    weights = np.ones(len(pixels))
    weights[present] = np.sqrt(pixels.sum() / pixels[present])
    if segments[present].sum() > 0:
        weights[present] *= segments[present].sum() / (weights * segments)[present].sum()
    return weights


def repeat_factors(counts: ClassCounts, threshold: float) -> np.ndarray:
    """(images,) how often each image comes in an epoch, 1 or more: the largest factor of its classes,

        r_c = max(1, sqrt(threshold / f_c)),

    f_c being the share of the images that have class c (Gupta et al., LVIS, CVPR 2019; detectron2's
    RepeatFactorTrainingSampler). An image without a class has 1.
    """
    shares = np.maximum(counts.images, 1) / counts.pixels.shape[0]
    of_class = np.maximum(1.0, np.sqrt(threshold / shares))
    factors = np.ones(counts.pixels.shape[0])
    image, classes = (counts.pixels > 0).nonzero()
    np.maximum.at(factors, image, of_class[classes])
    return factors
