"""Making the label maps that are read out of the annotations that were published: in parallel, and not twice."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from fasegr.data.image_io import BadFile, check_label_size, image_size, label_size

__all__ = ["Job", "Outcome", "is_made", "make_label_map", "make_label_maps", "parse_workers", "report"]

_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"  # the last chunk of every PNG that was written to its end
_NAMED = 10  # how many problems are printed before the rest is counted


class Job(NamedTuple):
    """A label map to be made: from what file, of what photograph (None: it is not there to compare with), and where."""

    source: Path
    image: Path | None
    target: Path


class Outcome(NamedTuple):
    """How many label maps were made, how many were there already, and one line for each that could not be made."""

    made: int
    kept: int
    problems: list[str]


def is_made(job: Job) -> bool:
    """Whether the label map is there: a whole PNG of the photograph's size, and no older than its source."""
    try:
        state = job.target.stat()
        if state.st_mtime < job.source.stat().st_mtime or state.st_size < len(_PNG_END):
            return False
        with open(job.target, "rb") as file:
            file.seek(-len(_PNG_END), os.SEEK_END)
            if file.read() != _PNG_END:
                return False
        return job.image is None or label_size(job.target) == image_size(job.image)
    except (FileNotFoundError, BadFile):
        return False


def make_label_map(job: Job, convert: Callable[[Path], np.ndarray]) -> None:
    """Writes the label map that `convert` makes of the source: uint8 (H, W). It is there whole or not at all.

    Raises BadFile where it differs in size from the photograph, and whatever `convert` raises.
    """
    labels = convert(job.source)
    if job.image is not None:
        check_label_size(job.source, labels.shape, job.image, image_size(job.image))
    temporary = job.target.with_name(f".{job.target.name}.{os.getpid()}.tmp")
    try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels).save(temporary, format="PNG")
        os.replace(temporary, job.target)
    finally:
        temporary.unlink(missing_ok=True)


def _work(job: Job, convert: Callable[[Path], np.ndarray]) -> str | bool:
    """False where nothing had to be done, True where it was, or what went wrong."""
    try:
        if is_made(job):
            return False
        make_label_map(job, convert)
        return True
    except (OSError, ValueError) as error:
        message = str(error)
        return message if str(job.source) in message else f"{job.source}: {message}"


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def make_label_maps(
    jobs: Sequence[Job], convert: Callable[[Path], np.ndarray], workers: int, description: str
) -> Outcome:
    """Makes every label map that is not there yet, in `workers` processes; a file that fails does not stop the rest.

    convert: a function of a module, since it is sent to the processes. Called by one process at a time where workers
    is 1. May be interrupted at any moment and called again: what is there is kept.
    """
    work = partial(_work, convert=convert)
    made, kept, problems = 0, 0, []
    pool = ProcessPoolExecutor(workers, initializer=_leave_interrupts_to_the_parent) if workers > 1 else None
    try:
        results = pool.map(work, jobs, chunksize=8) if pool else map(work, jobs)
        for result in tqdm(results, total=len(jobs), desc=description, unit="image", mininterval=0.5):
            if isinstance(result, str):
                problems.append(result)
            else:
                made, kept = made + result, kept + (not result)
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)
    return Outcome(made, kept, problems)


def report(name: str, outcome: Outcome, expected: int | None) -> None:
    """Says what was done for the split `name`, and warns where it has another number of files than `expected`."""
    print(f"{name}: {outcome.made} label maps made, {outcome.kept} were there already")
    total = outcome.made + outcome.kept + len(outcome.problems)
    if expected is not None and total != expected:
        print(
            f"{name}: warning: there are {total} annotations, and {expected} in the published dataset; "
            "if that is not meant, unpack the archive again",
            file=sys.stderr,
        )
    for problem in outcome.problems[:_NAMED]:
        print(f"{name}: failed: {problem}", file=sys.stderr)
    if len(outcome.problems) > _NAMED:
        print(f"{name}: and {len(outcome.problems) - _NAMED} more failed", file=sys.stderr)


def parse_workers(description: str, argv: list[str] | None = None) -> int:
    """The one option of a program that prepares a dataset: how many processes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=cores, metavar="N", help=f"processes (here {cores} by default)")
    workers = parser.parse_args(argv).workers
    if workers < 1:
        parser.error(f"--workers is {workers}; it must be at least 1")
    return workers
