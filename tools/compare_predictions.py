#!/usr/bin/env python3
"""Draw what several models predict side by side, as in Figure 3 of the paper: image, ground truth, predictions.

python tools/compare_predictions.py --dataset scenes_val --number 4 --zoom --output comparison.png \\
    --config-file CONFIG --weights model.pth --config-file OTHER --weights other.pth --names FASeg Mask2Former

The images are files (--image, optionally with ground truth by --labels) or a few of a dataset, evenly spaced. Below a
prediction is its mIoU on that image or, without ground truth, the share of pixels on which it agrees with the first
model. With --zoom, every image has a second row: the part where the models differ most, enlarged. Exit code: 0, or 2 if
nothing could be drawn.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

import omp_policy  # noqa: F401 (before torch)

# isort: split

import numpy as np
import torch
from PIL import Image, ImageDraw

from fasegr.d2 import DatasetCatalog, MetadataCatalog, setup_logger
from fasegr.data.image_io import check_label_size, check_label_values, open_image, read_label
from fasegr.data.semantic_labels import label_source, semantic_labels
from fasegr.engine.launch import readable_errors
from fasegr.evaluation import predicted_labels
from fasegr.evaluation.confusion_matrix import PixelCounts, confusion_matrix
from fasegr.inference.predictor import Predictor
from fasegr.visualization.overlays import side_by_side
from tools.model_arguments import add_model_arguments, build_predictors, check_picture_name, model_names

ZOOM = 3  # magnification of the second row
BOX_COLOR = (232, 30, 44)


class Sample(NamedTuple):
    """File names of an image and of what tells its classes, None without; record: of the dataset that it is from."""

    image: str
    labels: str | None
    record: dict | None = None


class Row(NamedTuple):
    """What is shown of an image. ground_truth, predictions: label maps (H, W). captions: of the predictions."""

    image: Image.Image
    ground_truth: np.ndarray | None
    predictions: list[np.ndarray]
    captions: list[str]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--image", nargs="+", help="image files")
    source.add_argument("--dataset", metavar="NAME", help="a registered dataset, or one that the configs describe")
    parser.add_argument("--labels", nargs="+", metavar="PNG", help="ground-truth label map of each --image")
    parser.add_argument("--number", type=int, default=4, help="number of images of the dataset (4)")
    parser.add_argument("--zoom", action="store_true", help="also show the part where the models differ most, enlarged")
    parser.add_argument("--output", default="comparison.png", metavar="PNG", help="the figure (comparison.png)")
    parser.add_argument("--cell-width", type=int, default=480, help="width of each column in pixels (480)")
    add_model_arguments(parser)
    args = parser.parse_args(argv)
    if args.labels and not args.image:
        parser.error("--labels goes with --image; a dataset has its own")
    if args.labels and len(args.labels) != len(args.image):
        parser.error(f"there are {len(args.labels)} --labels for {len(args.image)} --image; give one for each")
    if args.number < 1:
        parser.error(f"--number is {args.number}; it must be at least 1")
    if not 64 <= args.cell_width <= 4096:
        parser.error(f"--cell-width is {args.cell_width}; it must be between 64 and 4096 pixels")
    return args


def find_samples(args: argparse.Namespace) -> list[Sample]:
    """The images that the arguments name. The configs' datasets must be registered already."""
    if args.image:
        return [Sample(*pair) for pair in zip(args.image, args.labels or [None] * len(args.image), strict=True)]
    if args.dataset not in DatasetCatalog.list():
        raise ValueError(
            f"--dataset is {args.dataset}; the registered datasets are {', '.join(sorted(DatasetCatalog.list()))}"
        )
    records = DatasetCatalog.get(args.dataset)
    number = min(args.number, len(records))
    chosen = [records[(2 * i + 1) * len(records) // (2 * number)] for i in range(number)]
    samples = [Sample(record["file_name"], label_source(record), record) for record in chosen]
    if len({sample.labels is None for sample in samples}) > 1:
        raise ValueError(f"--dataset {args.dataset}: only some images have label maps; name images by --image")
    return samples


def miou(ground_truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> float:
    """Mean IoU in % over the classes in the ground truth (H, W); pixels with other values are ignored."""
    labels = torch.from_numpy(np.minimum(ground_truth.astype(np.int64), num_classes))
    counts = confusion_matrix(labels, torch.from_numpy(prediction.astype(np.int64)), num_classes + 1).numpy()
    counts[-1] = 0  # predictions on unlabelled pixels are no errors
    return 100 * float(np.nanmean(PixelCounts.from_confusion(counts).iou())) if counts.any() else float("nan")


def compare(sample: Sample, predictors: Sequence[Predictor], names: Sequence[str], ignore_label: int) -> Row:
    """Run every model on the image."""
    image = open_image(sample.image)
    num_classes = len(predictors[0].class_names)
    ground_truth = None
    if sample.labels is not None:
        if sample.record is None:
            ground_truth = read_label(sample.labels)
        else:
            ground_truth = semantic_labels(sample.record, ignore_label)
        check_label_size(sample.labels, ground_truth.shape, sample.image, (image.height, image.width))
        check_label_values(ground_truth, num_classes, ignore_label, sample.labels)
    predictions = [predicted_labels(predictor(image)).cpu().numpy() for predictor in predictors]
    if ground_truth is not None:
        captions = [f"mIoU {miou(ground_truth, prediction, num_classes):.1f}" for prediction in predictions]
    else:
        shares = [100 * (prediction == predictions[0]).mean() for prediction in predictions[1:]]
        captions = ["", *(f"{share:.1f} % same as {names[0]}" for share in shares)]
    return Row(image, ground_truth, predictions, captions)


def most_different(row: Row, ignore_label: int) -> tuple[int, int, int, int] | None:
    """Box (left, top, right, bottom), 1 / ZOOM of the sides, in which the models differ in the most pixels.

    A single model is compared with the ground truth. None if nothing differs, or the image is too small.
    """
    maps = row.predictions
    if len(maps) == 1 and row.ground_truth is not None:
        maps = [row.ground_truth, *maps]
    differs = np.any([labels != maps[0] for labels in maps], axis=0)
    if row.ground_truth is not None:
        differs &= row.ground_truth != ignore_label
    height, width = (side // ZOOM for side in differs.shape)
    if min(height, width) < 1 or not differs.any():
        return None
    sums = np.pad(differs.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    inside = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    top, left = (int(i) for i in np.unravel_index(inside.argmax(), inside.shape))
    return left, top, left + width, top + height


def with_box(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """The image with a red frame around a part of it."""
    image = image.copy()
    corners = (box[0], box[1], box[2] - 1, box[3] - 1)
    ImageDraw.Draw(image).rectangle(corners, outline=BOX_COLOR, width=max(1, round(image.width / 160)))
    return image


def draw(
    rows: Sequence[Row], names: Sequence[str], predictor: Predictor, ignore_label: int, *, zoom: bool, cell_width: int
) -> Image.Image:
    """The figure. names: of the models; predictor: has the names and colours of the classes."""
    titles = ["Image", *([] if rows[0].ground_truth is None else ["Truth"]), *names]
    lines, captions = [], []
    for row in rows:
        maps = [*([] if row.ground_truth is None else [row.ground_truth]), *row.predictions]
        box = most_different(row, ignore_label) if zoom else None
        lines.append((row.image if box is None else with_box(row.image, box), *maps))
        captions.append([""] * (len(titles) - len(names)) + row.captions)
        if box is not None:
            left, top, right, bottom = box
            lines.append((row.image.crop(box), *(labels[top:bottom, left:right] for labels in maps)))
            captions.append([""] * len(titles))
    return side_by_side(
        lines,
        predictor.class_names,
        predictor.colors,
        ignore_label,
        titles=titles,
        captions=captions,
        cell_width=cell_width,
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
        figure = draw(rows, names, predictors[0], ignore_label, zoom=args.zoom, cell_width=args.cell_width)
        Path(args.output).absolute().parent.mkdir(parents=True, exist_ok=True)
        figure.save(args.output, optimize=True)
    for sample, row in zip(samples, rows, strict=True):
        captions = zip(names, row.captions, strict=True)
        print(sample.image, *(f"{name}: {caption}" for name, caption in captions if caption), sep="  ")
    print(f"{args.output}: {len(rows)} images, {len(names)} models")
    return 0


if __name__ == "__main__":
    sys.exit(main())
