"""Ranks and exchange of objects between processes. All of it works, as a single process, where none were launched."""

import functools
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

_local_group: dist.ProcessGroup | None = None


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    return dist.get_world_size() if _distributed() else 1


def get_rank() -> int:
    return dist.get_rank() if _distributed() else 0


def is_main_process() -> bool:
    return get_rank() == 0


@functools.cache
def create_local_process_group(num_workers_per_machine: int) -> None:
    """Group the ranks of each machine. `launch` does; whoever starts processes otherwise calls it in all of them."""
    global _local_group
    world = get_world_size()
    if world % num_workers_per_machine:
        raise ValueError(
            f"{world} processes cannot be {num_workers_per_machine} on each machine; "
            "start the same number on every machine"
        )
    for first in range(0, world, num_workers_per_machine):
        ranks = list(range(first, first + num_workers_per_machine))
        group = dist.new_group(ranks)  # every rank takes part in making every group
        if get_rank() in ranks:
            _local_group = group


def get_local_process_group() -> dist.ProcessGroup:
    """The processes of this machine, for instance for a SyncBN within a machine."""
    if _local_group is None:
        raise RuntimeError(
            "there is no group of this machine's processes; call comm.create_local_process_group(number on a machine) "
            "in all processes after torch.distributed.init_process_group()"
        )
    return _local_group


def get_local_rank() -> int:
    return dist.get_rank(get_local_process_group()) if _distributed() else 0


def get_local_size() -> int:
    return dist.get_world_size(get_local_process_group()) if _distributed() else 1


def synchronize() -> None:
    """Wait for all processes."""
    if get_world_size() == 1:
        return
    if dist.get_backend() == dist.Backend.NCCL:
        dist.barrier(device_ids=[torch.cuda.current_device()])  # NCCL guesses a device, with a warning, unless told
    else:
        dist.barrier()


@functools.cache
def _object_group() -> dist.ProcessGroup:
    """All ranks over gloo: pickled objects need no GPU memory."""
    return dist.new_group(backend="gloo") if dist.get_backend() == dist.Backend.NCCL else dist.group.WORLD


def all_gather(data: Any, group: dist.ProcessGroup | None = None) -> list:
    """The picklable `data` of every rank, in every rank."""
    if get_world_size() == 1:
        return [data]
    group = group or _object_group()
    gathered = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, data, group=group)
    return gathered


def gather(data: Any, dst: int = 0, group: dist.ProcessGroup | None = None) -> list:
    """The picklable `data` of every rank in rank `dst`; an empty list in the others."""
    if get_world_size() == 1:
        return [data]
    group = group or _object_group()
    gathered = [None] * dist.get_world_size(group) if dist.get_rank(group) == dst else None
    dist.gather_object(data, gathered, dst=dst, group=group)
    return gathered or []


def shared_random_seed() -> int:
    """A random number that all ranks agree on; all of them must call this."""
    return all_gather(int(np.random.randint(2**31)))[0]
