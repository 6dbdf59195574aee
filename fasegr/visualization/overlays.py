"""Pictures: segments painted over a photograph, comparisons with the truth, and the course of a training."""

from __future__ import annotations

import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy import ndimage
from torch import Tensor

from fasegr.evaluation.boundary import boundary_mask
from fasegr.visualization.figure_layout import (
    INK,
    PAPER,
    Style,
    legend,
    picture_table,
    rounded_box,
    scaled,
    stack,
    with_note,
)

__all__ = ["overlay", "palette", "plot_training", "side_by_side"]

Photo = Image.Image | np.ndarray
Labels = np.ndarray | Tensor
Colors = Sequence[Sequence[int]] | np.ndarray

# Chosen by eye, to look well together; from here on each colour is as far from all before it as can be.
_FIRST_COLORS = (
    (66, 133, 205), (240, 142, 48), (92, 174, 82), (214, 69, 80), (150, 112, 196), (246, 206, 72),
    (72, 186, 190), (226, 122, 176), (150, 104, 76), (164, 200, 92), (124, 134, 150), (238, 160, 138),
)  # fmt: skip
_UNLABELLED = (224, 227, 231)
_READABLE = 384  # pixels of the shorter side, about, at which names can be read and leave something to see
_SCORES = ("sem_seg/mIoU", "segm/AP", "panoptic_seg/PQ")  # that curves are drawn of
_PLACING = 512  # pixels of the longer side of the map on which places for names are searched


# Colours


def palette(n: int) -> np.ndarray:
    """n colours that are easy to tell apart, the same on every call; fewer colours are the beginning of more.

    Returns (n, 3) uint8, RGB.
    """
    first = np.array(_FIRST_COLORS, np.uint8)
    if n <= len(first):
        return first[:n]
    steps = np.linspace(20, 250, 24).round()
    candidates = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    lab = _cielab(candidates)
    # Near black and white a colour reads as shade or light in the photograph, grey as no colour, and the purest glare.
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    usable = (lab[:, 0] > 30) & (lab[:, 0] < 90) & (chroma > 15) & (chroma < 78)
    candidates, lab = candidates[usable], lab[usable]
    distance = ((lab[:, None] - _cielab(first)) ** 2).sum(-1).min(1)
    added = []
    for _ in range(n - len(first)):
        farthest = int(distance.argmax())
        added.append(candidates[farthest])
        distance = np.minimum(distance, ((lab - lab[farthest]) ** 2).sum(1))
    return np.concatenate([first, np.array(added, np.uint8)])


def _cielab(rgb: np.ndarray) -> np.ndarray:
    """(n, 3) sRGB of 0..255 in CIELAB (white D65), where distances are about those that the eye sees."""
    c = rgb / 255.0
    linear = np.where(c > 0.04045, ((c + 0.055) / 1.055) ** 2.4, c / 12.92)
    xyz = linear @ np.array([[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]])
    t = xyz / np.array([0.9505, 1.0, 1.089])
    f = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


# Pictures of segments


