"""How a program starts: its command line, its processes, and what each process sets up."""

import argparse
import os
import platform
import random
import socket
import sys
from collections.abc import Callable
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tabulate import tabulate

from . import comm
from .config import CfgNode
from .logger import setup_logger


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """The command line of detectron2 and Mask2Former; `opts` takes ``KEY VALUE`` pairs that override the config."""
    parser = argparse.ArgumentParser(epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="", metavar="FILE", help="config to run")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in OUTPUT_DIR, if any")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS and stop")
    parser.add_argument("--num-gpus", type=int, default=1, help="GPUs, and thus processes, on each machine")
    parser.add_argument("--num-machines", type=int, default=1)
    parser.add_argument("--machine-rank", type=int, default=0, help="which of the machines this is, from 0")
    # The same port for a user every time, so that an orphan of an earlier run shows as a port in use.
    port = 2**15 + 2**14 + (os.getuid() if hasattr(os, "getuid") else 1) % 2**14
    parser.add_argument(
        "--dist-url", default=f"tcp://127.0.0.1:{port}", help="where processes meet; 'auto' on one machine"
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, default=None, help="KEY VALUE ... over the config")
    return parser


def launch(
    main_func: Callable,
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple = (),
) -> None:
    """Call ``main_func(*args)`` in `num_gpus_per_machine` new processes, over NCCL with GPUs and gloo without.

    A world of one process calls it right here. dist_url: ``tcp://host:port`` of machine 0, or ``auto`` for a free port.
    """
    world = num_machines * num_gpus_per_machine
    if world <= 1:
        main_func(*args)
        return
    if dist_url == "auto":
        if num_machines > 1:
            raise ValueError(
                "--dist-url auto finds a port on one machine; with several, give tcp://host-of-machine-0:port"
            )
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            dist_url = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    first_rank = machine_rank * num_gpus_per_machine
    worker_args = (main_func, world, num_gpus_per_machine, first_rank, dist_url, args)
    mp.start_processes(_work, nprocs=num_gpus_per_machine, args=worker_args)


def _work(
    local_rank: int, main_func: Callable, world: int, num_local: int, first_rank: int, dist_url: str, args: tuple
) -> None:
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(local_rank)
    dist.init_process_group(
        backend="nccl" if cuda else "gloo",
        init_method=dist_url,
        world_size=world,
        rank=first_rank + local_rank,
        timeout=timedelta(minutes=30),  # NCCL's own 10 are short for an evaluation on the main process
    )
    comm.create_local_process_group(num_local)
    comm.synchronize()  # a process that starts late must not run into a timeout of the first collective
    main_func(*args)


def default_setup(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Create OUTPUT_DIR, log the environment there, save ``config.yaml``, seed, and set torch's switches from `cfg`.

    The seed is SEED + rank, drawn where SEED is negative. Meant for programs: it changes process-wide settings.
    """
    rank = comm.get_rank()
    if comm.is_main_process() and cfg.OUTPUT_DIR:
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    setup_logger(cfg.OUTPUT_DIR or None, rank, name="fvcore")
    logger = setup_logger(cfg.OUTPUT_DIR or None, rank)
    logger.info("Rank %d of %d", rank, comm.get_world_size())
    logger.info("Environment:\n%s", _environment())
    logger.info("Command line: %s", args)
    if comm.is_main_process() and cfg.OUTPUT_DIR:
        path = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
        with open(path, "w") as file:
            file.write(cfg.dump())
        logger.info("All keys and values are in %s", path)

    seed = cfg.SEED + rank if cfg.SEED >= 0 else int.from_bytes(os.urandom(4), "little")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if not args.eval_only:  # sizes vary in evaluation, where timing kernels for each costs more
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    if cfg.FLOAT32_PRECISION and torch.cuda.is_available():
        torch.set_float32_matmul_precision(cfg.FLOAT32_PRECISION)
        torch.backends.cudnn.allow_tf32 = cfg.FLOAT32_PRECISION != "highest"


def _environment() -> str:
    """The machine and the versions, as a table for the log."""
    rows = [
        ("platform", platform.platform()),
        ("python", sys.version.split()[0]),
        ("torch", torch.__version__),
        ("numpy", np.__version__),
        ("threads", torch.get_num_threads()),
    ]
    rows += [(f"GPU {i}", torch.cuda.get_device_name(i)) for i in range(torch.cuda.device_count())]
    return tabulate(rows)
