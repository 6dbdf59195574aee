"""Whether this torch and the NVIDIA GPU at hand fit together. Nothing here starts anything on the GPU."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import torch

__all__ = ["bfloat16_problem", "kernels_for", "no_gpu_reason", "unusable_gpu"]

OLD_GPUS = "requirements-v100.txt"  # torch for CUDA 12.6, the last with kernels for Volta
NEW_GPUS = "requirements-newest.txt"

_DRIVER = Path("/proc/driver/nvidia/version")


def kernels_for(capability: tuple[int, int], architectures: list[str]) -> bool:
    """Whether code for one of `architectures` (`torch.cuda.get_arch_list()`) runs on a GPU of compute capability X.Y.

    sm_XY is machine code: it runs on GPUs of the same X and of Y or more. compute_XY is PTX, which the driver compiles
    for any GPU of at least X.Y. A letter behind them is for features of one GPU (a) or of one X (f) and runs elsewhere
    in neither form. (CUDA C++ Programming Guide, "Application Compatibility".) True if no such name is in the list.
    """
    found = [re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name) for name in architectures]
    if not any(found):
        return True
    for kind, major, minor, letter in (match.groups() for match in found if match):
        built = (int(major), int(minor))
        if letter == "a":
            runs = capability == built
        elif kind == "sm" or letter == "f":
            runs = capability[0] == built[0] and capability[1] >= built[1]
        else:
            runs = capability >= built
        if runs:
            return True
    return False


def unusable_gpu(index: int | None = None) -> str:
    """Why this torch cannot compute on the GPU of that index (None: the current one), and what to install; or "".

    Without kernels for a GPU, the first operation on it fails: "no kernel image is available for execution on the
    device".
    """
    capability, architectures = _capability(index), torch.cuda.get_arch_list()
    if torch.version.hip or kernels_for(capability, architectures):
        return ""
    oldest = min(int(number) for name in architectures for number in re.findall(r"\d+", name))
    install = OLD_GPUS if capability < divmod(oldest, 10) else NEW_GPUS
    return (
        f"torch {torch.__version__} has no kernels for {torch.cuda.get_device_name(index)}, which has compute "
        f"capability {'.'.join(map(str, capability))}; it has them for {', '.join(architectures)}. Install "
        f"one that has: pip install --no-build-isolation -r {install}, or make install REQUIREMENTS={install}; "
        "MODEL.DEVICE cpu computes without the GPU"
    )


def bfloat16_problem(index: int | None = None) -> str:
    """What bfloat16 costs on the GPU of that index (None: the current one), if it lacks it, and the way out; or ""."""
    if torch.version.hip or _capability(index) >= (8, 0):
        return ""
    return (
        f"{torch.cuda.get_device_name(index)} has no bfloat16 (compute capability 8.0 and later have): it is emulated, "
        "which takes longer than float32 and only saves memory. float16 uses this GPU's tensor cores, whose peak is 8 "
        "times that of float32 on V100 and T4"
    )


def no_gpu_reason() -> str:
    """What to install where a machine has an NVIDIA driver that this torch cannot use; "" elsewhere.

    Call it where `torch.cuda.is_available()` is false.
    """
    if torch.version.cuda is None or not _DRIVER.is_file():
        return ""
    version = re.search(r"\b(\d+)\.\d+[.\d]*\b", _DRIVER.read_text(errors="replace"))
    if version is None or int(version[1]) >= 580 or int(torch.version.cuda.partition(".")[0]) < 13:
        return ""
    return (
        f"torch {torch.__version__} is built for CUDA {torch.version.cuda}, which needs an NVIDIA driver from 580 on; "
        f"this machine has {version[0]}. {OLD_GPUS} has a torch for older drivers"
    )


def _capability(index: int | None) -> tuple[int, int]:
    with warnings.catch_warnings():  # torch warns of a GPU without kernels too, at length and without a way out
        warnings.filterwarnings("ignore", message=r"(?s).*(cuda capability|not compatible with the current PyTorch)")
        return torch.cuda.get_device_capability(index)
