import math

import pytest
import torch
from torch.nn import functional as F

from fasegr.config import add_fasegr_config
from fasegr.d2 import build_backbone, get_cfg
from fasegr.engine.optimizer import parameter_groups
from fasegr.modeling.backbone.swin import (
    SwinTransformer,
    WindowAttention,
    drop_path,
    from_windows,
    shift_mask,
    to_windows,
)

TINY = {"embed_dim": 8, "depths": (2, 1, 2, 1), "num_heads": (1, 2, 2, 4), "window_size": 4, "drop_path_rate": 0.0}


def tiny(**changes):
    torch.manual_seed(0)
    model = SwinTransformer(**{**TINY, **changes})
    for parameter in model.parameters():
        parameter.data.normal_(std=0.2)
    return model


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def slow_attention(attn, tokens, numbers, places, window):
    """Attention of the `tokens` (n, C) of a window at `places` (n, 2), among those of one number in `numbers` (n,)."""
    q, k, v = (part.unflatten(-1, (attn.num_heads, -1)) for part in attn.qkv(tokens).chunk(3, dim=-1))
    out = torch.empty_like(v)
    for i in range(len(tokens)):
        seen = numbers == numbers[i]
        offset = places[i] - places[seen] + window - 1
        bias = attn.relative_position_bias_table[offset[:, 0] * (2 * window - 1) + offset[:, 1]]
        scores = torch.einsum("md,nmd->nm", q[i], k[seen]) / math.sqrt(q.shape[-1]) + bias
        out[i] = torch.einsum("nm,nmd->md", scores.softmax(0), v[seen])
    return attn.proj(out.flatten(1))


@pytest.mark.parametrize("shift", [0, 2])
@torch.no_grad()
def test_block_attends_within_padded_and_shifted_windows(shift):
    window, height, width = 4, 6, 9
    block = tiny(depths=(2, 1, 1, 1), num_heads=(2, 2, 2, 4)).double().layers[0].blocks[1 if shift else 0]
    assert block.shift == shift
    x = torch.randn(1, height, width, 8, dtype=torch.float64)
    padded = F.pad(x, (0, 0, 0, 3, 0, 2))[0]  # 8 x 12: two by three windows
    mask = shift_mask(8, 12, window, shift, device=x.device, dtype=x.dtype) if shift else None

    # Slow reference: each token is in the window of its shifted position; tokens from opposite edges of the map that
    # share a window do not attend to each other.
    expected = torch.full_like(padded, float("nan"))
    ys, xs = torch.meshgrid(torch.arange(8), torch.arange(12), indexing="ij")
    moved_y, moved_x = (ys - shift) % 8, (xs - shift) % 12
    wrapped = 2 * (ys < shift).int() + (xs < shift).int()
    for row in range(2):
        for column in range(3):
            inside = (moved_y // window == row) & (moved_x // window == column)
            places = torch.stack([moved_y[inside] % window, moved_x[inside] % window], 1)
            expected[inside] = slow_attention(block.attn, padded[inside], wrapped[inside], places, window)
    torch.testing.assert_close(block.attend(x, mask)[0], expected[:height, :width])


def test_windows_round_trip():
    x = torch.randn(2, 8, 12, 3)
    windows = to_windows(x, 4)
    torch.testing.assert_close(windows[4], x[0, 4:8, 4:8].flatten(0, 1))
    torch.testing.assert_close(from_windows(windows, 4, 8, 12), x)


def test_relative_positions_of_the_original():
    index = WindowAttention(4, 1, 2, qkv_bias=True, scale=None, drop=0.0, attn_drop=0.0).relative_position_index
    assert index.tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]


@pytest.mark.parametrize("size", [(64, 96), (50, 75), (33, 32)])
@torch.no_grad()
def test_maps_of_any_size(size):
    model = tiny().eval()
    features = model(torch.randn(2, 3, *size))
    for i, (name, spec) in enumerate(model.output_shape().items()):
        assert (name, spec.channels, spec.stride) == (f"res{i + 2}", 8 * 2**i, 4 * 2**i)
        assert features[name].shape == (2, spec.channels, *(math.ceil(side / spec.stride) for side in size))


@torch.no_grad()
def test_images_of_a_batch_are_independent():
    model = tiny().double().eval()
    images = torch.randn(3, 3, 64, 96, dtype=torch.float64)
    together, single = model(images), model(images[1:2])
    for name in together:
        torch.testing.assert_close(together[name][1:2], single[name])


