"""Settings of the whole process. Programs apply them; importing fasegr changes nothing."""

import ctypes
import logging
import os
import platform
import warnings

import torch

__all__ = ["be_deterministic", "quiet_warnings", "tune_allocator", "tune_process"]

logger = logging.getLogger(__name__)

# From glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3


def tune_process(*, tuned_allocator: bool, threads: int) -> None:
    """SPEED.TUNED_ALLOCATOR and SPEED.THREADS: `tune_allocator`, and the threads of torch on the CPU, 0 for its own."""
    if tuned_allocator and not tune_allocator():
        logger.debug("SPEED.TUNED_ALLOCATOR changes nothing here: it is a setting of glibc")
    if threads:
        torch.set_num_threads(threads)


def tune_allocator() -> bool:
    """Let freed memory stay with the process, so that the next tensor of that size costs no page faults.

    By default glibc takes large blocks from the system and gives them back when they are freed, though a model needs
    the same feature maps in every step. Without the page faults of that, a step on the CPU takes about a tenth less
    time. Costs memory that the system could have had back. Returns whether this C library has the setting; elsewhere
    nothing is changed.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    largest = 1 << 30
    return bool(mallopt(M_MMAP_THRESHOLD, largest) and mallopt(M_TRIM_THRESHOLD, largest))


def be_deterministic() -> None:
    """Compute on a GPU in an order that does not change, so that equal runs give equal numbers, as on a CPU.

    To be called before the first matrix product. Where torch has no such form of an operation it says so in a warning,
    once, and goes on.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as torch's notes on reproducibility ask for
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    # The backward pass of these two forms of attention adds up in any order; torch is left those that do not.
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)


def quiet_warnings() -> None:
    """Silence what a user can do nothing about."""
    # fp16 skips updates while it looks for its scale, often the first one, and torch then suspects a wrong order.
    warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler.step\(\)` before")
    # Of a depthwise convolution's weight, whose strides can be told in two ways that mean the same.
    warnings.filterwarnings("ignore", message=r"Grad strides do not match bucket view strides")