def overlay(
    image: Photo,
    labels: Labels,
    class_names: Sequence[str],
    colors: Colors | None = None,
    alpha: float = 0.5,
    entries: Sequence[tuple[str, Sequence[int]]] | None = None,
) -> Image.Image:
    """A photograph with its segments tinted, outlined and named, above a legend of the classes in it.

    image: PIL image, or uint8 (H, W, 3) RGB; labels: (H, W) class indices; other values, as 255, are left unpainted;
    colors: (C, 3) RGB, `palette` if None; alpha: 0 shows the photograph, 1 the colours alone; entries: names and
    colours in the legend, the classes' if None.
    Returns an RGB image: the photograph at its size (a small one enlarged, so that names can be read), and the legend.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it must be between 0 (photograph only) and 1 (colours only)")
    photo, (labels,), colors = _checked(image, [labels], class_names, colors)
    enlargement = max(1, round(_READABLE / min(photo.size)))
    if enlargement > 1:
        photo = photo.resize((photo.width * enlargement, photo.height * enlargement), Image.Resampling.BICUBIC)
        labels = labels.repeat(enlargement, 0).repeat(enlargement, 1)
    style = Style.of(min(photo.size))
    picture = _paint(photo, labels, colors, alpha, style)
    _write_names(picture, labels, class_names, style)
    if entries is None:
        entries = [(class_names[c], colors[c]) for c in _present(labels, len(class_names))]
    return stack([picture, legend(entries, picture.width, style)])


def side_by_side(
    rows: Iterable[tuple[Photo, Labels, Labels]],
    class_names: Sequence[str],
    colors: Colors | None = None,
    ignore_label: int = 255,
    *,
    titles: Sequence[str] = ("Image", "Truth", "Prediction"),
    notes: Sequence[Sequence[str]] = (),
    cell_width: int = 480,
) -> Image.Image:
    """Rows of image, truth and prediction, in columns with titles, above a legend of the classes in them.

    rows: (image, truth, prediction), an image as in `overlay` and label maps (H, W); as many maps as there are titles
    after the first are taken, e.g. predictions of several models. Pixels with ignore_label are light grey.
    notes: for each row in turn, what is written below each of its pictures; nothing where all are "".
    cell_width: pixels that every picture is scaled to. Returns an RGB image.
    """
    colors_given, present, unlabelled = colors, set(), False
    lines = []
    for image, *maps in rows:
        if len(maps) != len(titles) - 1:
            raise ValueError(
                f"a row has {len(maps) + 1} pictures; with the titles {tuple(titles)} it needs {len(titles)}"
            )
        photo, maps, colors = _checked(image, maps, class_names, colors_given)
        cells = [scaled(photo, cell_width)]
        for labels in maps:
            classes = _present(labels, len(class_names))
            present.update(classes)
            unlabelled |= bool((labels == ignore_label).any())
            cells.append(scaled(_color_map(labels, colors), cell_width, smooth=False))
        lines.append(cells)
    if not lines:
        raise ValueError("there are no rows to show; give at least one of (image, truth, prediction)")
    style = Style.of(round(1.1 * cell_width))
    for cells, row_notes in zip(lines, notes, strict=False):
        if any(row_notes):
            cells[:] = [with_note(cell, note, style) for cell, note in zip(cells, row_notes, strict=True)]
    entries = [(class_names[c], colors[c]) for c in sorted(present)]
    if unlabelled:
        entries.append(("not labelled", _UNLABELLED))
    return picture_table(lines, titles, entries, cell_width)


def _checked(
    image: Photo, maps: Sequence[Labels], class_names: Sequence[str], colors: Colors | None
) -> tuple[Image.Image, list[np.ndarray], np.ndarray]:
    """The RGB photograph, label maps of its size as int64 arrays, and (C, 3) uint8 colours."""
    if not isinstance(image, Image.Image):
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"the image is {image.dtype} of shape {image.shape}; expected uint8 (H, W, 3), RGB")
        image = Image.fromarray(image)
    arrays = [np.asarray(m.cpu() if isinstance(m, Tensor) else m) for m in maps]
    for labels in arrays:
        if labels.shape != (image.height, image.width) or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"labels are {labels.dtype} of shape {labels.shape}; expected integers of the image's size, "
                f"{(image.height, image.width)} (height, width)"
            )
    rgb = palette(len(class_names)) if colors is None else np.asarray(colors, np.uint8)
    if rgb.shape != (len(class_names), 3):
        raise ValueError(f"colours have shape {rgb.shape}; expected {(len(class_names), 3)}, RGB for each class")
    return image.convert("RGB"), [labels.astype(np.int64) for labels in arrays], rgb


def _present(labels: np.ndarray, num_classes: int) -> list[int]:
    return [int(c) for c in np.unique(labels) if 0 <= c < num_classes]


def _color_map(labels: np.ndarray, colors: np.ndarray) -> Image.Image:
    """Each pixel in the colour of its class, or in that of the unlabelled."""
    table = np.concatenate([colors, np.array([_UNLABELLED], np.uint8)])
    return Image.fromarray(table[np.where((labels >= 0) & (labels < len(colors)), labels, len(colors))])


def _paint(photo: Image.Image, labels: np.ndarray, colors: np.ndarray, alpha: float, style: Style) -> Image.Image:
    """Tint the segments, and outline each on its inner side, where it meets another one."""
    painted = (labels >= 0) & (labels < len(colors))
    width = style.line
    around = np.pad(labels, width, mode="edge")  # the frame of the picture is nobody's outline
    outline = boundary_mask(torch.from_numpy(around), width).numpy()[width:-width, width:-width]
    weight = np.where(outline, max(alpha, 0.85) if alpha > 0 else 0, alpha) * painted
    mask = Image.fromarray((255 * weight).round().astype(np.uint8))
    return Image.composite(_color_map(labels, colors), photo, mask)


def _write_names(picture: Image.Image, labels: np.ndarray, class_names: Sequence[str], style: Style) -> None:
    """Write names of classes into their segments, the largest segments first, as long as there is room."""
    pad = round(0.3 * style.text)
    height = style.text + 2 * pad
    places = []
    for c in _present(labels, len(class_names)):
        width = style.width(class_names[c]) + 2 * pad
        places += [(*place, class_names[c], width) for place in _places(labels == c, height, width)]
    draw = ImageDraw.Draw(picture)
    boxes: list[tuple[int, int, int, int]] = []
    for _, _, (y, x), name, width in sorted(places):
        left = min(max(round(x - width / 2), 1), max(picture.width - width - 1, 0))
        top = min(max(round(y - height / 2), 1), max(picture.height - height - 1, 0))
        box = (left, top, left + width, top + height)
        if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in boxes):
            continue
        boxes.append(box)
        rounded_box(picture, box, INK, opacity=0.65)
        draw.text((left + width / 2, top + height / 2), name, fill=PAPER, font=style.font, anchor="mm")


def _places(mask: np.ndarray, height: int, width: int) -> list[tuple[int, int, tuple[float, float]]]:
    """Where the name of a class may stand, as (rank, -area, (y, x)): in order, the first is to be had first.

    mask: (H, W), the pixels of the class; height, width: of the box around the name. Rank 0 is the largest segment,
    which has its name unless it is but a speck; others have it where it is no crowding.
    """
    step = math.ceil(max(mask.shape) / _PLACING)
    segments, count = ndimage.label(mask[::step, ::step])
    areas = np.bincount(segments.ravel(), minlength=count + 1)[1:] * step * step
    boxes = ndimage.find_objects(segments)
    places = []
    for rank, segment in enumerate(np.argsort(-areas, kind="stable")[:4]):
        if areas[segment] < (0.3 * width * height if rank == 0 else 0.02 * mask.size):
            break
        ys, xs = boxes[segment]
        inside = np.pad(segments[ys, xs] == segment + 1, 1)
        # Distance to the edge in units of the name's box: where it is largest, the box fits best.
        room = ndimage.distance_transform_edt(inside, sampling=(1 / height, 1 / width))
        best = np.argwhere(room >= 0.98 * room.max())  # along a pole many places are as good: take the middle one
        y, x = best[((best - best.mean(0)) ** 2).sum(1).argmin()]
        center = (step * (ys.start + y - 0.5), step * (xs.start + x - 0.5))  # 1 less for the padding, 1/2 more
        places.append((rank, -int(areas[segment]), center))
    return places


# The course of a training


def plot_training(metrics_json: str | os.PathLike, output_png: str | os.PathLike) -> None:
    """Draw the losses and, where there was an evaluation, mIoU, AP and PQ against the iteration.

    metrics_json: what the trainer writes, one JSON object a line; loss_NAME_i of the layers are added up to loss_NAME.
    Of a training that was resumed, what it did again counts. Raises ValueError if there is nothing to draw.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and needed by nothing else here
    from matplotlib.figure import Figure

    series = _read_metrics(metrics_json)
    losses = {name: points for name, points in series.items() if re.fullmatch(r"(total_)?loss(_\w+)?", name)}
    scores = {name: points for name, points in series.items() if re.fullmatch(rf"(.*/)?({'|'.join(_SCORES)})", name)}
    panels = [(draw, curves) for draw, curves in ((_draw_losses, losses), (_draw_scores, scores)) if curves]
    if not panels:
        raise ValueError(f"{metrics_json}: holds neither losses nor scores, so there is nothing to draw")
    figure = Figure(figsize=(5.6 * len(panels), 3.8), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (draw, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw(axes, curves)
        axes.set_xlabel("iteration")
        axes.set_xlim(left=0)
        axes.grid(color="0.92", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    Path(output_png).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output_png, format="png")


def _read_metrics(path: str | os.PathLike) -> dict[str, dict[int, float]]:
    """{name: {iteration: value}}, iterations rising."""
    series: dict[str, dict[int, float]] = defaultdict(dict)
    last = -1
    with open(path, encoding="utf-8") as file:
        for line in file:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # a line that a killed training could not finish
            iteration = entry.pop("iteration", None)
            if iteration is None:
                continue
            if iteration < last:  # resumed from before: what follows takes the place of what was lost
                for points in series.values():
                    for lost in [i for i in points if i >= iteration]:
                        del points[lost]
            last = iteration
            for name, value in entry.items():
                if isinstance(value, int | float) and math.isfinite(value):
                    series[name][iteration] = value
    return {name: points for name, points in series.items() if points}


def _hex(color: Sequence[int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def _draw_losses(axes, curves: dict[str, dict[int, float]]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    sums: dict[str, dict[int, float]] = {}
    for name, points in curves.items():
        total = sums.setdefault(re.sub(r"_\d+$", "", name), defaultdict(float))
        for iteration, value in points.items():
            total[iteration] += value
    ordered = sorted(sums, key=lambda name: (name != "total_loss", name))
    colors = (
        [_hex(INK), *map(_hex, palette(len(ordered)))] if "total_loss" in sums else map(_hex, palette(len(ordered)))
    )
    for name, color in zip(ordered, colors, strict=False):
        iterations, values = zip(*sums[name].items(), strict=True)
        label = "total" if name == "total_loss" else name.removeprefix("loss_")
        thick = 1.8 if name == "total_loss" else 1.3
        marker = "o" if len(values) < 3 else None
        if len(values) >= 60:  # single steps are noisy: they stay behind their running mean
            axes.plot(iterations, values, color=color, linewidth=0.8, alpha=0.25)
            values = ndimage.uniform_filter1d(np.array(values), max(3, len(values) // 30), mode="nearest")
        axes.plot(iterations, values, color=color, linewidth=thick, marker=marker, label=label)
    if all(value > 0 for points in sums.values() for value in points.values()):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title("loss", loc="left", fontweight="bold")
    axes.legend(frameon=False, ncols=2)


def _draw_scores(axes, curves: dict[str, dict[int, float]]) -> None:
    for (name, points), color in zip(curves.items(), map(_hex, palette(len(curves))), strict=True):
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