def test_every_parameter_is_trained():
    model = tiny(ape=True, pretrain_img_size=64)
    sum(value.square().mean() for value in model(torch.randn(1, 3, 64, 96)).values()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_stages_after_the_last_map_stay_but_do_not_train():
    model = tiny(out_features=["res2", "res3"])
    assert {name for name in model.state_dict() if name.startswith("norm")} == {
        f"norm{i}.{part}" for i in (0, 1) for part in ("weight", "bias")
    }
    assert set(tiny().state_dict()) - set(model.state_dict()) == {
        f"norm{i}.{part}" for i in (2, 3) for part in ("weight", "bias")
    }
    features = model(torch.randn(1, 3, 32, 32))
    sum(value.square().mean() for value in features.values()).backward()
    assert list(features) == ["res2", "res3"]
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in model.parameters())


def test_gradient_checkpointing_changes_no_result():
    image = torch.randn(2, 3, 32, 64)
    results = []
    for use_checkpoint in (False, True):
        model = tiny(use_checkpoint=use_checkpoint, drop_path_rate=0.5, drop_rate=0.1, attn_drop_rate=0.1)
        torch.manual_seed(1)
        features = model(image)
        sum(value.square().mean() for value in features.values()).backward()
        results.append([*features.values(), *(parameter.grad for parameter in model.parameters())])
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_drop_path_drops_samples_and_keeps_the_expectation():
    x = torch.ones(4000, 2, 3)
    assert drop_path(x, 0.25, training=False) is x
    dropped = drop_path(x, 0.25, training=True)
    assert set(dropped.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert (dropped.flatten(1).amax(1) == dropped.flatten(1).amin(1)).all(), "a sample is dropped whole"
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)
    paths = [block.path for stage in tiny(drop_path_rate=0.5).layers for block in stage.blocks]
    assert paths == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    model = tiny(ape=True, pretrain_img_size=64)
    image = torch.randn(2, 3, 50, 64)
    exact = model(image)
    with torch.autocast("cpu", dtype):
        features = model(image)
    sum(value.float().square().mean() for value in features.values()).backward()
    for name, value in features.items():
        assert (value - exact[name]).abs().mean() < 0.05 * exact[name].abs().mean()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_compiles_whole():
    model = tiny(depths=(2, 1, 1, 1), drop_path_rate=0.5)
    image = torch.randn(2, 3, 50, 64)
    results = []
    for run in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        torch.manual_seed(1)
        features = run(image)
        model.zero_grad()
        sum(value.square().mean() for value in features.values()).backward()
        results.append([*features.values(), *(parameter.grad for parameter in model.parameters())])
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(plain, compiled)


def test_position_tables_are_not_decayed():
    model = torch.nn.ModuleDict({"backbone": tiny(ape=True, pretrain_img_size=64)})
    groups = parameter_groups(model, lr=1.0, weight_decay=0.5, backbone_multiplier=0.1)
    decay = {parameter: group["weight_decay"] for group in groups for parameter in group["params"]}
    assert {group["lr"] for group in groups} == {0.1}
    for name, parameter in model.named_parameters():
        plain = "norm" in name or name.endswith(("relative_position_bias_table", "absolute_pos_embed"))
        assert decay[parameter] == (0.0 if plain else 0.5), name


def config(*opts):
    cfg = get_cfg()
    add_fasegr_config(cfg)
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", "build_fasegr_swin_backbone", *opts])
    return cfg


@pytest.mark.parametrize(
    ("opts", "millions"),
    [  # parameters, less the four output norms and plus the classifier: 28, 50, 88 and 197 M in the paper
        ((), 27.5),
        (("DEPTHS", [2, 2, 18, 2]), 48.8),
        (("DEPTHS", [2, 2, 18, 2], "EMBED_DIM", 128, "NUM_HEADS", [4, 8, 16, 32], "WINDOW_SIZE", 12), 86.9),
        (("DEPTHS", [2, 2, 18, 2], "EMBED_DIM", 192, "NUM_HEADS", [6, 12, 24, 48], "WINDOW_SIZE", 12), 195.2),
    ],
    ids="TSBL",
)
def test_sizes_of_the_paper(opts, millions):
    keys = [f"MODEL.SWIN.{part}" if isinstance(part, str) else part for part in opts]
    with torch.device("meta"):
        model = build_backbone(config(*keys))
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)
