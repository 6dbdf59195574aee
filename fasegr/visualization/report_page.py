"""The pages of `fasegr.evaluation.report`: of one evaluation (report.html), and of two models (comparison.html)."""

from __future__ import annotations

import base64
import contextlib
import os
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

from fasegr.d2 import DatasetCatalog
from fasegr.data.image_io import open_image, read_label
from fasegr.data.semantic_labels import semantic_labels
from fasegr.evaluation.image_counts import DISTANCES
from fasegr.evaluation.regions import SIZES
from fasegr.evaluation.report import read_report
from fasegr.visualization.figure_layout import resize_to_width
from fasegr.visualization.html_page import (
    INK,
    Cell,
    Markup,
    Section,
    bar,
    details,
    facts,
    gallery,
    notice,
    page,
    paragraph,
    picture,
    plot,
    swatch,
    table,
    thousands,
    write_page,
)
from fasegr.visualization.overlays import as_colors, color_map

__all__ = ["write_comparison_page", "write_report_page"]

_WIDE = 11.4  # inches, as wide as a table
_CELL = 420  # pixels of width of each picture
_BLUE, _RED, _GREEN, _GREY = "#3b7dd8", "#d1495b", "#2f9e6e", "#8a929c"
_MANY = 40  # classes, from which on names do not fit beside a picture of the confusions
_FEW_IMAGES = 20  # of a class, below which its interval is only a hint
_UNREADABLE = (OSError, ValueError)


def write_report_page(folder: str | os.PathLike) -> Path:
    """report.html beside the report.json in `folder`. Returns its path."""
    report = read_report(folder)
    names = [row["name"] for row in report["classes"]]
    colors = as_colors(report["colors"], len(names))
    scores = report["scores"]
    figures = [("mIoU", *_with_interval(scores["mIoU"])), ("Pixel accuracy", *_with_interval(scores["pACC"]))]
    if "BoundaryIoU" in scores:
        figures.append(("Boundary IoU", *_with_interval(scores["BoundaryIoU"])))
    if "ECE" in scores:
        figures.append(("Calibration error (ECE)", *_with_interval(scores["ECE"])))
    figures.append(("Images", thousands(report["num_images"]), report["dataset"]))
    weights = report["weights"] or "weights that are not named"
    lead = paragraph(
        f"{weights}, evaluated on {report['dataset']} on {report['date'][:16].replace('T', ' at ')}. "
        "All scores are in percent; the ranges are 95 % intervals over images."
    )
    with _plain_text():
        sections = [
            Section("Classes", [_class_plot(report, colors), _class_table(report, colors)]),
            Section("Confusions", _confusions(report, names)),
            Section("Size and boundaries", _parts(report)),
            Section("Confidence", _calibration(report)),
            Section("Images", _images(report, names, colors)),
            Section("How this was computed", _method(report)),
        ]
    path = Path(folder, "report.html")
    title = f"Evaluation of {Path(weights).name} on {report['dataset']}"
    footer = "report.json beside this page holds every number, images.csv the scores of each image."
    write_page(path, page(title, sections, lead + facts(figures), footer))
    return path


def write_comparison_page(comparison: Mapping[str, Any], folder: str | os.PathLike) -> Path:
    """comparison.html in `folder`, of what `fasegr.evaluation.report.compare_reports` returns. Returns its path."""
    first, second = comparison["names"]
    value, low, high = comparison["difference"]
    names = [row["name"] for row in comparison["classes"]]
    colors = as_colors(comparison["colors"], len(names))
    gained, lost = ([row["name"] for row in comparison["classes"] if row["outcome"] == o] for o in ("gained", "lost"))
    figures = [
        (f"mIoU of {first}", *_with_interval(comparison["mIoU"][0])),
        (f"mIoU of {second}", *_with_interval(comparison["mIoU"][1])),
        ("Difference", _signed(value), _range(low, high, signed=True)),
        ("Classes gained, lost", f"{len(gained)}, {len(lost)}", f"of {len(names)}"),
        ("Images better, worse", f"{comparison['better']}, {comparison['worse']}", f"of {comparison['num_images']}"),
    ]
    lead = paragraph(
        f"{second} against {first} on the same {comparison['num_images']} images of {comparison['dataset']}, image by "
        "image: what makes an image hard for both does not blur the comparison."
    )
    with _plain_text():
        sections = [
            Section("Verdict", [_verdict(comparison), *_outcomes(gained, lost, second)]),
            Section("Classes", [_difference_plot(comparison), _difference_table(comparison, colors)]),
            Section("Images", [_scatter(comparison), *_changed(comparison, names, colors)]),
            Section("How this was computed", [_COMPARISON_METHOD.format(comparison["resamples"])]),
        ]
    path = Path(folder, "comparison.html")
    path.parent.mkdir(parents=True, exist_ok=True)
    footer = "comparison.json beside this page holds every number, comparison.csv the scores of each image."
    write_page(path, page(f"{second} against {first}", sections, lead + facts(figures), footer))
    return path


