#!/usr/bin/env python3
"""Draw what a model's queries attend to, for the segments of an image, as in Figure 4 of the paper.

python tools/visualize_attention.py --image street.jpg --class car --output attention.png \\
    --config-file CONFIG --weights model.pth [--config-file OTHER --weights other.pth --names DFPQ learnable]

There is a row for each target segment and model: the query that predicts the target, its cross-attention in the last
three layers, the pixels that omega selects, where its positional query points, and where those of all queries point.
Targets are chosen by --class, --point or --query; by default they are the classes that the first model is surest of.
The segment of a class is taken from the ground truth if --labels gives it, otherwise from the first model's prediction.
docs/figures.md explains the panels. Exit code: 0, or 2 if nothing could be drawn.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

import omp_policy  # noqa: F401 (before torch)

# isort: split

import numpy as np
from PIL import Image

from fasegr.d2 import setup_logger
from fasegr.data.image_io import check_label_size, check_label_values, open_image, read_label
from fasegr.engine.launch import readable_errors
from fasegr.visualization.attention import (
    AttentionRecord,
    Target,
    attention_figure,
    attention_panels,
    best_query,
    predict_with_attention,
)
from tools.model_arguments import add_model_arguments, build_predictors, check_picture_name, model_names

IGNORE_LABEL = 255


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", required=True, help="the image")
    target = parser.add_mutually_exclusive_group()
    target.add_argument(
        "--class", dest="classes", nargs="+", metavar="NAME", help="classes whose segments are the targets"
    )
    target.add_argument("--point", type=int, nargs=2, metavar=("X", "Y"), help="a pixel inside the target")
    target.add_argument("--query", type=int, metavar="N", help="query of the first model whose mask is the target")
    parser.add_argument("--targets", type=int, default=3, metavar="N", help="number of targets if none are chosen (3)")
    parser.add_argument("--labels", metavar="PNG", help="ground-truth label map of the image")
    parser.add_argument("--output", default="attention.png", metavar="PNG", help="the figure (attention.png)")
    parser.add_argument("--cell-width", type=int, default=260, help="width of each panel in pixels (260)")
    add_model_arguments(parser)
    args = parser.parse_args(argv)
    if args.targets < 1:
        parser.error(f"--targets is {args.targets}; it must be at least 1")
    if not 64 <= args.cell_width <= 2048:
        parser.error(f"--cell-width is {args.cell_width}; it must be between 64 and 2048 pixels")
    return args


def choose_targets(
    args: argparse.Namespace,
    record: AttentionRecord,
    ground_truth: np.ndarray | None,
    names: list[str],
    size: tuple[int, int],
) -> list[Target]:
    """The segments that the arguments ask for, at the size of the panels.

    record: of the first model; ground_truth: label map of the image, or None; names: of the classes; size: (width,
    height) of the image.
    """
    if args.query is not None:
        return [_target_of_query(record, args.query, names)]
    if ground_truth is None:
        labels, source = record.semantic_labels(), "the first model's prediction"
    else:
        labels, source = _resize_labels(ground_truth, (record.image.height, record.image.width)), args.labels
    present = [int(c) for c in np.unique(labels) if c < len(names)]
    if args.classes:
        chosen = [_class_index(name, names) for name in args.classes]
    elif args.point:
        chosen = [_class_at(args.point, size, labels, source, len(names))]
    else:
        scores = (record.class_probs[:, :-1] * record.mask_probs.flatten(1).amax(1, keepdim=True)).amax(0)
        chosen = sorted(present, key=lambda c: -float(scores[c]))[: args.targets]
    for c in chosen:
        if c not in present:
            there = ", ".join(names[p] for p in present)
            raise ValueError(f"--class {names[c]}: there is none in {source}; there are {there or 'no classes'}")
    return [Target(names[c], c, labels == c) for c in chosen]


def _target_of_query(record: AttentionRecord, query: int, names: list[str]) -> Target:
    if not 0 <= query < len(record.mask_probs):
        raise ValueError(f"--query is {query}; the first model has queries 0 to {len(record.mask_probs) - 1}")
    mask = (record.mask_probs[query] > 0.5).numpy()
    if not mask.any():
        raise ValueError(f"--query {query}: its mask is empty in this image; choose another, or a target by --class")
    label = int(record.class_probs[query, :-1].argmax())
    return Target(names[label], label, mask)


def _class_index(name: str, names: list[str]) -> int:
    if name not in names:
        raise ValueError(f"--class {name}: the models know {', '.join(names)}")
    return names.index(name)


def _class_at(point: list[int], size: tuple[int, int], labels: np.ndarray, source: str, num_classes: int) -> int:
    """The class at `point` (x, y) of an image of `size` (width, height)."""
    x, y = point
    if not (0 <= x < size[0] and 0 <= y < size[1]):
        raise ValueError(f"--point is {x} {y}; the image is {size[0]} x {size[1]} (width x height), counted from 0")
    label = int(labels[y * labels.shape[0] // size[1], x * labels.shape[1] // size[0]])
    if label >= num_classes:
        raise ValueError(f"--point {x} {y} is not labelled in {source}; choose a point inside a segment")
    return label


def _resize_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The label map at (height, width), nearest neighbour."""
    rows, columns = ((np.arange(n) + 0.5) * full / n for n, full in zip(size, labels.shape, strict=True))
    return labels[rows.astype(int)[:, None], columns.astype(int)]


def read_ground_truth(path: str, image_path: str, image: Image.Image, class_names: list[str]) -> np.ndarray:
    """The label map in the file `path`, which must fit the image."""
    labels = read_label(path)
    check_label_size(path, labels.shape, image_path, (image.height, image.width))
    check_label_values(labels, len(class_names), IGNORE_LABEL, path)
    return labels


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with readable_errors():
        check_picture_name(args.output)
        names = model_names(args.config_file, args.names)
        image = open_image(args.image)
        setup_logger(name="fasegr")
        # one forward pass on the whole image; sliding windows and test-time augmentation would be several
        options = [*args.opts, "TEST.AUG.ENABLED", False, "TEST.SLIDING_WINDOW.ENABLED", False]
        predictors = build_predictors(args.config_file, args.weights, options)
        class_names, colors = predictors[0].class_names, predictors[0].colors
        records = [predict_with_attention(predictor, image, args.cell_width) for predictor in predictors]
        ground_truth = read_ground_truth(args.labels, args.image, image, class_names) if args.labels else None
        targets = choose_targets(args, records[0], ground_truth, class_names, image.size)
        rows = []
        for target in targets:
            for i, (name, record) in enumerate(zip(names, records, strict=True)):
                query = args.query if i == 0 and args.query is not None else best_query(record, target)
                rows.append((name if len(names) > 1 else "", attention_panels(record, target, query, colors)))
        predicted = {c for record in records for c in record.class_probs.argmax(1).tolist() if c < len(class_names)}
        figure = attention_figure(rows, [(class_names[c], colors[c]) for c in sorted(predicted)])
        Path(args.output).absolute().parent.mkdir(parents=True, exist_ok=True)
        figure.save(args.output, optimize=True)
    print(f"{args.output}: {len(targets)} targets, {len(records)} models")
    return 0


if __name__ == "__main__":
    sys.exit(main())
