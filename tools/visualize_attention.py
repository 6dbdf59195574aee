#!/usr/bin/env python3
"""Draw where the queries of a model look, for the segments of an image, as Figure 4 of the paper does.

python tools/visualize_attention.py --image street.jpg --class car --output attention.png \\
    --config-file CONFIG --weights model.pth [--config-file OTHER --weights other.pth --names DFPQ learnable]

Of every model and target segment there is a row: the query that stands for the target, its cross-attention in the last
three layers, the pixels that omega selects, where its positional query points, and where all of them point. The target
is chosen by --class, --point or --query; without them, the classes that the first model is surest of are drawn. Where
--labels names the true label map, a class's segment is taken from it, otherwise from the first model's prediction.
docs/figures.md explains the cells. Exit code: 0, or 2 if nothing could be drawn.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from fasegr.d2 import setup_logger
from fasegr.data.image_io import check_label_size, check_label_values, open_image, read_label
from fasegr.engine.launch import readable_errors
from fasegr.inference.model_arguments import add_model_arguments, build_predictors, check_picture_name, model_names
from fasegr.visualization.attention import Look, Target, attention_page, attention_row, best_query, look

IGNORE_LABEL = 255


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", required=True, help="the photograph")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--class", dest="classes", nargs="+", metavar="NAME", help="classes whose segments are targets")
    target.add_argument("--point", type=int, nargs=2, metavar=("X", "Y"), help="a pixel of the image in the segment")
    target.add_argument("--query", type=int, metavar="N", help="a query of the first model: its mask is the target")
    parser.add_argument("--targets", type=int, default=3, metavar="N", help="how many, if none are named (3)")
    parser.add_argument("--labels", metavar="PNG", help="the true label map of the image")
    parser.add_argument("--output", default="attention.png", metavar="PNG", help="the picture (attention.png)")
    parser.add_argument("--cell-width", type=int, default=260, help="pixels of each cell's width (260)")
    add_model_arguments(parser)
    args = parser.parse_args(argv)
    if args.targets < 1:
        parser.error(f"--targets is {args.targets}; it must be at least 1")
    if not 64 <= args.cell_width <= 2048:
        parser.error(f"--cell-width is {args.cell_width}; it must be between 64 and 2048 pixels")
    return args


def choose_targets(
    args: argparse.Namespace, seen: Look, truth: np.ndarray | None, names: list[str], size: tuple[int, int]
) -> list[Target]:
    """The segments that the arguments ask for, at the size of the pictures.

    seen: the first model's; truth: label map of the image, or None; names: of the classes; size: (width, height) of the
    image.
    """
    if args.query is not None:
        return [_target_of_query(seen, args.query, names)]
    if truth is None:
        labels, source = seen.labels(), "the first model's prediction"
    else:
        labels, source = _nearest(truth, (seen.photo.height, seen.photo.width)), args.labels
    present = [int(c) for c in np.unique(labels) if c < len(names)]
    if args.classes:
        chosen = [_class_number(name, names) for name in args.classes]
    elif args.point:
        chosen = [_class_at(args.point, size, labels, source, len(names))]
    else:
        surest = (seen.classes[:, :-1] * seen.masks.flatten(1).amax(1, keepdim=True)).amax(0)
        chosen = sorted(present, key=lambda c: -float(surest[c]))[: args.targets]
    for c in chosen:
        if c not in present:
            there = ", ".join(names[p] for p in present)
            raise ValueError(f"--class {names[c]}: there is none in {source}; there are {there or 'no classes'}")
    return [Target(names[c], c, labels == c) for c in chosen]


def _target_of_query(seen: Look, query: int, names: list[str]) -> Target:
    if not 0 <= query < len(seen.masks):
        raise ValueError(f"--query is {query}; the first model has queries 0 to {len(seen.masks) - 1}")
    mask = (seen.masks[query] > 0.5).numpy()
    if not mask.any():
        raise ValueError(
            f"--query {query}: its mask is empty in this image; choose another one, or a target by --class"
        )
    label = int(seen.classes[query, :-1].argmax())
    return Target(names[label], label, mask)


def _class_number(name: str, names: list[str]) -> int:
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
        raise ValueError(f"--point {x} {y}: is not labelled in {source}; choose a point inside a segment")
    return label


def _nearest(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A label map resized to (height, width)."""
    rows, columns = ((np.arange(n) + 0.5) * full / n for n, full in zip(size, labels.shape, strict=True))
    return labels[rows.astype(int)[:, None], columns.astype(int)]


def read_truth(path: str, image: str, photo: Image.Image, class_names: list[str]) -> np.ndarray:
    """The label map in the file `path`, which must fit the photograph."""
    labels = read_label(path)
    check_label_size(path, labels.shape, image, (photo.height, photo.width))
    check_label_values(labels, len(class_names), IGNORE_LABEL, path)
    return labels


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with readable_errors():
        check_picture_name(args.output)
        names = model_names(args.config_file, args.names)
        photo = open_image(args.image)
        setup_logger(name="fasegr")
        # one look at the whole image: windows and test-time augmentation would be many
        plain = [*args.opts, "TEST.AUG.ENABLED", False, "TEST.SLIDING_WINDOW.ENABLED", False]
        predictors = build_predictors(args.config_file, args.weights, plain)
        class_names, colors = predictors[0].class_names, predictors[0].colors
        looks = [look(predictor, photo, args.cell_width) for predictor in predictors]
        truth = read_truth(args.labels, args.image, photo, class_names) if args.labels else None
        rows = []
        for target in choose_targets(args, looks[0], truth, class_names, photo.size):
            for i, (name, seen) in enumerate(zip(names, looks, strict=True)):
                named = args.query if i == 0 else None
                row = attention_row(seen, target, best_query(seen, target) if named is None else named, colors)
                rows.append((name if len(names) > 1 else "", row))
        shown = {c for seen in looks for c in seen.classes.argmax(1).tolist() if c < len(class_names)}
        page = attention_page(rows, [(class_names[c], colors[c]) for c in sorted(shown)])
        Path(args.output).absolute().parent.mkdir(parents=True, exist_ok=True)
        page.save(args.output, optimize=True)
    print(f"{args.output}: {len(rows) // len(looks)} targets, {len(looks)} models")
    return 0


if __name__ == "__main__":
    sys.exit(main())
