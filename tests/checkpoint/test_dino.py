"""Files of DINOv2's and DINOv3's releases, made here with their names and shapes."""

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fasegr.checkpoint import load_checkpoint
from fasegr.checkpoint.loading import load_weights
from fasegr.modeling.backbone.vit import PlainViT
from tests.modeling.backbone.tiny_vits import tiny_networks

pytest.importorskip("timm")

C, DEPTH = 16, 4


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    torch.manual_seed(0)
    tiny_networks(monkeypatch)


def block(hidden, first="fc1", second="fc2"):
    shapes = {
        "norm1.weight": (C,),
        "norm1.bias": (C,),
        "attn.qkv.weight": (3 * C, C),
        "attn.qkv.bias": (3 * C,),
        "attn.proj.weight": (C, C),
        "attn.proj.bias": (C,),
        "ls1.gamma": (C,),
        "norm2.weight": (C,),
        "norm2.bias": (C,),
        "ls2.gamma": (C,),
    }
    for name in first.split():
        shapes |= {f"mlp.{name}.weight": (hidden, C), f"mlp.{name}.bias": (hidden,)}
    inner = hidden // 2 if first == "w12" else hidden
    return shapes | {f"mlp.{second}.weight": (C, inner), f"mlp.{second}.bias": (C,)}


def release(shapes, patch, blocks):
    shapes = {
        "cls_token": (1, 1, C),
        "mask_token": (1, C),
        "norm.weight": (C,),
        "norm.bias": (C,),
        "patch_embed.proj.weight": (C, 3, patch, patch),
        "patch_embed.proj.bias": (C,),
        **shapes,
        **{f"blocks.{i}.{name}": shape for i in range(DEPTH) for name, shape in blocks.items()},
    }
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def dinov2(registers=0, giant=False):
    shapes = {"pos_embed": (1, 1 + 4 * 4, C)} | ({"register_tokens": (1, registers, C)} if registers else {})
    return release(shapes, 14, block(2 * C, "w12", "w3") if giant else block(2 * C))


def dinov3(plus=False, biases=True):
    blocks = block(2 * C, *(("w1 w2", "w3") if plus else ()))
    weights = release(
        {"storage_tokens": (1, 2, C), "rope_embed.periods": (2,), "local_cls_norm.bias": (C,)}, 16, blocks
    )
    for i in range(DEPTH):
        weights[f"blocks.{i}.attn.qkv.bias_mask"] = torch.tensor([1.0, 0, 1]).repeat_interleave(C)
        if not biases:
            weights[f"blocks.{i}.attn.qkv.bias"].zero_()
    return weights


class Segmentor(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.backbone = PlainViT(name, out_channels=4)
        self.sem_seg_head = nn.Linear(4, 4)


def loaded(name, weights, tmp_path):
    torch.save(weights, tmp_path / "dino.pth")
    model = Segmentor(name).eval()
    report = load_checkpoint(model, str(tmp_path / "dino.pth"))
    assert report.kind == "backbone"
    assert {n.split(".")[1] for n in report.missing if n.startswith("backbone.")} == {"pyramid"}
    return model.backbone.timm


IMAGE = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64).sin()


@torch.no_grad()
@pytest.mark.parametrize(("name", "registers"), [("vit_small_patch14_dinov2", 0), ("vit_small_patch14_reg4_dinov2", 4)])
def test_dinov2_with_and_without_registers(name, registers, tmp_path, caplog):
    weights = dinov2(registers)
    with caplog.at_level(logging.INFO):
        net = loaded(name, weights, tmp_path)
    assert "dino.pth has the names of DINOv2's release" in caplog.text
    # the release: positions are added to the class token and the patches, registers put between them without any
    image = IMAGE[..., :56, :56]
    patches = F.conv2d(image, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=14)
    x = torch.cat([weights["cls_token"], patches.flatten(2).transpose(1, 2)], 1) + weights["pos_embed"]
    if registers:
        x = torch.cat([x[:, :1], weights["register_tokens"], x[:, 1:]], 1)
    torch.testing.assert_close(net._pos_embed(net.patch_embed(image)), x)
    assert net.blocks[1].ls2.gamma.equal(weights["blocks.1.ls2.gamma"])


