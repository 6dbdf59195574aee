#!/usr/bin/env python3
"""Print what each row of the paper's tables costs, next to the paper's figures: parameters, multiply-adds, memory.

python tools/ablation_costs.py --table 4 6 7
python tools/ablation_costs.py --table 8 --device cuda

#P in M, #F in G multiply-adds of one 512 x 512 image, memory in MB (2^20 bytes) of training with 4 such images: on a
GPU the measured peak of real steps, otherwise a count of what is kept for the backward pass, without and with the state
(weights, gradients, AdamW's moments). docs/ablations.md explains the figures. Models have random weights; nothing is
downloaded.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

import omp_policy  # noqa: F401 (before torch)

# isort: split

import torch
from torch import nn
from tqdm import tqdm

from fasegr import build_model, load_cfg
from fasegr.analysis.flops import count_cost
from fasegr.analysis.memory import count_training_memory
from fasegr.engine.launch import readable_errors
from fasegr.utils.memory import peak_memory, reset_peak_memory
from tools.ablation.tables import TABLES, Row, Table, overrides, row_name, table

MEGABYTE = 2**20


class RowCost(NamedTuple):
    """Parameters, multiply-adds of one image, bytes of training memory; activations are None if it was measured."""

    parameters: int
    multiply_adds: int
    activations: int | None
    total: int


def row_cost(
    table: Table, row: Row, size: tuple[int, int], batch: int, device: str, options: Sequence[str] = ()
) -> RowCost:
    """Cost of the row's own config file with `options` (key, value, ...). On a GPU memory is measured, else counted."""
    cfg = load_cfg(table.file(row), [*options, "MODEL.DEVICE", "cpu"])
    model = build_model(cfg)
    cost = count_cost(model, size)
    dtypes = {"float16": torch.float16, "bfloat16": torch.bfloat16}
    amp_dtype = dtypes[cfg.SOLVER.AMP.DTYPE] if cfg.SOLVER.AMP.ENABLED else None
    if device.startswith("cuda"):
        activations, total = None, measure_training_memory(model.to(device), size, batch, amp_dtype)
    else:
        memory = count_training_memory(model, size, batch=batch, amp_dtype=amp_dtype)
        activations, total = memory.activations, memory.total
    return RowCost(cost.parameters[""], cost.multiply_adds[""], activations, total)


def measure_training_memory(
    model: nn.Module, size: tuple[int, int], batch: int, amp_dtype: torch.dtype | None, steps: int = 2
) -> int:
    """Peak in bytes on the GPU in training steps of `model`, a segmentor that is there: images, losses, backward pass
    and AdamW, without gradient clipping. The second step is the first in which AdamW's moments exist from the start.

    size: (height, width); amp_dtype: of autocast, None without.
    """
    samples = random_samples(len(model.pixel_mean), size, batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cuda", enabled=amp_dtype == torch.float16)
    model.train()
    reset_peak_memory(model.device)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype=amp_dtype, enabled=amp_dtype is not None):
            loss = sum(model(samples).values())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        del loss
    return peak_memory(model.device)


def random_samples(channels: int, size: tuple[int, int], batch: int, classes: int = 10) -> list[dict]:
    """`batch` training samples of noise, each with `classes` masks: horizontal stripes, so that none is empty."""
    generator = torch.Generator().manual_seed(0)
    height, width = size
    stripes = torch.arange(height)[:, None].expand(size) * classes // height
    masks = stripes == torch.arange(classes)[:, None, None]
    sample = {"height": height, "width": width, "labels": torch.arange(classes), "masks": masks}
    shape = (channels, height, width)
    return [
        {**sample, "image": torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)} for _ in range(batch)
    ]


def lines(table: Table, costs: Sequence[tuple[Row, RowCost]]) -> Iterator[str]:
    """The table in Markdown; the paper's figures follow ours in brackets."""
    measured = any(cost.activations is None for _, cost in costs)
    header = [*table.header, "#P (M)", "#F (G)"]
    header += ["training memory (MB)"] if measured else ["kept for backward (MB)", "with the state (MB)"]
    yield f"{table.title}\n"
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row, cost in costs:
        cells = [*row.cells, *[""] * (len(table.header) - len(row.cells))]
        cells[0] = cells[0] or ("" if any(row.cells) else row_name(table, row))
        cells.append(_with_paper(f"{cost.parameters / 1e6:.2f}", row.paper.parameters))
        cells.append(_with_paper(f"{cost.multiply_adds / 1e9:.1f}", row.paper.multiply_adds))
        if cost.activations is not None:
            cells.append(f"{cost.activations / MEGABYTE:.0f}")
        cells.append(_with_paper(f"{cost.total / MEGABYTE:.0f}", row.paper.memory))
        yield f"| {' | '.join(cells)} |"


def _with_paper(ours: str, paper: float | None) -> str:
    return ours if paper is None else f"{ours} ({paper})"


def main(arguments: Sequence[str] | None = None) -> None:
    """The program. Raises SystemExit with code 2 for errors that the user can fix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", nargs="+", default=["4", "6", "7", "8"], choices=TABLES, help="(4 6 7 8)")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("H", "W"), help="image (512 512)")
    parser.add_argument("--batch", type=int, default=4, help="images per training step (4)")
    parser.add_argument("--device", help="cuda measures memory, cpu counts it (cuda if there is a GPU)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys for all rows")
    args = parser.parse_args(arguments)
    if args.batch < 1:
        parser.error(f"--batch is {args.batch}; it must be at least 1")
    if any(side < 32 or side % 32 for side in args.size):
        parser.error(f"--size is {args.size[0]} {args.size[1]}; both must be multiples of 32, as training crops are")
    with readable_errors():
        device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"--device is {device}, but no GPU is available; leave it out to count memory")
        tables = [table(name) for name in args.table]
        known: dict[tuple[Path, str], RowCost] = {}  # rows with the same config in several tables are computed once
        with tqdm(total=sum(len(each.rows) for each in tables), unit="row", disable=None) as bar:
            for each in tables:
                costs = []
                for row in each.rows:
                    config = each.recipe, str(overrides(each, row))
                    if config not in known:
                        known[config] = row_cost(each, row, tuple(args.size), args.batch, device, args.opts)
                    costs.append((row, known[config]))
                    bar.update()
                tqdm.write("\n".join(lines(each, costs)) + "\n")


if __name__ == "__main__":
    main()