@contextlib.contextmanager
def _plain_text() -> Iterator[None]:
    """Names of classes are no formulas, and letters that matplotlib's font lacks are drawn by the browser's."""
    with matplotlib.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def _text(value: float | None, decimals: int = 1) -> str:
    return "–" if value is None else f"{value:.{decimals}f}"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.1f}".replace("-", "−") if abs(value) >= 0.05 else "0.0"


def _range(low: float | None, high: float | None, *, signed: bool = False) -> str:
    if low is None:
        return "no interval"
    show = _signed if signed else _text
    return f"{show(low)} to {show(high)}"


def _with_interval(score: Sequence[float | None]) -> tuple[str, str]:
    return _text(score[0]), _range(*score[1:])


def _class_plot(report: Mapping[str, Any], colors: np.ndarray) -> Markup:
    """Points with intervals, the best class first."""
    rows = [(i, row) for i, row in enumerate(report["classes"]) if row["IoU"][0] is not None]
    rows.sort(key=lambda pair: pair[1]["IoU"][0])

    def draw(axes) -> None:
        height = np.arange(len(rows))
        for y, (i, row) in zip(height, rows, strict=True):
            value, low, high = row["IoU"]
            if low is not None:
                axes.plot([low, high], [y, y], color=colors[i] / 255, linewidth=5, alpha=0.45, solid_capstyle="round")
            axes.plot(value, y, "o", color=colors[i] / 255, markersize=6, markeredgecolor=INK, markeredgewidth=0.6)
        _line(axes, report["scores"]["mIoU"][0], "mIoU")
        axes.set_yticks(height, [row["name"] for _, row in rows], fontsize=9 if len(rows) <= _MANY else 6)
        axes.set_ylim(-0.7, len(rows) - 0.3)
        axes.set_xlim(0, 100)
        axes.set_xlabel("IoU in percent")
        axes.grid(axis="y", visible=False)

    size = (_WIDE, 1.1 + (0.27 if len(rows) <= _MANY else 0.13) * len(rows))
    best = ", ".join(f"{row['name']} {_text(row['IoU'][0])}" for _, row in reversed(rows[-3:]))
    worst = ", ".join(f"{row['name']} {_text(row['IoU'][0])}" for _, row in rows[:3])
    alt = f"IoU of each class with its interval. The best are {best}; the lowest are {worst}."
    return plot(draw, alt, "IoU of each class; the band is its 95 % interval over images.", size=size)


def _line(axes, at: float, text: str) -> None:
    axes.axvline(at, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.6)
    axes.annotate(
        f"{text} {at:.1f}", (at, 1), xycoords=("data", "axes fraction"), xytext=(3, 1), textcoords="offset points"
    )


