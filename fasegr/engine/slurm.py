"""What srun tells the processes that it starts."""

import os
import re
from typing import NamedTuple

__all__ = ["Task", "slurm_task"]


class Task(NamedTuple):
    """One of several processes that a launcher has started, and the address at which they meet."""

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    url: str


def slurm_task() -> Task | None:
    """This process among those of a job step; None if srun did not start it, or started it alone.

    The variables of a job alone do not count: a batch script, or the shell of `salloc`, has them too. MASTER_ADDR and
    MASTER_PORT take precedence over the first host and a port from the number of the job. Raises ValueError if nodes
    have different numbers of tasks, or a variable is not what SLURM writes.
    """
    env = os.environ
    in_step = "SLURM_STEP_ID" in env or env.get("SLURM_PROCID", "0") != "0"
    tasks = env.get("SLURM_STEP_NUM_TASKS", env.get("SLURM_NTASKS", "1") if in_step else "1")
    if "SLURM_PROCID" not in env or tasks == "1":
        return None
    nodes = env.get("SLURM_STEP_NODELIST", env.get("SLURM_JOB_NODELIST", ""))
    per_node = _per_node(env.get("SLURM_STEP_TASKS_PER_NODE", env.get("SLURM_TASKS_PER_NODE", tasks)))
    if len(set(per_node)) > 1:
        raise ValueError(
            f"srun started {', '.join(map(str, per_node))} tasks on its nodes; each node must have as many; "
            "--ntasks-per-node sees to it"
        )
    try:
        # Two jobs on a node, or two steps of a job, must not meet each other.
        port = 15000 + (int(env.get("SLURM_JOB_ID", "0")) + 1009 * int(env.get("SLURM_STEP_ID", "0"))) % 15000
        host = env.get("MASTER_ADDR") or (_first_host(nodes) if len(per_node) > 1 else "127.0.0.1")
        return Task(
            rank=int(env["SLURM_PROCID"]),
            world_size=int(tasks),
            local_rank=int(env["SLURM_LOCALID"]),
            local_size=per_node[0],
            url=f"tcp://{host}:{env.get('MASTER_PORT') or port}",
        )
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"the SLURM variables of this process are incomplete or not numbers ({error!r}); it was started by srun as "
            f"one of {tasks} tasks"
        ) from error


def _per_node(text: str) -> list[int]:
    """Tasks of each node: `text` is like 8(x2),4 for 8, 8 and 4."""
    numbers = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if found is None:
            raise ValueError(f"SLURM_STEP_TASKS_PER_NODE is {text!r}; expected tasks of each node, as 8(x2),4")
        numbers += [int(found[1])] * int(found[2] or 1)
    return numbers


def _first_host(nodes: str) -> str:
    """Of a list like node[007-010,012],login1: node007."""
    found = re.match(r"[^,\[]*(?:\[[^\]]*\][^,\[]*)*", nodes)[0]
    host = re.sub(r"\[(\w+)[^\]]*\]", r"\1", found)
    if not host:
        raise ValueError(f"SLURM_JOB_NODELIST is {nodes!r}; expected names of nodes; set MASTER_ADDR to the first one")
    return host
