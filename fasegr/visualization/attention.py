"""Pictures of what a model's queries look at, after Figure 4 of the FASeg paper.

`look` shows a photograph to a model and keeps its predictions and its attention; `attention_row` makes the cells of one
target segment, `attention_page` sets rows of them. docs/figures.md says what each cell shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from fasegr.analysis.attention_maps import LayerAttention, record_attention
from fasegr.inference.predictor import Predictor
from fasegr.visualization.figure_layout import FAINT_INK, INK, PAPER, Style, legend, stack, title_cell, with_margin

__all__ = ["Cell", "Look", "Target", "attention_page", "attention_row", "best_query", "look", "peaks"]

TARGET_COLOR = (232, 30, 44)
_NO_OBJECT = (150, 156, 164)
_HEAT = matplotlib.colormaps["viridis"]  # has no red, which is the target's


class Target(NamedTuple):
    """The segment that queries are looked for. mask: (H, W) bool, at the size of the pictures. label: its class."""

    name: str
    label: int
    mask: np.ndarray


class Cell(NamedTuple):
    """A picture with a title, and a line of small print under it."""

    picture: Image.Image
    title: str
    note: str


class Look(NamedTuple):
    """What a model saw in a photograph. Q queries, K classes; (H, W) is the size of the pictures to be drawn.

    photo: of that size. classes: (Q, K + 1) probabilities, the last that of no-object. masks: (Q, H, W) probabilities.
    layers: what each decoder layer looked at, of a batch of one. input_size: (height, width) of the network's input.
    frame: the shares of its height and width that the photograph fills; the rest is padding.
    """

    photo: Image.Image
    classes: Tensor
    masks: Tensor
    layers: list[LayerAttention]
    frame: tuple[float, float]
    input_size: tuple[int, int]

    def on_photo(self, values: Tensor) -> Tensor:
        """(N, h, w) values of a level, or logits of masks, to (N, H, W), bilinearly and without the padding."""
        return _on_photo(values, self.frame, (self.photo.height, self.photo.width))

    def labels(self) -> np.ndarray:
        """(H, W) likeliest class of each pixel."""
        scores = torch.einsum("qc,qhw->chw", self.classes[:, :-1], self.masks)
        return scores.argmax(0).numpy()

    def stride(self, layer: LayerAttention) -> int:
        """How many pixels of the network's input a pixel of the layer's level stands for, along a side."""
        return self.input_size[0] // layer.size[0]


def look(predictor: Predictor, photo: Image.Image, width: int) -> Look:
    """Show `photo` to the predictor's model, and keep what it looked at, for pictures that are `width` pixels wide."""
    head = predictor.model.sem_seg_head
    outputs = []
    hook = head.register_forward_hook(lambda module, arguments, output: outputs.append(output))
    try:
        with record_attention(predictor.model) as layers:
            predictor(photo)
    finally:
        hook.remove()
    (output,) = outputs
    class_logits, mask_logits = output["pred_logits"][0].float().cpu(), output["pred_masks"][0].float().cpu()
    input_size = tuple(4 * side for side in mask_logits.shape[-2:])  # masks have a quarter of its resolution
    shown = predictor.resize.scaled((photo.height, photo.width), predictor.resize.lengths[0])
    frame = (shown[0] / input_size[0], shown[1] / input_size[1])
    photo = photo.resize((width, max(1, round(width * photo.height / photo.width))), Image.Resampling.BICUBIC)
    masks = _on_photo(mask_logits, frame, (photo.height, photo.width)).sigmoid()
    return Look(photo, class_logits.softmax(-1), masks, layers, frame, input_size)


def _on_photo(values: Tensor, frame: tuple[float, float], size: tuple[int, int]) -> Tensor:
    # grid_sample counts from -1 to 1 over the whole input; the photograph ends where its frame does
    y, x = (
        (torch.arange(n, dtype=torch.float32) + 0.5) / n * share * 2 - 1 for n, share in zip(size, frame, strict=True)
    )
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)
    sampled = F.grid_sample(values.float().cpu()[None], grid[None], padding_mode="border", align_corners=False)
    return sampled[0]


