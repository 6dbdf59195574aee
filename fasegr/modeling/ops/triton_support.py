"""Whether Triton kernels can be compiled and run for a GPU, asked before one is chosen, so that nothing is tried; and
what their launches share.

This file imports no Triton before a launch, and neither do the files that wrap kernels: all else runs without it.
Kernels lie in files of their own, which are imported when one is launched.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from contextlib import AbstractContextManager, nullcontext

import torch


@torch.compiler.assume_constant_result
def has_triton(index: int | None, dtype: torch.dtype) -> bool:
    """Whether kernels for `dtype` can be compiled for the NVIDIA GPU of that index (None: the current one).

    Triton compiles for compute capability 7.0 and above; bfloat16 and TF32 came with 8.0. It also builds a launcher
    in C for the Python that runs it, at the first call.
    """
    needed = (8, 0) if dtype == torch.bfloat16 else (7, 0)
    return _toolchain() and torch.cuda.get_device_capability(index) >= needed


@functools.cache
def _toolchain() -> bool:
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return torch.version.cuda is not None and importlib.util.find_spec("triton") is not None and bool(compiler)


def launching_on(device: torch.device) -> AbstractContextManager:
    """Triton launches on the current GPU, which need not be the one of the tensors. Its interpreter takes the CPU's."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def element_type(dtype: torch.dtype):
    """Triton's name of float32 or float64."""
    import triton.language as tl

    return {torch.float32: tl.float32, torch.float64: tl.float64}[dtype]
