import pytest
import torch
from torch import nn

from fasegr.modeling.transformer_decoder.attention import MultiheadAttention

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
    attn_mask = torch.rand(2, 5, 9) >= 0.4 if masked else None
    expanded = ~attn_mask.repeat_interleave(4, 0) if masked else None
    expected, expected_weights = theirs(query, key, value, attn_mask=expanded)
    attn_mask = attn_mask.unsqueeze(1) if masked else None
    torch.testing.assert_close(ours(query, key, value, attn_mask), expected)
    out, weights = ours.with_weights(query, key, value, attn_mask)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(weights, expected_weights)


def test_heads_must_divide_channels():
    with pytest.raises(ValueError, match="num_heads is 3; it must divide the 16 channels"):
        MultiheadAttention(16, 3)