def best_query(seen: Look, target: Target) -> int:
    """The query that stands for the target: the one with the highest product of the IoU of its mask with the target and
    the probability that it gives to the target's class.
    """
    return int((_ious(seen.masks, target.mask) * seen.classes[:, target.label]).argmax())


def _ious(masks: Tensor, segment: np.ndarray) -> Tensor:
    """(Q,) IoU of each of the masks (Q, H, W), where they are above 1/2, with a segment (H, W)."""
    inside, masks = torch.from_numpy(segment), masks > 0.5
    overlap, union = (pair.flatten(1).sum(1) for pair in (masks & inside, masks | inside))
    return overlap / union.clamp(min=1)


def peaks(weights: Tensor, size: tuple[int, int]) -> Tensor:
    """Where weights are largest, as (Q, 2) of y and x in shares of height and width.

    weights: (Q, h * w); size: (h, w). A peak is the centre of mass of the 3 x 3 pixels around the largest one, so that
    it tells more than a pixel.
    """
    maps = weights.float().cpu().unflatten(1, size)
    padded = F.pad(maps, (1, 1, 1, 1))
    index = maps.flatten(1).argmax(1)
    top, left = index // size[1], index % size[1]
    around = torch.arange(3)
    rows, columns = top[:, None] + around, left[:, None] + around  # of the padded map
    patches = padded[torch.arange(len(maps))[:, None, None], rows[:, :, None], columns[:, None, :]]
    mass = patches.sum((1, 2)).clamp(min=1e-12)
    y = (patches.sum(2) * (rows - 0.5)).sum(1) / mass / size[0]  # 1 less for the padding, 1/2 more for the centre
    x = (patches.sum(1) * (columns - 0.5)).sum(1) / mass / size[1]
    return torch.stack([y, x], 1)


# Cells


def attention_row(seen: Look, target: Target, query: int, colors: Sequence[Sequence[int]] | np.ndarray) -> list[Cell]:
    """The cells of one target and one model, from left to right.

    query: the model's one for the target. colors: (K, 3) RGB of the classes.
    """
    return [
        _target_cell(seen, target, query),
        *(_attention_cell(seen, target, query, layer) for layer in seen.layers[-3:]),
        _selection_cell(seen, target),
        _pointing_cell(seen, target, query),
        _queries_cell(seen, target, query, colors),
    ]


def _target_cell(seen: Look, target: Target, query: int) -> Cell:
    """The photograph, light where the query's mask is, the target outlined."""
    inside = seen.masks[query].numpy()[:, :, None]
    pixels = np.asarray(seen.photo, np.float32)
    picture = Image.fromarray((pixels * inside + (0.4 * pixels + 30) * (1 - inside)).astype(np.uint8))
    probability = float(seen.classes[query, target.label])
    iou = float(_ious(seen.masks[query : query + 1], target.mask))
    note = f"query {query}: {target.name} {100 * probability:.0f} %, IoU {100 * iou:.0f}"
    return Cell(_outlined(picture, target.mask), target.name, note)


def _attention_cell(seen: Look, target: Target, query: int, layer: LayerAttention) -> Cell:
    heat = seen.on_photo(layer.attention[0, query].unflatten(0, (1, *layer.size)))[0].numpy()
    inside = float(heat[target.mask].sum() / max(heat.sum(), 1e-12))
    title = f"layer {layer.layer + 1}, 1/{seen.stride(layer)}"
    return Cell(_outlined(_heated(seen.photo, heat), target.mask), title, f"{100 * inside:.0f} % in the target")


def _selection_cell(seen: Look, target: Target) -> Cell:
    """The photograph, dark where no query looks in the high-resolution layer."""
    sparse = [layer for layer in seen.layers if layer.pixels is not None]
    if not sparse:
        return Cell(_faded(seen.photo), "omega", "no selection: every layer reads its whole level")
    layer = sparse[-1]
    n = layer.size[0] * layer.size[1]
    chosen = torch.zeros(n)
    chosen[layer.pixels[0].cpu()] = 1
    lit = (seen.on_photo(chosen.unflatten(0, (1, *layer.size)))[0] > 0.5).numpy()[:, :, None]
    pixels = np.asarray(seen.photo, np.float32)
    picture = Image.fromarray(np.where(lit, pixels, 0.25 * pixels).astype(np.uint8))
    count = layer.pixels.shape[1]
    return Cell(_outlined(picture, target.mask), f"omega, 1/{seen.stride(layer)}", f"{count} of {n} pixels")


