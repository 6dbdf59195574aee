#!/usr/bin/env python3
"""Compare two results of benchmarks/run.py --json, e.g. of two commits on the same machine.

python benchmarks/compare.py before.json after.json

Our side only, as a whole and by part: median times of both, and the ratio of the second to the first. A part counts as
slower or quicker if the ratio exceeds --tolerance and the quartiles of the two do not overlap. Exits with 1 if
anything is slower or takes more memory.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from benchmarks.measure import WHOLE, Spread, spread
from benchmarks.report import OURS, aligned, milliseconds, readings, title

SLOWER, QUICKER, MORE_MEMORY, LESS_MEMORY = "slower", "quicker", "more memory", "less memory"


def compare(before: Mapping[str, Any], after: Mapping[str, Any], tolerance: float) -> dict[str, list[list[str]]]:
    """{case: rows of part, times before and after, ratio, MiB before and after, verdict} for the cases in both."""
    old = {title(result["case"]): result for result in before["results"]}
    tables = {}
    for result in after["results"]:
        name = title(result["case"])
        if name in old:
            tables[name] = _rows(old[name], result, tolerance)
    return tables


def _rows(before: Mapping[str, Any], after: Mapping[str, Any], tolerance: float) -> list[list[str]]:
    seconds = [readings(result.get("seconds", {}), OURS) for result in (before, after)]
    memories = [result.get("memory", {}).get(OURS, {}) for result in (before, after)]
    rows = []
    for part in sorted(set(seconds[0]) & set(seconds[1]), key=lambda part: (part != WHOLE, part)):
        old, new = (spread(table[part]) for table in seconds)
        cells = [part, milliseconds(old), milliseconds(new), f"{new.median / old.median:.2f}"]
        verdicts = [_time_verdict(old, new, tolerance)]
        used = [memory.get(part) for memory in memories]
        cells += ["" if value is None else f"{value / 2**20:.0f}" for value in used]
        if all(used):
            verdicts.append(_memory_verdict(*used, tolerance))
        rows.append([*cells, ", ".join(filter(None, verdicts))])
    return rows


def _time_verdict(old: Spread, new: Spread, tolerance: float) -> str:
    if new.median > old.median * (1 + tolerance) and new.low > old.high:
        return SLOWER
    if old.median > new.median * (1 + tolerance) and old.low > new.high:
        return QUICKER
    return ""


def _memory_verdict(old: float, new: float, tolerance: float) -> str:
    if new > old * (1 + tolerance):
        return MORE_MEMORY
    return LESS_MEMORY if old > new * (1 + tolerance) else ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Raises SystemExit(1) if anything got worse."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", metavar="BEFORE.json")
    parser.add_argument("after", metavar="AFTER.json")
    parser.add_argument("--tolerance", type=float, default=0.1, help="relative change that counts (0.1)")
    args = parser.parse_args(arguments)
    results = [json.loads(Path(file).read_text()) for file in (args.before, args.after)]
    for file, result in zip((args.before, args.after), results, strict=True):
        machine = result["machine"]
        print(f"{file}: commit {machine['commit']}, {machine['date']}, {machine.get('gpu', machine['cpu'])}")
    tables = compare(*results, args.tolerance)
    if not tables:
        parser.error("the two files have no case in common")
    head = ["part", "before, ms", "after, ms", "ratio", "before, MiB", "after, MiB", ""]
    for name, rows in tables.items():
        print(f"\n{name}\n{aligned([head, *rows])}")
    worse = {SLOWER, MORE_MEMORY}
    if any(worse & set(row[-1].split(", ")) for rows in tables.values() for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
