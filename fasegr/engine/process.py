"""Settings of the whole process. Programs apply them; importing fasegr changes nothing."""

import ctypes
import platform
import warnings

__all__ = ["quiet_warnings", "tune_allocator"]

# From glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3


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


def quiet_warnings() -> None:
    """Silence what a user can do nothing about."""
    # fp16 skips updates while it looks for its scale, often the first one, and torch then suspects a wrong order.
    warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler.step\(\)` before")
    # Of a depthwise convolution's weight, whose strides can be told in two ways that mean the same.
    warnings.filterwarnings("ignore", message=r"Grad strides do not match bucket view strides")
