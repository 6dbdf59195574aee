"""A font that has the characters of a text: Pillow's own, or one of this system."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache

from PIL import ImageFont

__all__ = ["drawable_names", "fallback_families", "font_for", "system_font"]

logger = logging.getLogger(__name__)

_MISSING = "\U0010ffff"  # a code point that no font has: drawn as an empty box


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    """The font of `size` pixels in which all of `text` can be read; Pillow's own where no font of this system can."""
    unusual = frozenset(character for character in text if not _is_plain(character))
    path = system_font(unusual) if unusual else None
    return ImageFont.load_default(size) if path is None else ImageFont.truetype(path, size)


def drawable_names(names: Sequence[str]) -> list[str]:
    """`names`, of which those that no font can draw are "class 3", by their place; one warning says which."""
    drawn = [name if _is_drawable(name) else f"class {i}" for i, name in enumerate(names)]
    replaced = tuple(f"{short}: {name}" for short, name in zip(drawn, names, strict=True) if short != name)
    if replaced:
        _warn(replaced)
    return drawn


@lru_cache(maxsize=32)
def _warn(replaced: tuple[str, ...]) -> None:
    shown = ", ".join(replaced[:5]) + (f" and {len(replaced) - 5} more" if len(replaced) > 5 else "")
    logger.warning(
        "No font of this system has the characters of %d class names, which are drawn as numbers (%s). A font such as "
        "Noto Sans CJK (Debian: fonts-noto-cjk) draws them",
        *(len(replaced), shown),
    )


def _is_drawable(text: str) -> bool:
    unusual = frozenset(character for character in text if not _is_plain(character))
    return not unusual or system_font(unusual) is not None


@lru_cache(maxsize=4096)
def _is_plain(character: str) -> bool:
    """Whether Pillow's font has it."""
    if character.isascii():
        return True
    font = ImageFont.load_default(16)
    return bytes(font.getmask(character)) != bytes(font.getmask(_MISSING))


@lru_cache(maxsize=256)
def system_font(characters: frozenset[str]) -> str | None:
    """The file of a font that has all `characters`, or None. Upright and regular fonts first."""
    if not characters:
        return None
    from matplotlib import font_manager  # slow to import, and only needed for names that Pillow's font lacks

    needed = {ord(character) for character in characters if not character.isspace()}
    entries = font_manager.fontManager.ttflist
    plain = sorted(entries, key=lambda e: (e.style != "normal", str(e.weight) not in ("400", "normal", "regular")))
    # "Last Resort" has every character, as a box
    for path in dict.fromkeys(
        entry.fname for entry in plain if "lastresort" not in entry.name.lower().replace(" ", "")
    ):
        if path.lower().endswith((".ttf", ".otf", ".ttc")) and needed <= _characters(path):
            return path
    return None


def fallback_families(text: str) -> list[str]:
    """Families that matplotlib needs, beside its own font, to write `text`."""
    path = system_font(frozenset(character for character in text if not _is_plain(character)))
    if path is None:
        return []
    from matplotlib import font_manager

    return [next(entry.name for entry in font_manager.fontManager.ttflist if entry.fname == path)]


@lru_cache(maxsize=1024)
def _characters(path: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):  # a font that has been removed, or that FreeType cannot read
        return frozenset()
