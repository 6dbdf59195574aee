import math

import pytest
import torch

from fasegr.modeling.transformer_decoder.position_encoding import (
    ConditionalPosition,
    LearnablePosition,
    SinusoidalPosition,
    build_key_position,
    encode_points,
)


def test_sinusoidal_equals_the_formula():
    height, width, dim = 3, 5, 8
    encoded = SinusoidalPosition(dim)(0, torch.zeros(2, 1, height, width, dtype=torch.float64))
    assert encoded.shape == (2, dim, height, width)
    for channel in range(dim):
        c = channel % (dim // 2)
        wave = math.sin if c % 2 == 0 else math.cos
        scale = 10000.0 ** (2 * (c // 2) / (dim // 2))
        for row in range(height):
            for column in range(width):
                at, size = (row, height) if channel < dim // 2 else (column, width)
                expected = wave((at + 1) / (size + 1e-6) * 2 * math.pi / scale)
                assert encoded[1, channel, row, column].item() == pytest.approx(expected, abs=1e-12)


def test_conditional_is_depthwise_and_padded():
    torch.manual_seed(0)
    position = ConditionalPosition(4, num_levels=2)
    features = torch.randn(1, 4, 6, 6)
    encoded = position(1, features)
    assert encoded.shape == features.shape
    features[:, 0] += 1
    changed = (position(1, features) - encoded).abs().amax((0, 2, 3))
    assert changed[0] > 0 and changed[1:].max() == 0


def hat(size, table_size):
    """Weight of each table entry at each position of a map: triangles as wide as a cell of the coarser of the two."""
    wide = max(1.0, table_size / size)
    weights = torch.zeros(size, table_size, dtype=torch.float64)
    for i in range(size):
        centre = (i + 0.5) * table_size / size
        for j in range(table_size):
            weights[i, j] = max(0.0, 1 - abs(j + 0.5 - centre) / wide)
    return weights / weights.sum(1, keepdim=True)


@pytest.mark.parametrize("size", [(4, 4), (8, 12), (5, 9), (2, 3), (1, 1)])
def test_learnable_is_read_bilinearly_from_its_table(size):
    torch.manual_seed(0)
    position = LearnablePosition(6, num_levels=3, table_size=4).double()
    encoded = position(2, torch.zeros(2, 1, *size, dtype=torch.float64))
    table = position[2].weight.view(4, 4, 6)
    expected = torch.einsum("yi,xj,ijc->cyx", hat(size[0], 4), hat(size[1], 4), table)
    torch.testing.assert_close(encoded, expected.expand(2, -1, -1, -1))


def test_learnable_has_a_vector_for_each_cell_of_the_coarsest_map():
    position = LearnablePosition(8, num_levels=4)
    encoded = position(0, torch.zeros(1, 8, 16, 16))
    torch.testing.assert_close(encoded[0, :, 3, 5], position[0].weight[3 * 16 + 5])
    assert sum(p.numel() for p in position.parameters()) == 4 * 256 * 8


def test_every_entry_of_a_table_is_trained_by_small_maps():
    position = LearnablePosition(3, num_levels=1, table_size=8)
    position(0, torch.zeros(1, 1, 2, 3)).square().sum().backward()
    assert (position[0].weight.grad.abs().amax(1) > 0).all()


def test_gradients_of_learnable():
    position = LearnablePosition(2, num_levels=1, table_size=3).double()
    features = torch.zeros(1, 1, 2, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda _: position(0, features), position[0].weight)


def test_learnable_has_the_dtype_of_the_features():
    features = torch.zeros(1, 4, 2, 2, dtype=torch.bfloat16)
    assert LearnablePosition(4, num_levels=1)(0, features).dtype == torch.bfloat16


def test_code_of_a_point_is_that_of_the_key_at_it():
    height, width, dim = 3, 5, 8
    encoded = SinusoidalPosition(dim)(0, torch.zeros(1, 1, height, width, dtype=torch.float64))
    point = torch.tensor([2 / (height + 1e-6), 4 / (width + 1e-6)], dtype=torch.float64)
    torch.testing.assert_close(encode_points(point, dim), encoded[0, :, 1, 3])


@pytest.mark.parametrize(
    ("name", "kind"),
    [("conditional", ConditionalPosition), ("sinusoidal", SinusoidalPosition), ("learnable", LearnablePosition)],
)
def test_key_position_by_name(name, kind):
    assert isinstance(build_key_position(name, 8, 4), kind)


def test_unknown_key_position():
    with pytest.raises(ValueError, match="key_position is 'psychic'; choose conditional"):
        build_key_position("psychic", 8, 4)


def test_channels_must_make_pairs():
    with pytest.raises(ValueError, match="6 channels"):
        SinusoidalPosition(6)
    with pytest.raises(ValueError, match="6 channels"):
        encode_points(torch.zeros(2), 6)
