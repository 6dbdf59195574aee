"""Figures of what a model's queries attend to, as in Figure 4 of the FASeg paper; docs/figures.md explains the panels.

record = predict_with_attention(predictor, image, width)
panels = attention_panels(record, target, best_query(record, target), colors)
attention_figure([("FASeg", panels)], entries).save("attention.png")
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from fasegr.analysis.attention_maps import LayerAttention, record_attention
from fasegr.visualization.figure_layout import (
    BACKGROUND,
    MUTED_TEXT_COLOR,
    TEXT_COLOR,
    Style,
    concat,
    legend,
    title_strip,
)

if TYPE_CHECKING:
    from fasegr.inference.predictor import Predictor  # which draws with this package

__all__ = [
    "AttentionRecord",
    "Panel",
    "Target",
    "attention_figure",
    "attention_panels",
    "attention_peaks",
    "best_query",
    "predict_with_attention",
]

TARGET_COLOR = (232, 30, 44)
_NO_OBJECT_COLOR = (150, 156, 164)
_HEAT_COLORS = matplotlib.colormaps["viridis"]  # has no red, which is the target's


class Target(NamedTuple):
    """The segment whose query is looked for. label: its class index. mask: (H, W) bool, at the size of the panels."""

    name: str
    label: int
    mask: np.ndarray


class Panel(NamedTuple):
    """One image of the figure, with a title and a line of small text above."""

    image: Image.Image
    title: str
    note: str


class AttentionRecord(NamedTuple):
    """A model's predictions for an image and the attention of its layers. Q queries, K classes; panels are (H, W).

    image: of that size. class_probs: (Q, K + 1), no-object last. mask_probs: (Q, H, W). layers: of a batch of one.
    valid_ratio: the shares of the network input's height and width that the image fills; the rest is padding.
    input_size: (height, width) of the network's input.
    """

    image: Image.Image
    class_probs: Tensor
    mask_probs: Tensor
    layers: list[LayerAttention]
    valid_ratio: tuple[float, float]
    input_size: tuple[int, int]

    def on_image(self, values: Tensor) -> np.ndarray:
        """(h, w) values over the network's input to (H, W) over the image."""
        return _crop_and_resize(values[None], self.valid_ratio, (self.image.height, self.image.width))[0].numpy()

    def semantic_labels(self) -> np.ndarray:
        """(H, W) predicted class of each pixel."""
        return torch.einsum("qc,qhw->chw", self.class_probs[:, :-1], self.mask_probs).argmax(0).numpy()

    def stride(self, layer: LayerAttention) -> int:
        """Of the layer's level, relative to the network's input."""
        return self.input_size[0] // layer.size[0]


def predict_with_attention(predictor: Predictor, image: Image.Image, width: int) -> AttentionRecord:
    """Run the predictor's model on `image` and record its attention, for panels that are `width` pixels wide."""
    outputs = []
    hook = predictor.model.sem_seg_head.register_forward_hook(lambda module, args, output: outputs.append(output))
    try:
        with record_attention(predictor.model) as layers:
            predictor(image)
    finally:
        hook.remove()
    (output,) = outputs
    class_logits, mask_logits = output["pred_logits"][0].float().cpu(), output["pred_masks"][0].float().cpu()
    input_size = tuple(4 * side for side in mask_logits.shape[-2:])  # masks are predicted at stride 4
    resized = predictor.resize.output_size((image.height, image.width))
    valid_ratio = (resized[0] / input_size[0], resized[1] / input_size[1])
    image = image.resize((width, max(1, round(width * image.height / image.width))), Image.Resampling.BICUBIC)
    mask_probs = _crop_and_resize(mask_logits, valid_ratio, (image.height, image.width)).sigmoid()
    return AttentionRecord(image, class_logits.softmax(-1), mask_probs, layers, valid_ratio, input_size)


