"""Names in all scripts: drawn where some font has them, else by number, and said once."""

import logging

import numpy as np
import pytest
from PIL import ImageFont

from fasegr.visualization import fonts
from fasegr.visualization.fonts import drawable_names, font_for
from fasegr.visualization.overlays import overlay, side_by_side


def drawn(text):
    return bytes(font_for(text, 20).getmask(text))


@pytest.mark.parametrize("text", ["سماء", "небо", "ουρανός"])
def test_scripts_that_a_font_of_the_system_has(text):
    """matplotlib brings DejaVu Sans, which has these."""
    assert drawn(text) != bytes(font_for(text, 20).getmask("\U0010ffff" * len(text)))
    assert drawable_names([text]) == [text]


def test_plain_names_keep_the_font_that_they_had():
    assert font_for("road, 2", 20).getname() == ImageFont.load_default(20).getname()


def test_names_that_nothing_draws_are_numbers_and_said_once(monkeypatch, caplog):
    monkeypatch.setattr(fonts, "system_font", lambda characters: None)
    fonts._warn.cache_clear()
    names = ["sky", "背景", "物体"]
    with caplog.at_level(logging.WARNING, "fasegr"):
        for _ in range(3):
            assert drawable_names(names) == ["sky", "class 1", "class 2"]
    assert len(caplog.records) == 1
    assert "class 1: 背景" in caplog.text and "fonts-noto-cjk" in caplog.text
    image, labels = np.zeros((40, 60, 3), np.uint8), np.full((40, 60), 1)
    plain = overlay(image, labels, ["sky", "class 1", "class 2"])
    assert np.array_equal(np.asarray(overlay(image, labels, names)), np.asarray(plain))


@pytest.mark.parametrize("size", [(4000, 30), (30, 4000), (1, 1000), (1000, 1), (1, 1)])
def test_pictures_of_extreme_shape(size):
    """Bounded by the long side: neither an overlay nor a row of samples grows without end."""
    image, labels = np.zeros((*size, 3), np.uint8), np.zeros(size, int)
    drawn = overlay(image, labels, ["background", "object"])
    assert max(drawn.size) <= max(*size, 1600) + 100 and drawn.width >= min(size[1], 384)
    page = side_by_side([(image, labels, labels)], ["background", "object"])
    assert page.width < 1600 and page.height < 1700
