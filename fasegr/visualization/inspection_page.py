"""The page of an inspected dataset: what needs attention, splits, classes, sizes, samples, copies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import yaml
from PIL import Image
from scipy import ndimage, sparse

from fasegr.analysis.dataset_advice import Finding
from fasegr.analysis.dataset_inspection import Split, class_mask
from fasegr.analysis.image_copies import LEAST_CORRELATION, MAX_BITS, NearCopy
from fasegr.data.class_counts import ClassCounts, inverse_sqrt_weights
from fasegr.data.dataset_mappers.dataset_mapper import TrainingMapper
from fasegr.data.image_io import open_image
from fasegr.utils.nested import nest
from fasegr.visualization.html_page import (
    INK,
    Cell,
    Markup,
    Section,
    bar,
    code,
    details,
    facts,
    gallery,
    notice,
    page,
    picture,
    plot,
    swatch,
    table,
    thousands,
)
from fasegr.visualization.overlays import palette

__all__ = ["Inspection", "as_json", "inspection_page"]

SAMPLE_WIDTH, SAMPLE_HEIGHT = 320, 240
_LISTED = 200  # files, or pairs, in a table; the JSON has all
_SHOWN_COPIES = 12
_SPLIT_COLOURS = ("#3b7cc4", "#e08a2e", "#4f9d69", "#b35a9a", "#7a828c")  # on light and dark


class Inspection(NamedTuple):
    """All that was found. train, test: of DATASETS.TRAIN and TEST. copies: (training set, test set, pairs)."""

    title: str
    train: list[Split]
    test: list[Split]
    names: list[str]
    colours: Sequence | None
    findings: list[Finding]
    copies: list[tuple[Split, Split, list[NearCopy]]]
    same_files: list[list[str]]
    threshold: float  # of the factors of repeated images
    command: str

    @property
    def splits(self) -> list[Split]:
        return [*self.train, *self.test]

    def rarest_first(self) -> np.ndarray:
        """Classes by their pixels in training, those without one last."""
        pixels = sum((split.pixels for split in self.train), np.zeros(len(self.names), np.int64))
        return np.lexsort((np.arange(len(pixels)), np.where(pixels > 0, pixels, np.iinfo(np.int64).max)))


def inspection_page(found: Inspection, mapper: TrainingMapper, samples: int, tick=lambda: None) -> str:
    """The HTML. samples: pictures of each class. tick: called after each class is drawn."""
    sections = [
        Section("What needs attention", list(_attention(found))),
        Section("Splits", [_splits(found)]),
        Section("Classes", list(_classes(found))),
        Section("Sizes", list(_sizes(found))),
    ]
    if samples:
        sections.append(Section("Samples, rarest class first", list(_samples(found, mapper, samples, tick))))
    sections += [Section("Copies", list(_copies(found)))]
    problems = [problem for split in found.splits for problem in split.problems]
    if problems:
        body = [table(["File", "Reason"], problems[:_LISTED])]
        if len(problems) > _LISTED:
            body.append(f"And {len(problems) - _LISTED} more: all are in inspection.json.")
        sections.append(Section("Files that cannot be read", body))
    lead = Markup("<p>{}</p>{}").format(
        "What training will see: read with the config's own mapper, before a step is taken.", facts(_facts(found))
    )
    footer = Markup(
        "<p>Made by <code>{}</code>. Pixels are those of the files, before INPUT resizes them. "
        "All numbers, unrounded, are in inspection.json.</p>"
    ).format(found.command)
    return page(found.title, sections, lead, footer)


def _facts(found: Inspection) -> Iterator[tuple[str, str, str]]:
    for split in found.splits:
        labelled = int(split.labelled.sum())
        note = "all labelled" if labelled == len(split.records) else f"{thousands(labelled)} labelled"
        yield split.name, thousands(len(split.records)), f"images, {note}"
    present = sum((split.pixels > 0 for split in found.train), np.zeros(len(found.names), bool))
    yield "Classes", str(len(found.names)), f"{int((present > 0).sum())} in the training set"
    pixels = sum(int(split.label_pixels.sum()) for split in found.train)
    if pixels:
        ignored = sum(int(split.ignored.sum()) for split in found.train)
        yield "Ignored", f"{100 * ignored / pixels:.1f} %", "of the training pixels"
    counts = sum((split.pixels for split in found.train), np.zeros(len(found.names), np.int64))
    if (counts > 0).sum() > 1:
        yield "Imbalance", f"{thousands(round(counts.max() / counts[counts > 0].min()))} : 1", "most to least pixels"
    errors = sum(finding.kind == "error" for finding in found.findings)
    yield "Errors", str(errors), "would stop or spoil training" if errors else "nothing in the way of training"


def _attention(found: Inspection) -> Iterator[Markup | str]:
    if not found.findings:
        yield notice("good", "Nothing stands out", "Files, labels, classes and sizes are as training expects them.")
    for finding in found.findings:
        body = [finding.text, *([code(_yaml(finding.keys))] if finding.keys else [])]
        yield notice(finding.kind, finding.title, *body)
    together: dict[str, Any] = {}
    for finding in found.findings:
        together |= finding.keys
    if len([finding for finding in found.findings if finding.keys]) > 1:
        yield details("All suggested keys in one piece, to be pasted into the config", code(_yaml(together)))


def _yaml(keys: dict[str, Any]) -> str:
    tree: dict = {}
    for key, value in keys.items():
        _merge(tree, nest(key, value))
    return yaml.safe_dump(tree, sort_keys=False, default_flow_style=None).strip()


def _merge(tree: dict, other: dict) -> None:
    for key, value in other.items():
        if isinstance(value, dict):
            _merge(tree.setdefault(key, {}), value)
        else:
            tree[key] = value


def _splits(found: Inspection) -> Markup:
    rows = []
    for split in found.splits:
        sizes = split.sizes[split.readable]
        pixels = int(split.label_pixels.sum())
        ignored = bar(split.ignored.sum() / pixels, f"{100 * split.ignored.sum() / pixels:.1f} %") if pixels else None
        rows.append(
            [
                split.name,
                len(split.records),
                int(split.labelled.sum()),
                *(_size(sizes, share) for share in (0.0, 0.5, 1.0)),
                int((split.pixels > 0).sum()),
                int(split.objects.sum()),
                ignored,
                len(split.problems),
            ]
        )
    header = ["Split", "Images", "Labelled", "Smallest", "Median size", "Largest", "Classes", "Objects", "Ignored"]
    return table([*header, "Unreadable"], rows, "Sizes are width x height; smallest and largest by area")


def _size(sizes: np.ndarray, share: float) -> Cell | None:
    if not len(sizes):
        return None
    areas = sizes.prod(1)
    height, width = sizes[np.argsort(areas, kind="stable")[round(share * (len(sizes) - 1))]]
    return Cell(f"{width} x {height}", int(height * width))


def _colours(found: Inspection) -> np.ndarray:
    return palette(len(found.names)) if found.colours is None else np.asarray(found.colours, np.uint8)


def _classes(found: Inspection) -> Iterator[Markup | str]:
    colours, order = _colours(found), found.rarest_first()
    train = [split for split in found.train if split.labelled.any()]
    test = [split for split in found.test if split.labelled.any()]
    if not train:
        yield "The training set has no labels."
        return
    pixels, objects = (sum(getattr(split, name) for split in train) for name in ("pixels", "objects"))
    images = sum(split.counts.images for split in train)
    total = max(1, int(pixels.sum()))
    labelled = sum(int(split.labelled.sum()) for split in train)
    weights = _weights(train)
    factors = np.maximum(1.0, np.sqrt(found.threshold * labelled / np.maximum(images, 1)))
    areas = _Areas(train)
    rows = []
    for c in order.tolist():
        share = pixels[c] / total
        row = [
            swatch(colours[c], found.names[c]),
            bar(share, _percent(share), colours[c]) if pixels[c] else Cell("none", 0.0),
            int(images[c]),
            Cell(_percent(images[c] / max(1, labelled)), float(images[c] / max(1, labelled))),
            int(objects[c]),
            *(Cell(thousands(round(value)), value) if value == value else None for value in areas.of(c)),
        ]
        for split in test:
            row.append(int(split.counts.images[c]))
        row += [Cell(f"{weights[c]:.2f}", float(weights[c])), Cell(f"{factors[c]:.2f}", float(factors[c]))]
        rows.append(row)
    header = ["Class", "Share of labelled pixels", "Images", "of images", "Objects", "Smallest", "Median", "Largest"]
    header += [f"Images in {split.name}" for split in test] + ["Weight", "Repeat"]
    yield table(header, rows, "The training set, rarest class first; a click on a title sorts")
    yield (
        "Objects are the annotated ones or, in label maps, connected regions; sizes are in pixels. Weight is what "
        "MODEL.MASK_FORMER.CLASS_WEIGHTS inverse_sqrt gives a class in the classification loss. Repeat is how often an "
        f"image with this class would come in an epoch with REPEAT_THRESHOLD {found.threshold:g}."
    )
    shown = order[::-1][-40:]
    yield plot(
        lambda axes: _plot_classes(axes, found, shown, train, test),
        f"Share of the labelled pixels of each class, on a logarithmic scale; the rarest are "
        f"{', '.join(found.names[c] for c in order[:5])}.",
        "Share of the labelled pixels, logarithmic"
        + (f": the {len(shown)} rarest classes of {len(order)}" if len(shown) < len(order) else ""),
        size=(9, max(2.4, 0.26 * len(shown) + 0.8)),
    )


def _weights(train: Sequence[Split]) -> np.ndarray:
    """(C,) as a training on these sets computes them."""
    columns = zip(*(split.counts for split in train), strict=True)
    return inverse_sqrt_weights(ClassCounts(*(sparse.vstack(column, format="csr") for column in columns)))


class _Areas:
    """Smallest, median and largest object of a class in several splits."""

    def __init__(self, splits: Sequence[Split]):
        self.splits = splits
        self.whole = Split("", [], splits[0].num_classes)
        self.whole.areas = sum(split.areas for split in splits)

    def of(self, c: int) -> tuple[float, float, float]:
        low = min((s.smallest[c].area for s in self.splits if c in s.smallest), default=float("nan"))
        high = max((s.largest[c].area for s in self.splits if c in s.largest), default=float("nan"))
        return float(low), min(max(self.whole.area_quantile(c, 0.5), low), high), float(high)


def _percent(share: float) -> str:
    percent = 100 * share
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"


def _plot_classes(axes, found: Inspection, order: np.ndarray, train: Sequence[Split], test: Sequence[Split]) -> None:
    groups = [("training", train)] + ([("validation", test)] if test else [])
    height = 0.8 / len(groups)
    for i, (label, splits) in enumerate(groups):
        pixels = sum(split.pixels for split in splits)
        shares = pixels[order] / max(1, pixels.sum())
        y = np.arange(len(order)) + (len(groups) - 1) * height / 2 - i * height
        axes.barh(y, 100 * shares, height * 0.92, color=_SPLIT_COLOURS[i], label=label)
    axes.set_yticks(np.arange(len(order)), [found.names[c] for c in order])
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g} %")
    axes.grid(axis="y", visible=False)
    axes.margins(y=0.01)
    if len(groups) > 1:
        axes.legend(loc="upper right")


def _sizes(found: Inspection) -> Iterator[Markup | str]:
    splits = [split for split in found.splits if split.readable.any()]
    if not splits:
        yield "No image could be read."
        return
    yield plot(
        lambda axes: _plot_sizes(axes, splits),
        "Width and height of the images of each split.",
        "Images: each circle is a size, its area the number of images",
        size=(6, 4),
    )
    train = [split for split in found.train if split.objects.sum()]
    if train:
        order = [c for c in found.rarest_first() if sum(split.objects[c] for split in train)][:40][::-1]
        areas = _Areas(train)
        yield plot(
            lambda axes: _plot_objects(axes, found, order, areas),
            "Areas of the objects of each class: smallest, middle half, median and largest.",
            "Objects of the training set in pixels, logarithmic: from the smallest to the largest, the middle half "
            "thick, the median white",
            size=(9, max(2.4, 0.24 * len(order) + 0.8)),
        )
    rows = []
    for split in splits:
        for kind, extremes in (("smallest", split.smallest), ("largest", split.largest)):
            chosen = sorted(extremes.items(), key=lambda item: item[1].area)
            for c, extreme in chosen[:5] if kind == "smallest" else chosen[-5:]:
                top, left, bottom, right = extreme.box
                rows.append(
                    [
                        found.names[c],
                        kind,
                        extreme.area,
                        f"{right - left} x {bottom - top} at ({left}, {top})",
                        split.records[extreme.image]["file_name"],
                    ]
                )
    if rows:
        listing = table(["Class", "", "Pixels", "Width x height at (x, y)", "Image"], rows)
        yield details("Where the smallest and the largest objects are", listing)


def _plot_sizes(axes, splits: Sequence[Split]) -> None:
    for i, split in enumerate(splits):
        sizes, counts = np.unique(split.sizes[split.readable], axis=0, return_counts=True)
        area = 20 + 400 * counts / counts.max()
        colour = _SPLIT_COLOURS[i % len(_SPLIT_COLOURS)]
        axes.scatter(sizes[:, 1], sizes[:, 0], area, color=colour, alpha=0.45, linewidths=0, label=split.name)
    axes.set_xlabel("width")
    axes.set_ylabel("height")
    high, wide = np.max([split.sizes.max(0) for split in splits], axis=0)
    axes.set(xlim=(0, 1.12 * wide), ylim=(0, 1.12 * high), aspect="equal")
    legend = axes.legend(loc="lower right")
    for handle in legend.legend_handles:
        handle.set_sizes([40])


def _plot_objects(axes, found: Inspection, order: Sequence[int], areas: _Areas) -> None:
    colours = _colours(found) / 255
    for y, c in enumerate(order):
        low, median, high = areas.of(c)
        lower, upper = (min(max(areas.whole.area_quantile(c, share), low), high) for share in (0.25, 0.75))
        axes.plot([low, high], [y, y], color=INK, linewidth=0.8, alpha=0.5, solid_capstyle="butt")
        axes.plot([lower, max(upper, lower * 1.02)], [y, y], color=colours[c], linewidth=7, solid_capstyle="butt")
        axes.plot([median], [y], marker="|", color="white", markersize=7, markeredgewidth=1.6)
    axes.set_yticks(range(len(order)), [found.names[c] for c in order])
    axes.set_xscale("log")
    axes.grid(axis="y", visible=False)
    axes.margins(y=0.02)


def _samples(found: Inspection, mapper: TrainingMapper, samples: int, tick) -> Iterator[Markup | str]:
    colours = _colours(found)
    yield (
        "Parts of training images around an object of the class, which is tinted. Look for labels that are shifted, "
        "mixed up or coarse."
    )
    for c in found.rarest_first().tolist():
        places = [
            (split, row) for split in found.train for row in split.largest_objects[split.largest_objects["class"] == c]
        ]
        tick()
        if not places:
            continue
        places.sort(key=lambda place: int(place[1]["area"]))
        # not only the largest: from the middle on, evenly
        chosen = sorted({round(len(places) * (0.5 + 0.5 * (i + 0.5) / samples) - 0.5) for i in range(samples)})
        pictures = []
        for index in chosen:
            split, row = places[min(index, len(places) - 1)]
            record = split.records[int(row["image"])]
            name = record["file_name"].replace("\\", "/").rsplit("/", 1)[-1]
            shown = _sample(mapper, record, c, row["box"], colours[c])
            alt = f"{found.names[c]}, tinted, in {name}"
            pictures.append(picture(shown, alt, f"{name}, {thousands(int(row['area']))} pixels", quality=80))
        patch = Markup('<span class="swatch" aria-hidden="true" style="background:rgb({},{},{})"></span>').format(
            *map(int, colours[c])
        )
        yield Markup("<h3>{}{}</h3>{}").format(patch, found.names[c], gallery(pictures, 220))


def _sample(mapper: TrainingMapper, record: dict, c: int, box: Sequence[int], colour: np.ndarray) -> Image.Image:
    """The surroundings of an object, with all pixels of its class tinted and outlined."""
    image = open_image(record["file_name"])
    record = {"height": image.height, "width": image.width, **record}
    mask = class_mask(mapper, record, c)
    top, left, bottom, right = map(int, box)
    height = max(1.7 * (bottom - top), 1.7 * (right - left) * SAMPLE_HEIGHT / SAMPLE_WIDTH, 60)
    width = height * SAMPLE_WIDTH / SAMPLE_HEIGHT
    scale = min(1.0, image.height / height, image.width / width)
    height, width = round(height * scale), round(width * scale)
    y = min(max(0, (top + bottom - height) // 2), image.height - height)
    x = min(max(0, (left + right - width) // 2), image.width - width)
    size = (SAMPLE_WIDTH, SAMPLE_HEIGHT)
    part = image.crop((x, y, x + width, y + height)).resize(size, Image.Resampling.BICUBIC)
    inside = Image.fromarray(mask[y : y + height, x : x + width]).resize(size, Image.Resampling.NEAREST)
    inside = np.asarray(inside)
    outline = inside & ~ndimage.binary_erosion(inside, iterations=2, border_value=1)
    opacity = np.where(outline, 0.95, np.where(inside, 0.35, 0.0))[..., None]
    return Image.fromarray((np.asarray(part) * (1 - opacity) + colour * opacity).round().astype(np.uint8))


def _copies(found: Inspection) -> Iterator[Markup | str]:
    pairs = [(train, test, pair) for train, test, near in found.copies for pair in near]
    if not pairs and not found.same_files:
        yield notice(
            "good",
            "No image is in two splits",
            "No image of the validation set looks like one of training (perceptual hash, 64 bits).",
        )
        return
    if pairs:
        yield (
            f"{len(pairs)} images of the validation set have a near copy in training: at most {MAX_BITS} of 64 bits "
            f"of their perceptual hashes differ, and their thumbnails correlate by {LEAST_CORRELATION} or more:"
        )
        shown = pairs[:: max(1, len(pairs) // _SHOWN_COPIES)][:_SHOWN_COPIES]
        yield gallery([_pair(*pair) for pair in shown], 320)
        rows = [
            [
                test.records[pair.second]["file_name"],
                train.records[pair.first]["file_name"],
                pair.bits,
                Cell(f"{pair.correlation:.3f}", pair.correlation),
                "same file" if train.digests[pair.first] == test.digests[pair.second] else "",
            ]
            for train, test, pair in pairs[:_LISTED]
        ]
        listing = table(["Validation", "Training", "Bits", "Correlation", ""], rows)
        more = [f"And {len(pairs) - _LISTED} more in inspection.json."] if len(pairs) > _LISTED else []
        yield details(f"All {min(len(pairs), _LISTED)} pairs", listing, *more)
    if found.same_files:
        rows = [[group[0], ", ".join(group[1:])] for group in found.same_files[:_LISTED]]
        yield details(f"{len(found.same_files)} files that are there more than once", table(["File", "Copies"], rows))


def _pair(train: Split, test: Split, pair: NearCopy) -> Markup:
    files = train.records[pair.first]["file_name"], test.records[pair.second]["file_name"]
    images = [open_image(file) for file in files]
    height = 150
    cells = [image.resize((max(1, round(image.width * height / image.height)), height)) for image in images]
    whole = Image.new("RGB", (sum(cell.width for cell in cells) + 4, height), (128, 128, 128))
    whole.paste(cells[0], (0, 0))
    whole.paste(cells[1], (cells[0].width + 4, 0))
    names = [file.replace("\\", "/").rsplit("/", 1)[-1] for file in files]
    return picture(whole, f"{names[0]} of training beside {names[1]} of validation", f"{names[0]}  |  {names[1]}")


def as_json(found: Inspection) -> dict[str, Any]:
    """Everything on the page, unrounded, and all files."""
    return {
        "title": found.title,
        "command": found.command,
        "classes": list(found.names),
        "splits": {split.name: _split_json(split, found.names) for split in found.splits},
        "findings": [finding._asdict() for finding in found.findings],
        "advice": {key: value for finding in found.findings for key, value in finding.keys.items()},
        "near_copies": [
            {
                "train": train.records[pair.first]["file_name"],
                "validation": test.records[pair.second]["file_name"],
                "bits": pair.bits,
                "correlation": pair.correlation,
                "same_file": train.digests[pair.first] == test.digests[pair.second],
            }
            for train, test, near in found.copies
            for pair in near
        ],
        "same_files": found.same_files,
    }


def _split_json(split: Split, names: Sequence[str]) -> dict[str, Any]:
    sizes = split.sizes[split.readable]
    pixels, images, objects = split.pixels, split.counts.images, split.objects
    total = max(1, int(pixels.sum()))

    def extreme(of: dict, c: int) -> dict | None:
        if c not in of:
            return None
        return {**of[c]._asdict(), "image": split.records[of[c].image]["file_name"]}

    return {
        "images": len(split.records),
        "labelled": int(split.labelled.sum()),
        "unreadable": [problem._asdict() for problem in split.problems],
        "sizes": {f"{width}x{height}": count for (height, width), count in zip(*_counted(sizes), strict=True)},
        "ignored_share": float(split.ignored.sum() / split.label_pixels.sum()) if split.label_pixels.sum() else None,
        "label_values": {str(value): count for value, count in sorted(split.values.items())},
        "values_that_are_no_class": {
            str(value): {"pixels": pixels, "images": images, "first": file}
            for value, (pixels, images, file) in sorted(split.strange.items())
        },
        "by_class": {
            name: {
                "pixels": int(pixels[c]),
                "share": float(pixels[c] / total),
                "images": int(images[c]),
                "objects": int(objects[c]),
                "median_area": float(split.area_quantile(c, 0.5)) if objects[c] else None,
                "smallest": extreme(split.smallest, c),
                "largest": extreme(split.largest, c),
            }
            for c, name in enumerate(names)
        },
    }


def _counted(sizes: np.ndarray) -> tuple[list, list]:
    values, counts = np.unique(sizes, axis=0, return_counts=True)
    return values.tolist(), counts.tolist()
