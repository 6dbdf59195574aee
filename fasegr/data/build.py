"""Loaders of training and test samples.

The training stream is a function of the seed and the position in it, and of nothing else: neither the number of
workers or processes nor an interruption changes which image comes when, or how it is augmented.
"""

import logging
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from fasegr.d2 import (
    DatasetCatalog,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
    comm,
)
from fasegr.data.dataset_mappers import TRAINING_MAPPERS, SemanticMapper
from fasegr.data.serialized_list import PackedList

__all__ = ["StreamSampler", "TrainStream", "build_test_loader", "build_train_loader", "check_num_classes"]


class TrainStream(Dataset):
    """Endless training samples by position: epoch p // n, and in it record p % n of the epoch's own order.

    Positions reach beyond `len`, the n records of one epoch.
    """

    def __init__(self, records: list[dict], mapper: Callable[[dict, np.random.Generator], dict], seed: int):
        self.records, self.mapper, self.seed = PackedList(records), mapper, seed
        self._orders: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.records)

    def record(self, position: int) -> dict:
        epoch, place = divmod(position, len(self.records))
        if epoch not in self._orders:
            order = np.random.default_rng((self.seed, 0, epoch)).permutation(len(self.records))
            # one batch may reach over the end of an epoch, so the one before stays
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1} | {epoch: order}
        return self.records[int(self._orders[epoch][place])] | {"position": position}

    def __getitem__(self, position: int) -> dict:
        return self.mapper(self.record(position), np.random.default_rng((self.seed, 1, position)))


class StreamSampler(Sampler):
    """This process's positions in the stream, without end.

    Iteration i takes positions i B .. (i + 1) B - 1 in `accumulate` micro-batches, of each of which process `rank`
    gets its equal share in order. `start_iteration` may be set until the sampler is iterated over: what lies before
    is skipped.
    """

    def __init__(self, batch_size: int, accumulate: int, rank: int, world_size: int):
        if batch_size < 1 or accumulate < 1 or batch_size % (world_size * accumulate):
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH is {batch_size}; it must be a multiple of processes x SOLVER.ACCUMULATE "
                f"= {world_size} x {accumulate}, since each process takes an equal share of every micro-batch"
            )
        self.batch_size, self.accumulate, self.rank = batch_size, accumulate, rank
        self.share = batch_size // (world_size * accumulate)
        self.start_iteration = 0

    def __iter__(self) -> Iterator[int]:
        micro_batch = self.start_iteration * self.accumulate
        while True:
            first = micro_batch * (self.batch_size // self.accumulate) + self.rank * self.share
            yield from range(first, first + self.share)
            micro_batch += 1


def _records(names: tuple[str, ...]) -> list[dict]:
    unknown = [name for name in names if name not in DatasetCatalog.list()]
    if unknown:
        raise ValueError(
            f"no dataset is registered as {', '.join(unknown)}. There are: {', '.join(sorted(DatasetCatalog.list()))}; "
            "a folder of one's own is described by DATASETS.FOLDER"
        )
    return [record for name in names for record in DatasetCatalog.get(name)]


def _with_objects(records: list[dict]) -> list[dict]:
    """Of records that list objects, those that have one which is no crowd; of other records, all."""
    kept = [
        record
        for record in records
        if "annotations" not in record or any(not o.get("iscrowd", 0) for o in record["annotations"])
    ]
    if not kept:
        raise ValueError(
            "no training image has an object; set DATALOADER.FILTER_EMPTY_ANNOTATIONS False to train all the same"
        )
    if len(kept) < len(records):
        logging.getLogger(__name__).info(
            "%d of %d images have no object and are left out (DATALOADER.FILTER_EMPTY_ANNOTATIONS)",
            len(records) - len(kept),
            len(records),
        )
    return kept


def check_num_classes(cfg) -> None:
    """Raises ValueError where a dataset of the config has other classes than the model, or than another dataset.

    Datasets without a list of classes, or that are not registered (yet), are left out.
    """
    head = cfg.MODEL.SEM_SEG_HEAD
    gives = cfg.MODEL.MASK_FORMER.TEST
    # a model of instances alone knows the things of a dataset, and no stuff
    listed = "stuff_classes" if gives.SEMANTIC_ON or gives.PANOPTIC_ON else "thing_classes"
    first = None
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        if name not in DatasetCatalog.list():
            continue
        meta = MetadataCatalog.get(name)
        # and a dataset of instances has things alone
        classes = getattr(meta, listed, None) or getattr(meta, "thing_classes", None)
        if classes is None:
            continue
        if len(classes) != head.NUM_CLASSES:
            some = ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {head.NUM_CLASSES}, but {name} has {len(classes)} classes "
                f"({some}); set NUM_CLASSES to {len(classes)} or correct the list of classes"
            )
        if first is not None and list(classes) != first[1]:
            raise ValueError(f"{name} names its classes otherwise than {first[0]}; datasets of one config share a list")
        first = (name, list(classes))
        ignore_label = getattr(meta, "ignore_label", head.IGNORE_VALUE)
        if ignore_label != head.IGNORE_VALUE:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE is {head.IGNORE_VALUE}, but {name} ignores {ignore_label}; "
                "they must be equal"
            )


def _build_mapper(cfg, is_train: bool):
    if not is_train:
        return SemanticMapper(cfg, False)  # only in training is a sample more than the image at its test size
    name = cfg.INPUT.DATASET_MAPPER_NAME
    if name not in TRAINING_MAPPERS:
        raise ValueError(f"INPUT.DATASET_MAPPER_NAME is {name!r}; training has: {', '.join(TRAINING_MAPPERS)}")
    return TRAINING_MAPPERS[name](cfg)


def build_train_loader(cfg, seed: int) -> tuple[torch.utils.data.DataLoader, StreamSampler]:
    """An endless loader of this process's micro-batches (lists of samples), and the sampler behind it.

    seed: not negative. Set the sampler's `start_iteration` before the loader is iterated over to continue a training.
    """
    if not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty; it must name at least one dataset")
    accumulate = cfg.SOLVER.ACCUMULATE
    sampler = StreamSampler(cfg.SOLVER.IMS_PER_BATCH, accumulate, comm.get_rank(), comm.get_world_size())
    records = _records(cfg.DATASETS.TRAIN)
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        records = _with_objects(records)
    stream = TrainStream(records, _build_mapper(cfg, True), seed)
    loader = build_detection_train_loader(
        stream,
        mapper=None,  # the stream maps: it alone knows the position that seeds the mapper
        sampler=sampler,
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH // accumulate,
        aspect_ratio_grouping=False,  # it would reorder the stream, for a gain in padding that crops do not need
        pin_memory=cfg.MODEL.DEVICE.startswith("cuda"),  # in a thread: a GPU copies from there while others compute
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
    return loader, sampler


def build_test_loader(cfg, dataset_name: str) -> torch.utils.data.DataLoader:
    """A loader of this process's share of a dataset, one image a batch, in order."""
    return build_detection_test_loader(
        _records((dataset_name,)), mapper=_build_mapper(cfg, False), num_workers=cfg.DATALOADER.NUM_WORKERS
    )
