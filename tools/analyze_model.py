#!/usr/bin/env python3
"""Print what a model costs: parameters and multiply-adds by module; time and memory on this machine.

python tools/analyze_model.py --config-file configs/ade20k/semantic-segmentation/faseg_r50.yaml --size 512 512

Multiply-adds are those of one image, including the class scores at full size. The model has random weights, which do
not affect costs. With --no-speed nothing is computed, and any size takes seconds.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

import omp_policy  # noqa: F401 (before torch)

# isort: split

import torch
from torch import nn

from fasegr import build_model, load_cfg
from fasegr.analysis.flops import SEMANTIC_OUTPUT, ModelCost, count_cost
from fasegr.engine.launch import readable_errors
from fasegr.engine.process_settings import tune_process
from fasegr.utils.memory import current_memory, peak_memory, reset_peak_memory


def table(cost: ModelCost, depth: int) -> str:
    """Modules with parameters down to `depth`, in the order of the model, indented."""
    names = [name for name in cost.parameters if name and name.count(".") < depth]
    rows = [("total", cost.parameters[""], cost.multiply_adds[""])]
    for name in [*names, SEMANTIC_OUTPUT]:
        label = "  " * (name.count(".") + 1) + name.rpartition(".")[2]
        rows.append((label, cost.parameters.get(name, 0), cost.multiply_adds.get(name, 0)))
    width = max(len(label) for label, _, _ in rows)
    lines = [f"{'module':{width}}{'parameters':>14}{'multiply-adds':>16}"]
    lines += [f"{label:{width}}{n / 1e6:>12.3f} M{work / 1e9:>14.3f} G" for label, n, work in rows]
    return "\n".join(lines)


class Speed(NamedTuple):
    """Median, least and greatest seconds of a batch; memory: peak in bytes above the loaded model."""

    seconds: float
    fastest: float
    slowest: float
    memory: int


def measure_speed(model: nn.Module, size: tuple[int, int], *, batch: int, repeats: int) -> Speed:
    """Time and memory of `model`, a segmentor, in evaluation on its device with `batch` images of noise of `size`.

    Memory is that of a first, untimed batch, which also warms up. On a CPU it is the memory of the process, which
    outside of Linux can only be told since the start of the program.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (len(model.pixel_mean), *size)
    images = [torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for _ in range(batch)]
    samples = [{"image": image.to(model.device), "height": size[0], "width": size[1]} for image in images]
    synchronize = torch.cuda.synchronize if model.device.type == "cuda" else lambda: None
    model.eval()
    gc.collect()
    with torch.no_grad():
        reset_peak_memory(model.device)
        before = current_memory(model.device)
        model(samples)
        memory = max(0, peak_memory(model.device) - before)
        times = []
        for _ in range(repeats):
            synchronize()
            start = time.perf_counter()
            model(samples)
            synchronize()
            times.append(time.perf_counter() - start)
    return Speed(statistics.median(times), min(times), max(times), memory)


def main(arguments: list[str] | None = None) -> None:
    """The program. Raises SystemExit with code 2 for errors that the user can fix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="YAML")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("H", "W"), help="image (512 512)")
    parser.add_argument("--depth", type=int, default=2, help="depth of the modules in the table (2)")
    parser.add_argument("--no-speed", action="store_true", help="only count")
    parser.add_argument("--device", help="device for measuring (a GPU if there is one)")
    parser.add_argument("--batch", type=int, default=1, help="images per measured batch (1)")
    parser.add_argument("--repeats", type=int, default=5, help="number of measured batches (5)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys")
    args = parser.parse_args(arguments)
    for name in ("batch", "repeats", "depth"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}; it must be at least 1")
    if min(args.size) < 1:
        parser.error(f"--size is {args.size[0]} {args.size[1]}; height and width must be at least 1")
    with readable_errors():
        # the device comes last to override the others: counting runs on the CPU
        no_download = ["MODEL.TIMM.PRETRAINED", False, "MODEL.VIT.PRETRAINED", False]
        cfg = load_cfg(args.config_file, [*args.opts, *no_download, "MODEL.DEVICE", "cpu"])
        model = build_model(cfg)
        height, width = args.size
        print(f"{args.config_file}, {height} x {width}\n{table(count_cost(model, (height, width)), args.depth)}")
        if args.no_speed:
            return
        tune_process(tuned_allocator=cfg.SPEED.TUNED_ALLOCATOR, threads=cfg.SPEED.THREADS)
        device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"--device is {args.device}; time and memory can be measured on cpu or cuda")
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"--device is {device}, but no GPU is available; leave it out to measure on the CPU")
        speed = measure_speed(model.to(device), (height, width), batch=args.batch, repeats=args.repeats)
        on_gpu = device.type == "cuda"
        where = torch.cuda.get_device_name(device) if on_gpu else f"the CPU, {torch.get_num_threads()} threads"
        print(
            f"batch of {args.batch} on {where}: {speed.seconds * 1e3:.1f} ms, median of {args.repeats} "
            f"({speed.fastest * 1e3:.1f} to {speed.slowest * 1e3:.1f}); "
            f"memory above the loaded model {speed.memory / 2**20:.0f} MiB"
        )


if __name__ == "__main__":
    main()
