#!/usr/bin/env python3
"""Train the rows of a table of the paper, each with several seeds, and compare them.

python tools/run_ablation.py --table 5 --dataset scenes --seeds 3
python tools/run_ablation.py --table 4 5 --dataset camvid --jobs 2 SOLVER.MAX_ITER 1000
python tools/run_ablation.py --table 6 --dataset ade20k --rows vanilla hrca --slurm --partition gpu

Runs that are done are not repeated and runs that were stopped are continued, so the same command goes on after
whatever happened. Results are in OUTPUT/TABLE: results.csv, results.md, results.png; docs/ablations.md has more.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from fasegr.engine.launch import readable_errors
from tools.ablation.execution import ROOT, Failure, command, execute
from tools.ablation.report import as_markdown, write_report
from tools.ablation.runs import DATASETS, Run, base_of, iterations_done, plan, score
from tools.ablation.slurm import submit
from tools.ablation.tables import TABLES, Row, Table, row_of_file, table


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", nargs="+", required=True, choices=TABLES, help="of the paper, or beyond it")
    parser.add_argument("--dataset", help=f"{', '.join(DATASETS)}, or another that is registered: NAME_train, NAME_val")
    parser.add_argument("--base-config", metavar="YAML", help="what the rows are changes of (the dataset's own)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each row, with the seeds 1, 2, ... (3)")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="of the tables, or config files of your own (all)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="(output/ablations/DATASET)")
    parser.add_argument("--jobs", type=int, help="runs at once (as many as the GPUs allow; one without a GPU)")
    parser.add_argument("--gpus-per-run", type=int, default=1, metavar="N", help="0 is the CPU (1, where there is one)")
    parser.add_argument("--threads", type=int, help="of each run on a CPU (its share of the cores)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    parser.add_argument("--report", action="store_true", help="write the tables of what is done, run nothing")
    slurm = parser.add_argument_group("SLURM, through the package submitit")
    slurm.add_argument("--slurm", action="store_true", help="submit the runs as a job array")
    slurm.add_argument("--partition", help="(the cluster's default)")
    slurm.add_argument("--time", type=int, default=1440, metavar="MINUTES", help="of a run, then it is requeued (1440)")
    slurm.add_argument("--cpus-per-run", type=int, default=8, help="cores of a run (8)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys of all runs")
    args = parser.parse_args(arguments)
    if args.gpus_per_run < 0:
        parser.error(f"--gpus-per-run is {args.gpus_per_run}; it must be at least 0, which is the CPU")
    for name in ("seeds", "jobs", "threads", "time", "cpus_per_run"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
    args.opts = args.opts[1:] if args.opts[:1] == ["--"] else args.opts
    if len(args.opts) % 2:
        parser.error(f"config keys come in pairs KEY VALUE; {args.opts[-1]!r} has no partner")
    return args


def chosen_rows(tables: Sequence[Table], names: Sequence[str] | None) -> list[tuple[Table, list[Row]]]:
    """The rows that `names` means, in the order of the tables; a config file is a row of the first table."""
    if names is None:
        return [(table, list(table.rows)) for table in tables]
    files = [row_of_file(Path(name)) for name in names if name.endswith(".yaml")]
    known = {row.name for table in tables for row in table.rows}
    unknown = [name for name in names if not name.endswith(".yaml") and name not in known]
    if unknown:
        raise ValueError(
            f"--rows: {', '.join(unknown)} not known; the rows are {', '.join(sorted(known))}, and config keys come "
            "behind some other option or --"
        )
    chosen = [(table, [row for row in table.rows if row.name in names]) for table in tables]
    first, rows = chosen[0]
    return [(first, [*rows, *files]), *chosen[1:]]


def gpu_slots(per_run: int) -> list[str]:
    """The GPUs of this machine in groups of `per_run`, as CUDA_VISIBLE_DEVICES names them; none for the CPU."""
    count = torch.cuda.device_count()
    if per_run == 0 or count == 0:
        return []
    if per_run > count:
        raise ValueError(f"--gpus-per-run is {per_run}; this machine has {count}")
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = named.split(",")[:count] if named else [str(i) for i in range(count)]
    return [",".join(names[i : i + per_run]) for i in range(0, count - per_run + 1, per_run)]


def main(arguments: Sequence[str] | None = None) -> None:
    """The program. Raises SystemExit: 2 for what the user can put right, 1 if runs failed."""
    args = parse(arguments)
    with readable_errors():
        base = base_of(args.dataset, args.base_config, args.opts)
        dataset = args.dataset or Path(args.base_config).stem
        output = (args.output or ROOT / "output/ablations" / dataset).absolute()
        tables = [table(name) for name in args.table]
        cells = plan(chosen_rows(tables, args.rows), range(1, args.seeds + 1), base, output)
        runs = list({cell.run.folder: cell.run for cell in reversed(cells)}.values())[::-1]  # a shared one once

        if args.dry_run:
            for run in runs:
                print(shlex.join(command(run, args.gpus_per_run if args.slurm or torch.cuda.is_available() else 0)))
            return
        failures: list[Failure] = []
        try:
            if args.slurm:
                jobs = submit(
                    [run for run in runs if score(run) is None],
                    output / "slurm",
                    gpus=args.gpus_per_run,
                    cpus=args.cpus_per_run,
                    minutes=args.time,
                    partition=args.partition,
                    at_once=args.jobs,
                )
                print(f"submitted: {', '.join(jobs) or 'nothing is left to do'}; --report shows what has come out")
            elif not args.report:
                failures = run_here(runs, args)
        finally:  # what is done is worth a table, however this ends
            for each in tables:
                paths = write_report(cells, each, output / each.name, dataset)
                print(f"{each.title}\n{as_markdown(cells, each, dataset)}{', '.join(map(str, paths))}\n")
    if failures:
        print(f"{len(failures)} of {len(runs)} runs failed:", file=sys.stderr)
        for failure in failures:
            print(f"  {failure.run.folder}: {failure.reason}; see {failure.log}", file=sys.stderr)
        sys.exit(1)


def run_here(runs: Sequence[Run], args: argparse.Namespace) -> list[Failure]:
    slots = gpu_slots(args.gpus_per_run)
    jobs = args.jobs or max(1, len(slots))
    threads = args.threads or max(1, (os.cpu_count() or 1) // jobs)
    done, total = sum(map(iterations_done, runs)), sum(run.max_iter for run in runs)
    with tqdm(total=total, initial=done, unit="it", smoothing=0, dynamic_ncols=True, disable=None) as bar:
        return execute(runs, jobs=jobs, gpus=slots, threads=threads, bar=bar, say=tqdm.write)


if __name__ == "__main__":
    main()
