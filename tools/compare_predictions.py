#!/usr/bin/env python3
"""Draw what several models predict side by side, as Figure 3 of the paper does: image, truth, a column for each model.

python tools/compare_predictions.py --dataset scenes_val --number 4 --zoom --output comparison.png \\
    --config-file CONFIG --weights model.pth --config-file OTHER --weights other.pth --names FASeg Mask2Former

The images are files (--image, with their label maps by --labels if there are any) or a few of a dataset, evenly spread.
Below a prediction stands its mIoU in that image or, where the truth is not known, its agreement with the first model.
With --zoom, every image has a second row: the part in which the models differ most, enlarged. Exit code: 0, or 2 if
nothing could be drawn.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from fasegr.d2 import DatasetCatalog, MetadataCatalog, setup_logger
from fasegr.data.image_io import check_label_size, check_label_values, open_image, read_label
from fasegr.engine.launch import readable_errors
from fasegr.evaluation import predicted_labels
from fasegr.evaluation.confusion_matrix import Overlap, count_pairs
from fasegr.inference.model_arguments import add_model_arguments, build_predictors, check_picture_name, model_names
from fasegr.inference.predictor import Predictor
from fasegr.visualization.overlays import side_by_side

ZOOM = 3  # how much larger a part is shown
BOX_COLOR = (232, 30, 44)


class Sample(NamedTuple):
    """An image and, if it has one, its label map; both are names of files."""

    image: str
    labels: str | None


class Row(NamedTuple):
    """What there is to show of an image: label maps (H, W), the true one if it is known; notes on predictions."""

    photo: Image.Image
    truth: np.ndarray | None
    predictions: list[np.ndarray]
    notes: list[str]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--image", nargs="+", help="photographs")
    source.add_argument("--dataset", metavar="NAME", help="a registered dataset, or one that the configs describe")
    parser.add_argument("--labels", nargs="+", metavar="PNG", help="the true label map of each --image")
    parser.add_argument("--number", type=int, default=4, help="how many images of the dataset (4)")
    parser.add_argument(
        "--zoom", action="store_true", help="also enlarge the part of each where the models differ most"
    )
    parser.add_argument("--output", default="comparison.png", metavar="PNG", help="the picture (comparison.png)")
    parser.add_argument("--cell-width", type=int, default=480, help="pixels of each picture's width (480)")
    add_model_arguments(parser)
    args = parser.parse_args(argv)
    if args.labels and not args.image:
        parser.error("--labels are those of --image; a dataset brings its own")
    if args.labels and len(args.labels) != len(args.image):
        parser.error(f"there are {len(args.labels)} --labels for {len(args.image)} --image; give one for each")
    if args.number < 1:
        parser.error(f"--number is {args.number}; it must be at least 1")
    if not 64 <= args.cell_width <= 4096:
        parser.error(f"--cell-width is {args.cell_width}; it must be between 64 and 4096 pixels")
    return args


def find_samples(args: argparse.Namespace) -> list[Sample]:
    """What the arguments name. Datasets of the configs have to be registered by now."""
    if args.image:
        return [Sample(*pair) for pair in zip(args.image, args.labels or [None] * len(args.image), strict=True)]
    if args.dataset not in DatasetCatalog.list():
        raise ValueError(
            f"--dataset {args.dataset}: there is no such dataset; there are {', '.join(sorted(DatasetCatalog.list()))}"
        )
    records = DatasetCatalog.get(args.dataset)
    number = min(args.number, len(records))
    chosen = [records[(2 * i + 1) * len(records) // (2 * number)] for i in range(number)]
    samples = [Sample(record["file_name"], record.get("sem_seg_file_name")) for record in chosen]
    if len({sample.labels is None for sample in samples}) > 1:
        raise ValueError(f"--dataset {args.dataset}: some images have label maps and others none; name them by --image")
    return samples


def miou(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> float:
    """Mean IoU, in per cent, over the classes that the truth (H, W) holds; values that are no class are left out."""
    labels = torch.from_numpy(np.minimum(truth.astype(np.int64), num_classes))
    counts = count_pairs(labels, torch.from_numpy(prediction.astype(np.int64)), num_classes + 1).numpy()
    counts[-1] = 0  # what is not labelled is nobody's mistake
    return 100 * float(np.nanmean(Overlap.of(counts).iou())) if counts.any() else float("nan")


def compare(sample: Sample, predictors: Sequence[Predictor], names: Sequence[str], ignore_label: int) -> Row:
    """Show the image to every model."""
    photo = open_image(sample.image)
    classes = len(predictors[0].class_names)
    truth = None
    if sample.labels is not None:
        truth = read_label(sample.labels)
        check_label_size(sample.labels, truth.shape, sample.image, (photo.height, photo.width))
        check_label_values(truth, classes, ignore_label, sample.labels)
    predictions = [predicted_labels(predictor(photo)).cpu().numpy() for predictor in predictors]
    if truth is not None:
        notes = [f"mIoU {miou(truth, prediction, classes):.1f}" for prediction in predictions]
    else:
        shares = [100 * (prediction == predictions[0]).mean() for prediction in predictions[1:]]
        notes = ["", *(f"{share:.1f} % as {names[0]}" for share in shares)]
    return Row(photo, truth, predictions, notes)


def most_different(row: Row, ignore_label: int) -> tuple[int, int, int, int] | None:
    """Box (left, top, right, bottom), 1 / ZOOM of the sides, in which the models differ in the most pixels.

    Of a single model, in which it differs from the truth. None where nothing differs, or the image is too small.
    """
    maps = row.predictions if len(row.predictions) > 1 or row.truth is None else [row.truth, *row.predictions]
    differs = np.any([labels != maps[0] for labels in maps], axis=0)
    if row.truth is not None:
        differs &= row.truth != ignore_label
    height, width = (side // ZOOM for side in differs.shape)
    if min(height, width) < 1 or not differs.any():
        return None
    sums = np.pad(differs.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    inside = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    top, left = (int(i) for i in np.unravel_index(inside.argmax(), inside.shape))
    return left, top, left + width, top + height


def boxed(photo: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """The photograph with a red frame around a part of it."""
    picture = photo.copy()
    ImageDraw.Draw(picture).rectangle(
        (box[0], box[1], box[2] - 1, box[3] - 1), outline=BOX_COLOR, width=max(1, round(photo.width / 160))
    )
    return picture


def draw(
    rows: Sequence[Row], names: Sequence[str], predictor: Predictor, ignore_label: int, *, zoom: bool, cell_width: int
) -> Image.Image:
    """The page. names: of the models; predictor: has the names and colours of the classes."""
    titles = ["Image", *([] if rows[0].truth is None else ["Truth"]), *names]
    lines, notes = [], []
    for row in rows:
        maps = [*([] if row.truth is None else [row.truth]), *row.predictions]
        box = most_different(row, ignore_label) if zoom else None
        lines.append((row.photo if box is None else boxed(row.photo, box), *maps))
        notes.append([""] * (len(titles) - len(names)) + row.notes)
        if box is not None:
            left, top, right, bottom = box
            lines.append((row.photo.crop(box), *(labels[top:bottom, left:right] for labels in maps)))
            notes.append([""] * len(titles))
    return side_by_side(
        lines, predictor.class_names, predictor.colors, ignore_label, titles=titles, notes=notes, cell_width=cell_width
    )


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with readable_errors():
        check_picture_name(args.output)
        names = model_names(args.config_file, args.names)
        setup_logger(name="fasegr")
        predictors = build_predictors(args.config_file, args.weights, args.opts)
        samples = find_samples(args)
        ignore_label = MetadataCatalog.get(args.dataset).get("ignore_label", 255) if args.dataset else 255
        rows = [compare(sample, predictors, names, ignore_label) for sample in samples]
        page = draw(rows, names, predictors[0], ignore_label, zoom=args.zoom, cell_width=args.cell_width)
        Path(args.output).absolute().parent.mkdir(parents=True, exist_ok=True)
        page.save(args.output, optimize=True)
    for sample, row in zip(samples, rows, strict=True):
        print(sample.image, *(f"{name}: {note}" for name, note in zip(names, row.notes, strict=True) if note), sep="  ")
    print(f"{args.output}: {len(rows)} images, {len(names)} models")
    return 0


if __name__ == "__main__":
    sys.exit(main())
