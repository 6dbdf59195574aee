import pytest
import torch
from torch import nn

from fasegr.modeling.transformer_decoder.positional_query import DynamicFocusAwareQuery, LearnableQuery


def h():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)).double()


def inputs():
    torch.manual_seed(1)
    base, key_pos = torch.randn(4, 6, dtype=torch.float64), torch.randn(2, 10, 6, dtype=torch.float64)
    attention = torch.rand(2, 4, 10, dtype=torch.float64).softmax(-1)
    return base, attention, key_pos


def test_renew_is_the_outer_product_summed_over_keys():
    base, attention, key_pos = inputs()
    project = h()
    expected = project((attention.unsqueeze(-1) * key_pos.unsqueeze(1)).sum(2) + base)
    torch.testing.assert_close(DynamicFocusAwareQuery(project, region="background").renew(*inputs()), expected)


@pytest.mark.parametrize("region", ["background", "foreground"])
def test_first_query_pools_over_its_region(region):
    base, _, key_pos = inputs()
    logits = torch.randn(2, 4, 10, dtype=torch.float64)
    logits[0, 0] = 9.0  # a query whose background is empty
    inside = logits.sigmoid() < 0.5 if region == "background" else logits.sigmoid() >= 0.5
    project = h()
    expected = torch.stack(
        [
            torch.stack([key_pos[b][inside[b, q]].sum(0) / (inside[b, q].sum() + 1e-6) for q in range(4)])
            for b in range(2)
        ]
    )
    query = DynamicFocusAwareQuery(project, region=region)
    torch.testing.assert_close(query.first(base, logits, key_pos), project(expected + base))


def test_gradients_reach_attention_and_key_positions():
    base, attention, key_pos = (t.requires_grad_() for t in inputs())
    query = DynamicFocusAwareQuery(h(), region="background")
    assert torch.autograd.gradcheck(query.renew, (base, attention, key_pos))


def test_learnable_query_is_the_base():
    base, attention, key_pos = inputs()
    query = LearnableQuery()
    assert query.first(base, attention, key_pos) is base
    assert query.renew(base, attention, key_pos) is base


def test_unknown_region():
    with pytest.raises(ValueError, match=r"'sky'.*background.*foreground"):
        DynamicFocusAwareQuery(h(), region="sky")
