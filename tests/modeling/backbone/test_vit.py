import copy
import math

import pytest
import torch
from torch.nn import functional as F

from fasegr.config import add_fasegr_config
from fasegr.d2 import build_backbone, get_cfg
from fasegr.modeling.backbone.vit import PlainViT, SimpleFeaturePyramid, Windows
from fasegr.modeling.gradient_checkpointing import blocks, checkpoint_blocks
from tests.modeling.backbone.tiny_vits import NETWORKS, tiny_networks

timm = pytest.importorskip("timm")

STRIDES = (4, 8, 16, 32)


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    torch.manual_seed(0)
    tiny_networks(monkeypatch)


def backbone(name="vit_small_patch16_dinov3", **options):
    return PlainViT(name, out_channels=8, **options)


def config(*opts):
    cfg = get_cfg()
    add_fasegr_config(cfg)
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", "build_timm_vit_backbone", "MODEL.VIT.OUT_CHANNELS", 8, *opts])
    return cfg


@pytest.mark.parametrize("name", NETWORKS)
def test_maps_of_any_size_and_every_parameter_is_trained(name):
    size = (32, 96)
    model = backbone(name, drop_path_rate=0.1)
    maps = model(torch.randn(2, 3, *size))
    assert {key: (spec.channels, spec.stride) for key, spec in model.output_shape().items()} == {
        f"res{i + 2}": (8, stride) for i, stride in enumerate(STRIDES)
    }
    for stride, value in zip(STRIDES, maps.values(), strict=True):
        assert value.shape == (2, 8, size[0] // stride, size[1] // stride)
    sum(value.square().mean() for value in maps.values()).backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


# --- slow, literal readings in float64


def linear(layer, x):
    return x @ layer.weight.T + (layer.bias if layer.bias is not None else 0)


def norm(layer, x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + layer.eps).sqrt() * layer.weight + layer.bias


def rotate(x, places, size, temperature=100):
    """DINOv3's rotary positions: x (n, d) of tokens at `places` (n, 2) of a map of `size`."""
    half = x.shape[-1] // 2
    out = torch.empty_like(x)
    for token, (row, column) in enumerate(places.tolist()):
        coordinates = (2 * (row + 0.5) / size[0] - 1, 2 * (column + 0.5) / size[1] - 1)
        for i in range(half):
            period = temperature ** (2 * (i % (half // 2)) / half)
            angle = 2 * math.pi * coordinates[i // (half // 2)] / period
            first, second = x[token, i], x[token, i + half]
            out[token, i] = first * math.cos(angle) - second * math.sin(angle)
            out[token, i + half] = second * math.cos(angle) + first * math.sin(angle)
    return out


def attend(attention, x, prefix, places, size, rotary, seen):
    """x: (prefix + n, C), after the norm. seen(i): which tokens, prefix included, the token i attends to."""
    bias = attention.qkv.bias
    if rotary:  # timm's Eva has one for queries, none for keys
        parts = (attention.q_bias, attention.k_bias, attention.v_bias)
        bias = None if parts[0] is None else torch.cat(parts)
    qkv = x @ attention.qkv.weight.T + (0 if bias is None else bias)
    out = []
    for q, k, v in zip(*(part.chunk(attention.num_heads, -1) for part in qkv.chunk(3, -1)), strict=True):
        if rotary:
            q, k = (torch.cat([part[:prefix], rotate(part[prefix:], places, size)]) for part in (q, k))
        rows = []
        for i in range(len(x)):
            weights = (k[seen(i)] @ q[i] / math.sqrt(q.shape[-1])).softmax(0)
            rows.append(weights @ v[seen(i)])
        out.append(torch.stack(rows))
    return linear(attention.proj, torch.cat(out, -1))


def read_literally(model, image, window=0):
    """The last map of a ViT without window attention or, within windows, of one without class and register tokens."""
    net = model.timm
    side = model.patch_size
    height, width = (s // side for s in image.shape[1:])
    prefix = net.num_prefix_tokens
    patches = image.unfold(1, side, side).unfold(2, side, side).permute(1, 2, 0, 3, 4).reshape(height * width, -1)
    x = patches @ net.patch_embed.proj.weight.flatten(1).T + net.patch_embed.proj.bias
    rotary = net.pos_embed is None
    first = [token[0] for token in (net.cls_token, net.reg_token) if token is not None]
    if not rotary:
        skipped = 0 if net.no_embed_class else prefix
        table = net.pos_embed[0, skipped:].float().T.reshape(1, -1, 4, 4)
        if (height, width) != (4, 4):
            table = F.interpolate(table, (height, width), mode="bicubic", antialias=True)
        x = x + table[0].flatten(1).T.double()
        if skipped:
            first = [torch.cat(first) + net.pos_embed[0, :skipped]]
    x = torch.cat([*first, x])
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    for number, block in enumerate(net.blocks):
        everything = torch.ones(len(x), dtype=torch.bool)

        def seen(i, number=number, everything=everything):
            if not window or number in model.global_blocks:
                return everything
            return (places // window == places[i] // window).all(1)

        scales = (
            (block.gamma_1, block.gamma_2)
            if rotary
            else (getattr(block.ls1, "gamma", 1), getattr(block.ls2, "gamma", 1))
        )
        x = x + scales[0] * attend(block.attn, norm(block.norm1, x), prefix, places, (height, width), rotary, seen)
        x = x + scales[1] * linear(block.mlp.fc2, F.gelu(linear(block.mlp.fc1, norm(block.norm2, x))))
    return norm(net.norm, x)[prefix:].T.reshape(1, -1, height, width)


@pytest.mark.parametrize(
    "name",
    [
        "vit_small_patch14_dinov2",
        "vit_small_patch14_reg4_dinov2",
        "vit_small_patch16_dinov3",
        "vit_small_patch16_dinov3_qkvb",
    ],
)
@torch.no_grad()
def test_last_map_of_tables_resized_and_of_rotary_positions(name):
    model = backbone(name).double().eval()
    image = torch.randn(3, 3 * model.patch_size, 5 * model.patch_size, dtype=torch.float64)
    # float32 where timm makes tables and angles
    torch.testing.assert_close(model.tokens(image[None]), read_literally(model, image), atol=1e-5, rtol=1e-5)


def without_tokens(model):
    """Class and register tokens are copied into windows and averaged, which the literal reading does not do."""
    model.timm.cls_token = model.timm.reg_token = None
    model.timm.num_prefix_tokens = 0
    for block in model.timm.blocks:
        block.attn.num_prefix_tokens = 0
    return model


@pytest.mark.parametrize(
    ("name", "height", "width"), [("vit_base_patch16_siglip_256", 4, 4), ("vit_base_patch16_dinov3", 3, 4)]
)
@torch.no_grad()
def test_window_attention(name, height, width):
    model = without_tokens(backbone(name, window_size=2).double().eval())
    assert model.global_blocks == {0, 2, 3, 5}, "four of six, spread evenly, the last among them"
    image = torch.randn(3, 16 * height, 16 * width, dtype=torch.float64)
    tokens = model.tokens(torch.stack([image, image.flip(2)]))
    expected = read_literally(model, image, window=2)
    torch.testing.assert_close(tokens[:1], expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(expected, read_literally(model, image), atol=1e-2), "windows matter"
    torch.testing.assert_close(tokens[1:], model.tokens(image.flip(2)[None]), msg="images of a batch are independent")


@torch.no_grad()
def test_one_window_for_all_is_no_window():
    images = torch.randn(2, 3, 32, 48, dtype=torch.float64)
    model = backbone("vit_base_patch16_dinov3").double().eval()
    windowed = backbone("vit_base_patch16_dinov3", window_size=3).double().eval()
    windowed.load_state_dict(model.state_dict())
    torch.testing.assert_close(windowed.tokens(images), model.tokens(images))


def test_first_tokens_are_copied_into_windows_and_averaged():
    windows = Windows(2, (3, 4), prefix=1)
    x = torch.arange(2 * 13.0).reshape(2, 13, 1)
    split = windows.split(x)
    assert split[:, 0, 0].tolist() == [0] * 4 + [13] * 4
    assert split[:2, 1:, 0].tolist() == [[1, 2, 5, 6], [3, 4, 7, 8]]
    assert split[2, 1:, 0].tolist() == [9, 10, 0, 0], "padded at the bottom"
    mask = windows.mask(2, x.device)[:, 0, 0]
    assert mask[2].tolist() == [True, True, True, False, False] and mask[0].all() and mask[6].equal(mask[2])
    torch.testing.assert_close(windows.join(split), x)
    split[:4, 0, 0] = torch.tensor([1.0, 2, 3, 6])
    assert windows.join(split)[:, 0, 0].tolist() == [3, 13]


@torch.no_grad()
def test_pyramid():
    """ViTDet, Sec. 3: transposed convolutions, max pooling, then a 1x1 and a 3x3 convolution with norms."""
    pyramid = SimpleFeaturePyramid(8, 16, 4).double()
    for parameter in pyramid.parameters():
        parameter.normal_(std=0.3)
    x = torch.randn(1, 8, 3, 5, dtype=torch.float64)

    def double(layer, x):
        out = torch.zeros(1, layer.out_channels, 2 * x.shape[2], 2 * x.shape[3], dtype=x.dtype)
        for dy in (0, 1):
            for dx in (0, 1):
                out[:, :, dy::2, dx::2] = torch.einsum("bchw,cd->bdhw", x, layer.weight[:, :, dy, dx])
        return out + layer.bias[:, None, None]

    def channel_norm(layer, x):
        return norm(layer, x.movedim(1, -1)).movedim(-1, 1)

    finest, middle, same, coarse = (list(getattr(pyramid, f"res{i}")) for i in (2, 3, 4, 5))
    before = {
        "res2": double(finest.pop(3), F.gelu(channel_norm(finest.pop(1), double(finest.pop(0), x)))),
        "res3": double(middle.pop(0), x),
        "res4": x,
        "res5": x[:, :, :2, :4].unflatten(2, (1, 2)).unflatten(4, (2, 2)).amax((3, 5)),
    }
    finest.pop(0)  # the GELU
    coarse.pop(0)
    found = pyramid(x)
    for (name, value), (thin, thin_norm, wide, wide_norm) in zip(
        before.items(), (finest, middle, same, coarse), strict=True
    ):
        value = channel_norm(thin_norm, torch.einsum("bchw,dc->bdhw", value, thin.weight[:, :, 0, 0]))
        value = channel_norm(wide_norm, F.conv2d(value, wide.weight, padding=1))
        torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize("options", [{}, {"window_size": 2}])
def test_gradient_checkpointing_changes_no_result(options):
    images, results = torch.randn(2, 3, 32, 96), []
    for use_checkpoint in (False, True):
        torch.manual_seed(1)
        model = backbone("vit_base_patch16_dinov3", drop_path_rate=0.5, **options)
        if use_checkpoint:
            assert {type(block).__name__ for block in blocks(model)} >= {"EvaBlock"}
            checkpoint_blocks(model)
        maps = model(images)
        sum(value.square().mean() for value in maps.values()).backward()
        results.append([*maps.values(), *(parameter.grad for parameter in model.parameters())])
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_drop_path_is_of_whole_images_and_grows_with_depth():
    model = backbone("vit_base_patch16_dinov3", drop_path_rate=0.5, window_size=2)
    rates = [getattr(block.drop_path1, "drop_prob", 0) for block in model.timm.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    shapes = []
    model.timm.blocks[1].drop_path1.register_forward_hook(lambda module, args, out: shapes.append(out.shape))
    model(torch.randn(2, 3, 64, 96))
    assert shapes == [(2, 3 + 24, 16)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", "vit_base_patch16_dinov3"])
def test_autocast(name, dtype):
    model = backbone(name, window_size=2)
    images = torch.randn(2, 3, 64, 96)
    exact = model(images)
    with torch.autocast("cpu", dtype):
        maps = model(images)
    sum(value.float().square().mean() for value in maps.values()).backward()
    for key, value in maps.items():
        assert (value - exact[key]).abs().mean() < 0.05 * exact[key].abs().mean()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@torch.no_grad()
def test_half_precision_and_copies():
    model = backbone("vit_base_patch16_dinov3", window_size=2).eval()
    images = torch.randn(1, 3, 64, 96)
    half = copy.deepcopy(model).to(torch.bfloat16)
    for key, value in half(images.to(torch.bfloat16)).items():
        assert value.dtype == torch.bfloat16
        assert (value - model(images)[key]).abs().mean() < 0.1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_smal_patch16_dinov3", "does not know 'vit_smal_patch16_dinov3'; did you mean .*vit_small_patch16_dinov3"),
        ("convnext_atto", r"'convnext_atto' \(ConvNeXt\) is no plain ViT .* build_timm_backbone"),
        ("beit_base_patch16_224", r"\(Beit\) is no plain ViT that takes images of any size"),
    ],
)
def test_unsuitable_networks_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        PlainViT(name)


def test_windows_in_a_network_that_has_its_own():
    with pytest.raises(ValueError, match="window_size is 4 with 'samvit_base_patch16', which has windows of its own"):
        backbone("samvit_base_patch16", window_size=4)
    with pytest.raises(ValueError, match="'vit_small_patch16_18x2_224', which has blocks of another kind"):
        backbone("vit_small_patch16_18x2_224", window_size=4)


def test_images_normalised_otherwise_are_warned_of(caplog):
    pretrained = ("MODEL.VIT.NAME", "vit_small_patch16_dinov3", "MODEL.VIT.PRETRAINED", True, "MODEL.WEIGHTS", "x.pth")
    build_backbone(config(*pretrained))
    assert not caplog.records
    build_backbone(config(*pretrained, "MODEL.PIXEL_MEAN", [127.5, 127.5, 127.5]))
    assert "vit_small_patch16_dinov3 were trained with MODEL.PIXEL_MEAN [123.675, 116.28, 103.53]" in caplog.text


def test_weights_that_cannot_be_downloaded(monkeypatch):
    real = timm.create_model

    def offline(name, pretrained=False, **options):
        if pretrained:
            raise OSError("no network\nand a page of advice")
        return real(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    name = ("MODEL.VIT.NAME", "vit_small_patch16_dinov3", "MODEL.VIT.PRETRAINED", True)
    with pytest.raises(OSError, match=r"weights of 'vit_small_patch16_dinov3': no network Download .* MODEL.WEIGHTS"):
        build_backbone(config(*name))
    build_backbone(config(*name, "MODEL.WEIGHTS", "some.pth"))  # others are named
