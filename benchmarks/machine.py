"""The machine of a benchmark: its description and its peak performance."""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import torch
import torch.nn.functional as F

import omp_policy
from benchmarks.load import OtherLoad
from benchmarks.measure import ROOT
from fasegr.engine.process_settings import tune_allocator


def describe(device: str) -> dict:
    """Machine, date and versions, how threads wait, and what else is running: `load` is the system's mean of a minute,
    `others` the cores in use by other programs now."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists() and (model := re.search(r"model name\s*:\s*(.+)", info.read_text())):
        cpu = model[1].strip()
    found = {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": commit_name(ROOT),
        "cpu": cpu,
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "isa": torch.backends.cpu.get_cpu_capability(),
        "waiting": ", ".join(f"{name}={os.environ[name]}" for name in omp_policy.CHOICES if name in os.environ),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "others": others_now(),
    }
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(torch.device(device))
        found |= {
            "gpu": properties.name,
            "gpu_memory": properties.total_memory,
            "cuda": torch.version.cuda,
            "cudnn": _cudnn(),
        }
    return found


def _cudnn() -> int | None:
    with suppress(RuntimeError):  # it refuses GPUs that are too old for it
        return torch.backends.cudnn.version()


def others_now(seconds: float = 0.5) -> float | None:
    """Cores that other programs use."""
    load = OtherLoad()
    time.sleep(seconds)
    cores = load.cores()
    return None if cores is None else round(cores, 2)


def commit_name(folder: str | Path) -> str | None:
    """The commit of a checkout, with "+" if files were modified; None if `folder` is not a checkout."""
    try:
        name = _git(folder, "rev-parse", "--short=12", "HEAD")
        return name + ("+" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: str | Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def peaks(device: str, dtype: str, threads: int = 0) -> dict[str, float]:
    """Measured peaks of `device`: "flops" per second, of matrix products in `dtype`, and "bytes" per second.

    Flops are the better of a large matrix product and a large 1x1 convolution (two libraries on a CPU); bytes are those
    of adding two tensors, larger than every cache, into a third.
    """
    if threads:
        torch.set_num_threads(threads)
    tune_allocator()  # a convolution allocates its output
    torch_device, torch_dtype = torch.device(device), getattr(torch, dtype)
    with torch.no_grad():
        flops = max(_product_speeds(torch_device, torch_dtype))
        return {"flops": flops, "bytes": _triad_speed(torch_device)}


def _product_speeds(device: torch.device, dtype: torch.dtype) -> list[float]:
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    speeds = [2 * n**3 / _best(lambda: a @ b, device)]
    # tokens x 256 channels to 1024: a matrix product, computed by the convolution library
    rows, width, outputs = (2**16, 1024, 1024) if device.type == "cuda" else (4096, 256, 1024)
    x = torch.randn(1, 1, rows, width, device=device).to(dtype).permute(0, 3, 1, 2)
    w = torch.randn(outputs, width, 1, 1, device=device).to(dtype).to(memory_format=torch.channels_last)
    return [*speeds, 2 * rows * width * outputs / _best(lambda: F.conv2d(x, w), device)]


def _triad_speed(device: torch.device) -> float:
    n = 2**28 if device.type == "cuda" else 2**24  # 64 MiB of float32 on a CPU
    a, b, c = (torch.ones(n, device=device) for _ in range(3))
    return 3 * 4 * n / _best(lambda: torch.add(a, b, out=c), device)


def _best(run: Callable[[], object], device: torch.device, seconds: float = 1.0) -> float:
    """Seconds of the fastest calls: the median of the fastest three."""
    times = []
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(times) < 5:
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
        else:
            begin = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin)
    return statistics.median(sorted(times)[:3])
