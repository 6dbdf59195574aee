"""Settings of the whole process. Programs apply them; importing fasegr changes nothing."""

import ctypes
import logging
import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["be_deterministic", "quiet_warnings", "sizes_that_vary", "tune_allocator", "tune_process"]

logger = logging.getLogger(__name__)

# From glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3


def tune_process(*, tuned_allocator: bool, threads: int) -> None:
    """Apply SPEED.TUNED_ALLOCATOR (`tune_allocator`) and SPEED.THREADS (torch's threads on the CPU; 0: its default)."""
    if tuned_allocator and not tune_allocator():
        logger.debug("SPEED.TUNED_ALLOCATOR has no effect: only glibc has this setting")
    if threads:
        torch.set_num_threads(threads)


def tune_allocator() -> bool:
    """Keep freed memory in the process, so that the next tensor of that size costs no page faults.

    By default glibc takes large blocks from the system and returns them when they are freed, though a model needs the
    same feature maps in every step. Without the page faults that this causes, a step on the CPU takes about 10 % less
    time. The price is memory that the system does not get back. Returns whether this C library has the setting; others
    are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    largest = 1 << 30
    return bool(mallopt(M_MMAP_THRESHOLD, largest) and mallopt(M_TRIM_THRESHOLD, largest))


@contextmanager
def sizes_that_vary() -> Iterator[None]:
    """A block in which cuDNN does not time its algorithms for each size, as CUDNN_BENCHMARK asks for in training."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def be_deterministic() -> None:
    """Make equal runs on a GPU give equal numbers, as on a CPU.

    Call this before the first matrix product. Where torch has no deterministic form of an operation, it warns once and
    uses the other.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as torch's notes on reproducibility ask for
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    # The backward pass of these two kinds of attention is not deterministic; that of torch's others is.
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)


def quiet_warnings() -> None:
    """Silence what a user can do nothing about."""
    # fp16 skips updates while it looks for its scale, often the first one, and torch then suspects a wrong order.
    warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler.step\(\)` before")
    # A depthwise convolution's weight has two sets of strides that mean the same layout.
    warnings.filterwarnings("ignore", message=r"Grad strides do not match bucket view strides")
