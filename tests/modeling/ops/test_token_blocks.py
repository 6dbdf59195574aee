"""Blocks of tokens against the layers as they are written."""

import pytest
import torch

from fasegr.modeling.ops import switches as fast_paths
from fasegr.modeling.ops import token_blocks
from fasegr.modeling.pixel_decoder.msdeformattn import DeformableEncoder, EncoderLayer


def encoder(dim=16, levels=2):
    torch.manual_seed(0)
    layers = [EncoderLayer(dim, 24, levels, num_heads=4, num_points=3, dropout=0.5) for _ in range(2)]
    model = DeformableEncoder(dim, layers, levels).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def maps(batch=2, dim=16):
    generator = torch.Generator().manual_seed(1)
    sizes = ((3, 5), (6, 9))
    return [torch.randn(batch, dim, h, w, generator=generator, dtype=torch.float64) for h, w in sizes]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(token_blocks, "BLOCK", 16)  # 69 tokens: four blocks and a shorter one


@torch.no_grad()
def test_equals_the_layers_as_written(small_blocks):
    model, features = encoder(), maps()
    positions = [torch.randn_like(m) for m in features]
    before = [m.clone() for m in features]
    assert token_blocks.supports(features[0].flatten(2).transpose(1, 2).repeat(1, 2, 1), model)
    fast = model(features, positions)
    with fast_paths.off("token_blocks"):
        plain = model(features, positions)
    for a, b in zip(fast, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert all(torch.equal(a, b) for a, b in zip(features, before, strict=True))


def test_is_for_inference_in_full_precision_alone(small_blocks):
    model = encoder()
    tokens = torch.zeros(1, 69, 16, dtype=torch.float64)
    assert not token_blocks.supports(tokens, model)  # a gradient is recorded
    with torch.no_grad():
        assert token_blocks.supports(tokens, model)
        assert not token_blocks.supports(tokens[:, :16], model)
        assert not token_blocks.supports(tokens.bfloat16(), model)
        with torch.autocast("cpu", torch.bfloat16):
            assert not token_blocks.supports(tokens, model)
        with fast_paths.off("embedding_bag"):
            assert not token_blocks.supports(tokens, model)
        assert not token_blocks.supports(tokens, model.train())  # which has dropout
