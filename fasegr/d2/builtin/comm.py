"""Ranks and exchange of objects between processes. All of it also works in a single process."""

import functools
from typing import Any

import torch
import torch.distributed as dist

_processes_per_machine: int | None = None


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    return dist.get_world_size() if _distributed() else 1


def get_rank() -> int:
    return dist.get_rank() if _distributed() else 0


def is_main_process() -> bool:
    return get_rank() == 0


def create_local_process_group(num_workers_per_machine: int) -> None:
    """Note how many ranks each machine has. `launch` calls this; other ways to start processes must call it in each.

    Ranks of a machine are consecutive, so this is all that `get_local_rank` needs: no group is created here.
    """
    global _processes_per_machine
    _processes_per_machine = num_workers_per_machine


def get_local_rank() -> int:
    """The rank among the processes of this machine."""
    if not _distributed():
        return 0
    if _processes_per_machine is None:
        raise RuntimeError(
            "the number of processes on this machine is unknown; call comm.create_local_process_group(number) in all "
            "processes after torch.distributed.init_process_group()"
        )
    return get_rank() % _processes_per_machine


def synchronize() -> None:
    """Wait for all processes."""
    if get_world_size() == 1:
        return
    if dist.get_backend() == dist.Backend.NCCL:
        dist.barrier(device_ids=[torch.cuda.current_device()])  # without this, NCCL guesses a device and warns
    else:
        dist.barrier()


@functools.cache
def _object_group() -> dist.ProcessGroup:
    """All ranks over gloo: pickled objects need no GPU memory."""
    return dist.new_group(backend="gloo") if dist.get_backend() == dist.Backend.NCCL else dist.group.WORLD


def all_gather(data: Any) -> list:
    """The picklable `data` of every rank, in every rank."""
    if get_world_size() == 1:
        return [data]
    gathered = [None] * get_world_size()
    dist.all_gather_object(gathered, data, group=_object_group())
    return gathered


def gather(data: Any) -> list:
    """The picklable `data` of every rank in rank 0; an empty list in the others."""
    if get_world_size() == 1:
        return [data]
    gathered = [None] * get_world_size() if is_main_process() else None
    dist.gather_object(data, gathered, group=_object_group())
    return gathered or []