def _whole_level(seen: Look) -> LayerAttention:
    """Of the layers that read all pixels of their level the finest, the last of these: it tells where Q_p points."""
    return max((layer for layer in seen.layers if layer.pixels is None), key=lambda x: (math.prod(x.size), x.layer))


def _pointing_cell(seen: Look, target: Target, query: int) -> Cell:
    layer = _whole_level(seen)
    weights = layer.positional[0, query]
    heat = seen.on_photo(weights.unflatten(0, (1, *layer.size)))[0].numpy()
    picture = _outlined(_heated(seen.photo, heat), target.mask)
    (peak,) = _on_picture(seen, peaks(weights[None], layer.size))
    _dot(picture, peak, 0.022 * picture.width, TARGET_COLOR)
    inside = float(heat[target.mask].sum() / max(heat.sum(), 1e-12))
    return Cell(picture, f"where Q_p points, 1/{seen.stride(layer)}", f"{100 * inside:.0f} % in the target")


def _queries_cell(seen: Look, target: Target, query: int, colors) -> Cell:
    layer = _whole_level(seen)
    picture = _outlined(_faded(seen.photo), target.mask)
    likeliest = seen.classes.argmax(1).tolist()
    no_object = seen.classes.shape[1] - 1
    points = _on_picture(seen, peaks(layer.positional[0], layer.size))
    order = sorted(range(len(points)), key=lambda q: (q == query, likeliest[q] != no_object))  # what matters on top
    for q in order:
        named = likeliest[q] != no_object
        radius = (0.03 if q == query else 0.02 if named else 0.012) * picture.width
        color = tuple(colors[likeliest[q]]) if named else _NO_OBJECT
        _dot(picture, points[q], radius, color, TARGET_COLOR if q == query else PAPER)
    return Cell(
        picture, "all positional queries", f"{sum(c != no_object for c in likeliest)} of {len(points)} name a class"
    )


def _on_picture(seen: Look, points: Tensor) -> list[tuple[float, float]]:
    """(Q, 2) shares of the network's input to (x, y) of the picture; points in the padding come to its edge."""
    y = (points[:, 0] / seen.frame[0]).clamp(0, 1) * seen.photo.height
    x = (points[:, 1] / seen.frame[1]).clamp(0, 1) * seen.photo.width
    return list(zip(x.tolist(), y.tolist(), strict=True))


# Drawing


def _faded(photo: Image.Image) -> Image.Image:
    grey = np.asarray(photo.convert("L"), np.float32)[:, :, None]
    pixels = 0.3 * np.asarray(photo, np.float32) + 0.2 * grey
    return Image.fromarray((pixels + 0.5 * 255).clip(0, 255).astype(np.uint8))


def _heated(photo: Image.Image, heat: np.ndarray) -> Image.Image:
    """The photograph in grey under the colours of `heat` (H, W), from its least to its largest value."""
    heat = (heat - heat.min()) / max(float(heat.max() - heat.min()), 1e-12)
    grey = np.asarray(photo.convert("L"), np.float32)[:, :, None].repeat(3, 2)
    colors = 255 * np.asarray(_HEAT(heat), np.float32)[:, :, :3]
    opacity = 0.4 + 0.55 * heat[:, :, None]
    return Image.fromarray((grey * (1 - opacity) + colors * opacity).clip(0, 255).astype(np.uint8))


