"""How much memory is in use: tensors on a GPU, the process on a CPU."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch

__all__ = ["current_memory", "peak_memory", "reset_peak_memory"]

_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # Linux


def current_memory(device: torch.device) -> int:
    """Bytes in use now. On a CPU other than Linux's, the peak so far."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _process_memory("VmRSS")


def peak_memory(device: torch.device) -> int:
    """Most bytes in use at once since `reset_peak_memory`, or since the program began."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _process_memory("VmHWM")


def reset_peak_memory(device: torch.device) -> bool:
    """Let `peak_memory` begin at what is in use now. Returns whether that is possible: on a CPU only Linux can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR_REFS.exists():
        _CLEAR_REFS.write_text("5")  # "reset the peak resident set size", proc(5)
    else:
        return False
    return True


def _process_memory(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes; 0 where the system does not tell (Windows)."""
    if _STATUS.exists():
        found = re.search(rf"{field}:\s+(\d+) kB", _STATUS.read_text())
        return 1024 * int(found[1]) if found else 0
    try:
        import resource
    except ImportError:
        return 0
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else 1024 * used  # macOS counts in bytes
