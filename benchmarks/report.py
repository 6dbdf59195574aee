"""Results as tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.case import OURS, PEER
from benchmarks.measure import WHOLE, Spread, ratio, spread


def title(case: Mapping[str, Any]) -> str:
    """One line that identifies a case."""
    config = case["config"].rpartition("/")[2].removesuffix(".yaml")
    parts = [f"{case['kind']}: {config}"]
    if case.get("size"):
        parts.append("{} x {}".format(*case["size"]))
    parts += [f"batch {case['batch']}", case["dtype"], case["device"], f"{case['allocator']} allocator"]
    parts += [f"beside {case['beside']}"] if case.get("beside") else []
    return ", ".join(parts) + (f", {' '.join(case['opts'])}" if case["opts"] else "")


def table(result: Mapping[str, Any], peaks: Mapping[str, Mapping[str, float]]) -> str:
    """Time, share of the roofline and memory of a result, one row per part, the whole first."""
    times = {side: readings(result["seconds"], side) for side in (OURS, PEER)}
    memory, names = result.get("memory", {}), result.get("names", {})
    roof = peaks.get(result["case"]["dtype"])
    columns: dict[str, Callable[[str], str]] = {}
    for side in (OURS, PEER):
        if not times[side]:
            continue
        name = names.get(side, side)
        columns[f"{name} ms"] = lambda part, times=times[side]: milliseconds(spread(times[part]))
        if roof and result.get("work"):
            columns[f"{name} of roof"] = lambda part, times=times[side]: share(
                attainable(result["work"], part, roof), times[part]
            )
    if times[PEER]:
        columns["ratio"] = lambda part: _ratio(ratio(times[PEER][part], times[OURS][part]))
    for side, peaked in memory.items():
        columns[f"{names.get(side, side)} MiB"] = lambda part, peaked=peaked: f"{peaked[part] / 2**20:.0f}"
    if len(memory) == 2:
        columns["memory ratio"] = lambda part: f"{memory[OURS][part] / memory[PEER][part]:.2f}"
    rows = [
        [part if part == WHOLE else f"  {part}", *(_cell(column, part) for column in columns.values())]
        for part in times[OURS]
    ]
    others = [cores for cores in result.get("others", ()) if cores is not None]
    if others:
        cells = [f"{max(others):.1f} cores at most", *[""] * (len(columns) - 1)]
        rows.append(["other programs", *cells])
    return aligned([[f"{len(result['seconds'][OURS])} rounds", *columns], *rows])


def counts(found: Mapping[str, Mapping[str, int]]) -> str:
    """{part: {column: number}}, one row per part, the whole first."""
    columns = list(found[WHOLE])
    rows = [
        [part if part == WHOLE else f"  {part}", *(f"{numbers[column]:,}" for column in columns)]
        for part, numbers in found.items()
    ]
    return aligned([["operations", *columns], *rows])


def _cell(column: Callable[[str], str], part: str) -> str:
    """Empty if one of the sides has no such part."""
    try:
        return column(part)
    except (KeyError, ZeroDivisionError):
        return ""


def readings(seconds: Mapping[str, Sequence[Mapping[str, float]]], side: str) -> dict[str, list[float]]:
    """{part: its seconds, round by round} of one side."""
    rounds = seconds.get(side, [])
    return {part: [reading[part] for reading in rounds] for part in (rounds[0] if rounds else {})}


def attainable(work: Mapping[str, int], part: str, roof: Mapping[str, float]) -> float:
    """Least seconds of a part: its operations at peak flops or its bytes at peak bandwidth, whichever is longer."""
    bounds = [work[f"{part}/flops"] / roof["flops"], work.get(f"{part}/bytes", 0) / roof["bytes"]]
    return max(bounds)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with padded columns, readable as plain text; numbers right-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(cells: Sequence[str]) -> str:
        first, *rest = zip(cells, widths, strict=True)
        return "| " + " | ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]) + " |"

    rule = "|" + "|".join("-" * (width + 1) + (":" if i else "-") for i, width in enumerate(widths)) + "|"
    return "\n".join([line(rows[0]), rule, *map(line, rows[1:])])


def milliseconds(value: Spread) -> str:
    digits = 0 if value.median >= 1 else 1 if value.median >= 1e-3 else 3
    return f"{1e3 * value.median:.{digits}f} ({1e3 * value.low:.{digits}f}..{1e3 * value.high:.{digits}f})"


def _ratio(value: Spread) -> str:
    return f"{value.median:.2f} ({value.low:.2f}..{value.high:.2f})"


def share(bound: float, seconds: Sequence[float]) -> str:
    return f"{100 * bound / spread(seconds).median:.0f} %" if bound else ""
