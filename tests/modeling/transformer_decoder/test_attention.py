import pytest
import torch
from torch import nn

from fasegr.modeling.transformer_decoder.attention import CrossAttentionLayer, MultiheadAttention

torch.manual_seed(0)


def pair(dim=16, heads=4):
    """Ours and torch's attention with the same parameters."""
    theirs = nn.MultiheadAttention(dim, heads, batch_first=True, dtype=torch.float64)
    ours = MultiheadAttention(dim, heads).double()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("masked", [False, True])
def test_equals_torch_attention(masked):
    ours, theirs = pair()
    query, key, value = (torch.randn(2, n, 16, dtype=torch.float64) for n in (5, 9, 9))
    hidden = torch.rand(2, 5, 9) < 0.4 if masked else None
    expanded = hidden.repeat_interleave(4, 0) if masked else None
    expected, weights = theirs(query, key, value, attn_mask=expanded)
    ours_hidden = hidden.unsqueeze(1) if masked else None
    torch.testing.assert_close(ours(query, key, value, ours_hidden), expected)
    attended = ours.with_attention(query, key, value, ours_hidden)
    torch.testing.assert_close(attended.queries, expected)
    torch.testing.assert_close(attended.attention.weights, weights)
    torch.testing.assert_close(ours.weights(query, key, ours_hidden), weights)


def test_layer_forms_attention_only_where_it_is_kept():
    args = [torch.randn(1, n, 8) for n in (3, 3, 6, 6)]
    kept = CrossAttentionLayer(8, 2, keeps_attention=True)
    fused = CrossAttentionLayer(8, 2, keeps_attention=False)
    fused.load_state_dict(kept.state_dict())
    one, other = kept(*args, None), fused(*args, None)
    torch.testing.assert_close(one.queries, other.queries)
    assert other.attention is None
    torch.testing.assert_close(one.attention.weights.sum(-1), torch.ones(1, 3))


def test_heads_must_divide_channels():
    with pytest.raises(ValueError, match="3 heads do not divide the 16 channels"):
        MultiheadAttention(16, 3)
