import math

import pytest
import torch

from fasegr.modeling.transformer_decoder.position_encoding import ConditionalPosition, SinusoidalPosition


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


def test_channels_must_make_pairs():
    with pytest.raises(ValueError, match="6 channels"):
        SinusoidalPosition(6)