def _class_table(report: Mapping[str, Any], colors: np.ndarray) -> Markup:
    total = sum(row["pixels"] for row in report["classes"])
    edges = "BoundaryIoU" in report["scores"]
    rows = []
    for color, row in zip(colors, report["classes"], strict=True):
        value, low, high = row["IoU"]
        line = [
            swatch(color, row["name"]),
            bar(value / 100, _text(value), color) if value is not None else None,
            Cell(_range(low, high), (high or 0) - (low or 0)),
            _score_cell(row["ACC"]),
        ]
        if edges:
            line.append(_score_cell(row["BoundaryIoU"]))
        share = 100 * row["pixels"] / total
        rows.append(
            [*line, Cell(f"{share:.2f} %" if share >= 0.005 or not share else "< 0.01 %", share), row["images"]]
        )
    header = ["Class", "IoU", "95 % interval", "Accuracy", *(["Boundary IoU"] if edges else []), "Pixels", "Images"]
    missing = [row["name"] for row in report["classes"] if not row["pixels"]]
    few = [row["name"] for row in report["classes"] if 0 < row["images"] < _FEW_IMAGES]
    caption = "Accuracy is the share of the class's pixels that were found. A click on a title sorts."
    notes = []
    if missing:
        notes.append(
            notice(
                "warning",
                "Without a score",
                f"No image shows {', '.join(missing)}, so they have none and count in no mean.",
            )
        )
    if few:
        notes.append(
            notice(
                "advice",
                "Few images",
                f"{', '.join(few)}: in fewer than {_FEW_IMAGES} images, so the intervals are only a hint.",
            )
        )
    return table(header, rows, caption) + Markup("").join(notes)


def _score_cell(score: Sequence[float | None]) -> Cell | None:
    return None if score[0] is None else Cell(f"{score[0]:.1f} ({_range(*score[1:])})", score[0])


def _confusions(report: Mapping[str, Any], names: Sequence[str]) -> list[Markup | str]:
    largest = report["largest_confusions"]
    if not largest:
        return ["There is none: every pixel is right."]
    confusion = np.array(report["confusion"], np.float64)
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    words = Markup("").join(
        Markup("<li><strong>{}</strong> taken for <strong>{}</strong>: {} % of all {}, {} % of all errors</li>").format(
            *(row["truth"], row["predicted"], _text(row["share_of_class"]), row["truth"], _text(row["share_of_errors"]))
        )
        for row in largest
    )
    first = largest[0]
    alt = f"Confusion matrix. The largest confusion is {first['truth']} taken for {first['predicted']}."
    side = min(9.0, max(4.2, 1.8 + 0.36 * len(names))) if len(names) <= _MANY else 9.0
    caption = "Rows are true classes and columns predicted ones, as shares of the row. Blue is right, red is wrong."
    return [
        Markup("<h3>The largest confusions</h3><ol>{}</ol>").format(words),
        plot(lambda axes: _draw_confusion(axes, shares, names), alt, caption, size=(side + 0.8, side)),
    ]


def _draw_confusion(axes, shares: np.ndarray, names: Sequence[str]) -> None:
    count = len(names)
    cells = np.zeros((count, count, 4))
    cells[..., :3] = matplotlib.colors.to_rgb(_RED)
    cells[np.arange(count), np.arange(count), :3] = matplotlib.colors.to_rgb(_BLUE)
    cells[..., 3] = np.sqrt(shares)  # so that a confusion of a few percent is seen
    axes.imshow(cells, interpolation="nearest")
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth")
    axes.grid(visible=False)
    if count <= _MANY:
        axes.set_xticks(range(count), names, rotation=90)
        axes.set_yticks(range(count), names)
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    if count <= 20:
        for truth, predicted in zip(*np.nonzero(shares >= 0.005), strict=True):
            text = f"{100 * shares[truth, predicted]:.0f}"
            axes.text(predicted, truth, text, ha="center", va="center", fontsize=7, color=INK)


def _parts(report: Mapping[str, Any]) -> list[Markup | str]:
    sizes, distances = report["by_size"], report["by_distance"]
    size_labels = [
        f"< {row['to_side']}²" if not row["from_side"] else f"{row['from_side']}²–{row['to_side']}²"
        for row in sizes[:-1]
    ] + [f"≥ {SIZES[-1]}²"]
    distance_labels = [f"{row['from'] + 1}–{row['to']}" if row["to"] else f"> {DISTANCES[-1]}" for row in distances]

    def draw(left, right) -> None:
        for axes, rows, labels, score, what in (
            (left, sizes, size_labels, "mIoU", "size of the object in pixels"),
            (right, distances, distance_labels, "pACC", "pixels to the nearest boundary"),
        ):
            _draw_part(axes, rows, labels, score)
            axes.set_xlabel(what)
        left.set_title("mIoU by size of object")
        right.set_title("Accuracy by distance from a boundary")

    alone = report["predicted_without_object"]
    text = (
        f"{_text(alone['share_of_errors'])} % of the wrong pixels lie in regions that touch no object of the predicted "
        "class: something was seen where there is nothing of the kind."
        if alone["share_of_errors"] is not None
        else ""
    )
    alt = "; ".join(
        f"objects of {label} pixels: mIoU {_text(row['mIoU'][0])}"
        for label, row in zip(size_labels, sizes, strict=True)
    )
    alt += "; " + "; ".join(
        f"{label} pixels from a boundary: accuracy {_text(row['pACC'][0])}"
        for label, row in zip(distance_labels, distances, strict=True)
    )
    header = ["", "mIoU", "Pixel accuracy", "Pixels", "Classes"]
    rows = [
        [label, _score_cell(row["mIoU"]), _score_cell(row["pACC"]), row["pixels"], row["classes"]]
        for label, row in zip(
            [f"objects of {label} pixels" for label in size_labels]
            + [f"{label} pixels from a boundary" for label in distance_labels],
            [*sizes, *distances],
            strict=True,
        )
    ]
    caption = (
        "Each over the classes that have objects of that size, or pixels at that distance; bands are 95 % intervals."
    )
    return [plot(draw, alt, caption, size=(_WIDE, 3.4), ncols=2), text, details("The numbers", table(header, rows))]


