#!/usr/bin/env python3
"""Measure time, memory and share of the machine's peak, as a whole and by part, alone or against a peer.

python benchmarks/run.py inference labels --size 512 512
python benchmarks/run.py inference training --size 256 256 --batch 2 --peer ../FASeg --allocator default tuned
python benchmarks/run.py --suite cpu --peer ../FASeg --json results.json
python benchmarks/run.py inference --peer huggingface

Each case runs in fresh processes; our steps and the peer's alternate in one. docs/benchmarks.md explains the columns.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

import omp_policy  # noqa: F401 (before torch)

# isort: split

import torch

from benchmarks import report
from benchmarks.case import KINDS, Case
from benchmarks.load import warning
from benchmarks.machine import describe
from benchmarks.measure import ROOT, Failed, in_fresh_process
from benchmarks.peers import HUGGING_FACE, is_plain
from benchmarks.sides import AMP
from benchmarks.suites import SUITES

DEFAULT_CONFIG = ROOT / "configs/ade20k/semantic-segmentation/faseg_r50.yaml"
DTYPES = ("float32", "float64", *AMP)
AGREEMENT_SIZE = (192, 256)  # released FASeg needs 32 cells at 1/32


def measured(case: Case, *, memory: bool, check: bool, timeout: float) -> dict[str, Any]:
    """All measurements of one case; those that fail are reported under "failed", and the others go on."""
    values = dataclasses.asdict(case)
    result: dict[str, Any] = {"case": values, "failed": {}}

    def attempt(what: str, function: str, **arguments) -> Any:
        try:
            return in_fresh_process(f"benchmarks.{KINDS[case.kind]}:{function}", arguments, timeout)
        except Failed as failure:
            result["failed"][what] = str(failure)
            return None

    if check and case.peer and case.peer != HUGGING_FACE:
        result["agreement"] = attempt("agreement", "agreement", case=_to_compare(case))
    timed = attempt("time", "times", case=values)
    if timed is None and case.peer:
        timed = attempt("time without the peer", "times", case=values | {"peer": None})
    result |= timed or {}
    has_memory = KINDS[case.kind] in ("models", "operations") and not case.beside
    if memory and case.device == "cpu" and has_memory:  # on a GPU it comes with the times
        sides = [report.OURS, *([report.PEER] if case.peer else [])]
        found = {side: attempt(f"memory, {side}", "memory", case=values, side=side) for side in sides}
        result["memory"] = {side: parts for side, parts in found.items() if parts}
    return result


def _to_compare(case: Case) -> dict[str, Any]:
    """The case on which the results of the two sides are compared: for models a small one, on the CPU."""
    if KINDS[case.kind] != "models":
        return dataclasses.asdict(case)
    device = case.device if is_plain(case.peer) else "cpu"  # which forms are used depends on the device
    return dataclasses.asdict(dataclasses.replace(case, size=AGREEMENT_SIZE, device=device, batch=1))


def run(
    cases: Sequence[Case], *, check: bool, memory: bool, roofline: bool, timeout: float
) -> Iterator[dict[str, Any]]:
    """Measure and print case by case. Yields all results so far after each case, in the form that --json writes."""
    machine = describe(cases[0].device)
    print("; ".join(f"{name} {value}" for name, value in machine.items() if value is not None), flush=True)
    _warn(machine["others"], machine)
    peaks: dict[str, Any] = {}
    agreed: set[tuple] = set()
    results: list[dict[str, Any]] = []
    for case in cases:
        needs_roof = roofline and KINDS[case.kind] == "models"  # only these count their work
        if needs_roof and case.dtype not in peaks and case.dtype != "float64":
            arguments = {"device": case.device, "dtype": case.dtype, "threads": case.threads}
            try:
                peaks[case.dtype] = in_fresh_process("benchmarks.machine:peaks", arguments, timeout)
                roof = peaks[case.dtype]
                print(f"peak, {case.dtype}: {roof['flops'] / 1e9:.0f} GFLOP/s, {roof['bytes'] / 1e9:.1f} GB/s")
            except Failed as failure:
                print(f"peak, {case.dtype}: {failure}")
        if KINDS[case.kind] == "models":  # one comparison for inference of all sizes, and one for training
            group = (case.config, case.opts, case.peer, case.kind in ("training", "criterion"))
        else:
            group = (case,)
        result = measured(case, memory=memory, check=check and group not in agreed, timeout=timeout)
        agreed.add(group)
        results.append(result)
        print(f"\n{report.title(result['case'])}")
        if result.get("agreement"):
            found = ", ".join(f"{name} {value:.1e}" for name, value in result["agreement"].items())
            print(f"the two differ by: {found}")
        if result.get("seconds"):
            print(report.table(result, peaks))
            _warn(max((cores for cores in result["others"] if cores is not None), default=None), machine)
        if result.get("counts"):
            print(report.counts(result["counts"]))
        for what, said in result.get("notes", {}).items():
            print(f"{what}: {said}")
        for what, why in result["failed"].items():
            print(f"{what}: {why}")
        sys.stdout.flush()
        yield {"machine": machine, "peaks": peaks, "results": results}


def _warn(others: float | None, machine: dict[str, Any]) -> None:
    if said := warning(others, machine["cpus"]):
        print(said, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Raises SystemExit(2) for invalid arguments, SystemExit(1) if a measurement failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"{', '.join(KINDS)} (inference training)")
    parser.add_argument("--suite", choices=SUITES, help="a predefined list of cases, instead of KINDs and sizes")
    parser.add_argument("--config-file", default=str(DEFAULT_CONFIG), metavar="YAML", help="(ADE20K, FASeg R50)")
    parser.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="config; a peer gets those it knows")
    parser.add_argument("--size", type=int, nargs=2, action="append", metavar=("H", "W"), help="repeatable (512 512)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="images per step (1)")
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=DTYPES, help="(float32)")
    parser.add_argument("--allocator", nargs="+", default=["default"], choices=["default", "tuned"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (torch's default)")
    parser.add_argument(
        "--beside",
        type=int,
        default=0,
        metavar="N",
        help="next to N busy processes; without a peer, in turn with quiet",
    )
    parser.add_argument("--rounds", type=int, default=5, help="steps of each side (5)")
    parser.add_argument("--peer", metavar="PATH", help="a checkout of FASeg or Mask2Former, huggingface, or plain")
    parser.add_argument("--peer-config", metavar="YAML", help="the peer's config (the same path in its tree)")
    parser.add_argument("--no-check", action="store_true", help="do not compare the peer's results with ours first")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--no-roofline", action="store_true")
    parser.add_argument("--timeout", type=float, default=600, help="seconds per process (600)")
    parser.add_argument("--json", metavar="FILE", help="write all results here")
    args = parser.parse_args(arguments)
    for name in ("rounds", "timeout"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}; it must be at least 1")
    if args.beside < 0:
        parser.error(f"--beside is {args.beside}; it must be at least 0")
    if args.beside and args.suite:
        parser.error(f"--suite {args.suite} defines its own cases; leave out --beside {args.beside}")
    if min(args.batch) < 1:
        parser.error(f"--batch is {min(args.batch)}; it must be at least 1")
    if len(args.opts) % 2:
        parser.error(f"--opts takes pairs KEY VALUE; {args.opts[-1]!r} has no value")
    if unknown := sorted(set(args.kinds) - set(KINDS)):
        parser.error(f"{', '.join(unknown)} cannot be measured; choose from {', '.join(KINDS)}")
    if args.suite == "gpu" and args.device == "cpu":
        parser.error("--suite gpu needs a GPU; --device is cpu (the default without one)")
    if args.suite and args.kinds:
        parser.error(f"--suite {args.suite} defines its own cases; leave out {' '.join(args.kinds)}")
    cases = _cases(args, parser)
    command = ["python", "benchmarks/run.py", *(sys.argv[1:] if arguments is None else arguments)]
    started = time.perf_counter()
    wanted = {"memory": not args.no_memory, "roofline": not args.no_roofline, "check": not args.no_check}
    for found in run(cases, **wanted, timeout=args.timeout):
        found |= {"command": command, "seconds": time.perf_counter() - started}
        if args.json:  # after each case, so that results are kept if a later case fails
            Path(args.json).write_text(json.dumps(found, indent=1) + "\n")
    if any(result["failed"] for result in found["results"]):
        sys.exit(1)


def _cases(args: argparse.Namespace, parser: argparse.ArgumentParser) -> list[Case]:
    peer = args.peer
    if peer and peer != HUGGING_FACE and not is_plain(peer):
        if not Path(peer).is_dir():
            parser.error(
                f"--peer is {peer}, not a folder; give a checkout of FASeg or Mask2Former, huggingface or plain"
            )
        peer = str(Path(peer).resolve())
    base = Case(
        kind="inference",
        config=str(Path(args.config_file).resolve()),
        opts=tuple(args.opts),
        device=args.device,
        threads=args.threads,
        rounds=args.rounds,
        beside=args.beside,
        peer=peer,
        peer_config=args.peer_config and str(Path(args.peer_config).resolve()),
    )
    if args.suite:
        return SUITES[args.suite](base)
    kinds, sizes = args.kinds or ["inference", "training"], args.size or [(512, 512)]
    return [
        dataclasses.replace(base, kind=kind, size=tuple(size), batch=batch, dtype=dtype, allocator=allocator)
        for kind, size, batch, dtype, allocator in itertools.product(
            kinds, sizes, args.batch, args.dtype, args.allocator
        )
    ]


if __name__ == "__main__":
    main()
