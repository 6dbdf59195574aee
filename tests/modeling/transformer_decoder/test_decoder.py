"""The decoder against a slow reading of the paper and the release: whole masks, outer products, window by window."""

import pytest
import torch
from torch.nn import functional as F

from fasegr.modeling.pixel_decoder import PixelDecoderOutput
from fasegr.modeling.transformer_decoder.decoder import MultiScaleMaskedTransformerDecoder

SIZES = [(2, 3), (4, 6), (8, 12), (16, 24)]
DIM, QUERIES = 32, 5
DEFAULTS = {
    "num_classes": 4,
    "dim": DIM,
    "num_queries": QUERIES,
    "num_heads": 4,
    "ffn_dim": 16,
    "num_layers": 6,
    "mask_dim": 8,
    "enforce_input_project": False,
    "positional_query": "dfpq",
    "first_query_region": "background",
    "mask_threshold": 0.4,
    "high_res_attention": "hrca",
    "omega": 3,
    "high_res_selection": "window",
    "high_res_query": "static",
}


def decoder(**changes):
    torch.manual_seed(0)
    made = MultiScaleMaskedTransformerDecoder(DIM, **{**DEFAULTS, **changes}).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # masks on both sides of the threshold
    return made


def maps(levels=4, seed=1):
    torch.manual_seed(seed)
    features = [torch.randn(2, DIM, *size, dtype=torch.float64) for size in SIZES[:levels]]
    positions = [torch.randn(2, DIM, *size, dtype=torch.float64) for size in SIZES[:levels]]
    return PixelDecoderOutput(torch.randn(2, 8, *SIZES[-1], dtype=torch.float64), features, positions)


