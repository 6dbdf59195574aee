"""Splits by lists and by drawing."""

import pytest

from fasegr.data.datasets import split_lists
from fasegr.data.datasets.split_lists import draw_validation, read_split_list
from fasegr.data.image_io import BadFile

STEMS = ["a", "b c", "sub/d", "e.v2"]


def write(tmp_path, text):
    (tmp_path / "train.txt").write_text(text)
    return tmp_path / "train.txt"


@pytest.mark.parametrize("line", ["sub/d", "sub/d.jpg", "sub\\d.png", "./sub/d", "sub/d 1", "sub/d.jpg labels/d.png"])
def test_how_a_line_may_name_an_image(tmp_path, line):
    assert read_split_list(write(tmp_path, f"# mine\n\n{line}\na\n"), STEMS, "images") == ["sub/d", "a"]


def test_names_with_spaces_and_dots(tmp_path):
    assert read_split_list(write(tmp_path, "b c\ne.v2\n"), STEMS, "images") == ["b c", "e.v2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nsecret\nx\n", r"train\.txt: 2 of its names are no images of images, that of line 2 first"),
        ("a\nb c\na.jpg\n", "line 3: names the image of line 1 again"),
        ("# none\n", "names no image"),
    ],
)
def test_mistakes(tmp_path, text, message):
    with pytest.raises(BadFile, match=message) as error:
        read_split_list(write(tmp_path, text), STEMS, "images")
    assert "secret" not in str(error.value).replace(str(tmp_path), "")


def test_a_missing_list(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"val\.txt.*SPLIT_LISTS"):
        read_split_list(tmp_path / "val.txt", STEMS, "images")


FRAMES = [f"{video}/{camera}_{i:03}" for video in "uvwxyz" for camera in ("left", "right") for i in range(5)]


def groups(stems):
    return {stem.rsplit("_", 1)[0] for stem in stems}


def test_frames_of_a_video_stay_together(caplog):
    split_lists._say_groups.cache_clear()
    with caplog.at_level("INFO", "fasegr"):
        drawn = draw_validation("own", FRAMES, 0.2, 0, "auto")
    assert len(drawn) == 10 and len(groups(drawn)) == 2
    assert not groups(drawn) & groups(set(FRAMES) - drawn)
    assert "60 images in 12 groups that stay together" in caplog.text


def test_a_draw_depends_on_the_seed_and_not_on_the_order():
    draws = [draw_validation("own", order, 0.2, seed, "auto") for seed in (0, 1, 2) for order in (FRAMES, FRAMES[::-1])]
    assert draws[0] == draws[1] and draws[2] == draws[3]
    assert len({frozenset(drawn) for drawn in draws}) > 1


def test_a_pattern_says_what_a_group_is():
    drawn = draw_validation("own", FRAMES, 0.2, 0, r"([a-z])/")
    assert len(drawn) == 10 and len({stem[0] for stem in drawn}) == 1


@pytest.mark.parametrize(("stems", "group"), [([f"img_{i}" for i in range(50)], "auto"), (FRAMES[:50], "")])
def test_images_one_by_one(stems, group):
    """Names that share all but a number are no groups."""
    assert len(draw_validation("own", stems, 0.3, 4, group)) == 15


def test_there_is_always_something_on_both_sides():
    for share in (0.01, 0.5, 0.9):
        drawn = draw_validation("own", FRAMES[:10], share, 0, "auto")
        assert 0 < len(drawn) < 10
    with pytest.raises(BadFile, match="no share of them can be drawn"):
        draw_validation("own", ["a"], 0.5, 0, "auto")
    with pytest.raises(BadFile, match="no share of them can be drawn"):
        draw_validation("own", FRAMES, 0.5, 0, "()")


def test_a_large_group_does_not_make_the_share_larger():
    stems = [f"big_{i}" for i in range(13)] + [f"mid_{i}" for i in range(6)] + [f"low_{i}" for i in range(5)]
    for seed in range(10):
        assert len(draw_validation("own", stems, 0.2, seed, "auto")) in (5, 6)