def _draw_part(axes, rows: Sequence[Mapping[str, Any]], labels: Sequence[str], score: str) -> None:
    shown = [i for i, row in enumerate(rows) if row[score][0] is not None]
    values, lows, highs = (
        np.array([np.nan if rows[i][score][k] is None else rows[i][score][k] for i in shown], float) for k in range(3)
    )
    axes.fill_between(shown, lows, highs, color=_BLUE, alpha=0.22, linewidth=0)
    axes.plot(shown, values, "o-", color=_BLUE, markersize=5)
    for i, value in zip(shown, values, strict=True):
        axes.annotate(f"{value:.0f}", (i, value), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8)
    axes.set_xticks(range(len(labels)), labels, fontsize=8)
    axes.set_xlim(-0.4, len(labels) - 0.6)
    axes.set_ylim(0, 105)


def _calibration(report: Mapping[str, Any]) -> list[Markup | str]:
    if report["calibration"] is None:
        return [
            notice(
                "advice",
                "Not measured",
                "The model returned only the class of each pixel. MODEL.MASK_FORMER.TEST.SEMANTIC_OUTPUT scores "
                "returns the scores that confidence is computed from.",
            )
        ]
    bins = [row for row in report["calibration"] if row["pixels"]]
    total = sum(row["pixels"] for row in bins)
    confidence, right, share = (
        np.array(values)
        for values in zip(
            *((row["confidence"], row["right"], 100 * row["pixels"] / total) for row in bins), strict=True
        )
    )

    def draw(left, axes) -> None:
        left.plot([0, 100], [0, 100], color=INK, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.6)
        left.fill_between(confidence, confidence, right, color=_RED, alpha=0.18, linewidth=0)
        left.plot(confidence, right, "o-", color=_BLUE, markersize=5)
        left.set(xlim=(0, 100), ylim=(0, 100), xlabel="confidence", ylabel="right", title="Reliability")
        left.set_aspect("equal")
        middles = [50 * (row["from"] + row["to"]) for row in bins]
        axes.bar(middles, share, width=90 / len(report["calibration"]), color=_BLUE, alpha=0.75)
        axes.set(xlim=(0, 100), xlabel="confidence", ylabel="pixels in percent", title="How sure it is")

    gap = float((share * (confidence - right)).sum() / 100)
    value, low, high = report["scores"]["ECE"]
    how = "surer than it should be" if gap > 0 else "less sure than it could be"
    even = abs(gap) < 0.5
    text = (
        f"When it says p percent, is it right in p percent of the pixels? On average it is off by {_text(value)} "
        f"points ({_range(low, high)}). "
        + (
            "Overall it is neither too sure nor too unsure."
            if even
            else f"Overall it is {how}, by {abs(gap):.1f} points."
        )
    )
    alt = f"Reliability diagram: expected calibration error {_text(value)}, mean confidence minus accuracy {gap:.1f}."
    definition = (
        "A mask-classification model has no distribution over the classes of a pixel: its score for a class is the "
        "sum over queries of class probability times mask probability. Confidence is the predicted class's share in "
        "the sum of the pixel's scores. ECE is the mean over pixels of |confidence − accuracy| in 15 bins of "
        "confidence."
    )
    return [text, plot(draw, alt, size=(_WIDE, 3.9), ncols=2), details("How confidence is defined", definition)]


