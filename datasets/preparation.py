"""Makes label maps from published annotations, in parallel; what exists is kept.

`run` is the program of prepare_*.py.
"""

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
from fasegr.utils.files import replacing

__all__ = ["Job", "make_label_maps", "run"]

_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"  # the last chunk of every PNG that was written to its end
_PRINTED = 10  # problems; of the rest only the number is printed


class Job(NamedTuple):
    """A label map to make: from which file, of which image (None if it is missing), and where."""

    source: Path
    image: Path | None
    target: Path


class Outcome(NamedTuple):
    """How many label maps were made, how many existed, and one line for each that could not be made."""

    made: int
    kept: int
    problems: list[str]


def is_made(job: Job) -> bool:
    """Whether the label map exists: a complete PNG of the image's size, and no older than its source."""
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
    """Writes the label map that `convert` makes of the source: uint8 (H, W).

    Raises BadFile if it differs in size from the image, and whatever `convert` raises.
    """
    labels = convert(job.source)
    if job.image is not None:
        check_label_size(job.source, labels.shape, job.image, image_size(job.image))
    job.target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(job.target, "wb") as file:
        Image.fromarray(labels).save(file, format="PNG")


def _work(job: Job, convert: Callable[[Path], np.ndarray]) -> str | bool:
    """True if the label map was made, False if it existed, or what went wrong."""
    try:
        if is_made(job):
            return False
        make_label_map(job, convert)
        return True
    except (OSError, ValueError) as error:
        message = str(error)
        return message if str(job.source) in message else f"{job.source}: {message}"


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles them


def make_label_maps(
    jobs: Sequence[Job], convert: Callable[[Path], np.ndarray], workers: int, description: str
) -> Outcome:
    """Makes the label maps that do not exist yet, in `workers` processes; a file that fails does not stop the rest.

    convert: a function of a module, since it is sent to the processes. May be interrupted and called again.
    """
    work = partial(_work, convert=convert)
    made, kept, problems = 0, 0, []
    pool = ProcessPoolExecutor(workers, initializer=_ignore_interrupts) if workers > 1 else None
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


def _report(split: str, outcome: Outcome, expected: int) -> None:
    print(f"{split}: {outcome.made} label maps made, {outcome.kept} were there already")
    total = outcome.made + outcome.kept + len(outcome.problems)
    if total != expected:
        _warn(
            f"{split}: warning: there are {total} annotations, and {expected} in the published dataset; "
            "if this is not intended, unpack the archive again"
        )
    for problem in outcome.problems[:_PRINTED]:
        _warn(f"{split}: failed: {problem}")
    if len(outcome.problems) > _PRINTED:
        _warn(f"{split}: and {len(outcome.problems) - _PRINTED} more failed")


def _warn(message: str) -> None:
    print(message, file=sys.stderr)


def run(
    description: str,
    find_jobs: Callable[[], dict[str, list[Job]]],
    convert: Callable[[Path], np.ndarray],
    expected: dict[str, int],
    argv: list[str] | None = None,
) -> int:
    """The program of a script that prepares a dataset; returns its exit code: 0, 1 if a file failed, 2 if there was
    nothing to do.

    find_jobs: of each split, or FileNotFoundError. convert: of `make_label_maps`. expected: annotations of each split
    in the published dataset.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=cores, metavar="N", help=f"processes (here {cores} by default)")
    workers = parser.parse_args(argv).workers
    if workers < 1:
        parser.error(f"--workers is {workers}; it must be at least 1")
    try:
        jobs = find_jobs()
    except FileNotFoundError as error:
        _warn(f"error: {error}")
        return 2
    failed = False
    try:
        for split, found in jobs.items():
            outcome = make_label_maps(found, convert, workers, split)
            _report(split, outcome, expected[split])
            without = [job.source for job in found if job.image is None]
            if without:
                _warn(
                    f"{split}: warning: {len(without)} annotations have no image, the first {without[0]}; "
                    "their size was not compared"
                )
            failed |= bool(outcome.problems)
    except KeyboardInterrupt:
        sys.exit("interrupted; run the same command again to continue")
    return int(failed)
