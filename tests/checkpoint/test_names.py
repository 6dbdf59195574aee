import pytest
import torch
import torchvision

from fasegr.checkpoint.names import is_on_top, may_be_missing, to_our_names
from fasegr.modeling.backbone.resnet import ResNet

HEAD = [
    "sem_seg_head.pixel_decoder.mask_features.weight",
    "sem_seg_head.predictor.query_feat.weight",
    "sem_seg_head.predictor.class_embed.bias",
]


def resnet(depth, norm):
    return ResNet(depth, norm=norm, res2_channels=256 if depth >= 50 else 64)


@pytest.fixture(scope="module", params=[18, 34, 50, 101])
def torchvision_names(request):
    """(depth, names) of a torchvision ResNet, which are those of timm's, too."""
    with torch.device("meta"):
        model = getattr(torchvision.models, f"resnet{request.param}")(weights=None)
    return request.param, list(model.state_dict())


@pytest.mark.parametrize("prefix", ["", "backbone."])
@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_torchvision_resnet_fills_the_backbone(torchvision_names, norm, prefix):
    depth, names = torchvision_names
    ours = {prefix + name for name in resnet(depth, norm).state_dict()}
    renaming = to_our_names(names, {*ours, *HEAD} if prefix else ours)
    assert set(renaming.to_file) == ours
    assert set(renaming.to_file.values()) | set(renaming.extras) == set(names)
    steps = [name for name in names if name.endswith("num_batches_tracked")]
    assert set(renaming.extras) == {"fc.weight", "fc.bias", *(steps if norm == "FrozenBN" else [])}


def test_every_name_of_a_block():
    names = [
        "conv1.weight",
        "bn1.running_var",
        "layer4.1.bn3.weight",
        "layer2.0.downsample.1.bias",
        "layer2.0.downsample.0.weight",
    ]
    ours = [
        "backbone.stem.conv1.weight",
        "backbone.stem.conv1.norm.running_var",
        "backbone.res5.1.conv3.norm.weight",
        "backbone.res3.0.shortcut.norm.bias",
        "backbone.res3.0.shortcut.weight",
    ]
    assert to_our_names(names, ours).to_file == dict(zip(ours, names, strict=True))


def test_detectron2_imagenet_file():
    file = ["stem.conv1.weight", "stem.conv1.norm.bias", "res2.0.shortcut.weight", "stem.fc.weight", "stem.fc.bias"]
    ours = ["backbone." + name for name in file[:3]]
    renaming = to_our_names(file, [*ours, *HEAD])
    assert renaming.to_file == dict(zip(ours, file[:3], strict=True))
    assert renaming.extras == ["stem.fc.weight", "stem.fc.bias"]


def test_our_own_names_stay():
    names = ["backbone.stem.conv1.weight", "backbone.res2.0.conv1.norm.weight", *HEAD]
    assert to_our_names(names, names).to_file == {name: name for name in names}


def test_older_heads_of_mask2former():
    file = {
        "sem_seg_head.mask_features.weight": HEAD[0],
        "sem_seg_head.predictor.static_query.weight": HEAD[1],
        "sem_seg_head.predictor.class_embed.bias": HEAD[2],
    }
    assert to_our_names(file, HEAD).to_file == {ours: old for old, ours in file.items()}


def test_known_extras_are_left_out():
    extras = ["criterion.empty_weight", "pixel_mean", "pixel_std", "backbone.stem.conv1.norm.num_batches_tracked"]
    assert to_our_names([*HEAD, *extras], HEAD).extras == extras


def test_an_extra_that_the_model_has_is_kept():
    names = [*HEAD, "pixel_mean", "backbone.stem.conv1.norm.num_batches_tracked"]
    assert to_our_names(names, names) == ({name: name for name in names}, [])


SWIN = {  # the original's name -> timm's
    "patch_embed.proj.weight": "patch_embed.proj.weight",
    "layers.0.blocks.1.attn.qkv.weight": "layers.0.blocks.1.attn.qkv.weight",
    "layers.0.downsample.reduction.weight": "layers.1.downsample.reduction.weight",
    "layers.1.downsample.reduction.weight": "layers.2.downsample.reduction.weight",
    "layers.2.downsample.norm.bias": "layers.3.downsample.norm.bias",
}


@pytest.mark.parametrize("names", [list(SWIN), list(SWIN.values())], ids=["original", "timm"])
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_imagenet_swin(names, prefix):
    extras = ["norm.weight", "head.weight", "head.fc.bias", "layers.0.blocks.1.attn_mask"]
    renaming = to_our_names([*names, *extras], [prefix + name for name in SWIN])
    assert renaming.to_file == {prefix + ours: name for ours, name in zip(SWIN, names, strict=True)}
    assert renaming.extras == extras


@pytest.mark.parametrize("prefix", ["timm.", "backbone.timm."])
def test_a_network_of_timm(prefix):
    file = ["stem.0.weight", "stages.0.downsample.0.weight", "stages.3.blocks.1.gamma", "conv1.weight"]
    ours = ["stem_0.weight", "stages_0.downsample.0.weight", "stages_3.blocks.1.gamma", "conv1.weight"]
    classifier = ["head.norm.weight", "head.fc.bias", "norm_pre.weight"]
    renaming = to_our_names([*file, *classifier, "stages.3.blocks.2.gamma"], [prefix + name for name in ours])
    assert renaming.extras == classifier
    unexpected = {f"{prefix}stages_3.blocks.2.gamma": "stages.3.blocks.2.gamma"}
    assert renaming.to_file == {**dict(zip((prefix + name for name in ours), file, strict=True)), **unexpected}


def test_unknown_names_are_kept_for_the_report():
    assert "sem_seg_head.predictor.hat" in to_our_names([*HEAD, "sem_seg_head.predictor.hat"], HEAD).to_file


def test_two_names_of_one_entry_are_an_error():
    with pytest.raises(ValueError, match=r"static_query\.weight.*query_feat\.weight.*both mean"):
        to_our_names(["sem_seg_head.predictor.static_query.weight", HEAD[1]], HEAD)


def test_what_may_be_missing():
    assert may_be_missing("backbone.stem.conv1.norm.num_batches_tracked")
    assert may_be_missing("backbone.layers.0.blocks.0.attn.relative_position_index")
    assert not may_be_missing("backbone.stem.conv1.norm.running_mean")


def test_norms_of_maps():
    assert is_on_top("backbone.norm0.weight") and is_on_top("norm3.bias")
    assert not is_on_top("backbone.layers.0.blocks.0.norm1.weight")
