#!/usr/bin/env python3
"""What a model costs: parameters and multiply-adds by module; time and memory on this machine.

python tools/analyze_model.py --config-file configs/ade20k/semantic-segmentation/faseg_r50.yaml --size 512 512

Multiply-adds are those of one image, the full-size class scores included. The model has random weights: for costs they
do not matter. With --no-speed nothing is computed, and any size takes seconds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from fasegr import build_model, load_cfg
from fasegr.analysis.operations import SEMANTIC_OUTPUT, Cost, count, measure
from fasegr.engine.launch import readable_errors
from fasegr.engine.process import tune_process


def table(cost: Cost, depth: int) -> str:
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


def main(arguments: list[str] | None = None) -> None:
    """The program. Raises SystemExit with 2 for what the user can put right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="YAML")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("H", "W"), help="image (512 512)")
    parser.add_argument("--depth", type=int, default=2, help="of the modules in the table (2)")
    parser.add_argument("--no-speed", action="store_true", help="count alone")
    parser.add_argument("--device", help="where to measure (a GPU if there is one)")
    parser.add_argument("--batch", type=int, default=1, help="images measured at once (1)")
    parser.add_argument("--repeats", type=int, default=5, help="batches measured (5)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys")
    args = parser.parse_args(arguments)
    for name in ("batch", "repeats", "depth"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}; it must be at least 1")
    if min(args.size) < 1:
        parser.error(f"--size is {args.size[0]} {args.size[1]}; height and width must be at least 1")
    with readable_errors():
        # last, so that they win: the counting is done on the CPU, whatever the config trains on
        cfg = load_cfg(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu"])
        model = build_model(cfg)
        height, width = args.size
        print(f"{args.config_file}, {height} x {width}\n{table(count(model, (height, width)), args.depth)}")
        if args.no_speed:
            return
        tune_process(tuned_allocator=cfg.SPEED.TUNED_ALLOCATOR, threads=cfg.SPEED.THREADS)
        device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"--device is {args.device}; time and memory are measured on cpu or cuda")
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"--device is {device}, and no GPU is to be seen; leave it out for the CPU")
        speed = measure(model.to(device), (height, width), batch=args.batch, repeats=args.repeats)
        on_gpu = device.type == "cuda"
        where = torch.cuda.get_device_name(device) if on_gpu else f"the CPU, {torch.get_num_threads()} threads"
        print(
            f"batch of {args.batch} on {where}: {speed.seconds * 1e3:.1f} ms, median of {args.repeats} "
            f"({speed.quickest * 1e3:.1f} to {speed.slowest * 1e3:.1f}); "
            f"memory above the loaded model {speed.memory / 2**20:.0f} MiB"
        )


if __name__ == "__main__":
    main()