def _images(report: Mapping[str, Any], names: Sequence[str], colors: np.ndarray) -> list[Markup | str]:
    values = [row["mIoU"] for row in report["images"] if row["mIoU"] is not None]

    def draw(axes) -> None:
        axes.hist(values, bins=np.linspace(0, 100, 41), color=_BLUE, alpha=0.75)
        _line(axes, float(np.median(values)), "median")
        axes.set(xlim=(0, 100), xlabel="mIoU of an image, over the classes in it", ylabel="images")

    alt = f"Histogram of the mIoU of images; the median is {np.median(values):.1f}."
    parts = [plot(draw, alt, size=(_WIDE, 2.5)), _legend(names, colors)]
    for title, chosen in (("The worst", report["worst"]), ("From the middle", report["median"])):
        if chosen:
            parts.append(Markup("<h3>{}</h3>").format(title))
            parts += [_panel(report, report["images"][i], names, colors) for i in chosen]
    return parts


def _legend(names: Sequence[str], colors: np.ndarray) -> Markup:
    entries = Markup(" ").join(
        Markup('<span style="white-space:nowrap;margin-right:1.2em">{}</span>').format(swatch(color, name).content)
        for name, color in zip(names, colors, strict=True)
    )
    return Markup("<p>{}</p>").format(entries)


def _panel(report: Mapping[str, Any], row: Mapping[str, Any], names: Sequence[str], colors: np.ndarray) -> Markup:
    """An image, its truth and prediction, where they differ and how sure the model is."""
    title = f"{Path(row['file_name']).name}: mIoU {_text(row['mIoU'])}, {_text(row['pACC'])} % of the pixels right"
    try:
        photo = open_image(row["file_name"])
        truth = _truth(report["dataset"], row, report["ignore_label"])
        prediction = read_label(Path(report["path"]).parent / row["prediction"])
        _check_shapes(photo, truth, prediction)
    except _UNREADABLE as error:
        return notice("advice", title, f"No pictures: {error}")
    file = Path(row["file_name"]).name
    wrong = (truth != prediction) & (truth != report["ignore_label"])
    pictures = [
        _picture(photo, f"{file}", "image"),
        _picture(color_map(truth, colors), f"{file}: true classes", "truth"),
        _picture(color_map(prediction, colors), f"{file}: predicted classes", "prediction"),
        _picture(_marked(photo, [(wrong, _RED)]), f"{file}: {100 * wrong.mean():.1f} % wrong", "errors in red"),
    ]
    if "confidence_map" in row:
        pictures.append(
            _picture(
                _confidence_picture(row["confidence_map"], photo.size),
                f"{file}: confidence",
                "confidence: dark is unsure",
            )
        )
    worst = sorted((value, names[int(i)]) for i, value in row["IoU"].items())[:3]
    lowest = "lowest IoU: " + ", ".join(f"{name} {_text(value)}" for value, name in worst)
    return Markup("<p><strong>{}</strong><br><small>{}</small></p>{}").format(title, lowest, gallery(pictures, 190))


def _truth(dataset: str, row: Mapping[str, Any], ignore_label: int) -> np.ndarray:
    if row["truth"] is not None:
        return read_label(row["truth"])
    records = DatasetCatalog.get(dataset) if dataset in DatasetCatalog.list() else ()
    record = next((record for record in records if record["file_name"] == row["file_name"]), None)
    if record is None:
        raise ValueError(
            f"the ground truth of {row['file_name']} is no label map of class numbers, and the dataset that reads it, "
            f"{dataset}, is known only to its config"
        )
    return semantic_labels(record, ignore_label)


def _check_shapes(photo: Image.Image, *maps: np.ndarray) -> None:
    for labels in maps:
        if labels.shape != (photo.height, photo.width):
            raise ValueError("the image and its label maps are no longer of one size")


def _picture(image: Image.Image, alt: str, caption: str) -> Markup:
    smooth = caption == "image" or caption.startswith(("errors", "green"))
    if image.width > _CELL:
        image = resize_to_width(image, _CELL, smooth=smooth)
    return picture(image, alt, caption, lossless=not smooth and "confidence" not in caption)


