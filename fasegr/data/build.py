"""Loaders of training and test samples.

The stream of training samples is a function of the seed and the position only: the number of workers or processes, or
an interruption, does not change which image comes when, or how it is augmented.
"""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from fasegr.d2 import (
    CfgNode,
    DatasetCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
    comm,
)
from fasegr.data.dataset_mappers import build_mapper
from fasegr.data.dataset_mappers.dataset_mapper import stated_size
from fasegr.data.datasets.coco_json import without_crowds
from fasegr.data.image_io import (
    Reading,
    check_image_size,
    check_label_size,
    configure_reading,
    image_size,
    label_size,
    reading,
)
from fasegr.data.serialized_list import SerializedList
from fasegr.data.workers import with_sturdy_workers

__all__ = ["TrainingDataset", "TrainingSampler", "build_test_loader", "build_train_loader"]


class TrainingDataset(Dataset):
    """Endless training samples by position: p is record p % n in the order of epoch p // n.

    Positions go beyond `len`, the n records of one epoch.
    """

    def __init__(self, records: list[dict], mapper: Callable[[dict, np.random.Generator], dict], seed: int):
        self.records, self.mapper, self.seed = SerializedList(records), mapper, seed
        self._orders: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, position: int) -> dict:
        epoch, index = divmod(position, len(self.records))
        if epoch not in self._orders:
            order = np.random.default_rng((self.seed, 0, epoch)).permutation(len(self.records))
            # a batch may extend beyond the end of an epoch, so the order before is kept
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1} | {epoch: order}
        record = self.records[int(self._orders[epoch][index])]
        return self.mapper(record, np.random.default_rng((self.seed, 1, position)))


class TrainingSampler(Sampler):
    """This process's positions in the stream, without end.

    Iteration i takes positions i B .. (i + 1) B - 1 in `accumulate` micro-batches, each shared equally and in order by
    the processes. To resume, set `start_iteration` before iterating.
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
            "DATASETS.FOLDER and DATASETS.COCO describe further ones"
        )
    return [record for name in names for record in DatasetCatalog.get(name)]


def _without_empty(records: list[dict]) -> list[dict]:
    """The records that have an object which is not a crowd, or that list no objects at all."""
    kept = [record for record in records if "annotations" not in record or without_crowds(record["annotations"])]
    if not kept:
        raise ValueError(
            "no training image has an object; set DATALOADER.FILTER_EMPTY_ANNOTATIONS False to train with such images"
        )
    if len(kept) < len(records):
        logging.getLogger(__name__).info(
            "%d of %d images have no object and are left out (DATALOADER.FILTER_EMPTY_ANNOTATIONS)",
            len(records) - len(kept),
            len(records),
        )
    return kept


def _check_headers(record: dict) -> None:
    path = record["file_name"]
    size = image_size(path)
    check_image_size(path, size, stated_size(record, size))
    for key, read_size in (("sem_seg_file_name", label_size), ("pan_seg_file_name", image_size)):
        if key in record:
            check_label_size(record[key], read_size(record[key]), path, size)


def check_test_files(cfg: CfgNode) -> None:
    """Raises, naming the file, where a record of DATASETS.TEST is wrong or the header of one of its images or label
    maps; the first evaluation, which may follow the whole training, would find it."""
    with ThreadPoolExecutor(8) as pool:  # waits for the disk, not for the processor
        for _ in pool.map(_check_headers, _records(cfg.DATASETS.TEST)):
            pass


def build_train_loader(cfg: CfgNode, seed: int) -> tuple[DataLoader, TrainingSampler]:
    """An endless loader of this process's micro-batches (lists of samples), and its sampler.

    seed: not negative. To resume a training, set the sampler's `start_iteration` before iterating over the loader.
    """
    if not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty; it must name at least one dataset")
    accumulate = cfg.SOLVER.ACCUMULATE
    sampler = TrainingSampler(cfg.SOLVER.IMS_PER_BATCH, accumulate, comm.get_rank(), comm.get_world_size())
    if comm.is_main_process():
        check_test_files(cfg)
    records = _records(cfg.DATASETS.TRAIN)
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        records = _without_empty(records)
    dataset = TrainingDataset(records, build_mapper(cfg, is_train=True), seed)
    loader = build_detection_train_loader(
        dataset,
        mapper=None,  # the dataset maps, since the position seeds the mapper
        sampler=sampler,
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH // accumulate,
        aspect_ratio_grouping=False,  # it would change the order, to save padding that crops do not need
        pin_memory=cfg.MODEL.DEVICE.startswith("cuda"),  # so that copies to the GPU overlap with computation
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
    return _sturdy(loader, cfg), sampler


def build_test_loader(cfg: CfgNode, dataset_name: str) -> DataLoader:
    """A loader of this process's share of a dataset, one image a batch, in order."""
    loader = build_detection_test_loader(
        _records((dataset_name,)), mapper=build_mapper(cfg, is_train=False), num_workers=cfg.DATALOADER.NUM_WORKERS
    )
    return _sturdy(loader, cfg)


def _sturdy(loader: DataLoader, cfg: CfgNode) -> DataLoader:
    loader.worker_init_fn = partial(_read_alike, loader.worker_init_fn, reading())
    return with_sturdy_workers(loader, cfg.DATALOADER.TIMEOUT)


def _read_alike(then: Callable[[int], None] | None, settings: Reading, worker_id: int) -> None:
    """Called in a worker, which may have been started without fork: it reads images as this process does."""
    configure_reading(settings)
    if then is not None:
        then(worker_id)
