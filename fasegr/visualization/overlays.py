"""Label maps over images, side by side with the ground truth, and palettes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy import ndimage
from torch import Tensor

from fasegr.evaluation.boundary import boundary_mask
from fasegr.visualization.figure_layout import (
    BACKGROUND,
    TEXT_COLOR,
    Style,
    concat,
    draw_rounded_box,
    fit_cell,
    image_grid,
    legend,
    with_caption,
)
from fasegr.visualization.fonts import drawable_names

__all__ = ["as_colors", "color_map", "overlay", "palette", "side_by_side"]

ImageLike = Image.Image | np.ndarray  # uint8 (H, W, 3) RGB
Labels = np.ndarray | Tensor
Colors = Sequence[Sequence[int]] | np.ndarray

# Chosen by eye to go well together; from here on each colour is as far from all before it as can be.
_FIRST_COLORS = (
    (66, 133, 205), (240, 142, 48), (92, 174, 82), (214, 69, 80), (150, 112, 196), (246, 206, 72),
    (72, 186, 190), (226, 122, 176), (150, 104, 76), (164, 200, 92), (124, 134, 150), (238, 160, 138),
)  # fmt: skip
_UNLABELLED = (224, 227, 231)
_READABLE = 384  # pixels of the shorter side, about, from which on class names are legible and leave something to see
_LONGEST = 4 * _READABLE  # pixels of the longer side up to which a small image is enlarged
_SEARCH_SIZE = 512  # pixels of the longer side of the map on which positions of names are searched


def palette(n: int) -> np.ndarray:
    """n colours that are easy to tell apart, (n, 3) uint8 RGB. Fixed: a longer palette begins with the shorter ones."""
    first = np.array(_FIRST_COLORS, np.uint8)
    if n <= len(first):
        return first[:n]
    steps = np.linspace(20, 250, 24).round()
    candidates = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    lab = _cielab(candidates)
    # Very dark, very light and grey colours pass for the photograph's own; fully saturated ones glare.
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
    """(n, 3) sRGB of 0..255 in CIELAB (white D65), where distances match perceived differences."""
    c = rgb / 255.0
    linear = np.where(c > 0.04045, ((c + 0.055) / 1.055) ** 2.4, c / 12.92)
    xyz = linear @ np.array([[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]])
    t = xyz / np.array([0.9505, 1.0, 1.089])
    f = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


def as_colors(colors: Colors | None, num_classes: int) -> np.ndarray:
    """(num_classes, 3) uint8: `colors`, or `palette` if None."""
    array = palette(num_classes) if colors is None else np.asarray(colors, np.uint8)
    if array.shape != (num_classes, 3):
        raise ValueError(f"colours have shape {array.shape}; expected {(num_classes, 3)}, RGB for each class")
    return array


def overlay(
    image: ImageLike,
    labels: Labels,
    class_names: Sequence[str],
    colors: Colors | None = None,
    alpha: float = 0.5,
    entries: Sequence[tuple[str, Sequence[int]]] | None = None,
) -> Image.Image:
    """An image with its segments tinted, outlined and named, above a legend of its classes.

    image: PIL image, or uint8 (H, W, 3) RGB; labels: (H, W) class indices; other values, such as 255, are not painted;
    colors: (C, 3) RGB, `palette` if None; alpha: opacity of the colours, 0 to 1; entries: (name, RGB) of the legend,
    the classes' if None.
    Returns an RGB image: the image at its size (a small one enlarged, so that names are legible), and the legend.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it must be between 0 (image only) and 1 (colours only)")
    image = _as_image(image)
    labels, colors = _as_labels(labels, image), as_colors(colors, len(class_names))
    class_names = drawable_names(class_names)
    scale = max(1, min(round(_READABLE / min(image.size)), _LONGEST // max(image.size)))
    if scale > 1:
        image = image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
        labels = labels.repeat(scale, 0).repeat(scale, 1)
    style = Style.of(min(image.size))
    painted = _paint(image, labels, colors, alpha, style)
    _write_names(painted, labels, class_names, style)
    if entries is None:
        entries = [(class_names[c], colors[c]) for c in _present_classes(labels, len(class_names))]
    return concat([painted, legend(entries, max(painted.width, min(_READABLE, painted.height)), style)])


def side_by_side(
    rows: Iterable[tuple[ImageLike, Labels, Labels]],
    class_names: Sequence[str],
    colors: Colors | None = None,
    ignore_label: int = 255,
    *,
    titles: Sequence[str] = ("Image", "Truth", "Prediction"),
    captions: Sequence[Sequence[str]] = (),
    cell_width: int = 480,
) -> Image.Image:
    """Rows of image, ground truth and prediction, in columns with titles, above a legend of their classes.

    rows: (image, ground truth, prediction), an image as in `overlay` and label maps (H, W); any number of maps, one
    for each title after the first, e.g. predictions of several models. Pixels with ignore_label are light grey.
    captions: for each row, the text below each of its images; none where all are "".
    cell_width: of each image in pixels. Returns an RGB image.
    """
    colors, present, has_unlabelled = as_colors(colors, len(class_names)), set(), False
    class_names = drawable_names(class_names)
    lines = []
    for image, *maps in rows:
        if len(maps) != len(titles) - 1:
            raise ValueError(
                f"a row has {len(maps) + 1} images; with the titles {tuple(titles)} it needs {len(titles)}"
            )
        image = _as_image(image)
        cells = [fit_cell(image, cell_width)]
        for labels in maps:
            labels = _as_labels(labels, image)
            present.update(_present_classes(labels, len(class_names)))
            has_unlabelled |= bool((labels == ignore_label).any())
            cells.append(fit_cell(color_map(labels, colors), cell_width, smooth=False))
        lines.append(cells)
    if not lines:
        raise ValueError("there are no rows to show; give at least one of (image, ground truth, prediction)")
    style = Style.of(round(1.1 * cell_width))
    for cells, texts in zip(lines, captions, strict=False):
        if any(texts):
            cells[:] = [with_caption(cell, text, style) for cell, text in zip(cells, texts, strict=True)]
    entries = [(class_names[c], colors[c]) for c in sorted(present)]
    if has_unlabelled:
        entries.append(("not labelled", _UNLABELLED))
    return image_grid(lines, titles, entries, cell_width)


def _as_image(image: ImageLike) -> Image.Image:
    if not isinstance(image, Image.Image):
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"the image is {image.dtype} of shape {image.shape}; expected uint8 (H, W, 3), RGB")
        image = Image.fromarray(image)
    return image.convert("RGB")


def _as_labels(labels: Labels, image: Image.Image) -> np.ndarray:
    """The label map as int64 (H, W), which must be the size of the image."""
    labels = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    if labels.shape != (image.height, image.width) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels are {labels.dtype} of shape {labels.shape}; expected integers of the image's size, "
            f"{(image.height, image.width)} (height, width)"
        )
    return labels.astype(np.int64)


