"""Loaders that yield lists of samples, this rank's share of each batch."""

import copy
from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader, Dataset, Sampler

from . import comm


class _Mapped(Dataset):
    """`mapper` over copies of the records, which it may change."""

    def __init__(self, records: list, mapper: Callable[[Any], Any]):
        self.records, self.mapper = records, mapper

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Any:
        return self.mapper(copy.deepcopy(self.records[index]))


def _no_collation(batch: list) -> list:
    return batch


def build_detection_train_loader(
    dataset: Dataset,
    *,
    mapper: None,
    sampler: Sampler[int],
    total_batch_size: int,
    aspect_ratio_grouping: bool,
    num_workers: int = 0,
    **loader_options: Any,
) -> DataLoader:
    """Loader of training batches: lists of ``total_batch_size / world size`` samples.

    dataset: gives finished samples, so there is no `mapper`. sampler: yields this rank's indices for ever.
    aspect_ratio_grouping: False; detectron2's default is another, so both must be said.
    loader_options: others of torch's DataLoader (`pin_memory`, `persistent_workers`, `prefetch_factor`).
    """
    if mapper is not None or aspect_ratio_grouping:
        raise ValueError("the built-in loader takes mapper=None and aspect_ratio_grouping=False only")
    return DataLoader(
        dataset,
        batch_size=total_batch_size // comm.get_world_size(),
        sampler=sampler,
        drop_last=True,
        num_workers=num_workers,
        collate_fn=_no_collation,
        **loader_options,
    )


def build_detection_test_loader(dataset: list, *, mapper: Callable[[Any], Any], num_workers: int = 0) -> DataLoader:
    """Loader that yields every mapped record once over all ranks, one in a list.

    Ranks take contiguous parts, the first ones longer by one where the number of records does not divide.
    """
    rank = comm.get_rank()
    share, extra = divmod(len(dataset), comm.get_world_size())
    begin = rank * share + min(rank, extra)
    part = range(begin, begin + share + (rank < extra))
    return DataLoader(_Mapped(dataset, mapper), sampler=part, num_workers=num_workers, collate_fn=_no_collation)
