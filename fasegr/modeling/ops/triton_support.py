"""Whether Triton kernels can be compiled and run for a GPU, checked before choosing one; and helpers for launches.

Neither this file nor those that wrap kernels import Triton before a launch, so everything else runs without it.
Kernels are in separate files, which are imported when one is launched.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

_MODULE = "#include <Python.h>\n#include <dlfcn.h>\n#include <stdio.h>\nint of_fasegr(void) { return 0; }\n"


@torch.compiler.assume_constant_result
def has_triton(index: int | None, dtype: torch.dtype) -> bool:
    """Whether kernels for `dtype` can be compiled for the NVIDIA GPU of that index (None: the current one).

    Where they cannot, the first question logs a warning that says why.
    """
    reason = why_not(index, dtype)
    if reason:
        _warn_once(reason)
    return not reason


def why_not(index: int | None, dtype: torch.dtype) -> str:
    """Why Triton cannot compile kernels for `dtype` on that GPU, and what to install; "" where it can.

    It compiles for compute capability 7.0 and above, bfloat16 from 8.0. At the first call it also compiles a launcher
    in C, against the running Python.
    """
    if not torch.cuda.is_available():
        return "there is no NVIDIA GPU"
    needed = (8, 0) if dtype == torch.bfloat16 else (7, 0)
    capability = _capability(index)
    if capability < needed:
        have, want = (".".join(map(str, numbers)) for numbers in (capability, needed))
        return f"kernels in {str(dtype).removeprefix('torch.')} need compute capability {want}; this GPU has {have}"
    return _toolchain_problem()


@functools.cache
def _capability(index: int | None) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


@functools.cache
def _toolchain_problem() -> str:
    """What Triton lacks to compile its launcher, as a C module for this Python; "" if nothing."""
    if torch.version.cuda is None:
        return "this torch is not built for NVIDIA GPUs"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (on Linux: pip install triton)"
    # As Triton looks for them: its runtime/build.py.
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    problem = "there is no C compiler" if compiler is None else _compilation_problem(compiler)
    if not problem:
        return ""
    major, minor = sys.version_info[:2]
    return (
        f"{problem}. Triton needs a C compiler and the headers of C and of this Python; on Debian and Ubuntu: "
        f"apt install gcc libc6-dev python{major}.{minor}-dev"
    )


def _compilation_problem(compiler: str) -> str:
    """What goes wrong when `compiler` compiles a module like Triton's launcher; "" if nothing."""
    scheme = sysconfig.get_default_scheme()
    # Debian's scheme of /usr/local, where no headers are
    include = sysconfig.get_paths("posix_prefix" if scheme == "posix_local" else scheme)["include"]
    try:
        with tempfile.TemporaryDirectory() as folder:
            source, module = Path(folder, "module.c"), Path(folder, "module.so")
            source.write_text(_MODULE)
            command = [compiler, source, "-shared", "-fPIC", "-o", module, f"-I{include}"]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:  # a compiler that is not there, no folder to write to
        return f"{compiler} cannot be run ({error})"
    if done.returncode == 0:
        return ""
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return f"{compiler} cannot compile a module: {next((line for line in lines if 'error' in line), lines[-1])}"


@functools.cache
def _warn_once(reason: str) -> None:
    logger.warning("Deformable attention takes its plain form, which is slower: %s", reason)


def launching_on(device: torch.device) -> AbstractContextManager:
    """Triton launches on the current GPU, which may not be that of the tensors. Its interpreter runs on the CPU."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def element_type(dtype: torch.dtype):
    """Triton's name of float32 or float64."""
    import triton.language as tl

    return {torch.float32: tl.float32, torch.float64: tl.float64}[dtype]
