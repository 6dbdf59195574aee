"""Pages of pictures: fonts and lengths, titles, legends, rows and columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

__all__ = [
    "FAINT_INK",
    "INK",
    "PAPER",
    "Style",
    "legend",
    "picture_table",
    "rounded_box",
    "scaled",
    "stack",
    "title_cell",
    "with_margin",
    "with_note",
]

INK = (32, 36, 42)
FAINT_INK = (116, 122, 130)
PAPER = (255, 255, 255)


class Style(NamedTuple):
    """Sizes that go with the size of a picture. Lengths in pixels."""

    font: ImageFont.FreeTypeFont
    text: int  # height of the font
    line: int  # width of outlines

    @classmethod
    def of(cls, shorter_side: int) -> Style:
        text = max(12, round(shorter_side / 34))
        return cls(ImageFont.load_default(text), text, max(1, round(shorter_side / 400)))

    def width(self, text: str) -> int:
        return math.ceil(self.font.getlength(text))


def rounded_box(picture: Image.Image, box: tuple[int, int, int, int], color: Sequence[int], opacity: float = 1) -> None:
    """Fill a box (left, top, right, bottom) with round corners, smoothly, which PIL's own drawing is not."""
    size, fine = (box[2] - box[0], box[3] - box[1]), 4
    mask = Image.new("L", (size[0] * fine, size[1] * fine))
    corners = (0, 0, mask.width - 1, mask.height - 1)
    ImageDraw.Draw(mask).rounded_rectangle(corners, radius=mask.height / 4, fill=round(255 * opacity))
    picture.paste(tuple(int(v) for v in color), box, mask.resize(size, Image.Resampling.BOX))


def scaled(picture: Image.Image, width: int, smooth: bool = True) -> Image.Image:
    """To a width in pixels. What is not smooth keeps its hard edges when enlarged."""
    size = (width, max(1, round(picture.height * width / picture.width)))
    if width < picture.width:
        return picture.resize(size, Image.Resampling.LANCZOS if smooth else Image.Resampling.BOX)
    return picture.resize(size, Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST)


def title_cell(text: str, width: int, style: Style) -> Image.Image:
    size = round(1.25 * style.text)
    cell = Image.new("RGB", (width, round(1.8 * size)), PAPER)
    ImageDraw.Draw(cell).text((width / 2, cell.height / 2), text, INK, ImageFont.load_default(size), anchor="mm")
    return cell


def with_note(picture: Image.Image, note: str, style: Style) -> Image.Image:
    """A picture with a line of small print below."""
    size = style.text
    line = Image.new("RGB", (picture.width, round(1.7 * size)), PAPER)
    ImageDraw.Draw(line).text(
        (line.width / 2, line.height / 2), note, FAINT_INK, ImageFont.load_default(size), anchor="mm"
    )
    return stack([picture, line])


def legend(entries: Sequence[tuple[str, Sequence[int]]], width: int, style: Style) -> Image.Image:
    """Patches of colour with names, in as many lines as they need; of no height if there are none."""
    pad, line_height = round(0.6 * style.text), round(1.7 * style.text)
    patch = (round(1.5 * style.text), round(0.95 * style.text))
    places = []
    x, y = pad, 0
    for name, color in entries:
        entry = patch[0] + round(0.45 * style.text) + style.width(name)
        if x > pad and x + entry + pad > width:
            x, y = pad, y + line_height
        places.append((x, y, name, color))
        x += entry + round(1.3 * style.text)
    picture = Image.new("RGB", (width, y + line_height + pad if places else 0), PAPER)
    draw = ImageDraw.Draw(picture)
    for x, y, name, color in places:
        middle = y + (pad + line_height) // 2
        top = middle - patch[1] // 2
        rounded_box(picture, (x, top, x + patch[0], top + patch[1]), color)
        draw.text((x + patch[0] + round(0.45 * style.text), middle), name, INK, style.font, anchor="lm")
    return picture


def stack(pictures: Sequence[Image.Image], gap: int = 0, across: bool = False) -> Image.Image:
    """Pictures one below the other, or across the page, on paper."""
    gaps = gap * (len(pictures) - 1)
    widths, heights = [p.width for p in pictures], [p.height for p in pictures]
    size = (sum(widths) + gaps, max(heights)) if across else (max(widths), sum(heights) + gaps)
    page = Image.new("RGB", size, PAPER)
    offset = 0
    for picture in pictures:
        page.paste(picture, (offset, 0) if across else (0, offset))
        offset += (picture.width if across else picture.height) + gap
    return page


def with_margin(picture: Image.Image, margin: int) -> Image.Image:
    page = Image.new("RGB", (picture.width + 2 * margin, picture.height + 2 * margin), PAPER)
    page.paste(picture, (margin, margin))
    return page


def picture_table(
    rows: Sequence[Sequence[Image.Image]],
    titles: Sequence[str],
    entries: Sequence[tuple[str, Sequence[int]]],
    cell_width: int,
) -> Image.Image:
    """Rows of pictures that are `cell_width` wide, below the titles of the columns and above a legend of `entries`."""
    style, gap = Style.of(round(1.1 * cell_width)), max(2, cell_width // 80)
    lines = [[title_cell(title, cell_width, style) for title in titles], *rows]
    page = [stack(cells, gap, across=True) for cells in lines]
    return with_margin(stack([*page, legend(entries, page[0].width, style)], gap), 2 * gap)
