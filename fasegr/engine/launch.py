"""How a command-line program starts (devices, processes, logs) and how it ends (messages, exit codes)."""

import argparse
import atexit
import gc
import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous
from torch.multiprocessing import ProcessExitedException

from fasegr.d2 import RUNTIME, comm, default_argument_parser, default_setup, setup_logger
from fasegr.d2 import launch as spawn
from fasegr.data.dataset_mappers import TRAINING_MAPPERS
from fasegr.engine.interruption import SIGNALS, Interrupted
from fasegr.engine.output_lock import locked
from fasegr.engine.process_settings import be_deterministic, quiet_warnings, tune_process
from fasegr.engine.seed import draw_seed
from fasegr.engine.slurm import Task, slurm_task
from fasegr.engine.watch import lost_process, watching
from fasegr.utils.gpu import bfloat16_problem

__all__ = ["adapt_to_machine", "launch", "readable_errors", "warnings_for_the_log"]

logger = logging.getLogger(__name__)

# What a user can fix. Anything else is a bug, and ends with its traceback.
USER_ERRORS = (ValueError, KeyError, OSError, FloatingPointError, ImportError, torch.OutOfMemoryError)
# torch's words for a data worker that was killed, and for a batch that did not fit into shared memory.
WORKER_FAILED = r"DataLoader worker \(pid.*|unable to \w+ .*(shm|torch_|shared memory).*|.*ancdata.*"
# NCCL's own 10 minutes are short for an evaluation on the main process.
TIMEOUT = timedelta(minutes=30)


def launch(main: Callable, args: argparse.Namespace, cfg, notes: Sequence[str] = ()) -> None:
    """Run ``main(args, cfg)``, with logs and a seed, in the processes that the command line, torchrun or srun asks for.

    notes: warnings to log first (`warnings_for_the_log`).

    Under torchrun and srun this process is already one of them. Otherwise --num-gpus of them are started on each
    machine, with NCCL on GPUs and gloo on a machine without. If there is only one process, it is this one.
    """
    task = _started_task(args)
    notes = [*notes, *adapt_to_machine(cfg, args.num_gpus, started=task is not None)]
    if task is not None:
        _join(task, cfg)
        _work(main, args, cfg, notes, _first_host(task.url, one=task.local_size == task.world_size))
        return
    url = args.dist_url
    if args.num_machines == 1 and url == default_argument_parser().get_default("dist_url"):
        url = "auto"  # the default is one port, which another training may have
    alone = args.num_machines * args.num_gpus <= 1
    with nullcontext() if alone else _signals_passed_on():
        try:
            spawn(
                _work,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=url,
                args=(main, args, cfg, notes, _first_host(url, one=args.num_machines == 1)),
            )
        except ProcessExitedException as error:
            if error.exit_code > 0:
                sys.exit(error.exit_code)  # it has printed why
            rank = args.machine_rank * args.num_gpus + error.error_index
            _print_error(f"process {rank} was killed by {_name(-error.exit_code)}. {_what_is_saved(cfg.OUTPUT_DIR)}")
            sys.exit(128 - error.exit_code)