@torch.no_grad()
def test_dinov2_giant(tmp_path):
    weights = dinov2(giant=True)
    net = loaded("vit_giant_patch14_dinov2", weights, tmp_path)
    x = torch.randn(1, 5, C)
    gate, value = F.linear(x, weights["blocks.2.mlp.w12.weight"], weights["blocks.2.mlp.w12.bias"]).chunk(2, -1)
    expected = F.linear(F.silu(gate) * value, weights["blocks.2.mlp.w3.weight"], weights["blocks.2.mlp.w3.bias"])
    torch.testing.assert_close(net.blocks[2].mlp(x), expected)


@torch.no_grad()
def test_dinov3(tmp_path):
    weights = dinov3()
    net = loaded("vit_small_patch16_dinov3_qkvb", weights, tmp_path)
    patches = F.conv2d(IMAGE, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=16)
    first = [weights["cls_token"], weights["storage_tokens"]]
    x = torch.cat([*first, patches.flatten(2).transpose(1, 2)], 1)
    embedded, _ = net._pos_embed(net.patch_embed(IMAGE))
    torch.testing.assert_close(embedded, x)
    # the release's attention without positions: biases of the keys are masked
    qkv = F.linear(
        x,
        weights["blocks.3.attn.qkv.weight"],
        weights["blocks.3.attn.qkv.bias"] * weights["blocks.3.attn.qkv.bias_mask"],
    )
    q, k, v = qkv.unflatten(-1, (3, 2, C // 2)).permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    out = F.linear(out, weights["blocks.3.attn.proj.weight"], weights["blocks.3.attn.proj.bias"])
    torch.testing.assert_close(net.blocks[3].attn(x), out)
    assert net.blocks[0].gamma_1.equal(weights["blocks.0.ls1.gamma"])
    assert net.norm.weight.equal(weights["norm.weight"])


@torch.no_grad()
def test_dinov3_with_swiglu(tmp_path):
    weights = dinov3(plus=True)
    mlp = loaded("vit_small_plus_patch16_dinov3_qkvb", weights, tmp_path).blocks[2].mlp
    x = torch.randn(1, 5, C)
    w1, w2, w3 = ((weights[f"blocks.2.mlp.w{i}.weight"], weights[f"blocks.2.mlp.w{i}.bias"]) for i in (1, 2, 3))
    torch.testing.assert_close(mlp(x), F.linear(F.silu(F.linear(x, *w1)) * F.linear(x, *w2), *w3))


def test_dinov3_into_a_network_without_biases(tmp_path):
    loaded("vit_small_patch16_dinov3", dinov3(biases=False), tmp_path)
    torch.save(dinov3(), tmp_path / "biases.pth")
    model = Segmentor("vit_small_patch16_dinov3")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"biases\.pth: blocks.0.attn.qkv.bias is not zero.* ends in _qkvb"):
        load_checkpoint(model, str(tmp_path / "biases.pth"))
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_another_size_is_refused_with_its_shapes(tmp_path):
    weights = {name: value.repeat_interleave(2, -1) if value.ndim == 2 else value for name, value in dinov2().items()}
    with pytest.raises(
        ValueError, match=r"(?s)holds weights of another model.*\(32, 32\) in the file, \(32, 16\) in the"
    ):
        load_weights(Segmentor("vit_small_patch14_dinov2"), weights, "dino.pth")


def test_timms_own_file_and_a_whole_segmentor():
    source, target = Segmentor("vit_base_patch16_siglip_224"), Segmentor("vit_base_patch16_siglip_224")
    network = source.backbone.timm.state_dict() | {"attn_pool.latent": torch.zeros(1), "head.weight": torch.zeros(1)}
    report = load_weights(target, network, "timm.pth")
    assert report.kind == "backbone" and report.extras == ["attn_pool.latent", "head.weight"]
    assert all(value.equal(network[name]) for name, value in target.backbone.timm.state_dict().items())
    assert load_weights(target, source.state_dict(), "model_final.pth").kind == "full"
    assert target.backbone.pyramid.res2[0].weight.equal(source.backbone.pyramid.res2[0].weight)