def _outlined(picture: Image.Image, mask: np.ndarray) -> Image.Image:
    """The segment's edge in red, smooth, with a light rim that keeps it apart from what is below."""
    line = max(2.0, picture.width / 110)
    smooth = ndimage.gaussian_filter(np.pad(mask, 1, mode="edge").astype(np.float32), picture.width / 200) > 0.5
    if smooth.all() or not smooth.any():
        smooth = np.pad(mask, 1, mode="edge")
    if smooth.all() or not smooth.any():
        return picture
    distance = np.where(smooth, ndimage.distance_transform_edt(smooth), ndimage.distance_transform_edt(~smooth))
    distance = distance[1:-1, 1:-1] - 0.5
    for width, color, strength in ((line + 2, PAPER, 0.75), (line, TARGET_COLOR, 1.0)):
        alpha = strength * np.clip(width / 2 + 0.5 - distance, 0, 1)
        ink = Image.new("RGB", picture.size, color)
        picture = Image.composite(ink, picture, Image.fromarray((255 * alpha).astype(np.uint8)))
    return picture


def _dot(picture: Image.Image, center, radius: float, color, rim=PAPER) -> None:
    """A smooth disc with a rim, on the picture itself."""
    fine = 4
    size = math.ceil(2 * radius + 4)
    left, top = round(center[0] - size / 2), round(center[1] - size / 2)
    middle = ((center[0] - left) * fine, (center[1] - top) * fine)
    for r, fill in ((radius, rim), (0.72 * radius, color)):
        mask = Image.new("L", (size * fine, size * fine))
        box = [m + sign * r * fine for sign in (-1, 1) for m in middle]
        ImageDraw.Draw(mask).ellipse(box, fill=255)
        picture.paste(tuple(int(v) for v in fill), (left, top), mask.resize((size, size), Image.Resampling.BOX))


# Page


def attention_page(
    rows: Sequence[tuple[str, Sequence[Cell]]], entries: Sequence[tuple[str, Sequence[int]]]
) -> Image.Image:
    """Rows of cells with a name written up their left side ("" for none), above a legend of the classes.

    entries: (name, RGB) of each class.
    """
    width = rows[0][1][0].picture.width
    style = Style.of(round(1.9 * width))
    gap = max(4, width // 40)
    named = any(name for name, _ in rows)
    lines = []
    for name, cells in rows:
        line = stack([_captioned(cell, style) for cell in cells], gap, across=True)
        lines.append(stack([_side_title(name, line.height, style), line], gap, across=True) if named else line)
    page = stack(lines, gap)
    ramp = _ramp(style)
    entries = [("target", TARGET_COLOR), *entries, ("no object", _NO_OBJECT)]
    foot = stack([ramp, legend(entries, page.width - ramp.width, style)], across=True)
    return with_margin(stack([page, foot], gap), 2 * gap)


def _captioned(cell: Cell, style: Style) -> Image.Image:
    small = ImageFont.load_default(round(0.88 * style.text))
    caption = Image.new("RGB", (cell.picture.width, round(2.6 * style.text)), PAPER)
    draw = ImageDraw.Draw(caption)
    draw.text((caption.width / 2, 0.6 * style.text), cell.title, INK, style.font, anchor="mm")
    draw.text((caption.width / 2, 1.8 * style.text), cell.note, FAINT_INK, small, anchor="mm")
    return stack([caption, cell.picture])


def _side_title(text: str, height: int, style: Style) -> Image.Image:
    return title_cell(text, height, style).rotate(90, expand=True)


def _ramp(style: Style) -> Image.Image:
    """The colours of weights, from none to the map's largest."""
    words = ("attention: least", "largest")
    height, length, pad = round(2.3 * style.text), 8 * style.text, round(0.6 * style.text)
    start = pad + style.width(words[0]) + pad
    picture = Image.new("RGB", (start + length + pad + style.width(words[1]) + 3 * pad, height), PAPER)
    draw = ImageDraw.Draw(picture)
    middle = (pad + round(1.7 * style.text)) // 2
    draw.text((pad, middle), words[0], INK, style.font, anchor="lm")
    colors = 255 * np.asarray(_HEAT(np.linspace(0, 1, length)))[None, :, :3]
    bar = Image.fromarray(colors.round().astype(np.uint8).repeat(round(0.95 * style.text), 0))
    picture.paste(bar, (start, middle - bar.height // 2))
    draw.text((start + length + pad, middle), words[1], INK, style.font, anchor="lm")
    return picture
