"""Curves of a training: losses and scores against the iteration."""

from __future__ import annotations

import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from scipy import ndimage

from fasegr.utils.metrics_file import read_metrics
from fasegr.visualization.figure_layout import TEXT_COLOR
from fasegr.visualization.fonts import fallback_families
from fasegr.visualization.overlays import palette

__all__ = ["plot_training"]

_SCORES = ("sem_seg/mIoU", "segm/AP", "panoptic_seg/PQ")

Curves = dict[str, dict[int, float]]  # {name: {iteration: value}}


def plot_training(metrics_json: str | os.PathLike, output_png: str | os.PathLike) -> None:
    """Plot the losses and, where there was an evaluation, mIoU, AP and PQ against the iteration.

    metrics_json: as the trainer writes it; the loss_NAME_i of the decoder layers are summed into loss_NAME. Where a
    training was resumed, later lines replace earlier ones. Raises ValueError if there is nothing to plot.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and not needed elsewhere
    from matplotlib.figure import Figure

    curves = _curves(read_metrics(metrics_json))
    losses = {name: points for name, points in curves.items() if re.fullmatch(r"(total_)?loss(_\w+)?", name)}
    scores = {name: points for name, points in curves.items() if re.fullmatch(rf"(.*/)?({'|'.join(_SCORES)})", name)}
    panels = [(plot, curves) for plot, curves in ((_plot_losses, losses), (_plot_scores, scores)) if curves]
    if not panels:
        raise ValueError(f"{metrics_json} has neither losses nor scores, so there is nothing to plot")
    with rc_context({"font.family": ["DejaVu Sans", *fallback_families("".join(scores))]}):  # names of datasets
        _draw(Figure, FigureCanvasAgg, panels, output_png)


def _draw(Figure: type, FigureCanvasAgg: type, panels: list, output_png: str | os.PathLike) -> None:
    figure = Figure(figsize=(5.6 * len(panels), 3.8), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (plot, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        plot(axes, curves)
        axes.set_xlabel("iteration")
        axes.set_xlim(left=0)
        axes.grid(color="0.92", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    Path(output_png).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output_png, format="png")


def _curves(entries: Iterable[dict]) -> Curves:
    curves: Curves = defaultdict(dict)
    last = -1
    for entry in entries:
        iteration = entry.pop("iteration")
        if iteration < last:  # resumed from an earlier checkpoint: drop what is computed again
            for points in curves.values():
                for stale in [i for i in points if i >= iteration]:
                    del points[stale]
        last = iteration
        for name, value in entry.items():
            if isinstance(value, int | float) and math.isfinite(value):
                curves[name][iteration] = value
    return {name: points for name, points in curves.items() if points}


def _plot_losses(axes, curves: Curves) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    sums: Curves = defaultdict(lambda: defaultdict(float))
    for name, points in curves.items():
        for iteration, value in points.items():
            sums[re.sub(r"_\d+$", "", name)][iteration] += value
    parts = sorted(sums.keys() - {"total_loss"})
    colors = np.vstack([TEXT_COLOR, palette(len(parts))]) / 255
    for name, color in zip(["total_loss", *parts], colors, strict=True):
        if name not in sums:
            continue
        iterations, values = zip(*sums[name].items(), strict=True)
        marker = "o" if len(values) < 3 else None
        if len(values) >= 60:  # single steps are noisy: plot them faintly behind their running mean
            axes.plot(iterations, values, color=color, linewidth=0.8, alpha=0.25)
            values = ndimage.uniform_filter1d(np.array(values), max(3, len(values) // 30), mode="nearest")
        label, width = ("total", 1.8) if name == "total_loss" else (name.removeprefix("loss_"), 1.3)
        axes.plot(iterations, values, color=color, linewidth=width, marker=marker, label=label)
    if all(value > 0 for points in sums.values() for value in points.values()):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title("loss", loc="left", fontweight="bold")
    axes.legend(frameon=False, ncols=2)


def _plot_scores(axes, curves: Curves) -> None:
    for (name, points), color in zip(curves.items(), palette(len(curves)) / 255, strict=True):
        iterations, values = zip(*points.items(), strict=True)
        *dataset, _, metric = name.split("/")
        label = " ".join([*dataset, metric])
        axes.plot(iterations, values, color=color, linewidth=1.8, marker="o", markersize=4, label=label)
        best = int(np.argmax(values))
        axes.annotate(
            f"{values[best]:.1f}",
            (iterations[best], values[best]),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontweight="bold",
            color=color,
        )
    axes.margins(y=0.15)
    axes.set_ylim(bottom=0)
    metrics = {name.split("/")[-1] for name in curves}
    axes.set_title(f"{metrics.pop() if len(metrics) == 1 else 'scores'} (%)", loc="left", fontweight="bold")
    if len(curves) > 1:
        axes.legend(frameon=False)
