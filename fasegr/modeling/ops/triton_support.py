"""Whether Triton kernels can be compiled and run for a GPU, checked before choosing one; and helpers for launches.

Neither this file nor those that wrap kernels import Triton before a launch, so everything else runs without it.
Kernels are in separate files, which are imported when one is launched.
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

    Triton compiles for compute capability 7.0 and above; bfloat16 and TF32 came with 8.0. It also compiles a
    launcher in C at the first call, against the running Python.
    """
    needed = (8, 0) if dtype == torch.bfloat16 else (7, 0)
    return _toolchain() and torch.cuda.get_device_capability(index) >= needed


@functools.cache
def _toolchain() -> bool:
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return torch.version.cuda is not None and importlib.util.find_spec("triton") is not None and bool(compiler)


def launching_on(device: torch.device) -> AbstractContextManager:
    """Triton launches on the current GPU, which may not be that of the tensors. Its interpreter runs on the CPU."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def element_type(dtype: torch.dtype):
    """Triton's name of float32 or float64."""
    import triton.language as tl

    return {torch.float32: tl.float32, torch.float64: tl.float64}[dtype]
