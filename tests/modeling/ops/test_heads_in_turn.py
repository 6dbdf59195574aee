import pytest
import torch

from fasegr.modeling.ops import heads_in_turn
from fasegr.modeling.ops import switches as fast_paths
from fasegr.modeling.transformer_decoder.attention import MultiheadAttention


@pytest.mark.parametrize("masked", [True, False])
def test_equals_all_heads_at_once(masked, monkeypatch):
    monkeypatch.setattr(heads_in_turn, "LEAST_KEYS", 1)
    torch.manual_seed(0)
    layer = MultiheadAttention(24, 3).double()
    query, key, value = torch.randn(2, 5, 24).double(), torch.randn(2, 31, 24).double(), torch.randn(2, 31, 24).double()
    hidden = torch.rand(2, 1, 5, 31) < 0.5 if masked else None
    with torch.no_grad():
        fast = layer.with_attention(query, key, value, hidden)
        with fast_paths.off("heads_in_turn"):
            plain = layer.with_attention(query, key, value, hidden)
    torch.testing.assert_close(fast.queries, plain.queries, rtol=0, atol=1e-13)
    torch.testing.assert_close(fast.attention.weights, plain.attention.weights, rtol=0, atol=1e-13)


def test_takes_what_it_can_and_no_more():
    q, k = torch.randn(1, 2, 3, 4), torch.randn(1, 2, heads_in_turn.LEAST_KEYS, 4)
    assert heads_in_turn.supports(q, k, k)
    assert not heads_in_turn.supports(q, k[:, :, 1:], k[:, :, 1:])
    assert not heads_in_turn.supports(q.bfloat16(), k.bfloat16(), k.bfloat16())
    assert not heads_in_turn.supports(q.requires_grad_(), k, k)
    with fast_paths.off("heads_in_turn"):
        assert not heads_in_turn.supports(q.detach(), k, k)
    with torch.autocast("cpu", torch.bfloat16):
        assert not heads_in_turn.supports(q.detach(), k, k)