def slow(net, inputs, *, threshold, region="background", omega=3, query="static", dynamic=True, high_res=True):
    """Predictions of every layer, one image and one layer at a time, everything materialised."""
    levels = 4 if high_res else 3
    results = []
    for b in range(2):
        tokens = [
            net.input_proj[i](f[b : b + 1])[0].flatten(1).t() + net.level_embed.weight[i]
            for i, f in enumerate(inputs.features)
        ]
        key_pos = [p[b].flatten(1).t() for p in inputs.key_positions]
        features = inputs.mask_features[b]
        queries, base = net.query_feat.weight, net.query_embed.weight

        def predict(queries, size, features=features):
            normed = net.decoder_norm(queries)
            masks = torch.einsum("qc,chw->qhw", net.mask_embed(normed), features)
            small = F.interpolate(masks[None], size=size, mode="bilinear", align_corners=False)[0]
            return net.class_embed(normed), masks, small.sigmoid().flatten(1)

        def attend(layer, queries, positional, t, p, hidden):
            m = layer.multihead_attn
            weights = {"embed_dim_to_check": DIM, "num_heads": 4, "in_proj_weight": m.in_proj_weight}
            out, attention = F.multi_head_attention_forward(
                (queries + positional)[:, None], (t + p)[:, None], t[:, None], **weights, in_proj_bias=m.in_proj_bias,
                bias_k=None, bias_v=None, add_zero_attn=False, dropout_p=0.0, out_proj_weight=m.out_proj.weight,
                out_proj_bias=m.out_proj.bias, attn_mask=None if hidden is None else hidden[None].expand(4, -1, -1),
            )  # fmt: skip
            return layer.norm(queries + out[:, 0]), attention[0]

        logits, masks, small = predict(queries, SIZES[0])
        per_layer = [(logits, masks)]
        coarse = None
        positional = base
        if dynamic:
            inside = (small < 0.5 if region == "background" else small >= 0.5).double()
            pooled = (inside[:, :, None] * key_pos[0][None]).sum(1) / (inside.sum(1, keepdim=True) + 1e-6)
            positional = net.adapt_pos2d(pooled + base)
        for i in range(len(net.transformer_ffn_layers)):
            level = i % levels
            cross = net.transformer_cross_attention_layers[i]
            attention = None
            if level == 3:
                cells = coarse.sum(0).argsort(descending=True)[: max(1, 6 // omega)].tolist()
                chosen = [
                    y * 24 + x for y in range(16) for x in range(24) if (y // 8) * 3 + x // 8 in cells
                ]  # windows of 8 x 8
                who = base if query == "static" else positional
                queries, _ = attend(cross, queries, who, tokens[3][chosen], key_pos[3][chosen], None)
            else:
                hidden = small < threshold
                hidden[hidden.all(1)] = False
                queries, attention = attend(cross, queries, positional, tokens[level], key_pos[level], hidden)
                if level == 0:
                    coarse = attention
            attn = net.transformer_self_attention_layers[i].self_attn
            q = queries + positional
            mixed, _ = F.multi_head_attention_forward(
                q[:, None], q[:, None], queries[:, None], DIM, 4, attn.in_proj_weight, attn.in_proj_bias, None, None,
                False, 0.0, attn.out_proj.weight, attn.out_proj.bias,
            )  # fmt: skip
            queries = net.transformer_self_attention_layers[i].norm(queries + mixed[:, 0])
            ffn = net.transformer_ffn_layers[i]
            queries = ffn.norm(queries + ffn.linear2(F.relu(ffn.linear1(queries))))
            logits, masks, small = predict(queries, SIZES[(i + 1) % levels])
            per_layer.append((logits, masks))
            if dynamic and attention is not None:
                outer = (attention[:, :, None] * key_pos[level][None]).sum(1)
                positional = net.adapt_pos2d(outer + base)
        results.append(per_layer)
    return [tuple(torch.stack(parts) for parts in zip(*layer, strict=True)) for layer in zip(*results, strict=True)]


CASES = {
    "release": ({}, {}),
    "paper's first query": ({"first_query_region": "foreground"}, {"region": "foreground"}),
    "dynamic high-resolution query": ({"high_res_query": "dynamic"}, {"query": "dynamic"}),
    "no HRCA": ({"high_res_attention": "none"}, {"high_res": False}),
    "vanilla": ({"high_res_attention": "vanilla"}, {"omega": 1}),
    "HRCA without DFPQ": ({"positional_query": "learnable"}, {"dynamic": False}),
    "Mask2Former": (
        {"positional_query": "learnable", "high_res_attention": "none", "mask_threshold": 0.5},
        {"dynamic": False, "high_res": False, "threshold": 0.5},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_slow_reading(case):
    changes, reading = CASES[case]
    net, inputs = decoder(**changes), maps(3 if changes.get("high_res_attention") == "none" else 4)
    predictions = net.train()(inputs)
    expected = slow(net, inputs, **{"threshold": 0.4, **reading})
    assert len(predictions) == len(expected) == 7
    for prediction, (logits, masks) in zip(predictions, expected, strict=True):
        torch.testing.assert_close(prediction.class_logits, logits)
        torch.testing.assert_close(prediction.mask_logits, masks)
    (last,) = net.eval()(inputs)
    torch.testing.assert_close(last, predictions[-1])


def test_every_parameter_gets_a_gradient():
    net = decoder()
    sum(p.class_logits.sum() + p.mask_logits.square().sum() for p in net(maps())).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


def test_attention_is_kept_only_where_it_is_read():
    kept = [layer.keeps_attention for layer in decoder().transformer_cross_attention_layers]
    assert kept == [True, True, True, False, True, False]  # not in HRCA's layer, not in the last
    kept = [layer.keeps_attention for layer in decoder(positional_query="learnable").transformer_cross_attention_layers]
    assert kept == [True, False, False, False, False, False]  # HRCA's choice alone reads it
    mask2former = decoder(positional_query="learnable", high_res_attention="none")
    assert not any(layer.keeps_attention for layer in mask2former.transformer_cross_attention_layers)


def test_random_selection_and_pixel_selection_run():
    for changes in ({"high_res_attention": "random"}, {"high_res_selection": "pixel"}):
        for prediction in decoder(**changes)(maps()):
            assert prediction.mask_logits.isfinite().all()


def test_projection_where_channels_differ():
    net = MultiScaleMaskedTransformerDecoder(16, **DEFAULTS)
    assert [tuple(p.weight.shape) for p in net.input_proj] == [(DIM, 16, 1, 1)] * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positional_query": "psychic"}, "POSITIONAL_QUERY is 'psychic'"),
        ({"high_res_attention": "psychic"}, "ATTENTION is 'psychic'"),
        ({"high_res_query": "psychic"}, "QUERY is 'psychic'"),
        ({"mask_threshold": 1.5}, r"MASK_THRESHOLD is 1\.5"),
        ({"omega": 0}, "OMEGA is 0"),
        ({"num_layers": 0}, "DEC_LAYERS is 1"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        decoder(**changes)
