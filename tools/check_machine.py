#!/usr/bin/env python3
"""Try everything that depends on the machine, in about a minute: run this first on a new one.

python tools/check_machine.py
python tools/check_machine.py --device cpu

Devices, versions and memory; whether Triton can compile; every faster form beside its plain form; a training on one
device, its resume, and half precision; the same training on all devices; which batch of which recipe fits. It ends with
a verdict a line, and the exit code 0, or 1 if something failed.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

import omp_policy  # noqa: F401 (before torch)

# isort: split

import torch
from tabulate import tabulate
from tqdm import tqdm

from fasegr import build_model, load_cfg
from fasegr.analysis.faster_forms import DTYPES, compare_form
from fasegr.analysis.memory import count_training_memory
from fasegr.config.packaged import packaged_configs
from fasegr.d2 import RUNTIME
from fasegr.engine.launch import readable_errors
from fasegr.modeling.ops.switches import FASTER_FORMS
from fasegr.modeling.ops.triton_support import why_not
from fasegr.utils.gpu import no_gpu_reason, unusable_gpu
from tools.machine_training import ITERATIONS, paint, train

OK, FAILED, NOT_HERE = "ok", "failed", "not possible here"

RECIPES = (
    "ade20k/semantic-segmentation/faseg_r50.yaml",
    "ade20k/semantic-segmentation/swin/faseg_swin_tiny.yaml",
    "ade20k/semantic-segmentation/swin/faseg_swin_large_IN21k_res640.yaml",
    "cityscapes/semantic-segmentation/faseg_r50.yaml",
    "coco/panoptic-segmentation/faseg_r50.yaml",
)
# What is not counted: workspaces, gradients of activations, what the losses keep, gaps between blocks.
USABLE = 0.75
SAME_LOSS = 1e-3  # relative; sums in another order, four steps long
HALF_LOSS = 0.05
SECONDS = 300  # after which a training counts as hanging


class Verdict(NamedTuple):
    """status: OK, FAILED or NOT_HERE. note: figures, or what to set or install."""

    what: str
    status: str
    note: str = ""


def chosen_device(name: str | None) -> torch.device:
    """--device, or the best there is. Raises ValueError for one that is not there."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"--device is {name}; choose cpu, cuda, one GPU as cuda:1, or mps")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        device = torch.device("cuda", device.index or 0)
        if device.index >= count:
            raise ValueError(f"--device is {name}; torch sees {count} NVIDIA GPUs here (nvidia-smi lists them)")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("--device is mps; torch sees no Apple GPU here")
    return device


