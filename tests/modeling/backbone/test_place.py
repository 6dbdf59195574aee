import pytest
import torch
from torch import nn

from fasegr.modeling.backbone.place import freeze, learning_rates
from fasegr.modeling.backbone.resnet import ResNet
from fasegr.modeling.backbone.swin import SwinTransformer
from fasegr.modeling.backbone.timm import TimmBackbone
from fasegr.modeling.backbone.vit import PlainViT


def resnet(norm="GN"):
    return ResNet(18, norm=norm, stem_channels=32, res2_channels=32)


def swin():
    return SwinTransformer(embed_dim=8, depths=(2, 1, 2, 1), num_heads=(1, 2, 2, 4), window_size=4, ape=True)


def convnext():
    pytest.importorskip("timm")
    return TimmBackbone("test_convnext", drop_path_rate=0.5)  # of one, two, four and two blocks


def vit():
    pytest.importorskip("timm")
    return PlainViT("test_vit", out_channels=4, drop_path_rate=0.5)  # of six blocks


# of a few parameters: the stages and layers from theirs on to the end, as the authors' own code counts them
ORDERS = {
    resnet: (
        (5, 9),
        {
            "stem.conv1.weight": (0, 0),
            "res2.0.conv1.norm.weight": (1, 1),
            "res2.1.conv2.weight": (1, 2),
            "res3.0.shortcut.weight": (2, 3),
            "res5.1.conv2.norm.bias": (4, 8),
        },
    ),
    swin: (
        (5, 7),
        {
            "absolute_pos_embed": (0, 0),
            "patch_embed.norm.weight": (0, 0),
            "layers.0.blocks.0.attn.qkv.weight": (1, 1),
            "layers.0.blocks.1.attn.relative_position_bias_table": (1, 2),
            "layers.0.downsample.reduction.weight": (1, 2),
            "norm0.weight": (1, 2),
            "layers.2.blocks.1.mlp.fc1.bias": (3, 5),
            "layers.3.blocks.0.norm1.weight": (4, 6),
            "norm3.bias": (4, 6),
        },
    ),
    convnext: (
        (5, 6),
        {
            "timm.stem_0.weight": (0, 0),
            "timm.stages_0.blocks.0.gamma": (1, 1),
            "timm.stages_1.downsample.1.weight": (2, 2),
            "timm.stages_1.blocks.1.mlp.fc2.bias": (2, 2),
            "timm.stages_2.downsample.0.weight": (3, 3),
            "timm.stages_2.blocks.2.gamma": (3, 3),
            "timm.stages_2.blocks.3.gamma": (3, 4),
            "timm.stages_3.downsample.0.weight": (4, 5),
            "timm.stages_3.blocks.1.norm.weight": (4, 5),
        },
    ),
    vit: (
        (7, 7),
        {
            "timm.cls_token": (0, 0),
            "timm.pos_embed": (0, 0),
            "timm.patch_embed.proj.weight": (0, 0),
            "timm.blocks.0.norm1.weight": (1, 1),
            "timm.blocks.5.mlp.fc2.bias": (6, 6),
            "timm.norm.weight": (6, 7),
        },
    ),
}


@pytest.mark.parametrize("build", ORDERS)
def test_order(build):
    (stages, layers), places = ORDERS[build]
    backbone = build()
    rates = {name: learning_rates(backbone, 0.1, 0.5)[parameter] for name, parameter in backbone.named_parameters()}
    assert (backbone.num_stages, backbone.num_layers) == (stages, layers)
    for name, (stage, layer) in places.items():
        assert tuple(backbone.place(name)) == (stage, layer), name
        assert rates[name] == pytest.approx(0.1 * 0.5 ** (layers - layer)), name
    assert {place.stage for name in rates if (place := backbone.place(name))} == set(range(stages)), "no stage is empty"
    assert all((rate == 1) == name.startswith("pyramid.") for name, rate in rates.items() if rate > 0.1)


@pytest.mark.parametrize("name", ["test_resnet", "test_mambaout", "test_efficientnet"])
def test_order_of_other_networks_is_that_of_their_maps(name):
    pytest.importorskip("timm")
    model = TimmBackbone(name)
    places = [model.place(key) for key, _ in model.named_parameters()]
    assert places == sorted(places) and {place.stage for place in places} == {0, 1, 2, 3, 4}
    assert {place.layer for place in places} == set(range(model.num_layers))
    # A map depends on its stages and those before it, and on no later one.
    for stage, (key, value) in enumerate(model(torch.randn(2, 3, 64, 64)).items(), 1):
        model.zero_grad()
        value.square().mean().backward(retain_graph=True)
        reached = {place.stage for place, p in zip(places, model.parameters(), strict=True) if p.grad is not None}
        assert reached == set(range(stage + 1)), key


NORMS = ("norm", "timm.stem_1.", "downsample.0.")


def trainable(backbone):
    return {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("build", ORDERS)
def test_freezing(build):
    every = trainable(build())
    new = {name for name in every if name.startswith("pyramid.")}
    for stages in (0, 2, build().num_stages):
        backbone = build()
        freeze(backbone, stages)
        assert trainable(backbone) == {name for name in every if name in new or backbone.place(name).stage >= stages}
    backbone = build()
    freeze(backbone, "all")
    assert trainable(backbone) == new
    backbone = build()
    freeze(backbone, "all but norms")
    assert trainable(backbone) == new | {name for name in every if any(part in name for part in NORMS)}


def test_what_is_frozen_stays_in_evaluation_mode():
    backbone = resnet("BN")
    assert backbone.training
    freeze(backbone, 2)
    backbone(torch.randn(2, 3, 64, 64))
    moved = {name for name, value in backbone.named_buffers() if name.endswith("running_mean") and value.any()}
    assert moved and not any(name.startswith(("stem", "res2")) for name in moved)


class Unordered(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)


def test_backbones_without_an_order():
    assert learning_rates(Unordered(), 0.1, 1.0).keys() and set(learning_rates(Unordered(), 0.1, 1.0).values()) == {0.1}
    model = Unordered()
    freeze(model, "all but norms")
    assert trainable(model) == {"norm.weight", "norm.bias"}
    freeze(model, "all")
    assert not trainable(model)
    with pytest.raises(ValueError, match="freeze is 1, but Unordered has no order of stages; 'all' freezes"):
        freeze(Unordered(), 1)
    with pytest.raises(ValueError, match=r"layer_decay is 0\.9, but Unordered has no order of layers"):
        learning_rates(Unordered(), 0.1, 0.9)
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match="TimmBackbone hrnet_w18_small has no order of stages"):
        freeze(TimmBackbone("hrnet_w18_small"), 1)


def test_more_stages_than_there_are():
    with pytest.raises(ValueError, match="freeze is 6, but ResNet 18 has 5 stages"):
        freeze(resnet(), 6)