def _present_classes(labels: np.ndarray, num_classes: int) -> list[int]:
    return [int(c) for c in np.unique(labels) if 0 <= c < num_classes]


def color_map(labels: np.ndarray, colors: np.ndarray) -> Image.Image:
    """Each pixel in the colour of its class, or of unlabelled pixels."""
    table = np.concatenate([colors, np.array([_UNLABELLED], np.uint8)])
    return Image.fromarray(table[np.where((labels >= 0) & (labels < len(colors)), labels, len(colors))])


def _paint(image: Image.Image, labels: np.ndarray, colors: np.ndarray, alpha: float, style: Style) -> Image.Image:
    """Tint the segments, and outline each on its inner side where it meets another one."""
    width = style.line_width
    padded = np.pad(labels, width, mode="edge")  # no outline along the border of the image
    outline = boundary_mask(torch.from_numpy(padded), width).numpy()[width:-width, width:-width]
    opacity = np.where(outline, max(alpha, 0.85) if alpha > 0 else 0, alpha) * ((labels >= 0) & (labels < len(colors)))
    mask = Image.fromarray((255 * opacity).round().astype(np.uint8))
    return Image.composite(color_map(labels, colors), image, mask)


def _write_names(image: Image.Image, labels: np.ndarray, class_names: Sequence[str], style: Style) -> None:
    """Write class names into their segments, the largest segments first, as long as there is room."""
    pad = round(0.3 * style.font_size)
    height = style.font_size + 2 * pad
    candidates = []
    for c in _present_classes(labels, len(class_names)):
        width = style.text_width(class_names[c]) + 2 * pad
        candidates += [(*position, class_names[c], width) for position in _name_positions(labels == c, height, width)]
    draw = ImageDraw.Draw(image)
    boxes: list[tuple[int, int, int, int]] = []
    for _, _, (y, x), name, width in sorted(candidates):
        if width > image.width or height > image.height:
            continue  # the legend has it
        left = min(max(round(x - width / 2), 1), max(image.width - width - 1, 0))
        top = min(max(round(y - height / 2), 1), max(image.height - height - 1, 0))
        box = (left, top, left + width, top + height)
        if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in boxes):
            continue
        boxes.append(box)
        draw_rounded_box(image, box, TEXT_COLOR, opacity=0.65)
        draw.text((left + width / 2, top + height / 2), name, fill=BACKGROUND, font=style.font(name), anchor="mm")


def _name_positions(mask: np.ndarray, height: int, width: int) -> list[tuple[int, int, tuple[float, float]]]:
    """Where the name of a class may be written, as (rank, -area, (y, x)), the best first.

    mask: (H, W), the pixels of the class; height, width: of the box around the name. Rank 0 is the largest segment,
    which is named unless it is tiny; others are named only if they are large.
    """
    step = math.ceil(max(mask.shape) / _SEARCH_SIZE)
    segments, count = ndimage.label(mask[::step, ::step])
    areas = np.bincount(segments.ravel(), minlength=count + 1)[1:] * step * step
    boxes = ndimage.find_objects(segments)
    positions = []
    for rank, segment in enumerate(np.argsort(-areas, kind="stable")[:4]):
        if areas[segment] < (0.3 * width * height if rank == 0 else 0.02 * mask.size):
            break
        ys, xs = boxes[segment]
        inside = np.pad(segments[ys, xs] == segment + 1, 1)
        # Distance to the edge in units of the name's box: where it is largest, the box fits best.
        room = ndimage.distance_transform_edt(inside, sampling=(1 / height, 1 / width))
        best = np.argwhere(room >= 0.98 * room.max())  # in a long segment many positions are as good: take the middle
        y, x = best[((best - best.mean(0)) ** 2).sum(1).argmin()]
        center = (step * (ys.start + y - 0.5), step * (xs.start + x - 0.5))  # -1 for the padding, +1/2 to the centre
        positions.append((rank, -int(areas[segment]), center))
    return positions
