"""Reports of the results: one line for each run (CSV), a table in the paper's layout (Markdown), a plot."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tools.ablation.runs import PlannedRun, score
from tools.ablation.tables import Row, Table, row_name

__all__ = ["ScoreSummary", "as_csv", "as_markdown", "plot", "summarize", "write_report"]


class ScoreSummary(NamedTuple):
    """Scores with their mean and sample standard deviation (divided by n - 1), None for a single score."""

    scores: list[float]
    mean: float
    deviation: float | None

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if self.deviation is None else f"{self.mean:.2f} ± {self.deviation:.2f}"


def summarize(planned: Sequence[PlannedRun], table: Table, row: Row) -> ScoreSummary | None:
    """Scores of the row's finished runs, None if there are none."""
    runs = [each.run for each in planned if each.table == table and each.row == row]
    scores = [value for value in map(score, runs) if value is not None]
    if not scores:
        return None
    return ScoreSummary(scores, statistics.fmean(scores), statistics.stdev(scores) if len(scores) > 1 else None)


def write_report(planned: Sequence[PlannedRun], table: Table, folder: Path, dataset: str) -> list[Path]:
    """results.csv, results.md and results.png of `table` in `folder`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "results.csv", folder / "results.md"]
    paths[0].write_text(as_csv(planned, table))
    paths[1].write_text(as_markdown(planned, table, dataset))
    if any(summarize(planned, table, row) for row in _rows(planned, table)):
        paths.append(folder / "results.png")
        plot(planned, table, dataset, paths[-1])
    return paths


def as_csv(planned: Sequence[PlannedRun], table: Table) -> str:
    """One line for each run, unfinished ones without a score."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["table", "row", "seed", "mIoU", "iterations", "paper", "folder"])
    for _, row, run in (each for each in planned if each.table == table):
        value, paper = score(run), row.paper.miou
        writer.writerow(
            [
                *(table.name, row.name, run.identity["SEED"]),
                *("" if value is None else f"{value:.4f}", run.max_iter),
                *(_text(paper), run.folder),
            ]
        )
    return file.getvalue()


def as_markdown(planned: Sequence[PlannedRun], table: Table, dataset: str) -> str:
    """The rows and columns of the paper, each score next to the paper's on ADE20K."""
    rows = _rows(planned, table)
    columns = list(dict.fromkeys(row.column for row in rows))
    header = [*table.header]
    for column in columns:
        prefix = f"{column}, " if column else ""
        header += [f"{prefix}mIoU on {dataset} (%)", f"{prefix}runs", f"{prefix}paper, ADE20K"]
        if any(row.paper.cityscapes for row in rows if row.column == column):
            header.append(f"{prefix}paper, Cityscapes")
    lines = [header, ["---"] * len(header)]
    for key in dict.fromkeys(row.cells for row in rows):
        line = [*key, *[""] * (len(table.header) - len(key))]
        for column in columns:
            row = next((row for row in rows if (row.cells, row.column) == (key, column)), None)
            result = summarize(planned, table, row) if row else None
            paper = row.paper if row else None
            line += [str(result or ""), str(len(result.scores)) if result else "0", _text(paper and paper.miou)]
            if f"{column}, paper, Cityscapes".removeprefix(", ") in header:
                line.append(_text(paper and paper.cityscapes))
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def plot(planned: Sequence[PlannedRun], table: Table, dataset: str, path: Path) -> None:
    """Plot mean and standard deviation of each row that has a score, and its single runs as dots."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    results = [(row, summarize(planned, table, row)) for row in _rows(planned, table)]
    results = [(row, result) for row, result in results if result is not None]
    figure = Figure(figsize=(7, 1.2 + 0.5 * len(results)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for y, (_, result) in enumerate(results):
        axes.plot(result.scores, [y] * len(result.scores), "o", color="0.7", markersize=4, zorder=1)
        axes.errorbar(result.mean, y, xerr=result.deviation, fmt="o", color="C0", capsize=4, zorder=2)
    axes.set_yticks(range(len(results)), [_label(table, row) for row, _ in results])
    axes.set_ylim(len(results) - 0.5, -0.5)
    figure.supxlabel(f"mIoU on {dataset} (%): runs, their mean and standard deviation", fontsize="medium")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=150)


def _rows(planned: Sequence[PlannedRun], table: Table) -> list[Row]:
    return list(dict.fromkeys(each.row for each in planned if each.table == table))


def _label(table: Table, row: Row) -> str:
    name = row_name(table, row)
    return f"{name} (paper: {row.paper.miou})" if row.paper.miou else name


def _text(value: float | None) -> str:
    return "" if value is None else str(value)