def _crop_and_resize(values: Tensor, valid_ratio: tuple[float, float], size: tuple[int, int]) -> Tensor:
    """(N, h, w) values without the padding to (N, *size), bilinear."""
    y, x = (  # in the coordinates of grid_sample, from -1 to 1 over the padded input
        (torch.arange(n, dtype=torch.float32) + 0.5) / n * ratio * 2 - 1
        for n, ratio in zip(size, valid_ratio, strict=True)
    )
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)
    sampled = F.grid_sample(values.float().cpu()[None], grid[None], padding_mode="border", align_corners=False)
    return sampled[0]


def best_query(record: AttentionRecord, target: Target) -> int:
    """The query that predicts the target: IoU of its mask with the target times its probability of the target's class
    is the highest.
    """
    return int((_ious(record.mask_probs, target.mask) * record.class_probs[:, target.label]).argmax())


def _ious(mask_probs: Tensor, segment: np.ndarray) -> Tensor:
    """(Q,) IoU of masks (Q, H, W), binarised at 1/2, with a segment (H, W)."""
    segment, masks = torch.from_numpy(segment), mask_probs > 0.5
    overlap, union = (pair.flatten(1).sum(1) for pair in (masks & segment, masks | segment))
    return overlap / union.clamp(min=1)


def attention_peaks(weights: Tensor, size: tuple[int, int]) -> Tensor:
    """Where weights (Q, h * w) are largest, as (Q, 2) of y and x in 0..1.

    size: (h, w). For more than a pixel's precision, a peak is the centre of mass of the 3 x 3 pixels around the largest
    weight.
    """
    padded = F.pad(weights.float().cpu().unflatten(1, size), (1, 1, 1, 1))
    index = weights.argmax(1).cpu()
    top, left = index // size[1], index % size[1]
    offsets = torch.arange(3)
    rows, columns = top[:, None] + offsets, left[:, None] + offsets  # of the padded map
    patches = padded[torch.arange(len(padded))[:, None, None], rows[:, :, None], columns[:, None, :]]
    mass = patches.sum((1, 2)).clamp(min=1e-12)
    y = (patches.sum(2) * (rows - 0.5)).sum(1) / mass / size[0]  # -1 for the padding, +1/2 to the pixel's centre
    x = (patches.sum(1) * (columns - 0.5)).sum(1) / mass / size[1]
    return torch.stack([y, x], 1)


def attention_panels(
    record: AttentionRecord, target: Target, query: int, colors: Sequence[Sequence[int]] | np.ndarray
) -> list[Panel]:
    """The panels of one target and one model, from left to right.

    query: of the model, the one that predicts the target. colors: (K, 3) RGB of the classes.
    """
    # Q_p is shown at the finest level that some layer attends to as a whole
    whole = max((x for x in record.layers if x.pixels is None), key=lambda x: (math.prod(x.size), x.layer))
    points = _on_panel(record, attention_peaks(whole.positional[0], whole.size))
    return [
        _target_panel(record, target, query),
        *(
            _heat_panel(record, target, f"layer {layer.layer + 1}", layer, layer.attention[0, query])
            for layer in record.layers[-3:]
        ),
        _selection_panel(record, target),
        _heat_panel(record, target, "where Q_p points", whole, whole.positional[0, query], points[query]),
        _queries_panel(record, target, query, points, colors),
    ]


def _target_panel(record: AttentionRecord, target: Target, query: int) -> Panel:
    """The image, bright inside the query's mask."""
    opacity = record.mask_probs[query].numpy()[:, :, None]
    pixels = np.asarray(record.image, np.float32)
    image = Image.fromarray((pixels * opacity + (0.4 * pixels + 30) * (1 - opacity)).astype(np.uint8))
    probability = float(record.class_probs[query, target.label])
    iou = float(_ious(record.mask_probs[query : query + 1], target.mask))
    note = f"query {query}: {target.name} {100 * probability:.0f} %, IoU {100 * iou:.0f}"
    return Panel(_outline(image, target.mask), target.name, note)


