#!/usr/bin/env python3
"""What each row of the paper's tables costs, next to the paper's figures: parameters, multiply-adds, training memory.

python tools/ablation_costs.py --table 4 6 7
python tools/ablation_costs.py --table 8 --device cuda

#P in M, #F in G multiply-adds of one 512 x 512 image, memory in MB (2^20 bytes) of training with 4 such images: on a
GPU the peak of real steps, else a count: what is kept for the backward pass, and with the state (weights, gradients,
AdamW's moments). docs/ablations.md says what the figures mean. Models have random weights; nothing is fetched.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from fasegr import build_model, load_cfg
from fasegr.analysis.memory import count_training_memory, measure_training_memory, noise_batch
from fasegr.analysis.operations import count
from fasegr.engine.launch import readable_errors
from tools.ablation.tables import TABLES, Row, Table, overrides, row_name, table

MEGABYTE = 2**20


class RowCost(NamedTuple):
    """parameters, and multiply-adds of one image. activations and total: bytes; the former None where measured."""

    parameters: int
    multiply_adds: int
    activations: int | None
    total: int


def costs_of(
    table: Table, row: Row, size: tuple[int, int], batch: int, device: str, options: Sequence[str] = ()
) -> RowCost:
    """Of the row's own config file, with `options` (key, value, ...): counted on the CPU, memory on a GPU measured."""
    cfg = load_cfg(table.file(row), [*options, "MODEL.DEVICE", "cpu"])
    model = build_model(cfg)
    cost = count(model, size)
    dtypes = {"float16": torch.float16, "bfloat16": torch.bfloat16}
    amp_dtype = dtypes[cfg.SOLVER.AMP.DTYPE] if cfg.SOLVER.AMP.ENABLED else None
    if device.startswith("cuda"):
        samples = noise_batch(model, size, batch)
        activations = None
        total = measure_training_memory(model.to(device), samples, amp_dtype=amp_dtype)
    else:
        memory = count_training_memory(model, size, batch=batch, amp_dtype=amp_dtype)
        activations, total = memory.activations, memory.total
    return RowCost(cost.parameters[""], cost.multiply_adds[""], activations, total)


def lines(table: Table, costs: Sequence[tuple[Row, RowCost]]) -> Iterator[str]:
    """The table in Markdown; the paper's figure is in brackets behind ours."""
    measured = any(cost.activations is None for _, cost in costs)
    heads = [*table.heads, "#P (M)", "#F (G)"]
    heads += ["training memory (MB)"] if measured else ["kept for backward (MB)", "with the state (MB)"]
    yield f"{table.title}\n"
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row, cost in costs:
        cells = [*row.cells, *[""] * (len(table.heads) - len(row.cells))]
        cells[0] = cells[0] or ("" if any(row.cells) else row_name(table, row))
        cells.append(_beside(f"{cost.parameters / 1e6:.2f}", row.paper.parameters))
        cells.append(_beside(f"{cost.multiply_adds / 1e9:.1f}", row.paper.multiply_adds))
        if cost.activations is not None:
            cells.append(f"{cost.activations / MEGABYTE:.0f}")
        cells.append(_beside(f"{cost.total / MEGABYTE:.0f}", row.paper.memory))
        yield f"| {' | '.join(cells)} |"


def _beside(ours: str, paper: float | None) -> str:
    return ours if paper is None else f"{ours} ({paper})"


def main(arguments: Sequence[str] | None = None) -> None:
    """The program. Raises SystemExit with 2 for what the user can put right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", nargs="+", default=["4", "6", "7", "8"], choices=TABLES, help="(4 6 7 8)")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("H", "W"), help="image (512 512)")
    parser.add_argument("--batch", type=int, default=4, help="images of a training step (4)")
    parser.add_argument("--device", help="cuda measures the memory, cpu counts it (cuda where there is a GPU)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys of all rows")
    args = parser.parse_args(arguments)
    if args.batch < 1:
        parser.error(f"--batch is {args.batch}; it must be at least 1")
    if any(side < 32 or side % 32 for side in args.size):
        parser.error(f"--size is {args.size[0]} {args.size[1]}; training crops have sides that are multiples of 32")
    with readable_errors():
        device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"--device is {device}, and no GPU is to be seen; leave it out for the count")
        tables = [table(name) for name in args.table]
        known: dict[tuple[Path, str], RowCost] = {}  # rows that are the same config in several tables
        with tqdm(total=sum(len(each.rows) for each in tables), unit="row", disable=None) as bar:
            for each in tables:
                costs = []
                for row in each.rows:
                    config = each.recipe, str(overrides(each, row))
                    if config not in known:
                        known[config] = costs_of(each, row, tuple(args.size), args.batch, device, args.opts)
                    costs.append((row, known[config]))
                    bar.update()
                tqdm.write("\n".join(lines(each, costs)) + "\n")


if __name__ == "__main__":
    main()