def _marked(photo: Image.Image, marks: Iterable[tuple[np.ndarray, str]]) -> Image.Image:
    """The image in light grey, with masks (H, W) in colours."""
    pixels = np.asarray(photo.convert("L"), np.float64)[..., None].repeat(3, 2) * 0.55 + 105
    for mask, color in marks:
        pixels[mask] = 0.25 * pixels[mask] + 0.75 * 255 * np.array(matplotlib.colors.to_rgb(color))
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def _confidence_picture(stored: Mapping[str, Any], size: tuple[int, int]) -> Image.Image:
    levels = np.frombuffer(zlib.decompress(base64.b64decode(stored["data"])), np.uint8).reshape(stored["shape"])
    colors = matplotlib.colormaps["cividis"](levels / 63, bytes=True)[..., :3]
    return Image.fromarray(colors).resize(
        (min(size[0], _CELL), round(size[1] * min(1, _CELL / size[0]))), Image.Resampling.BILINEAR
    )


def _method(report: Mapping[str, Any]) -> list[str]:
    return [
        f"Intervals: {report['resamples']} bootstrap resamples of the images, with a fixed seed; expanded "
        "percentiles, which held the truth in 92 to 95 of 100 simulated datasets of 50 images and more. They say "
        "how much the scores would change with other images of the same kind, not with another training. Images "
        "that are frames of one video resemble each other, and then the intervals are too narrow.",
        "IoU of a class is over the pixels of all images. The mIoU of an image is over the classes in it. Pixels "
        "that the ground truth ignores are left out of everything.",
        "An object is a connected region of one class in the ground truth. Pixels that were wrongly predicted as "
        "its class count against the object that their region covers most of. Distances are the larger of those "
        "along rows and columns, to the nearest pixel with another label.",
    ]


def _verdict(comparison: Mapping[str, Any]) -> Markup:
    first, second = comparison["names"]
    value, low, high = comparison["difference"]
    interval = f"95 % interval {_range(low, high, signed=True)}; {_p(comparison['p'], 'p ')}"
    numbers = f"{_signed(value)} points of mIoU ({interval})."
    if low is None or low <= 0 <= high:
        return notice("advice", f"{first} and {second} cannot be told apart on these images", numbers)
    if value > 0:
        return notice("good", f"{second} is better than {first}", numbers)
    return notice("warning", f"{second} is worse than {first}", numbers)


def _p(p: float | None, name: str = "") -> str:
    if p is None:
        return f"{name}–"
    return f"{name}< 0.001" if p < 0.001 else f"{name}{'= ' if name else ''}{p:.3f}"


def _outcomes(gained: Sequence[str], lost: Sequence[str], second: str) -> list[str]:
    lines = [(gained, "gained"), (lost, "lost")]
    texts = [f"With {second}, {', '.join(names)} {word}." for names, word in lines if names]
    return texts or ["No single class gained or lost more than chance explains."]


def _difference_plot(comparison: Mapping[str, Any]) -> Markup:
    rows = [row for row in comparison["classes"] if row["difference"][0] is not None]
    rows.sort(key=lambda row: row["difference"][0])
    tones = {"gained": _GREEN, "lost": _RED, "not told apart": _GREY}

    def draw(axes) -> None:
        for y, row in enumerate(rows):
            value, low, high = row["difference"]
            tone = tones[row["outcome"]]
            if low is not None:
                axes.plot([low, high], [y, y], color=tone, linewidth=5, alpha=0.4, solid_capstyle="round")
            axes.plot(value, y, "o", color=tone, markersize=6, markeredgecolor=INK, markeredgewidth=0.6)
        axes.axvline(0, color=INK, linewidth=0.9)
        axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=9 if len(rows) <= _MANY else 6)
        axes.set_ylim(-0.7, len(rows) - 0.3)
        axes.set_xlabel("difference of IoU in points")
        axes.grid(axis="y", visible=False)

    height = 1.1 + (0.27 if len(rows) <= _MANY else 0.13) * len(rows)
    alt = "; ".join(f"{row['name']} {_signed(row['difference'][0])}" for row in reversed(rows))
    caption = "Difference of each class with its 95 % interval: green gained, red lost, grey cannot be told apart."
    return plot(draw, alt, caption, size=(_WIDE, height))