def _heat_panel(
    record: AttentionRecord, target: Target, title: str, layer: LayerAttention, weights: Tensor, peak=None
) -> Panel:
    """Weights (h * w) of a layer in colours over the grey image; peak: (x, y) of a dot."""
    heat = record.on_image(weights.unflatten(0, layer.size))
    share = float(heat[target.mask].sum() / max(heat.sum(), 1e-12))
    heat = (heat - heat.min()) / max(float(heat.max() - heat.min()), 1e-12)
    grey = np.asarray(record.image.convert("L"), np.float32)[:, :, None].repeat(3, 2)
    colors = 255 * np.asarray(_HEAT_COLORS(heat), np.float32)[:, :, :3]
    opacity = 0.4 + 0.55 * heat[:, :, None]
    image = Image.fromarray((grey * (1 - opacity) + colors * opacity).clip(0, 255).astype(np.uint8))
    image = _outline(image, target.mask)
    if peak is not None:
        _draw_dot(image, peak, 0.022 * image.width, TARGET_COLOR)
    return Panel(image, f"{title}, 1/{record.stride(layer)}", f"{100 * share:.0f} % in the target")


def _selection_panel(record: AttentionRecord, target: Target) -> Panel:
    """The image, dark where the last layer that selects pixels has selected none."""
    selecting = [layer for layer in record.layers if layer.pixels is not None]
    if not selecting:
        return Panel(_fade(record.image), "omega", "no selection: layers attend to all pixels")
    layer = selecting[-1]
    height, width = layer.size
    selected = torch.zeros(height * width)
    selected[layer.pixels[0].cpu()] = 1
    bright = record.on_image(selected.unflatten(0, layer.size))[:, :, None] > 0.5
    pixels = np.asarray(record.image, np.float32)
    image = Image.fromarray(np.where(bright, pixels, 0.25 * pixels).astype(np.uint8))
    note = f"{layer.pixels.shape[1]} of {height * width} pixels"
    return Panel(_outline(image, target.mask), f"omega, 1/{record.stride(layer)}", note)


def _queries_panel(record: AttentionRecord, target: Target, query: int, points, colors) -> Panel:
    """Where the positional query of each query points, (x, y), in the colour of its class."""
    image = _outline(_fade(record.image), target.mask)
    labels = record.class_probs.argmax(1).tolist()
    no_object = record.class_probs.shape[1] - 1
    order = sorted(range(len(points)), key=lambda q: (q == query, labels[q] != no_object))  # the important ones on top
    for q in order:
        is_object = labels[q] != no_object
        radius = (0.03 if q == query else 0.02 if is_object else 0.012) * image.width
        color = colors[labels[q]] if is_object else _NO_OBJECT_COLOR
        _draw_dot(image, points[q], radius, color, TARGET_COLOR if q == query else BACKGROUND)
    note = f"{sum(label != no_object for label in labels)} of {len(points)} name a class"
    return Panel(image, "all positional queries", note)


def _on_panel(record: AttentionRecord, points: Tensor) -> list[tuple[float, float]]:
    """(Q, 2) y and x in 0..1 of the network's input to (x, y) of the panel; points in the padding go to its edge."""
    y = (points[:, 0] / record.valid_ratio[0]).clamp(0, 1) * record.image.height
    x = (points[:, 1] / record.valid_ratio[1]).clamp(0, 1) * record.image.width
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _fade(image: Image.Image) -> Image.Image:
    grey = np.asarray(image.convert("L"), np.float32)[:, :, None]
    pixels = 0.3 * np.asarray(image, np.float32) + 0.2 * grey
    return Image.fromarray((pixels + 0.5 * 255).clip(0, 255).astype(np.uint8))


