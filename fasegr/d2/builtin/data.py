"""Loaders that yield lists of samples, this rank's share of each batch."""

import copy
import itertools
import logging
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from . import comm

logger = logging.getLogger(__name__)


class _Mapped(Dataset):
    """`mapper` over the records of a list or map-style dataset; of a list it is given copies, which it may change."""

    def __init__(self, records: list | Dataset, mapper: Callable[[Any], Any] | None):
        self.records, self.mapper = records, mapper

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Any:
        record = self.records[index]
        if isinstance(self.records, list):
            record = copy.deepcopy(record)
        return record if self.mapper is None else self.mapper(record)


class _TrainingSampler(Sampler[int]):
    """Endless shuffled indices; each rank takes every world-size-th of one stream that the shared seed fixes."""

    def __init__(self, size: int):
        self.size = size
        self.seed = comm.shared_random_seed()
        self.rank, self.world = comm.get_rank(), comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        yield from itertools.islice(self._stream(), self.rank, None, self.world)

    def _stream(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            yield from torch.randperm(self.size, generator=generator).tolist()


class _InferenceSampler(Sampler[int]):
    """Each index once over all ranks: contiguous shards, the first ones longer by one where it does not divide."""

    def __init__(self, size: int):
        rank, world = comm.get_rank(), comm.get_world_size()
        share, extra = divmod(size, world)
        begin = rank * share + min(rank, extra)
        self.indices = range(begin, begin + share + (rank < extra))

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


def _collate_nothing(batch: list) -> list:
    return batch


def _seed_worker(worker_id: int) -> None:
    """Seed Python's and numpy's generators; torch has already seeded its own, differently in each worker."""
    seed = (torch.initial_seed() + worker_id) % 2**31
    random.seed(seed)
    np.random.seed(seed)


def build_detection_train_loader(
    dataset: list | Dataset,
    *,
    mapper: Callable[[Any], Any] | None,
    sampler: Sampler[int] | None = None,
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
    **loader_options: Any,
) -> DataLoader:
    """Loader of training batches: lists of ``total_batch_size / world size`` samples.

    dataset: list of records, or a map-style dataset. sampler: yields this rank's indices for ever; default: shuffles.
    aspect_ratio_grouping: detectron2 groups portrait and landscape images by default; here False must be said, since a
    stream that is regrouped is no longer a function of the seed and the position alone.
    loader_options: others of torch's DataLoader (`pin_memory`, `persistent_workers`, `prefetch_factor`).
    """
    if aspect_ratio_grouping:
        raise ValueError("the built-in loader does not group by aspect ratio; pass aspect_ratio_grouping=False")
    world = comm.get_world_size()
    if total_batch_size <= 0 or total_batch_size % world:
        raise ValueError(
            f"total_batch_size is {total_batch_size}; it must be a positive multiple of the {world} processes"
        )
    dataset = _Mapped(dataset, mapper)
    sampler = _TrainingSampler(len(dataset)) if sampler is None else sampler
    if not isinstance(sampler, Sampler):
        raise TypeError(f"sampler is a {type(sampler).__name__}; it must be a torch.utils.data.Sampler")
    logger.info("%d images a batch in each of %d processes", total_batch_size // world, world)
    return DataLoader(
        dataset,
        batch_size=total_batch_size // world,
        sampler=sampler,
        drop_last=True,
        num_workers=num_workers,
        collate_fn=collate_fn or _collate_nothing,
        worker_init_fn=_seed_worker,
        **loader_options,
    )


def build_detection_test_loader(
    dataset: list | Dataset,
    *,
    mapper: Callable[[Any], Any] | None,
    sampler: Sampler[int] | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
) -> DataLoader:
    """Loader that yields every sample once over all ranks, in lists of `batch_size` (the last may be shorter)."""
    dataset = _Mapped(dataset, mapper)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=_InferenceSampler(len(dataset)) if sampler is None else sampler,
        num_workers=num_workers,
        collate_fn=collate_fn or _collate_nothing,
    )
