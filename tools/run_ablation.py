#!/usr/bin/env python3
"""Train the rows of the paper's tables, each with several seeds, and compare them.

python tools/run_ablation.py --table 5 --dataset scenes --seeds 3
python tools/run_ablation.py --table 4 5 --dataset camvid --jobs 2 SOLVER.MAX_ITER 1000
python tools/run_ablation.py --table 6 --dataset ade20k --rows vanilla hrca --slurm --partition gpu

Finished runs are not repeated and interrupted runs are resumed, so the same command continues after any interruption.
Results are in OUTPUT/TABLE: results.csv, results.md, results.png. See docs/ablations.md.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

import omp_policy  # noqa: F401 (before torch)

# isort: split

import torch
from tqdm import tqdm

from fasegr.engine.launch import readable_errors
from tools.ablation.execution import Failure, command, execute
from tools.ablation.report import as_markdown, write_report
from tools.ablation.runs import DATASETS, Run, iterations_done, plan, resolve_base, score
from tools.ablation.slurm import submit
from tools.ablation.tables import TABLES, Row, Table, row_of_file, table


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", nargs="+", required=True, choices=TABLES, help="tables of the paper, or beyond")
    parser.add_argument(
        "--dataset", help=f"{', '.join(DATASETS)}, or another that is registered as NAME_train and NAME_val"
    )
    parser.add_argument("--base-config", metavar="YAML", help="config that the rows change (that of the dataset)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each row, with seeds 1, 2, ... (3)")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="rows of the tables, or your own config files (all)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="folder of the runs (output/ablations/DATASET)")
    parser.add_argument("--jobs", type=int, help="runs at the same time (as many as fit on the GPUs; 1 without a GPU)")
    parser.add_argument("--gpus-per-run", type=int, default=1, metavar="N", help="0 is the CPU (1 if there is a GPU)")
    parser.add_argument("--threads", type=int, help="threads of each run on a CPU (its share of the cores)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands without running them")
    parser.add_argument("--report", action="store_true", help="write the results so far without running anything")
    slurm = parser.add_argument_group("SLURM, through the package submitit")
    slurm.add_argument("--slurm", action="store_true", help="submit the runs as a job array")
    slurm.add_argument("--partition", help="partition (the cluster's default)")
    slurm.add_argument(
        "--time", type=int, default=1440, metavar="MINUTES", help="time limit of a job, which is then requeued (1440)"
    )
    slurm.add_argument("--cpus-per-run", type=int, default=8, help="cores of a run (8)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys for all runs")
    args = parser.parse_args(arguments)
    if args.gpus_per_run < 0:
        parser.error(f"--gpus-per-run is {args.gpus_per_run}; it must be at least 0, for the CPU")
    for name in ("seeds", "jobs", "threads", "time", "cpus_per_run"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
    args.opts = args.opts[1:] if args.opts[:1] == ["--"] else args.opts
    if len(args.opts) % 2:
        parser.error(f"config keys come in pairs KEY VALUE; {args.opts[-1]!r} has no value")
    return args


def chosen_rows(tables: Sequence[Table], names: Sequence[str] | None) -> list[tuple[Table, list[Row]]]:
    """The rows with these names, in the order of the tables; a config file is a row of the first table."""
    if names is None:
        return [(table, list(table.rows)) for table in tables]
    files = [row_of_file(Path(name)) for name in names if name.endswith(".yaml")]
    known = {row.name for table in tables for row in table.rows}
    unknown = [name for name in names if not name.endswith(".yaml") and name not in known]
    if unknown:
        raise ValueError(
            f"--rows: {', '.join(unknown)} unknown; the rows are {', '.join(sorted(known))}. Config keys go after "
            "another option or --"
        )
    chosen = [(table, [row for row in table.rows if row.name in names]) for table in tables]
    first, rows = chosen[0]
    return [(first, [*rows, *files]), *chosen[1:]]


def gpu_slots(per_run: int) -> list[str]:
    """The GPUs of this machine in groups of `per_run`, as values of CUDA_VISIBLE_DEVICES; none for the CPU."""
    count = torch.cuda.device_count()
    if per_run == 0 or count == 0:
        return []
    if per_run > count:
        raise ValueError(f"--gpus-per-run is {per_run}; this machine has {count}")
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = named.split(",")[:count] if named else [str(i) for i in range(count)]
    return [",".join(names[i : i + per_run]) for i in range(0, count - per_run + 1, per_run)]


def main(arguments: Sequence[str] | None = None) -> None:
    """The program. Raises SystemExit with code 2 for errors that the user can fix, 1 if runs failed."""
    args = parse(arguments)
    with readable_errors():
        base = resolve_base(args.dataset, args.base_config, args.opts)
        dataset = args.dataset or Path(args.base_config).stem
        output = (args.output or Path("output/ablations") / dataset).absolute()
        tables = [table(name) for name in args.table]
        planned = plan(chosen_rows(tables, args.rows), range(1, args.seeds + 1), base, output)
        runs = list({each.run.folder: each.run for each in reversed(planned)}.values())[::-1]  # a shared run once

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
                print(f"submitted: {', '.join(jobs) or 'nothing is left to do'}; --report writes the results so far")
            elif not args.report:
                failures = run_here(runs, args)
        finally:  # write the results so far, however this ends
            for each in tables:
                paths = write_report(planned, each, output / each.name, dataset)
                print(f"{each.title}\n{as_markdown(planned, each, dataset)}{', '.join(map(str, paths))}\n")
    if failures:
        print(f"{len(failures)} of {len(runs)} runs failed:", file=sys.stderr)
        for failure in failures:
            print(f"  {failure.run.folder}: {failure.reason}; see {failure.log}", file=sys.stderr)
        sys.exit(1)


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_here(runs: Sequence[Run], args: argparse.Namespace) -> list[Failure]:
    slots = gpu_slots(args.gpus_per_run)
    jobs = args.jobs or max(1, len(slots))
    threads = args.threads or max(1, _cores() // jobs)
    done, total = sum(map(iterations_done, runs)), sum(run.max_iter for run in runs)
    with tqdm(total=total, initial=done, unit="it", smoothing=0, dynamic_ncols=True, disable=None) as bar:
        return execute(runs, jobs=jobs, gpus=slots, threads=threads, bar=bar, log=tqdm.write)


if __name__ == "__main__":
    main()