def describe(device: torch.device) -> list[Verdict]:
    """Prints devices and versions. Whether torch can use each GPU."""
    rows = [
        ("system", platform.platform()),
        ("Python, torch, runtime", f"{platform.python_version()}, {torch.__version__}, {RUNTIME}"),
        ("CPU", f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, {total_memory('cpu'):.1f} GiB"),
    ]
    verdicts = []
    if device.type == "cuda":
        kernels = " ".join(torch.cuda.get_arch_list())
        rows.append(("CUDA, kernels", f"{torch.version.cuda}, {kernels}"))
        for i in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(i)
            capability = f"{gpu.major}.{gpu.minor}"
            rows.append(
                (f"GPU {i}", f"{gpu.name}, {gpu.total_memory / 2**30:.1f} GiB, compute capability {capability}")
            )
            problem = unusable_gpu(i)
            verdicts.append(Verdict(f"kernels of torch for GPU {i}", FAILED if problem else OK, problem))
    elif reason := no_gpu_reason():
        verdicts.append(Verdict("the driver of the GPU", FAILED, reason))
    print(tabulate(rows, tablefmt="plain"), flush=True)
    return verdicts


def total_memory(device: torch.device | str) -> float:
    """GiB of the GPU, or of this machine and its control group."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 2**30
    if not hasattr(os, "sysconf"):
        return math.nan
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        memory = min(memory, int(text))
    return memory / 2**30


def check_triton(device: torch.device) -> Verdict:
    """Whether Triton can compile a kernel for the GPU."""
    if device.type != "cuda":
        return Verdict("Triton", NOT_HERE, "it is for NVIDIA GPUs")
    reason = why_not(device.index, torch.float32)
    return Verdict("Triton", NOT_HERE if reason else OK, reason)


def check_forms(device: torch.device) -> list[Verdict]:
    """Prints the deviation of every faster form, forward and gradients."""
    rows, verdicts = [], []
    for name in tqdm(FASTER_FORMS, desc="faster forms", leave=False):
        wrong, used = [], False
        for dtype in DTYPES:
            kind = str(dtype).removeprefix("torch.")
            try:
                unused, found = compare_form(name, device, dtype)
            except Exception as error:  # whatever a compiler or a driver may say
                unused, found = "", []
                wrong.append(f"{kind}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
            used = used or not unused
            wrong += [f"{kind}: {d.what} is off by {d.found:.1g}, not {d.limit:.1g}" for d in found if d.too_large]
            forward = f"{found[0].found:.1e}" if found else "-"
            gradients = f"{max(d.found for d in found[1:]):.1e}" if found[1:] else "-"
            rows.append((name, kind, forward, gradients, unused or "used"))
        if wrong:
            verdicts.append(Verdict(name, FAILED, f"{'; '.join(wrong)}. Set FASEGR_PLAIN={name}"))
        else:
            verdicts.append(Verdict(name, OK if used else NOT_HERE, "" if used else rows[-1][-1]))
    print("\nFaster forms beside their plain forms in float64: the greatest difference, relative to the greatest value")
    print(tabulate(rows, ("form", "type", "result", "gradients", ""), disable_numparse=True), flush=True)
    return verdicts


def check_training(device: torch.device, folder: Path) -> list[Verdict]:
    """A training on `device`, its resume, half precision, and the same on all devices."""
    on_gpu = device.type == "cuda"
    count = torch.cuda.device_count() if on_gpu else 1 if device.type == "mps" else 2
    batch = max(4, 2 * count)
    half = ["float16"] if on_gpu else ["bfloat16"]
    if on_gpu and torch.cuda.get_device_capability(device) >= (8, 0):
        half.append("bfloat16")
    runs = ["whole", "resumed", *half]
    where = "the GPU" if device.type != "cpu" else "one process"
    print(
        f"\nTraining {ITERATIONS} steps on {where}, again from a checkpoint, and in {' and '.join(half)} ...",
        flush=True,
    )
    paint(folder)
    failure = run_training(folder, device, 1, runs, batch)
    losses = {run: read_losses(folder, run) for run in runs}
    verdicts = [Verdict("training", *compared(losses["whole"], None, failure, 0))]
    if losses["whole"]:
        verdicts.append(
            Verdict("resume", *compared(losses["resumed"], losses["whole"][ITERATIONS // 2 :], failure, SAME_LOSS))
        )
        for name in half:
            verdicts.append(
                Verdict(f"training in {name}", *compared(losses[name], losses["whole"], failure, HALF_LOSS))
            )

    what = f"training on {count} GPUs (NCCL)" if on_gpu else "training in 2 processes (gloo)"
    if count == 1:
        return [*verdicts, Verdict("training on several GPUs", NOT_HERE, "there is one GPU")]
    if not losses["whole"]:
        return [*verdicts, Verdict(what, NOT_HERE, "see the training on one")]
    print(f"The same: {what} ...", flush=True)
    failure = run_training(folder, device, count, ["several"], batch)
    status, note = compared(read_losses(folder, "several"), losses["whole"], failure, SAME_LOSS)
    if status == FAILED and on_gpu:
        note += ". NCCL_DEBUG=INFO says more; NCCL_P2P_DISABLE=1 is often the cure"
    return [*verdicts, Verdict(what, status, note)]


def run_training(folder: Path, device: torch.device, processes: int, runs: Sequence[str], batch: int) -> str:
    """Do `runs` in processes of their own; returns why that failed, "" if not."""
    log = folder / f"{runs[0]}.log"
    child = multiprocessing.get_context("spawn").Process(
        target=train, args=(folder, str(device), processes, runs, batch, log)
    )
    with without_gpus() if device.type == "cpu" else no_change():
        child.start()
    child.join(SECONDS)
    if child.exitcode is None:
        child.terminate()
        child.join(20)
        if child.exitcode is None:
            child.kill()
        return f"it did not end within {SECONDS} s"
    if child.exitcode == 0:
        return ""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    lines = [line for line in lines if line.strip()]
    said = [line for line in lines if "rror" in line]
    print("\n".join(lines[-12:]), flush=True)
    return (said or lines or [f"exit code {child.exitcode}"])[-1].strip()


@contextmanager
def without_gpus() -> Iterator[None]:
    """Processes that are started inside see no NVIDIA GPU."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        yield
    finally:
        if before is None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


@contextmanager
def no_change() -> Iterator[None]:
    yield


def read_losses(folder: Path, run: str) -> list[float]:
    path = folder / f"{run}.json"
    return json.loads(path.read_text()) if path.exists() else []


def compared(losses: list[float], expected: list[float] | None, failure: str, limit: float) -> tuple[str, str]:
    """Status and note of a training's losses. expected: others to be equal to, up to a relative `limit`."""
    if not losses:
        return FAILED, failure or "it wrote no losses"
    if not all(map(math.isfinite, losses)):
        return FAILED, f"the losses are {losses}"
    if expected is None:
        return OK, "losses " + ", ".join(f"{loss:.3f}" for loss in losses)
    if len(losses) != len(expected):
        return FAILED, f"{len(losses)} losses, {len(expected)} expected"
    off = max(abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True))
    note = f"losses differ by {off:.1e}, at most {limit:g} expected"
    return (OK, note) if off <= limit else (FAILED, note)