def _difference_table(comparison: Mapping[str, Any], colors: np.ndarray) -> Markup:
    first, second = comparison["names"]
    rows = [
        [
            swatch(color, row["name"]),
            *(None if value is None else Cell(_text(value), value) for value in row["IoU"]),
            None if row["difference"][0] is None else Cell(_signed(row["difference"][0]), row["difference"][0]),
            _range(*row["difference"][1:], signed=True),
            None if row["p"] is None else Cell(_p(row["p"]), row["p"]),
            row["outcome"],
            row["images"],
        ]
        for color, row in zip(colors, comparison["classes"], strict=True)
    ]
    header = ["Class", first, second, "Difference", "95 % interval", "p", "Outcome", "Images"]
    return table(header, rows, "IoU in percent. A click on a title sorts.")


def _scatter(comparison: Mapping[str, Any]) -> Markup:
    first, second = comparison["names"]
    pairs = np.array([row["mIoU"] for row in comparison["images"] if None not in row["mIoU"]], float).reshape(-1, 2)

    def draw(axes) -> None:
        axes.plot([0, 100], [0, 100], color=INK, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.6)
        better = pairs[:, 1] > pairs[:, 0]
        for chosen, tone in ((better, _GREEN), (~better, _RED)):
            axes.plot(*pairs[chosen].T, "o", color=tone, markersize=4, alpha=0.55, markeredgewidth=0)
        low, high = (pairs.min() - 3, pairs.max() + 3) if len(pairs) else (0, 100)
        axes.set(xlim=(low, high), ylim=(low, high), xlabel=f"mIoU with {first}", ylabel=f"mIoU with {second}")
        axes.set_aspect("equal")

    alt = f"Each image's mIoU with both models: {comparison['better']} are better with {second}."
    return plot(draw, alt, f"Each point is an image; above the line, {second} is better.", size=(5.2, 4.6))


def _changed(comparison: Mapping[str, Any], names: Sequence[str], colors: np.ndarray) -> list[Markup]:
    second, parts = comparison["names"][1], [_legend(names, colors)]
    for how, chosen in comparison["changed_most"].items():
        if chosen:
            parts.append(Markup("<h3>Changed most, {} with {}</h3>").format(how, second))
            parts += [_changed_panel(comparison, comparison["images"][i], colors) for i in chosen]
    return parts


def _changed_panel(comparison: Mapping[str, Any], row: Mapping[str, Any], colors: np.ndarray) -> Markup:
    first, second = comparison["names"]
    file = Path(row["file_name"]).name
    title = f"{file}: mIoU {_text(row['mIoU'][0])} and {_text(row['mIoU'][1])}, {_signed(row['change'])}"
    try:
        photo = open_image(row["file_name"])
        truth = _truth(comparison["dataset"], row, comparison["ignore_label"])
        maps = [read_label(path) for path in row["predictions"]]
        _check_shapes(photo, truth, *maps)
    except _UNREADABLE as error:
        return notice("advice", title, f"No pictures: {error}")
    right = [(labels == truth) & (truth != comparison["ignore_label"]) for labels in maps]
    marks = [(right[1] & ~right[0], _GREEN), (right[0] & ~right[1], _RED)]
    pictures = [
        _picture(photo, file, "image"),
        _picture(color_map(truth, colors), f"{file}: true classes", "truth"),
        *(
            _picture(color_map(labels, colors), f"{file}: classes predicted by {name}", name)
            for labels, name in zip(maps, (first, second), strict=True)
        ),
        _picture(
            _marked(photo, marks), f"{file}: where one is right", f"green: only {second} is right; red: only {first}"
        ),
    ]
    return Markup("<p><strong>{}</strong></p>{}").format(title, gallery(pictures, 190))


_COMPARISON_METHOD = (
    "The interval of the difference: {} bootstrap resamples of the images, the same for both models, with expanded "
    "percentiles. p: 10 000 random exchanges of the two models' results image by image, two-sided. A class has "
    "gained or lost if its p stands out after the correction of Benjamini and Hochberg, by which about one in "
    "twenty of the classes named is named by chance. All this is about other images of the same kind, not about "
    "another training: two trainings of one model with different seeds differ too, so compare several where the "
    "difference is small."
)
