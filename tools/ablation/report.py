"""What came out: a line for each run (CSV), a table as the paper prints it (Markdown), a plot with error bars."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tools.ablation.runs import Cell, score
from tools.ablation.tables import Row, Table, row_name

__all__ = ["Spread", "as_csv", "as_markdown", "draw", "spread", "write_report"]


class Spread(NamedTuple):
    """mean of the scores, and their standard deviation (of a sample: divided by n - 1), None of a single one."""

    scores: list[float]
    mean: float
    deviation: float | None

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if self.deviation is None else f"{self.mean:.2f} ± {self.deviation:.2f}"


def spread(cells: Sequence[Cell], table: Table, row: Row) -> Spread | None:
    """Of the runs of a row that are done, None where none is."""
    runs = [cell.run for cell in cells if cell.table == table and cell.row == row]
    scores = [value for value in map(score, runs) if value is not None]
    if not scores:
        return None
    return Spread(scores, statistics.fmean(scores), statistics.stdev(scores) if len(scores) > 1 else None)


def write_report(cells: Sequence[Cell], table: Table, folder: Path, dataset: str) -> list[Path]:
    """results.csv, results.md and results.png of `table` in `folder`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "results.csv", folder / "results.md"]
    paths[0].write_text(as_csv(cells, table))
    paths[1].write_text(as_markdown(cells, table, dataset))
    if any(spread(cells, table, cell.row) for cell in cells if cell.table == table):
        paths.append(folder / "results.png")
        draw(cells, table, dataset, paths[-1])
    return paths


def as_csv(cells: Sequence[Cell], table: Table) -> str:
    """One line for each run, the unfinished ones without a score."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["table", "row", "seed", "mIoU", "iterations", "paper", "folder"])
    for cell in cells:
        if cell.table == table:
            value = score(cell.run)
            paper = cell.row.paper.miou
            writer.writerow(
                [
                    *(table.name, cell.row.name, cell.run.identity["SEED"]),
                    *("" if value is None else f"{value:.4f}", cell.run.max_iter),
                    *("" if paper is None else paper, cell.run.folder),
                ]
            )
    return file.getvalue()


def as_markdown(cells: Sequence[Cell], table: Table, dataset: str) -> str:
    """The rows and columns of the paper; each score next to the paper's on ADE20K."""
    rows = _rows(cells, table)
    columns = list(dict.fromkeys(row.column for row in rows))
    heads = [*table.heads]
    for column in columns:
        of = f"{column}, " if column else ""
        heads += [f"{of}mIoU on {dataset} (%)", f"{of}runs", f"{of}paper, ADE20K"]
        if any(row.paper.cityscapes for row in rows if row.column == column):
            heads.append(f"{of}paper, Cityscapes")
    lines = [heads, ["---"] * len(heads)]
    for key in dict.fromkeys(row.cells for row in rows):
        line = list(key) if len(key) == len(table.heads) else [*key, *[""] * (len(table.heads) - len(key))]
        for column in columns:
            row = next((row for row in rows if (row.cells, row.column) == (key, column)), None)
            result = spread(cells, table, row) if row else None
            paper = row.paper if row else None
            line += [str(result or ""), str(len(result.scores)) if result else "0", _figure(paper and paper.miou)]
            if f"{column}, paper, Cityscapes".removeprefix(", ") in heads:
                line.append(_figure(paper and paper.cityscapes))
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def draw(cells: Sequence[Cell], table: Table, dataset: str, path: Path) -> None:
    """Mean and standard deviation of each row that has a score, and its single runs as dots."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    results = [(row, spread(cells, table, row)) for row in _rows(cells, table)]
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


def _rows(cells: Sequence[Cell], table: Table) -> list[Row]:
    return list(dict.fromkeys(cell.row for cell in cells if cell.table == table))


def _label(table: Table, row: Row) -> str:
    name = row_name(table, row)
    return f"{name} (paper: {row.paper.miou})" if row.paper.miou else name


def _figure(value: float | None) -> str:
    return "" if value is None else str(value)
