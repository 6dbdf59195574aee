import pytest

from fasegr.modeling.transformer_decoder.feature_levels import level_strides


@pytest.mark.parametrize(
    ("attention", "levels", "strides"),
    [
        ("hrca", [4], (32, 16, 8, 4)),
        ("rcda", [4, 8], (32, 16, 8, 4)),
        ("hrca", [8], (32, 16, 8)),
        ("none", [4], (32, 16, 8)),
    ],
)
def test_the_finest_map_is_a_level_only_for_the_high_resolution_attention(attention, levels, strides):
    assert level_strides(attention, levels) == strides


@pytest.mark.parametrize("levels", [[], [16], [8, 4]])
def test_impossible_levels_are_refused(levels):
    with pytest.raises(ValueError, match=r"high_res_levels is \[.*\]; choose \[4\], \[8\] or \[4, 8\]"):
        level_strides("hrca", levels)
