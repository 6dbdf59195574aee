import pytest
import torch
from torch.nn import functional as F

from fasegr.modeling.transformer_decoder.attention import CrossAttentionContext
from fasegr.modeling.transformer_decoder.feature_levels import FeatureLevel
from fasegr.modeling.transformer_decoder.hrca import (
    AllPixels,
    RandomWindows,
    TopPixels,
    TopWindows,
    build_selection,
)


def context(attention, coarse, fine, images=None):
    """The inputs of a selection: the attention, and the sizes of both levels."""
    images = len(attention) if images is None else images
    memory = torch.zeros(images, fine[0] * fine[1], 1)
    queries = torch.zeros(images, 1, 1)
    level = FeatureLevel(memory, memory, fine)
    return CrossAttentionContext(level, queries, queries, None, attention, coarse, False)


def windows_by_unfolding(attention, low, high, omega):
    """The released selection: cut the map of pixel indices into windows, take those of the strongest cells."""
    rows, columns = high[0] // low[0], high[1] // low[1]
    numbers = torch.arange(high[0] * high[1]).view(low[0], rows, low[1], columns)
    windows = numbers.permute(0, 2, 1, 3).reshape(low[0] * low[1], rows * columns)
    order = attention.sum(1).argsort(-1, descending=True)[:, : max(1, low[0] * low[1] // omega)]
    return windows[order].flatten(1)


@pytest.mark.parametrize("low", [(4, 4), (3, 5), (6, 2)])
@pytest.mark.parametrize("omega", [1, 2, 5])
@pytest.mark.parametrize("factor", [(8, 8), (4, 4), (3, 1)])
def test_windows_equal_the_released_selection(low, omega, factor):
    torch.manual_seed(0)
    attention = torch.rand(3, 7, low[0] * low[1])
    high = (low[0] * factor[0], low[1] * factor[1])
    pixels = TopWindows(omega)(context(attention, low, high))
    expected = windows_by_unfolding(attention, low, high, omega)
    assert torch.equal(pixels.sort(-1).values, expected.sort(-1).values)


def test_at_least_one_cell_on_small_images():
    attention = torch.rand(2, 3, 4)
    assert TopWindows(32)(context(attention, (2, 2), (16, 16))).shape == (2, 64)
    assert TopPixels(10**6)(context(attention, (2, 2), (16, 16))).shape == (2, 1)


def test_pixels_of_the_upsampled_attention():
    torch.manual_seed(0)
    attention = torch.rand(2, 3, 20)
    pixels = TopPixels(16)(context(attention, (4, 5), (32, 40)))
    upsampled = F.interpolate(attention.sum(1).view(2, 1, 4, 5), size=(32, 40), mode="bilinear").flatten(1)
    assert pixels.shape == (2, 80)
    expected = upsampled.sort(-1, descending=True).values[:, :80]
    torch.testing.assert_close(upsampled.gather(1, pixels).sort(-1, descending=True).values, expected)


def test_random_windows_are_as_many_and_need_no_attention():
    torch.manual_seed(0)
    pixels = RandomWindows(8)(context(None, (4, 4), (8, 8), images=50))
    assert pixels.shape == (50, 8)
    assert len(pixels.unique()) == 64  # every window is drawn for some image


def test_vanilla_takes_all():
    assert AllPixels()(context(None, (4, 4), (8, 8), images=1)) is None


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (("vanilla", "window", 32), AllPixels),
        (("random", "window", 32), RandomWindows),
        (("hrca", "window", 32), TopWindows),
        (("hrca", "pixel", 32), TopPixels),
    ],
)
def test_selection_by_name(arguments, kind):
    assert isinstance(build_selection(*arguments), kind)


def test_unknown_selection():
    with pytest.raises(ValueError, match="high_res_attention is 'hrca' with the selection 'sky'; choose hrca"):
        build_selection("hrca", "sky", 32)


def test_maps_that_do_not_fit():
    with pytest.raises(ValueError, match=r"\(9, 8\) is not a multiple of the coarsest one \(4, 4\)"):
        TopWindows(4)(context(torch.rand(1, 1, 16), (4, 4), (9, 8)))


@pytest.mark.parametrize("omega", [0, -3])
def test_omega_must_be_positive(omega):
    with pytest.raises(ValueError, match=f"omega is {omega}; it must be an int >= 1"):
        TopWindows(omega)
