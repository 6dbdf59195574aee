#!/usr/bin/env python3
"""Train several configs, each with several seeds, and compare the scores of their classes with those of the first.

python tools/compare_recipes.py --rows configs/camvid/faseg_r18_cpu.yaml configs/camvid/rare_classes/*.yaml \\
    --classes pole sign_symbol bicyclist --seeds 3

A row is a config. Finished runs are not repeated and interrupted ones are resumed, so the same command continues; it
prints the table, and writes it to OUTPUT/results.md, when all runs are done. --report makes it of the runs so far.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

import omp_policy  # noqa: F401 (before torch)

# isort: split

import numpy as np
from tqdm import tqdm

from fasegr import load_cfg
from fasegr.data.class_counts import class_names
from fasegr.engine.launch import readable_errors
from fasegr.utils.files import replacing
from fasegr.utils.metrics_file import read_metrics
from tools.ablation.execution import execute
from tools.ablation.runs import Run, iterations_done
from tools.ablation.tables import flat_config

PREFIX = "sem_seg/"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", nargs="+", required=True, type=Path, metavar="YAML", help="configs, the baseline first"
    )
    parser.add_argument("--classes", nargs="+", default=[], metavar="NAME", help="classes with columns of their own")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each row, with seeds 1, 2, ... (3)")
    parser.add_argument("--output", type=Path, default=Path("output/recipes"), help="for the runs (output/recipes)")
    parser.add_argument("--threads", type=int, default=2, help="threads of a run (2)")
    parser.add_argument("--report", action="store_true", help="only write the table of the runs so far")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys for all runs, after --"
    )
    args = parser.parse_args(arguments)
    args.opts = args.opts[1:] if args.opts[:1] == ["--"] else args.opts
    for name in ("seeds", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}; it must be at least 1")
    if len({row.stem for row in args.rows}) < len(args.rows):
        parser.error("two --rows have the same name; the folders of runs are named after them")
    return args


def plan(args: argparse.Namespace) -> dict[str, list[Run]]:
    """{row: its runs}. Raises ValueError for a class that the dataset of a row does not have."""
    rows: dict[str, list[Run]] = {}
    for config in args.rows:
        cfg = load_cfg(config, [*args.opts, "MODEL.DEVICE", "cpu"])
        if len(cfg.DATASETS.TEST) != 1:
            raise ValueError(f"{config}: DATASETS.TEST is {tuple(cfg.DATASETS.TEST)}; expected one dataset")
        names = class_names(cfg)
        unknown = [name for name in args.classes if name not in names]
        if unknown:
            raise ValueError(f"--classes: {', '.join(unknown)} unknown; {config} has {', '.join(names)}")
        rows[config.stem] = [
            Run(
                config=config,
                options=[*args.opts, "SEED", seed],
                folder=(args.output / config.stem / f"seed{seed}").absolute(),
                identity={**flat_config(cfg), "SEED": seed},
                max_iter=cfg.SOLVER.MAX_ITER,
                score=f"{PREFIX}mIoU",
            )
            for seed in range(1, args.seeds + 1)
        ]
    return rows


def check_same_config(run: Run) -> None:
    """Raises ValueError if the folder of a run has one of another config."""
    path = run.folder / "run.json"
    if not path.is_file():
        return
    recorded = json.loads(path.read_text())["identity"]
    ours = json.loads(json.dumps(run.identity))
    differing = [key for key in ours if key != "OUTPUT_DIR" and recorded.get(key) != ours[key]]
    if differing:
        raise ValueError(
            f"{run.folder} has a run with another {', '.join(differing[:5])}; choose another --output or delete it"
        )


def results(run: Run) -> dict[str, float] | None:
    """The scores after the last iteration in %, and the median seconds of an iteration ("time"); None before."""
    path = run.folder / "metrics.json"
    if not path.is_file():
        return None
    lines = list(read_metrics(path))
    scores = [line for line in lines if line["iteration"] == run.max_iter - 1 and run.score in line]
    if not scores:
        return None
    times = [line["time"] for line in lines if "time" in line]
    found = {name.removeprefix(PREFIX): value for name, value in scores[-1].items() if name.startswith(PREFIX)}
    return found | {"time": float(np.median(times)) if times else float("nan")}


def as_markdown(rows: dict[str, list[Run]], classes: Sequence[str]) -> str:
    """Means over the seeds; in brackets the difference from the first row and its standard error."""
    columns = [*(f"IoU-{name}" for name in classes), "mIoU", "time"]
    scores = {row: [found for run in runs if (found := results(run))] for row, runs in rows.items()}
    header = ["", "seeds", *classes, *(["mean of these"] if len(classes) > 1 else []), "mIoU", "s an iteration"]
    lines = [header, ["---"] * len(header)]
    first = None
    for row, found in scores.items():
        table = np.array([[result.get(name, np.nan) for name in columns] for result in found]).reshape(-1, len(columns))
        if len(classes) > 1:
            table = np.insert(table, len(classes), table[:, : len(classes)].mean(1), axis=1)
        first = table if first is None else first
        cells = [_cell(table[:, c], None if first is table else first[:, c]) for c in range(table.shape[1])]
        lines.append([row, str(len(found)), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cell(mine: np.ndarray, base: np.ndarray | None) -> str:
    if not len(mine):
        return "-"
    text = f"{mine.mean():.2f}"
    if base is None or not len(base):
        return text
    text += f" ({mine.mean() - base.mean():+.2f}"
    if min(len(mine), len(base)) > 1:
        text += f" ± {np.sqrt(mine.var(ddof=1) / len(mine) + base.var(ddof=1) / len(base)):.2f}"
    return text + ")"


def main(arguments: Sequence[str] | None = None) -> int:
    """The program. Returns the exit code: 0, or 1 if runs failed; errors of the user end it with 2."""
    args = parse(arguments)
    failures = []
    with readable_errors():
        rows = plan(args)
        runs = [run for by_seed in zip(*rows.values(), strict=True) for run in by_seed]
        for run in runs:
            check_same_config(run)
        if not args.report:
            done, total = sum(map(iterations_done, runs)), sum(run.max_iter for run in runs)
            with tqdm(total=total, initial=done, unit="it", smoothing=0, dynamic_ncols=True, disable=None) as bar:
                failures = execute(runs, threads=args.threads, bar=bar, log=tqdm.write)
        table = as_markdown(rows, args.classes)
        args.output.mkdir(parents=True, exist_ok=True)
        with replacing(args.output / "results.md") as file:
            file.write(table)
    print(table)
    for failure in failures:
        print(f"{failure.run.folder}: {failure.reason}; see {failure.log}", file=sys.stderr)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