def check_memory(device: torch.device, recipes: Sequence[str] = RECIPES) -> Verdict:
    """Prints which batch of `recipes` fits the memory of `device`."""
    memory = total_memory(device)
    rows, fitting = [], 0
    for recipe in tqdm(recipes, desc="memory of recipes", leave=False):
        cfg = load_cfg(
            packaged_configs() / recipe, ["MODEL.DEVICE", "cpu", "MODEL.MASK_FORMER.TEST.PANOPTIC_ON", False]
        )
        per_image, fixed, size = training_memory(cfg)
        batch = cfg.SOLVER.IMS_PER_BATCH
        fits = max(0, int((USABLE * memory * 2**30 - fixed) / per_image))
        fitting += fits > 0
        rows.append((recipe, f"{size[0]} x {size[1]}", per_image / 2**30, fixed / 2**30, fits, advice(batch, fits)))
    print(f"\nTraining in {memory:.1f} GiB, of which {USABLE:.0%} are for what is counted")
    header = ("recipe", "crop", "GiB an image", "GiB fixed", "images", "SOLVER.IMS_PER_BATCH of the recipe")
    print(tabulate(rows, header, floatfmt=".2f"), flush=True)
    if fitting == len(rows):
        return Verdict("memory for the recipes", OK)
    return Verdict(
        "memory for the recipes", NOT_HERE, f"{len(rows) - fitting} of {len(rows)} do not fit, see the table"
    )


def training_memory(cfg) -> tuple[float, float, tuple[int, int]]:
    """Bytes for each image and for the model, in a training of `cfg`, and the size (height, width) of its images."""
    size = tuple(cfg.INPUT.CROP.SIZE) if cfg.INPUT.CROP.ENABLED else (cfg.INPUT.IMAGE_SIZE,) * 2
    model = build_model(cfg)
    amp = (
        {"float16": torch.float16, "bfloat16": torch.bfloat16}[cfg.SOLVER.AMP.DTYPE] if cfg.SOLVER.AMP.ENABLED else None
    )
    memory = count_training_memory(model, size, batch=1, amp_dtype=amp)
    # autocast keeps the weights in half precision, once for all images
    weights = 0 if amp is None else sum(2 * p.numel() for p in model.parameters())
    per_image = max(memory.activations - weights, memory.activations / 2)
    return per_image, memory.state + memory.activations - per_image, size


def advice(batch: int, fits: int) -> str:
    """How to train with `batch` images on one device that holds `fits`."""
    if not fits:
        return "does not fit"
    if fits >= batch:
        return f"{batch} as it is"
    parts = next(n for n in range(1, batch + 1) if batch % n == 0 and batch // n <= fits)
    return f"{batch} with SOLVER.ACCUMULATE {parts}, or on {parts} of these"


def main(arguments: list[str] | None = None) -> int:
    """The program. Returns the exit code; raises SystemExit with code 2 for arguments that cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="cpu, cuda, cuda:1 or mps (the GPU if there is one)")
    args = parser.parse_args(arguments)
    with readable_errors():
        device = chosen_device(args.device)
        verdicts = [*describe(device), check_triton(device)]
        if device.type == "cuda" and unusable_gpu(device.index):
            verdicts.append(Verdict("faster forms, training", NOT_HERE, "no kernels for the GPU"))
        else:
            verdicts += check_forms(device)
            with tempfile.TemporaryDirectory(prefix="fasegr-machine-", ignore_cleanup_errors=True) as folder:
                verdicts += check_training(device, Path(folder))
        verdicts.append(check_memory(device))
    print(
        "\n" + tabulate([(v.what, v.status, v.note) for v in verdicts], ("", "verdict", ""), maxcolwidths=[40, 18, 80])
    )
    failed = [v.what for v in verdicts if v.status == FAILED]
    print(f"\n{'Failed: ' + ', '.join(failed) if failed else 'Nothing failed.'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
