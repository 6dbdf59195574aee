"""The decoder against a slow reference after paper and release: whole masks, outer products, window by window."""

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
    "high_res_levels": [4],
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


def slow(
    net, inputs, *, threshold, region="background", omega=3, query="static", kind="dfpq", high=(3,), how="windows"
):
    """Predictions of every layer, one image and one layer at a time, everything materialised.

    kind: of the positional query. high: the levels without a mask; how: at "windows" or "pixels", or by "axes".
    """
    levels = len(inputs.features)
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

        def attend(layer, queries, positional, t, p, mask):
            m = layer.multihead_attn
            weights = {"embed_dim_to_check": DIM, "num_heads": 4, "in_proj_weight": m.in_proj_weight}
            out, attention = F.multi_head_attention_forward(
                (queries + positional)[:, None], (t + p)[:, None], t[:, None], **weights, in_proj_bias=m.in_proj_bias,
                bias_k=None, bias_v=None, add_zero_attn=False, dropout_p=0.0, out_proj_weight=m.out_proj.weight,
                out_proj_bias=m.out_proj.bias, attn_mask=None if mask is None else mask[None].expand(4, -1, -1),
            )  # fmt: skip
            return layer.norm(queries + out[:, 0]), attention[0]

        def chosen(attention, size):
            strongest = attention.sum(0)
            if how == "pixels":
                fine = F.interpolate(strongest.view(1, 1, *SIZES[0]), size=size, mode="bilinear").flatten()
                # as in the decoder: pixels at the border can be ties, and any of them will do
                return fine.topk(size[0] * size[1] // omega, sorted=False).indices
            cells = strongest.argsort(descending=True)[: max(1, 6 // omega)].tolist()
            rows, columns = size[0] // 2, size[1] // 3  # of a window
            where = [(y, x) for y in range(size[0]) for x in range(size[1]) if y // rows * 3 + x // columns in cells]
            return torch.tensor([y * size[1] + x for y, x in where])

        def by_axes(layer, queries, positional, t, p, size):
            """One weight per query, head and pixel."""
            m = layer.multihead_attn
            parts = list(zip(m.in_proj_weight.chunk(5), m.in_proj_bias.chunk(5), strict=True))
            q, k = queries + positional, (t + p).view(*size, DIM)
            columns, rows = k.mean(0), k.mean(1)
            qx, qy, kx, ky, v = (
                (x @ w.t() + c).unflatten(-1, (4, -1))
                for x, (w, c) in zip((q, q, columns, rows, t), parts, strict=True)
            )
            scale = (DIM // 4) ** -0.5
            over_x = (torch.einsum("qmd,xmd->mqx", qx, kx) * scale).softmax(-1)
            over_y = (torch.einsum("qmd,ymd->mqy", qy, ky) * scale).softmax(-1)
            weights = (over_y[..., :, None] * over_x[..., None, :]).flatten(2)
            return layer.norm(queries + m.out_proj(torch.einsum("mqn,nmd->qmd", weights, v).flatten(1)))

        def x_of_masks(small, level, base=base, key_pos=key_pos):
            """X of mask queries: the mean of the foreground's key positions, or the code of its centre."""
            x = torch.zeros_like(base)
            for q in range(QUERIES):
                pixels = (small[q] >= 0.5).nonzero().flatten()
                if len(pixels) and kind == "foreground":
                    x[q] = key_pos[level][pixels].sum(0) / (len(pixels) + 1e-6)
                elif len(pixels):
                    h, w = SIZES[level]
                    places = torch.stack([(pixels // w + 0.5) / h, (pixels % w + 0.5) / w]).double().mean(1)
                    angles = places[:, None] * 2 * torch.pi / 10000 ** (torch.arange(DIM // 4) * 4 / DIM)
                    x[q] = torch.stack([angles.sin(), angles.cos()], -1).flatten()
            return x

        logits, masks, small = predict(queries, SIZES[0])
        per_layer = [(logits, masks)]
        coarse = None
        positional = base
        if kind == "dfpq":
            inside = (small < 0.5 if region == "background" else small >= 0.5).double()
            pooled = (inside[:, :, None] * key_pos[0][None]).sum(1) / (inside.sum(1, keepdim=True) + 1e-6)
            positional = net.adapt_pos2d(pooled + base)
        elif kind != "constant":
            positional = net.adapt_pos2d(x_of_masks(small, 0) + base)
        for i in range(len(net.transformer_ffn_layers)):
            level, upcoming = i % levels, (i + 1) % levels
            cross = net.transformer_cross_attention_layers[i]
            attention = None
            if level in high:
                who = base if query == "static" else positional
                if how == "axes":
                    queries = by_axes(cross, queries, who, tokens[level], key_pos[level], SIZES[level])
                else:
                    pixels = chosen(coarse, SIZES[level])
                    queries, _ = attend(cross, queries, who, tokens[level][pixels], key_pos[level][pixels], None)
            else:
                mask = small < threshold
                mask[mask.all(1)] = False
                queries, attention = attend(cross, queries, positional, tokens[level], key_pos[level], mask)
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
            logits, masks, small = predict(queries, SIZES[upcoming])
            per_layer.append((logits, masks))
            if kind == "dfpq" and attention is not None:
                outer = (attention[:, :, None] * key_pos[level][None]).sum(1)
                positional = net.adapt_pos2d(outer + base)
            elif kind in ("foreground", "anchor") and upcoming not in high:
                positional = net.adapt_pos2d(x_of_masks(small, upcoming) + base)
        results.append(per_layer)
    return [tuple(torch.stack(parts) for parts in zip(*layer, strict=True)) for layer in zip(*results, strict=True)]


MASK2FORMER = {"positional_query": "learnable", "high_res_attention": "none", "mask_threshold": 0.5}
# arguments of the decoder, and those of the slow reference
CASES = {
    "release": ({}, {}),
    "paper's first query": ({"first_query_region": "foreground"}, {"region": "foreground"}),
    "dynamic high-resolution query": ({"high_res_query": "dynamic"}, {"query": "dynamic"}),
    "no HRCA": ({"high_res_attention": "none"}, {"high": ()}),
    "vanilla": ({"high_res_attention": "vanilla"}, {"omega": 1}),
    "HRCA without DFPQ": ({"positional_query": "learnable"}, {"kind": "constant"}),
    "Mask2Former": (MASK2FORMER, {"kind": "constant", "high": (), "threshold": 0.5}),
    "grid anchors": ({"positional_query": "grid_anchor"}, {"kind": "constant"}),
    "dynamic anchors": ({"positional_query": "dynamic_anchor"}, {"kind": "anchor"}),
    "dynamic foreground": ({"positional_query": "dynamic_foreground"}, {"kind": "foreground"}),
    "dynamic foreground, dynamic high-resolution query": (
        {"positional_query": "dynamic_foreground", "high_res_query": "dynamic"},
        {"kind": "foreground", "query": "dynamic"},
    ),
    "dynamic anchors, no HRCA": (
        {"positional_query": "dynamic_anchor", "high_res_attention": "none"},
        {"kind": "anchor", "high": ()},
    ),
    "RCDA": ({"high_res_attention": "rcda"}, {"how": "axes"}),
    "RCDA, dynamic high-resolution query": (
        {"high_res_attention": "rcda", "high_res_query": "dynamic"},
        {"how": "axes", "query": "dynamic"},
    ),
    "HRCA on 1/8": ({"high_res_levels": [8]}, {"high": (2,)}),
    "HRCA on both": ({"high_res_levels": [4, 8]}, {"high": (2, 3)}),
    "pixels on both": (
        {"high_res_levels": [4, 8], "high_res_selection": "pixel", "omega": 6},
        {"high": (2, 3), "how": "pixels", "omega": 6},
    ),
    "RCDA on both, dynamic foreground": (
        {"high_res_levels": [4, 8], "high_res_attention": "rcda", "positional_query": "dynamic_foreground"},
        {"high": (2, 3), "how": "axes", "kind": "foreground"},
    ),
}


def maps_for(net):
    return maps(net.level_embed.num_embeddings)


@pytest.mark.parametrize("case", CASES)
def test_equals_the_slow_reference(case):
    changes, reading = CASES[case]
    net = decoder(**changes)
    inputs = maps_for(net)
    predictions = net.train()(inputs)
    expected = slow(net, inputs, **{"threshold": 0.4, **reading})
    assert len(predictions) == len(expected) == 7
    for prediction, (logits, masks) in zip(predictions, expected, strict=True):
        torch.testing.assert_close(prediction.class_logits, logits)
        torch.testing.assert_close(prediction.mask_logits, masks)
    (last,) = net.eval()(inputs)
    torch.testing.assert_close(last, predictions[-1])


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_gets_a_gradient(case):
    net = decoder(**CASES[case][0])
    sum(p.class_logits.sum() + p.mask_logits.square().sum() for p in net(maps_for(net))).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("coarsest", [(1, 1), (1, 3)])
def test_small_images(case, coarsest):
    net = decoder(**CASES[case][0])
    sizes = [(coarsest[0] * 2**i, coarsest[1] * 2**i) for i in range(net.level_embed.num_embeddings)]
    features, positions = ([torch.randn(2, DIM, *size, dtype=torch.float64) for size in sizes] for _ in range(2))
    fine = (coarsest[0] * 8, coarsest[1] * 8)
    inputs = PixelDecoderOutput(torch.randn(2, 8, *fine, dtype=torch.float64), features, positions)
    for prediction in net(inputs):
        assert prediction.mask_logits.shape == (2, QUERIES, *fine)
        assert prediction.mask_logits.isfinite().all() and prediction.class_logits.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_autocast(case, dtype):
    net = decoder(**CASES[case][0]).float()
    mask_features, features, positions = maps_for(net)
    inputs = PixelDecoderOutput(mask_features.float(), [x.float() for x in features], [x.float() for x in positions])
    with torch.autocast("cpu", dtype):
        predictions = net(inputs)
    assert all(p.mask_logits.dtype == dtype for p in predictions)
    sum(p.class_logits.float().sum() + p.mask_logits.float().square().mean() for p in predictions).backward()
    assert [name for name, p in net.named_parameters() if not p.grad.isfinite().all()] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"positional_query": "grid_anchor", "high_res_levels": [4, 8], "high_res_attention": "rcda"},
        {"positional_query": "dynamic_anchor", "high_res_levels": [8]},
    ],
)
def test_compiles_without_graph_breaks(changes):
    net = decoder(**changes, num_layers=4).eval()
    inputs = maps_for(net)
    with torch.no_grad():
        compiled = torch.compile(net, backend="aot_eager", fullgraph=True)(inputs)
        torch.testing.assert_close(compiled, net(inputs))


@pytest.mark.parametrize(
    ("changes", "expected_layers"),
    [
        ({}, [0, 1, 2, 4]),  # not in HRCA's layer, which returns none, and not in the last
        ({"positional_query": "learnable"}, [0]),  # only HRCA's selection uses it; layer 4's round has no such layer
        ({"positional_query": "learnable", "high_res_attention": "random"}, []),
        ({"positional_query": "grid_anchor"}, [0]),
        ({"positional_query": "dynamic_anchor"}, [0]),
        ({"positional_query": "dynamic_foreground"}, [0]),
        ({"high_res_levels": [8]}, [0, 1, 3, 4]),
        ({"positional_query": "learnable", "high_res_attention": "none"}, []),
    ],
)
def test_attention_is_computed_only_where_it_is_used(changes, expected_layers):
    net = decoder(**changes)
    found = []
    for i, layer in enumerate(net.transformer_cross_attention_layers):
        layer.register_forward_hook(
            lambda module, arguments, output, i=i: found.extend([i] if output.attention is not None else [])
        )
    net(maps_for(net))
    assert found == expected_layers


@pytest.mark.parametrize("levels", [[4], [8], [4, 8]])
def test_random_selection_runs(levels):
    net = decoder(high_res_attention="random", high_res_levels=levels)
    for prediction in net(maps_for(net)):
        assert prediction.mask_logits.isfinite().all()


def test_grid_anchors_replace_the_learned_queries():
    net = decoder(positional_query="grid_anchor")
    names = {name for name, _ in net.named_parameters()}
    assert "query_embed.h.0.weight" in names
    assert not names & {"query_embed.weight", "adapt_pos2d.0.weight"}


def test_projection_where_channels_differ():
    net = MultiScaleMaskedTransformerDecoder(16, **DEFAULTS)
    assert [tuple(p.weight.shape) for p in net.input_proj] == [(DIM, 16, 1, 1)] * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positional_query": "psychic"}, "positional_query is 'psychic'"),
        ({"high_res_attention": "psychic"}, "high_res_attention is 'psychic'"),
        ({"high_res_query": "psychic"}, "high_res_query is 'psychic'"),
        ({"high_res_levels": [16]}, r"high_res_levels is \[16\]; choose \[4\], \[8\] or \[4, 8\]"),
        ({"mask_threshold": 1.5}, r"mask_threshold is 1\.5"),
        ({"omega": 0}, "omega is 0"),
        ({"num_layers": 0}, "num_layers is 0"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        decoder(**changes)
