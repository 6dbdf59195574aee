"""The report of an evaluation as data: report.json and images.csv. `visualization/report_page.py` draws it."""

from __future__ import annotations

import base64
import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from fasegr.evaluation.calibration import BINS, expected_calibration_error, reliability
from fasegr.evaluation.image_counts import DISTANCES, CountsTable, ImageCounts
from fasegr.evaluation.regions import SIZES
from fasegr.evaluation.statistics import (
    DRAWS,
    Intervals,
    benjamini_hochberg,
    bootstrap,
    class_iou,
    mean_score,
    paired_bootstrap,
    permutation_test,
    resamples,
)
from fasegr.utils.files import replacing, write_json

__all__ = ["build_report", "compare_reports", "read_report", "write_comparison", "write_report"]

FORMAT = "fasegr evaluation report 1"
COMPARISON_FORMAT = "fasegr comparison 1"
WORST, MEDIAN, CHANGED = 6, 3, 4  # images shown
CONFUSIONS = 10


def build_report(
    images: Sequence[ImageCounts],
    class_names: Sequence[str],
    files: Sequence[Mapping[str, str | None]],
    *,
    boundary: bool,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that a report shows, as JSON holds it: scores in percent with the ends of their 95 % intervals, and
    null for what is not defined.

    images: counts of each, in order, of which at least one has ground truth. records: of the dataset by file name.
    boundary: whether boundaries were counted. about: what was evaluated, such as dataset, weights and classes' colours.
    """
    c = len(class_names)
    table = CountsTable.of(images, c)
    weights = resamples(len(images))
    pixels = table.group("all")[0]
    with_class = np.asarray((pixels[:, c : 2 * c] > 0).sum(0)).ravel()  # images

    iou = bootstrap(class_iou, pixels, weights, with_class)
    accuracy = bootstrap(_class_accuracy, pixels, weights, with_class)
    scores = {
        "mIoU": bootstrap(_mean(class_iou), pixels, weights),
        "fwIoU": bootstrap(_weighted_iou, pixels, weights),
        "mACC": bootstrap(_mean(_class_accuracy), pixels, weights),
        "pACC": bootstrap(_pixel_accuracy, pixels, weights),
    }
    columns = {"IoU": iou, "ACC": accuracy}
    if boundary:
        edges = table.group("boundary")[0]
        columns["BoundaryIoU"] = bootstrap(class_iou, edges, weights, with_class)
        scores["BoundaryIoU"] = bootstrap(_mean(class_iou), edges, weights)
    if table.reliability is not None:
        flat = table.reliability.reshape(len(images), -1).astype(np.float64)
        scores["ECE"] = bootstrap(_ece, flat, weights)

    totals = np.asarray(pixels.sum(0)).reshape(3, c)
    confusion = np.asarray(table.confusion.sum(0)).reshape(c, c).astype(np.int64)
    sides = ["0", *map(str, SIZES)]
    rows = {
        "format": FORMAT,
        **about,
        "num_images": len(images),
        "resamples": DRAWS,
        "scores": {name: _triples(intervals)[0] for name, intervals in scores.items()},
        "classes": [
            {
                "name": name,
                "images": int(with_class[i]),
                "pixels": int(totals[1, i]),
                "predicted_pixels": int(totals[2, i]),
                **{column: _triple(intervals, i) for column, intervals in columns.items()},
            }
            for i, name in enumerate(class_names)
        ],
        "confusion": confusion.tolist(),
        "largest_confusions": _largest_confusions(confusion, class_names),
        "by_size": [
            {"from_side": int(sides[i]), "to_side": SIZES[i] if i < len(SIZES) else None, **_part(part, weights, c)}
            for i, part in enumerate(table.group("size")[:-1])
        ],
        "predicted_without_object": _without_object(table.group("size")[-1], totals, c),
        "by_distance": [
            {
                "from": 0 if i == 0 else DISTANCES[i - 1],
                "to": DISTANCES[i] if i < len(DISTANCES) else None,
                **_part(part, weights, c),
            }
            for i, part in enumerate(table.group("distance"))
        ],
        "calibration": _calibration(table.reliability),
    }
    rows["images"] = _image_rows(images, table, files, boundary)
    ranked = sorted(
        (i for i, row in enumerate(rows["images"]) if row["mIoU"] is not None), key=lambda i: rows["images"][i]["mIoU"]
    )
    rows["worst"] = ranked[:WORST]
    # The middle ones of the rest, in a set of few images.
    middle = (len(ranked) - MEDIAN) // 2
    rows["median"] = [i for i in ranked[max(middle, 0) : max(middle, 0) + MEDIAN] if i not in rows["worst"]]
    for i in [*rows["worst"], *rows["median"]]:
        if images[i].confidence is not None:
            data, *shape = images[i].confidence
            rows["images"][i]["confidence_map"] = {"shape": shape, "data": base64.b64encode(data).decode("ascii")}
    return rows


def write_report(report: Mapping[str, Any], folder: str | os.PathLike) -> None:
    """report.json, and images.csv with the scores of each image."""
    write_json(report, Path(folder, "report.json"), allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    names = [row["name"] for row in report["classes"]]
    scores = [name for name in ("mIoU", "pACC", "BoundaryIoU", "confidence") if name in report["images"][0]]
    header = ["image", *scores, *(f"IoU-{name}" for name in names)]
    lines = [
        [row["file_name"], *(row[name] for name in scores), *(row["IoU"].get(str(i)) for i in range(len(names)))]
        for row in report["images"]
    ]
    write_csv(Path(folder, "images.csv"), header, lines)


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table with a header, in UTF-8; numbers have two decimals and None is empty."""
    with replacing(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for row in rows:
            writer.writerow(f"{value:.2f}" if isinstance(value, float) else value for value in row)


def read_report(path: str | os.PathLike) -> dict[str, Any]:
    """A report.json, or that of a folder. Raises FileNotFoundError, or ValueError for a file that is none."""
    path = Path(path)
    if path.is_dir():
        inside = [path / "report.json", path / "report" / "report.json", path / "inference" / "report" / "report.json"]
        path = next((file for file in inside if file.is_file()), inside[0])
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file; an evaluation with TEST.REPORT True writes it")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{path}: cannot be read as JSON ({error}); expected a report.json of an evaluation"
        ) from error
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        found = report.get("format") if isinstance(report, dict) else type(report).__name__
        raise ValueError(
            f"{path}: is no report of an evaluation (format {found!r}, expected {FORMAT!r}); evaluate with "
            "TEST.REPORT True to write one"
        )
    return report | {"path": str(path.absolute())}


class Model(NamedTuple):
    """One of two compared reports: its (N, 3 C) counts and (N,) mIoU by image."""

    pixels: sparse.csr_matrix
    miou: np.ndarray


def compare_reports(first: Mapping[str, Any], second: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """What two models that were evaluated on the same images differ in, second minus first, paired by image.

    first, second: of `read_report`; names: of the models. Raises ValueError where the classes, the images or their
    ground truth are not the same.
    """
    class_names = [row["name"] for row in first["classes"]]
    other = [row["name"] for row in second["classes"]]
    if class_names != other:
        odd = next((i for i, pair in enumerate(zip(class_names, other, strict=False)) if pair[0] != pair[1]), None)
        detail = (
            f"class {odd} is {class_names[odd]!r} and {other[odd]!r}" if odd is not None else "the first ones agree"
        )
        raise ValueError(
            f"{first['path']} has {len(class_names)} classes, {second['path']} has {len(other)} ({detail}); only "
            "models of the same classes can be compared"
        )
    rows, other_rows = first["images"], _same_images(first, second)
    c = len(class_names)
    a, b = _model(rows, c), _model(other_rows, c)
    differ = np.flatnonzero(np.asarray(abs(a.pixels[:, c : 2 * c] - b.pixels[:, c : 2 * c]).sum(1)).ravel())
    if len(differ):
        raise ValueError(
            f"{rows[differ[0]]['file_name']} (and {len(differ) - 1} more of {len(rows)} images): its ground truth is "
            f"not the same in {first['path']} and {second['path']}; evaluate both models on the same label maps"
        )
    weights = resamples(len(rows))
    with_class = np.asarray((a.pixels[:, c : 2 * c] > 0).sum(0)).ravel()
    by_class = paired_bootstrap(class_iou, a.pixels, b.pixels, weights, with_class)
    mean = paired_bootstrap(_mean(class_iou), a.pixels, b.pixels, weights)
    p_class = permutation_test(class_iou, a.pixels, b.pixels)
    found = benjamini_hochberg(p_class)
    change = b.miou - a.miou
    order = [int(i) for i in np.argsort(-np.abs(np.nan_to_num(change)), kind="stable") if change[i]]
    return {
        "format": COMPARISON_FORMAT,
        "names": list(names),
        "reports": [first["path"], second["path"]],
        "dataset": first.get("dataset"),
        "colors": first.get("colors"),
        "ignore_label": first.get("ignore_label"),
        "num_images": len(rows),
        "resamples": DRAWS,
        "mIoU": [first["scores"]["mIoU"], second["scores"]["mIoU"]],
        "difference": _triples(mean)[0],
        "p": _number(permutation_test(_mean(class_iou), a.pixels, b.pixels)[0]),
        "classes": [
            {
                "name": name,
                "IoU": [first["classes"][i]["IoU"][0], second["classes"][i]["IoU"][0]],
                "difference": _triple(by_class, i),
                "p": _number(p_class[i]),
                "outcome": ("gained" if by_class.value[i] > 0 else "lost") if found[i] else "not told apart",
                "images": int(with_class[i]),
            }
            for i, name in enumerate(class_names)
        ],
        "better": int((change > 0).sum()),
        "worse": int((change < 0).sum()),
        "images": [
            {
                "file_name": row["file_name"],
                "truth": row["truth"],
                "predictions": [
                    os.path.normpath(Path(report["path"]).parent / one["prediction"])
                    for report, one in ((first, row), (second, other))
                ],
                "mIoU": [row["mIoU"], other["mIoU"]],
                "change": _number(change[i]),
            }
            for i, (row, other) in enumerate(zip(rows, other_rows, strict=True))
        ],
        "changed_most": {
            "better": [i for i in order if change[i] > 0][:CHANGED],
            "worse": [i for i in order if change[i] < 0][:CHANGED],
        },
    }


def write_comparison(comparison: Mapping[str, Any], folder: str | os.PathLike) -> None:
    """comparison.json, and comparison.csv with the mIoU of each image under both models."""
    write_json(comparison, Path(folder, "comparison.json"), allow_nan=False, ensure_ascii=False)
    header = ["image", *(f"mIoU {name}" for name in comparison["names"]), "change"]
    lines = [[row["file_name"], *row["mIoU"], row["change"]] for row in comparison["images"]]
    write_csv(Path(folder, "comparison.csv"), header, lines)


def _same_images(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[dict]:
    """The images of the second report in the order of the first's, which must be the same. Folders may differ, as on
    another machine: names are compared from the folder on that all images of a report share."""
    keys = [_short_names([row["file_name"] for row in report["images"]]) for report in (first, second)]
    rows = dict(zip(keys[1], second["images"], strict=True))
    missing = [key for key in keys[0] if key not in rows]
    extra = len(rows) - (len(keys[0]) - len(missing))
    if missing or extra:
        example = f", as {missing[0]}" if missing else ""
        raise ValueError(
            f"{second['path']} lacks {len(missing)} of the {len(keys[0])} images of {first['path']}{example}, and has "
            f"{extra} others; a paired comparison needs two evaluations of the same images"
        )
    return [rows[key] for key in keys[0]]


def _short_names(files: Sequence[str]) -> list[str]:
    root = os.path.commonpath([os.path.dirname(file) for file in files])
    return [os.path.relpath(file, root or os.curdir) for file in files]


def _model(rows: Sequence[Mapping[str, Any]], c: int) -> Model:
    """Counts of each image from the confusions that a report lists."""
    image = np.repeat(np.arange(len(rows)), [len(row["confusion"]) // 3 for row in rows])
    truth, predicted, pixels = (
        np.concatenate([np.asarray(row["confusion"][i::3], np.int64) for row in rows]) for i in range(3)
    )
    right = truth == predicted
    columns = np.concatenate([truth[right], c + truth, 2 * c + predicted])
    lines = np.concatenate([image[right], image, image])
    values = np.concatenate([pixels[right], pixels, pixels]).astype(np.float64)
    counts = sparse.coo_matrix((values, (lines, columns)), (len(rows), 3 * c)).tocsr()
    return Model(counts, np.array([math.nan if row["mIoU"] is None else row["mIoU"] for row in rows]))


def _image_rows(
    images: Sequence[ImageCounts], table: CountsTable, files: Sequence[Mapping[str, str | None]], boundary: bool
) -> list[dict]:
    c = table.num_classes
    pixels = table.group("all")[0].toarray()
    iou = class_iou(pixels)
    accuracy, mean = _pixel_accuracy(pixels)[:, 0], mean_score(iou)[:, 0]
    edges = mean_score(class_iou(table.group("boundary")[0].toarray()))[:, 0] if boundary else None
    confidence = None if table.reliability is None else reliability(table.reliability.sum(1))[1]
    rows = []
    for i, image in enumerate(images):
        cells, counts = image.confusion
        row = {"file_name": image.file_name, **files[i]}
        row |= {"mIoU": _number(mean[i]), "pACC": _number(accuracy[i])}
        if edges is not None:
            row["BoundaryIoU"] = _number(edges[i])
        if confidence is not None:
            row["confidence"] = _number(100 * confidence[i])
        row["IoU"] = {str(k): _number(value) for k, value in enumerate(iou[i]) if not np.isnan(value)}
        row["confusion"] = np.stack([cells // c, cells % c, counts], 1).ravel().tolist()
        rows.append(row)
    return rows


def _largest_confusions(confusion: np.ndarray, names: Sequence[str]) -> list[dict]:
    wrong = confusion.astype(np.float64)
    np.fill_diagonal(wrong, 0)
    total, by_truth = wrong.sum(), confusion.sum(1)
    largest = []
    for cell in np.argsort(-wrong.ravel(), kind="stable")[:CONFUSIONS]:
        truth, predicted = divmod(int(cell), len(names))
        pixels = int(wrong[truth, predicted])
        if pixels == 0:
            break
        largest.append(
            {
                "truth": names[truth],
                "predicted": names[predicted],
                "pixels": pixels,
                "share_of_class": 100 * pixels / int(by_truth[truth]),
                "share_of_errors": 100 * pixels / float(total),
            }
        )
    return largest


def _part(counts: sparse.csr_matrix, weights: np.ndarray, c: int) -> dict[str, Any]:
    """Scores of a part of the pixels."""
    totals = np.asarray(counts.sum(0)).reshape(3, c)
    return {
        "pixels": int(totals[1].sum()),
        "classes": int((totals[1] > 0).sum()),
        "mIoU": _triples(bootstrap(_mean(class_iou), counts, weights))[0],
        "pACC": _triples(bootstrap(_pixel_accuracy, counts, weights))[0],
    }


def _without_object(counts: sparse.csr_matrix, totals: np.ndarray, c: int) -> dict[str, Any]:
    pixels = int(np.asarray(counts.sum(0)).reshape(3, c)[2].sum())
    wrong = int(totals[2].sum() - totals[0].sum())
    return {"pixels": pixels, "share_of_errors": 100 * pixels / wrong if wrong else None}


def _calibration(counts: np.ndarray | None) -> list[dict] | None:
    if counts is None:
        return None
    pixels, confidence, right = reliability(counts.sum(0))
    return [
        {
            "from": i / BINS,
            "to": (i + 1) / BINS,
            "pixels": int(pixels[i]),
            "confidence": _number(100 * confidence[i]),
            "right": _number(100 * right[i]),
        }
        for i in range(BINS)
    ]


def _mean(score):
    return lambda sums: mean_score(score(sums))


def _split(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return tuple(np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, 0))


def _class_accuracy(sums: np.ndarray) -> np.ndarray:
    intersection, truth, _ = _split(sums)
    with np.errstate(invalid="ignore", divide="ignore"):
        return 100 * intersection / truth


def _pixel_accuracy(sums: np.ndarray) -> np.ndarray:
    intersection, truth, _ = _split(sums)
    with np.errstate(invalid="ignore", divide="ignore"):
        return 100 * intersection.sum(-1, keepdims=True) / truth.sum(-1, keepdims=True)


def _weighted_iou(sums: np.ndarray) -> np.ndarray:
    truth = _split(sums)[1]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nansum(class_iou(sums) * truth, -1, keepdims=True) / truth.sum(-1, keepdims=True)


def _ece(sums: np.ndarray) -> np.ndarray:
    return expected_calibration_error(sums.reshape(*sums.shape[:-1], BINS, 3))[..., None]


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _triple(intervals: Intervals, i: int) -> list[float | None]:
    return [_number(values[i]) for values in intervals]


def _triples(intervals: Intervals) -> list[list[float | None]]:
    return [_triple(intervals, i) for i in range(len(intervals.value))]