def _started_task(args: argparse.Namespace) -> Task | None:
    """What torchrun or srun says of this process; None where it is the only one, or starts the others."""
    env = os.environ
    if "LOCAL_RANK" in env and "WORLD_SIZE" in env:
        numbers = (int(env[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
        return Task(*numbers, url="env://")
    task = None if args.num_machines > 1 else slurm_task()  # several: one task on each starts the others
    if task is not None and args.num_gpus not in (0, 1, task.local_size):
        raise ValueError(
            f"srun started {task.world_size} tasks, {task.local_size} on each node, and --num-gpus is {args.num_gpus}. "
            "Leave --num-gpus out with one task for each GPU; with one task for each node, add --num-machines, "
            "--machine-rank and --dist-url"
        )
    return task


@contextmanager
def _signals_passed_on() -> Iterator[None]:
    """A block in which signals to stop go to the child processes, which save a checkpoint; this one waits for them."""

    def pass_on(signum: int, frame) -> None:
        for child in multiprocessing.active_children():
            with suppress(ProcessLookupError):
                os.kill(child.pid, signum)

    in_main_thread = threading.current_thread() is threading.main_thread()
    ours = [s for s in SIGNALS if in_main_thread and signal.getsignal(s) is not signal.SIG_IGN]
    before = {signum: signal.signal(signum, pass_on) for signum in ours}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _name(signum: int) -> str:
    name = signal.Signals(signum).name if signum in iter(signal.Signals) else f"signal {signum}"
    return f"{name}, as the system does when memory has run out (dmesg shows it)" if name == "SIGKILL" else name


def _what_is_saved(output_dir: str) -> str:
    try:
        with open(os.path.join(output_dir, "last_checkpoint"), encoding="utf-8", errors="replace") as file:
            last = os.path.join(output_dir, file.read(1024).strip())
    except OSError:
        return f"There is no checkpoint in {output_dir}"
    return f"The last checkpoint is {last}; to continue, run the same command with --resume"


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


def adapt_to_machine(cfg, num_gpus: int, started: bool = False) -> list[str]:
    """Change `cfg` to what can run here; returns a sentence on each change.

    num_gpus: number asked for on this machine; 0 means the CPU. Raises ValueError if they are not available.
    started: the processes are there already, as torchrun starts them.
    """
    notes = []
    if num_gpus == 0:
        cfg.MODEL.DEVICE = "cpu"
    on_cpu = cfg.MODEL.DEVICE == "cpu"
    if not started and torch.cuda.is_available() and num_gpus > 1:
        if on_cpu:
            raise ValueError(
                f"--num-gpus is {num_gpus}, but MODEL.DEVICE is cpu; for several processes on the CPU use "
                f"torchrun --nproc-per-node {num_gpus} train_net.py --num-gpus 0 ..."
            )
        if num_gpus > torch.cuda.device_count():
            raise ValueError(f"--num-gpus is {num_gpus}; this machine has {torch.cuda.device_count()}")
    if cfg.MODEL.DEVICE == "mps" and (started or num_gpus > 1):
        raise ValueError(
            "MODEL.DEVICE mps is one GPU, for one process: leave out --num-gpus and start without torchrun"
        )
    # on Apple's GPUs, gradient scaling needs float64 in some versions of torch
    if cfg.MODEL.DEVICE in ("cpu", "mps") and cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.DTYPE == "float16":
        cfg.SOLVER.AMP.DTYPE = "bfloat16"
        where = "the CPU" if on_cpu else "mps"
        notes.append(
            f"SOLVER.AMP.DTYPE float16 is for NVIDIA GPUs; on {where} it is bfloat16 (AMP.ENABLED False: float32)"
        )
    if on_cpu and cfg.SPEED.DTYPE == "float16":
        cfg.SPEED.DTYPE = "bfloat16"
        notes.append("SPEED.DTYPE float16 is for GPUs; on the CPU it is bfloat16 (float32 is the default)")
    on_gpu, amp = cfg.MODEL.DEVICE.startswith("cuda"), cfg.SOLVER.AMP
    if on_gpu and amp.ENABLED and amp.DTYPE == "bfloat16":
        problem = bfloat16_problem(torch.device(cfg.MODEL.DEVICE).index)
        notes += [f"SOLVER.AMP.DTYPE is bfloat16, but {problem}"] if problem else []
    return notes


def _join(task: Task, cfg) -> None:
    on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
    if on_gpu:  # srun --gpus-per-task=1 shows a task only its own
        torch.cuda.set_device(0 if torch.cuda.device_count() == 1 else task.local_rank)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        **_meeting_place(task),
        rank=task.rank,
        world_size=task.world_size,
        timeout=TIMEOUT,
    )
    comm.create_local_process_group(task.local_size)
    comm.synchronize()


def _meeting_place(task: Task) -> dict:
    """Where the processes find one another: an argument of `init_process_group`."""
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT")
    if task.url != "env://" or restart is None or task.local_size < task.world_size:
        return {"init_method": task.url}
    # torchrun's store outlives a restart, with the addresses of processes that are gone. Each node counts its own
    # restarts, so the count tells them apart on a single node only.
    store, _, _ = next(rendezvous(task.url, task.rank, task.world_size, timeout=TIMEOUT))
    return {"store": dist.PrefixStore(f"restart {restart}", store)}


def _first_host(url: str, one: bool) -> str:
    """Where process 0 is. one: all are on one machine."""
    return "127.0.0.1" if one else urlsplit(url).hostname or os.environ.get("MASTER_ADDR", "127.0.0.1")


def _work(main: Callable, args: argparse.Namespace, cfg, notes: list[str], host: str) -> None:
    """What each process does. host: that of process 0."""
    together = False
    try:
        with watching(host):
            _run(main, args, cfg, notes)
        together = True
    except BaseException as error:
        cause = error.__context__ if isinstance(error, SystemExit) else error
        together = isinstance(cause, Interrupted) and cause.together
        if dist.is_initialized():
            _clear_frames(error)
        raise
    finally:
        _leave(together)


def _clear_frames(error: BaseException | None) -> None:
    """Let go of the model, and with it of the process group, which the traceback of `error` holds."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _leave(together: bool) -> None:
    """End what this process has started: data workers that are left, and its part in the process group.

    Otherwise a thread of gloo may drop tensors while Python finalizes, which aborts the process; and Python would wait
    for a worker that hangs. together: all processes come here, so they wait for one another, for the main one may
    still be drawing pictures, and the others need its store.
    """
    workers = [child for child in multiprocessing.active_children() if child.daemon]
    if workers and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises an error for each
    for worker in workers:
        worker.kill()
    if not dist.is_initialized():
        return
    if together:
        with suppress(RuntimeError):  # another one has died meanwhile
            comm.synchronize()
    if together or dist.get_backend() == "gloo":  # NCCL waits for the others, who may be gone
        dist.destroy_process_group()
    for function in vars(comm).values():  # groups within the group
        if hasattr(function, "cache_clear"):
            function.cache_clear()
    if hasattr(comm, "_LOCAL_PROCESS_GROUP"):
        comm._LOCAL_PROCESS_GROUP = None  # detectron2's
    gc.collect()


def _run(main: Callable, args: argparse.Namespace, cfg, notes: list[str]) -> None:
    alone = nullcontext() if args.eval_only else locked(cfg.OUTPUT_DIR)
    with readable_errors(), alone, readable_errors(cfg.OUTPUT_DIR):
        tune_process(tuned_allocator=cfg.SPEED.TUNED_ALLOCATOR, threads=cfg.SPEED.THREADS)
        if cfg.SPEED.DETERMINISTIC:
            be_deterministic()
        quiet_warnings()
        _setup(args, cfg, notes)
        main(args, cfg)


def _setup(args: argparse.Namespace, cfg, notes: list[str]) -> None:
    """Log files, config.yaml, the seed, and a log line on where this runs. Freezes `cfg`."""
    if cfg.SEED < 0 and not args.eval_only:
        cfg.SEED = draw_seed()
        notes = [*notes, f"SEED was drawn: {cfg.SEED}"]
    if not args.eval_only and not args.resume and (variable := _restarted_by()):
        args.resume = True
        notes = [*notes, f"This is a restart ({variable} is {os.environ[variable]}): resuming, as with --resume"]
    cfg.freeze()
    logging.Handler.handleError = _log_failed
    default_setup(cfg, args)
    if not _has_one_size(cfg) or cfg.SPEED.DETERMINISTIC:
        torch.backends.cudnn.benchmark = False  # which default_setup has set as CUDNN_BENCHMARK says
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="fasegr")
    logger.info("Runtime %s, device %s, %d process(es)", RUNTIME, cfg.MODEL.DEVICE, comm.get_world_size())
    for note in notes:
        logger.warning(note)


def _has_one_size(cfg) -> bool:
    """Whether all training samples have; cuDNN would time its algorithms for every other size."""
    jitter = TRAINING_MAPPERS[cfg.INPUT.DATASET_MAPPER_NAME][1]
    return jitter or (cfg.INPUT.CROP.ENABLED and cfg.INPUT.CROP.TYPE == "absolute")


_plain_handle_error = logging.Handler.handleError
_failed_logs: set[str] = set()


def _log_failed(handler: logging.Handler, record: logging.LogRecord) -> None:
    """Say once that a log cannot be written, as on a full disk; logging itself prints a traceback for every line."""
    error = sys.exc_info()[1]
    if not isinstance(error, OSError):
        _plain_handle_error(handler, record)
        return
    stream = getattr(handler, "stream", None)
    if hasattr(stream, "close"):
        atexit.unregister(stream.close)  # detectron2's way of closing a log, which prints a traceback, too
    name = getattr(handler, "baseFilename", None) or getattr(stream, "name", "")
    if name not in _failed_logs:  # detectron2 has a handler for each logger, and one file
        _failed_logs.add(name)
        with suppress(OSError):
            print(f"the log {name} cannot be written: {error}", file=sys.stderr)


def _restarted_by() -> str | None:
    """The environment variable by which torchrun or SLURM says that it started this program again after a failure."""
    counts = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    return next((name for name in counts if os.environ.get(name, "").strip("0").isdecimal()), None)


@contextmanager
def readable_errors(output_dir: str = "") -> Iterator[None]:
    """End the program with one message on standard error for what the user can fix.

    Exit code 2; 128 + the signal after Ctrl-C, SIGTERM or SIGHUP. The traceback goes to the log in `output_dir`, if
    there is one, or, if the environment variable FASEGR_DEBUG is set, to the terminal.
    """
    try:
        yield
    except Interrupted as interrupted:
        sys.exit(interrupted.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except (*USER_ERRORS, RuntimeError) as error:
        message = _message(error)
        if message is None or os.environ.get("FASEGR_DEBUG"):
            raise
        rank = comm.get_rank()
        log = os.path.join(output_dir, "log.txt" + (f".rank{rank}" if rank else ""))
        if output_dir and os.path.exists(log):
            with suppress(OSError), open(log, "a") as file:
                traceback.print_exc(file=file)
        who = f" in process {rank}" if rank else ""
        _print_error(message, who)
        sys.exit(2)


def _print_error(message: str, who: str = "") -> None:
    with suppress(OSError):  # the terminal may be gone
        print(f"{os.path.basename(sys.argv[0])}: error{who}: {message}", file=sys.stderr, flush=True)


def _message(error: BaseException) -> str | None:
    """The message of `error`, without the traceback that data workers put before it and the quotes of a KeyError.

    None if it is nothing that a user can fix.
    """
    if not isinstance(error, USER_ERRORS):
        return _explanation(error)
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if text.startswith("Caught ") and "\nOriginal Traceback" in text:
        _, _, text = text.rpartition(f"{type(error).__name__}: ")
    if isinstance(error, torch.OutOfMemoryError):
        text = (
            "the GPU is out of memory. What helps: a larger SOLVER.ACCUMULATE (the batch in more parts), "
            f"SOLVER.AMP.ENABLED True, a smaller INPUT.CROP.SIZE. {text}"
        )
    if "Expected more than 1 value per channel" in text:
        text = (
            "batch norm cannot be trained on one value a channel: the coarsest map, 1/32 of the sample, is 1 x 1, and "
            "there is one image a process and step. Larger samples (INPUT.CROP.SIZE, INPUT.MIN_SIZE_TRAIN, "
            "INPUT.SIZE_DIVISIBILITY above 32), more images (SOLVER.IMS_PER_BATCH, a lower SOLVER.ACCUMULATE), or "
            f"MODEL.RESNETS.NORM GN or FrozenBN help. {text}"
        )
    text = text.strip()
    return text if " " in text else f"{type(error).__name__}: {text}"


def _explanation(error: BaseException | None) -> str | None:
    """What a user can do about a RuntimeError of torch: data workers that died, processes that are gone."""
    chain = []
    while error is not None:
        chain.append(error)
        error = error.__cause__
    for error in reversed(chain):  # the first of them says most
        text = str(error).strip()
        if not isinstance(error, RuntimeError):
            continue
        if found := re.search(WORKER_FAILED, text):
            return (
                f"a process that prepares data failed: {found[0].rstrip('. ')}. Often memory has run out (dmesg shows "
                "it), or shared memory (in Docker, --shm-size 8g gives more): a lower DATALOADER.NUM_WORKERS needs less"
            )
        if "EADDRINUSE" in text:
            return f"{text.splitlines()[0]}. Another program has the port; --dist-url or MASTER_PORT sets another one"
        if isinstance(error, dist.DistError) or "gloo/" in text or "timeout caused" in text:
            lost = lost_process(seconds=1)
            if lost is None:
                return (
                    f"the connection to another process is lost; it has probably ended, and said why, or hangs: {text}"
                )
            return f"process {lost} has ended, and said why or was killed; the others cannot go on without it: {text}"
    return None
