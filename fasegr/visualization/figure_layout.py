"""Layout of figures: fonts and line widths, titles, legends, rows and columns of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont, ImageOps

from fasegr.visualization.fonts import font_for

__all__ = [
    "BACKGROUND",
    "MUTED_TEXT_COLOR",
    "TEXT_COLOR",
    "Style",
    "concat",
    "draw_rounded_box",
    "fit_cell",
    "image_grid",
    "legend",
    "resize_to_width",
    "title_strip",
    "with_caption",
]

TEXT_COLOR = (32, 36, 42)
MUTED_TEXT_COLOR = (116, 122, 130)
BACKGROUND = (255, 255, 255)


class Style(NamedTuple):
    """Sizes in pixels that suit an image."""

    font_size: int
    line_width: int  # of outlines

    @classmethod
    def of(cls, shorter_side: int) -> Style:
        """The style for an image whose shorter side has that many pixels."""
        font_size = max(12, round(shorter_side / 34))
        return cls(font_size, max(1, round(shorter_side / 400)))

    def font(self, text: str) -> ImageFont.FreeTypeFont:
        """One that has the characters of `text`."""
        return font_for(text, self.font_size)

    def text_width(self, text: str) -> int:
        return math.ceil(self.font(text).getlength(text))


def draw_rounded_box(
    image: Image.Image, box: tuple[int, int, int, int], color: Sequence[int], opacity: float = 1
) -> None:
    """Fill a box (left, top, right, bottom) with round corners; antialiased, which PIL's own drawing is not."""
    size, scale = (box[2] - box[0], box[3] - box[1]), 4
    mask = Image.new("L", (size[0] * scale, size[1] * scale))
    corners = (0, 0, mask.width - 1, mask.height - 1)
    ImageDraw.Draw(mask).rounded_rectangle(corners, radius=mask.height / 4, fill=round(255 * opacity))
    image.paste(tuple(int(v) for v in color), box, mask.resize(size, Image.Resampling.BOX))


def resize_to_width(image: Image.Image, width: int, smooth: bool = True) -> Image.Image:
    """Resize to a width in pixels. smooth: False keeps hard edges when enlarging, for label maps."""
    size = (width, max(1, round(image.height * width / image.width)))
    if width < image.width:
        return image.resize(size, Image.Resampling.LANCZOS if smooth else Image.Resampling.BOX)
    return image.resize(size, Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST)


def fit_cell(image: Image.Image, width: int, smooth: bool = True) -> Image.Image:
    """`resize_to_width`, but at most three times as high as wide: a thin upright image is drawn smaller, in the middle
    of a cell of `width`."""

    highest = 3 * width
    if image.height * width <= highest * image.width:
        return resize_to_width(image, width, smooth)
    inner = resize_to_width(image, max(1, round(image.width * highest / image.height)), smooth)
    if inner.height > highest:  # less than a pixel wide
        inner = inner.resize((inner.width, highest), Image.Resampling.BOX)
    cell = Image.new("RGB", (width, inner.height), BACKGROUND)
    cell.paste(inner, ((width - inner.width) // 2, 0))
    return cell


def title_strip(text: str, width: int, style: Style) -> Image.Image:
    """A strip of `width` pixels with a title in its middle."""
    size = round(1.25 * style.font_size)
    return _text_strip(text, (width, round(1.8 * size)), size, TEXT_COLOR)


def with_caption(image: Image.Image, caption: str, style: Style) -> Image.Image:
    """An image with a line of muted text below."""
    size = (image.width, round(1.7 * style.font_size))
    return concat([image, _text_strip(caption, size, style.font_size, MUTED_TEXT_COLOR)])


def _text_strip(text: str, size: tuple[int, int], font_size: int, color: Sequence[int]) -> Image.Image:
    strip = Image.new("RGB", size, BACKGROUND)
    ImageDraw.Draw(strip).text((size[0] / 2, size[1] / 2), text, color, font_for(text, font_size), anchor="mm")
    return strip


def legend(entries: Sequence[tuple[str, Sequence[int]]], width: int, style: Style) -> Image.Image:
    """Patches of colour with names, in as many lines as they need; of height 0 if there are none."""
    pad, line_height = round(0.6 * style.font_size), round(1.7 * style.font_size)
    patch = (round(1.5 * style.font_size), round(0.95 * style.font_size))
    text_offset = patch[0] + round(0.45 * style.font_size)
    placed = []
    x, y = pad, 0
    for name, color in entries:
        entry_width = text_offset + style.text_width(name)
        if x > pad and x + entry_width + pad > width:
            x, y = pad, y + line_height
        placed.append((x, y, name, color))
        x += entry_width + round(1.3 * style.font_size)
    image = Image.new("RGB", (width, y + line_height + pad if placed else 0), BACKGROUND)
    draw = ImageDraw.Draw(image)
    for x, y, name, color in placed:
        middle = y + (pad + line_height) // 2
        top = middle - patch[1] // 2
        draw_rounded_box(image, (x, top, x + patch[0], top + patch[1]), color)
        draw.text((x + text_offset, middle), name, TEXT_COLOR, style.font(name), anchor="lm")
    return image


def concat(images: Sequence[Image.Image], gap: int = 0, horizontal: bool = False) -> Image.Image:
    """Images one below the other, or side by side, `gap` pixels apart."""
    gaps = gap * (len(images) - 1)
    widths, heights = [image.width for image in images], [image.height for image in images]
    size = (sum(widths) + gaps, max(heights)) if horizontal else (max(widths), sum(heights) + gaps)
    whole = Image.new("RGB", size, BACKGROUND)
    offset = 0
    for image in images:
        whole.paste(image, (offset, 0) if horizontal else (0, offset))
        offset += (image.width if horizontal else image.height) + gap
    return whole


def image_grid(
    rows: Sequence[Sequence[Image.Image]],
    titles: Sequence[str],
    entries: Sequence[tuple[str, Sequence[int]]],
    cell_width: int,
) -> Image.Image:
    """Rows of images `cell_width` pixels wide, below the titles of the columns and above a legend of `entries`."""
    style, gap = Style.of(round(1.1 * cell_width)), max(2, cell_width // 80)
    header = [title_strip(title, cell_width, style) for title in titles]
    lines = [concat(images, gap, horizontal=True) for images in (header, *rows)]
    return ImageOps.expand(concat([*lines, legend(entries, lines[0].width, style)], gap), 2 * gap, BACKGROUND)
