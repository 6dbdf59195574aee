"""Recorded attention against torch's own, one image and one query at a time; and that recording changes nothing."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fasegr.analysis.attention_maps import record_attention
from fasegr.modeling.pixel_decoder import PixelDecoderOutput
from fasegr.modeling.transformer_decoder.decoder import MultiScaleMaskedTransformerDecoder
from tests.modeling.transformer_decoder.test_decoder import DEFAULTS as DECODER
from tests.modeling.transformer_decoder.test_decoder import SIZES

DIM, QUERIES, HEADS = 16, 5, 2
DEFAULTS = {**DECODER, "dim": DIM, "num_heads": HEADS}
VARIANTS = {
    "release": {},
    "paper": {"high_res_selection": "pixel", "high_res_query": "dynamic", "first_query_region": "foreground"},
    "random pixels": {"high_res_attention": "random"},
    "all pixels": {"high_res_attention": "vanilla"},
    "rows and columns": {"high_res_attention": "rcda"},
    "two high-resolution levels": {"high_res_levels": [4, 8]},
    "anchors": {"positional_query": "dynamic_anchor"},
    "Mask2Former": {"positional_query": "learnable", "high_res_attention": "none"},
}

# layers of the round of four and the two after it that read selected pixels alone
SELECTING = {name: [3] for name in ("release", "paper", "random pixels", "anchors")} | {
    "two high-resolution levels": [2, 3]
}


def decoder(**changes):
    torch.manual_seed(0)
    made = MultiScaleMaskedTransformerDecoder(DIM, **{**DEFAULTS, **changes}).double().eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)  # masks on both sides of the threshold
    return made


def maps(net):
    torch.manual_seed(1)
    sizes = SIZES[: net.level_embed.num_embeddings]
    features, positions = ([torch.randn(2, DIM, *size, dtype=torch.float64) for size in sizes] for _ in range(2))
    return PixelDecoderOutput(torch.randn(2, 8, *SIZES[-1], dtype=torch.float64), features, positions)


def run(net, inputs):
    torch.manual_seed(2)  # of random selections
    return net(inputs)


@pytest.mark.parametrize("variant", VARIANTS)
def test_recording_changes_nothing(variant):
    net = decoder(**VARIANTS[variant])
    inputs = maps(net)
    expected = run(net, inputs)
    with record_attention(net) as layers:
        recorded = run(net, inputs)
    again = run(net, inputs)
    for outputs in (recorded, again):
        torch.testing.assert_close(outputs, expected, rtol=0, atol=0)
    assert len(layers) == 6


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_are_over_the_whole_level(variant):
    net = decoder(**VARIANTS[variant])
    inputs = maps(net)
    with record_attention(nn.Sequential(net)) as layers:
        run(net, inputs)
    for i, seen in enumerate(layers):
        level = i % net.level_embed.num_embeddings
        n = SIZES[level][0] * SIZES[level][1]
        assert seen.layer == i and seen.size == SIZES[level] and seen.query_pos.shape == (2, QUERIES, DIM)
        torch.testing.assert_close(seen.key_pos, inputs.key_positions[level].flatten(2).transpose(1, 2))
        for weights in (seen.attention, seen.positional):
            assert weights.shape == (2, QUERIES, n) and not weights.requires_grad
            assert weights.min() >= 0
            torch.testing.assert_close(weights.sum(-1), torch.ones(2, QUERIES, dtype=weights.dtype))
    selecting = [seen.layer for seen in layers if seen.pixels is not None]
    assert selecting == SELECTING.get(variant, [])


@pytest.mark.parametrize("variant", ["release", "paper", "Mask2Former"])
def test_equals_torchs_attention(variant):
    """The weights that torch's attention gives for what each layer was called with, put in place pixel by pixel."""
    net = decoder(**VARIANTS[variant])
    inputs, calls = maps(net), []
    for layer in net.transformer_cross_attention_layers:
        layer.register_forward_pre_hook(lambda module, arguments: calls.append((module, *arguments)))
    with record_attention(net) as layers:
        run(net, inputs)
    assert len(calls) == len(layers)

    def weights(m, b, query, key, hidden):
        return F.multi_head_attention_forward(
            query[b, :, None], key[b, :, None], key[b, :, None], DIM, HEADS, m.in_proj_weight, m.in_proj_bias, None,
            None, False, 0.0, m.out_proj.weight, m.out_proj.bias,
            attn_mask=None if hidden is None else hidden[b].expand(HEADS, -1, -1),
        )[1][0]  # fmt: skip

    for seen, (layer, queries, context) in zip(layers, calls, strict=True):
        m, query_pos = layer.multihead_attn, seen.query_pos
        if layer.uses_mask:
            torch.testing.assert_close(query_pos, context.query_pos)
            hidden = context.mask_logits.sigmoid() < DEFAULTS["mask_threshold"]
            hidden = hidden & ~hidden.all(-1, keepdim=True)
        else:
            hidden = None
        tokens, key_pos = context.level.memory, context.level.key_pos
        if seen.pixels is not None:
            image = torch.arange(2)[:, None]
            tokens, key_pos = tokens[image, seen.pixels], key_pos[image, seen.pixels]
        for b in range(2):
            both = weights(m, b, queries + query_pos, tokens + key_pos, hidden), weights(m, b, query_pos, key_pos, None)
            for got, given in zip((seen.attention[b], seen.positional[b]), both, strict=True):
                expected = torch.zeros_like(got)
                places = range(got.shape[1]) if seen.pixels is None else seen.pixels[b].tolist()
                for column, pixel in enumerate(places):
                    expected[:, pixel] = given[:, column]
                torch.testing.assert_close(got, expected)


def test_rows_and_columns_are_multiplied():
    """Attention by rows and columns reads a map of ones at one pixel as that pixel's weight."""
    net = decoder(high_res_attention="rcda")
    calls = []
    layer = net.transformer_cross_attention_layers[3]
    layer.register_forward_pre_hook(lambda module, arguments: calls.append(arguments))
    with record_attention(net) as layers:
        run(net, maps(net))
    ((queries, context),) = calls
    query_pos = context.query_embed  # the release's
    tokens, key_pos = (x.unflatten(1, SIZES[3]) for x in context.level[:2])
    query_keys = queries + query_pos, tokens.mean(1) + key_pos.mean(1), tokens.mean(2) + key_pos.mean(2)
    over_x, over_y = layer.multihead_attn.weights(*query_keys)
    y, x = 5, 17
    expected = (over_y[..., y] * over_x[..., x]).mean(1)
    torch.testing.assert_close(layers[3].attention[:, :, y * SIZES[3][1] + x], expected)


def test_an_error_inside_ends_the_recording():
    net = decoder()
    with pytest.raises(ZeroDivisionError), record_attention(net) as layers:
        raise ZeroDivisionError
    run(net, maps(net))
    assert not layers


def test_training_is_recorded_without_gradients():
    net = decoder().train()
    inputs = maps(net)
    with record_attention(net) as layers:
        run(net, inputs)[-1].mask_logits.sum().backward()
    assert net.query_feat.weight.grad is not None
    assert not any(value.requires_grad for seen in layers for value in seen if isinstance(value, torch.Tensor))


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.ModuleList([decoder(), decoder()])], ids=["none", "two"])
def test_needs_one_decoder(model):
    with pytest.raises(ValueError, match=r"holds (0|2) transformer decoders"), record_attention(model):
        pass