def _outline(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """The image with the segment's edge in red, smoothed, with a light rim that sets it off from what is below."""
    line = max(2.0, image.width / 110)
    padded = np.pad(mask, 1, mode="edge")
    inside = ndimage.gaussian_filter(padded.astype(np.float32), image.width / 200) > 0.5
    if inside.all() or not inside.any():
        inside = padded
    if inside.all() or not inside.any():
        return image
    distance = np.where(inside, ndimage.distance_transform_edt(inside), ndimage.distance_transform_edt(~inside))
    distance = distance[1:-1, 1:-1] - 0.5
    for width, color, opacity in ((line + 2, BACKGROUND, 0.75), (line, TARGET_COLOR, 1.0)):
        alpha = opacity * np.clip(width / 2 + 0.5 - distance, 0, 1)
        filled = Image.new("RGB", image.size, color)
        image = Image.composite(filled, image, Image.fromarray((255 * alpha).astype(np.uint8)))
    return image


def _draw_dot(image: Image.Image, center: tuple[float, float], radius: float, color, rim=BACKGROUND) -> None:
    """Draw an antialiased disc with a rim. center: (x, y)."""
    scale = 4
    size = math.ceil(2 * radius + 4)
    left, top = round(center[0] - size / 2), round(center[1] - size / 2)
    middle = ((center[0] - left) * scale, (center[1] - top) * scale)
    for r, fill in ((radius, rim), (0.72 * radius, color)):
        mask = Image.new("L", (size * scale, size * scale))
        box = [m + sign * r * scale for sign in (-1, 1) for m in middle]
        ImageDraw.Draw(mask).ellipse(box, fill=255)
        image.paste(tuple(int(v) for v in fill), (left, top), mask.resize((size, size), Image.Resampling.BOX))


def attention_figure(
    rows: Sequence[tuple[str, Sequence[Panel]]], entries: Sequence[tuple[str, Sequence[int]]]
) -> Image.Image:
    """Rows of panels with a name along their left side ("" for none), above a legend of the classes.

    entries: (name, RGB) of each class.
    """
    width = rows[0][1][0].image.width
    style, gap = Style.of(round(1.9 * width)), max(4, width // 40)
    has_names = any(name for name, _ in rows)
    lines = []
    for name, panels in rows:
        line = concat([_with_title(panel, style) for panel in panels], gap, horizontal=True)
        if has_names:
            side_title = title_strip(name, line.height, style).rotate(90, expand=True)
            line = concat([side_title, line], gap, horizontal=True)
        lines.append(line)
    figure, color_bar = concat(lines, gap), _color_bar(style)
    entries = [("target", TARGET_COLOR), *entries, ("no object", _NO_OBJECT_COLOR)]
    footer = concat([color_bar, legend(entries, figure.width - color_bar.width, style)], horizontal=True)
    return ImageOps.expand(concat([figure, footer], gap), 2 * gap, BACKGROUND)


def _with_title(panel: Panel, style: Style) -> Image.Image:
    title = Image.new("RGB", (panel.image.width, round(2.6 * style.font_size)), BACKGROUND)
    draw = ImageDraw.Draw(title)
    small = ImageFont.load_default(round(0.88 * style.font_size))
    draw.text((title.width / 2, 0.6 * style.font_size), panel.title, TEXT_COLOR, style.font(panel.title), anchor="mm")
    draw.text((title.width / 2, 1.8 * style.font_size), panel.note, MUTED_TEXT_COLOR, small, anchor="mm")
    return concat([title, panel.image])


def _color_bar(style: Style) -> Image.Image:
    """The colours of weights, from the smallest to the largest of a panel."""
    low, high = "attention: least", "largest"
    length, pad = 8 * style.font_size, round(0.6 * style.font_size)
    start = pad + style.text_width(low) + pad
    width = start + length + pad + style.text_width(high) + 3 * pad
    image = Image.new("RGB", (width, round(2.3 * style.font_size)), BACKGROUND)
    draw = ImageDraw.Draw(image)
    middle = (pad + round(1.7 * style.font_size)) // 2
    draw.text((pad, middle), low, TEXT_COLOR, style.font(low), anchor="lm")
    colors = 255 * np.asarray(_HEAT_COLORS(np.linspace(0, 1, length)))[None, :, :3]
    bar = Image.fromarray(colors.round().astype(np.uint8).repeat(round(0.95 * style.font_size), 0))
    image.paste(bar, (start, middle - bar.height // 2))
    draw.text((start + length + pad, middle), high, TEXT_COLOR, style.font(high), anchor="lm")
    return image
