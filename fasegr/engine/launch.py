"""How a command-line program starts (devices, processes, logs) and how it ends (messages, exit codes)."""

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.multiprocessing import ProcessExitedException

from fasegr.d2 import RUNTIME, comm, default_setup, setup_logger
from fasegr.d2 import launch as spawn
from fasegr.engine.interruption import Interrupted
from fasegr.engine.process_settings import be_deterministic, quiet_warnings, tune_process
from fasegr.engine.seed import draw_seed

__all__ = ["adapt_to_machine", "launch", "readable_errors", "warnings_for_the_log"]

logger = logging.getLogger(__name__)

# What a user can fix. Anything else is a bug, and ends with its traceback.
USER_ERRORS = (ValueError, KeyError, OSError, FloatingPointError, ImportError, torch.OutOfMemoryError)


def launch(main: Callable, args: argparse.Namespace, cfg, notes: Sequence[str] = ()) -> None:
    """Run ``main(args, cfg)``, with logs and a seed, in the processes that the command line or torchrun asks for.

    notes: warnings to log first (`warnings_for_the_log`).

    Under torchrun this process is already one of them. Otherwise --num-gpus of them are started on each machine, with
    NCCL on GPUs and gloo on a machine without. If there is only one process, it is this one.
    """
    under_torchrun = "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ
    notes = [*notes, *adapt_to_machine(cfg, args.num_gpus, under_torchrun)]
    if under_torchrun:
        _join_torchrun(cfg)
        _work(main, args, cfg, notes)
        return
    try:
        spawn(
            _work,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(main, args, cfg, notes),
        )
    except ProcessExitedException as error:  # it has printed why; a negative code is the signal that ended it
        sys.exit(error.exit_code if error.exit_code > 0 else 128 - error.exit_code)


@contextmanager
def warnings_for_the_log() -> Iterator[list[str]]:
    """Collect the package's warnings inside the block, before there is a log, in the list that is yielded."""
    notes: list[str] = []
    collector = logging.Handler(logging.WARNING)
    collector.emit = lambda record: notes.append(record.getMessage())
    package = logging.getLogger("fasegr")
    package.addHandler(collector)
    try:
        yield notes
    finally:
        package.removeHandler(collector)


def adapt_to_machine(cfg, num_gpus: int, under_torchrun: bool = False) -> list[str]:
    """Change `cfg` to what can run here; returns a sentence on each change.

    num_gpus: number asked for on this machine; 0 means the CPU. Raises ValueError if they are not available.
    """
    notes = []
    if num_gpus == 0:
        cfg.MODEL.DEVICE = "cpu"
    on_cpu = cfg.MODEL.DEVICE == "cpu"
    if not under_torchrun and torch.cuda.is_available() and num_gpus > 1:
        if on_cpu:
            raise ValueError(
                f"--num-gpus is {num_gpus}, but MODEL.DEVICE is cpu; for several processes on the CPU use "
                f"torchrun --nproc-per-node {num_gpus} train_net.py --num-gpus 0 ..."
            )
        if num_gpus > torch.cuda.device_count():
            raise ValueError(f"--num-gpus is {num_gpus}; this machine has {torch.cuda.device_count()}")
    if on_cpu and cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.DTYPE == "float16":
        cfg.SOLVER.AMP.DTYPE = "bfloat16"
        notes.append("SOLVER.AMP.DTYPE float16 is for GPUs; on the CPU it is bfloat16 (AMP.ENABLED False: float32)")
    return notes


def _join_torchrun(cfg) -> None:
    on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "gloo")  # rank, size and address are in the environment
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
    comm.synchronize()


def _work(main: Callable, args: argparse.Namespace, cfg, notes: list[str]) -> None:
    """What each process does."""
    with readable_errors(cfg.OUTPUT_DIR):
        tune_process(tuned_allocator=cfg.SPEED.TUNED_ALLOCATOR, threads=cfg.SPEED.THREADS)
        if cfg.SPEED.DETERMINISTIC:
            be_deterministic()
        quiet_warnings()
        _setup(args, cfg, notes)
        main(args, cfg)
        if dist.is_initialized():
            comm.synchronize()  # the main process may still be drawing pictures, and the others need its store
            dist.destroy_process_group()


def _setup(args: argparse.Namespace, cfg, notes: list[str]) -> None:
    """Log files, config.yaml, the seed, and a log line on where this runs. Freezes `cfg`."""
    if cfg.SEED < 0 and not args.eval_only:
        cfg.SEED = draw_seed()
        notes = [*notes, f"SEED was drawn: {cfg.SEED}"]
    cfg.freeze()
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="fasegr")
    logger.info("Runtime %s, device %s, %d process(es)", RUNTIME, cfg.MODEL.DEVICE, comm.get_world_size())
    for note in notes:
        logger.warning(note)


@contextmanager
def readable_errors(output_dir: str = "") -> Iterator[None]:
    """End the program with one message on standard error for what the user can fix.

    Exit code 2; 130 or 143 after Ctrl-C or SIGTERM. The traceback goes to the log in `output_dir`, if there is one, or,
    if the environment variable FASEGR_DEBUG is set, to the terminal.
    """
    try:
        yield
    except Interrupted as interrupted:
        sys.exit(interrupted.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except USER_ERRORS as error:
        if os.environ.get("FASEGR_DEBUG"):
            raise
        rank = comm.get_rank()
        log = os.path.join(output_dir, "log.txt" + (f".rank{rank}" if rank else ""))
        if output_dir and os.path.exists(log):
            with open(log, "a") as file:
                traceback.print_exc(file=file)
        who = f" in process {rank}" if rank else ""
        print(f"{os.path.basename(sys.argv[0])}: error{who}: {_message(error)}", file=sys.stderr, flush=True)
        sys.exit(2)


def _message(error: BaseException) -> str:
    """The message of `error`, without the traceback that data workers put before it and the quotes of a KeyError."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if text.startswith("Caught ") and "\nOriginal Traceback" in text:
        _, _, text = text.rpartition(f"{type(error).__name__}: ")
    if isinstance(error, torch.OutOfMemoryError):
        text = (
            "the GPU is out of memory. What helps: a larger SOLVER.ACCUMULATE (the batch in more parts), "
            f"SOLVER.AMP.ENABLED True, a smaller INPUT.CROP.SIZE. {text}"
        )
    text = text.strip()
    return text if " " in text else f"{type(error).__name__}: {text}"
