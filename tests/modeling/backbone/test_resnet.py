import pytest
import torch
import torchvision

from fasegr.modeling.backbone.resnet import ResNet
from fasegr.modeling.layers import FrozenBatchNorm2d, build_norm

BLOCKS = {18: 64, 34: 64, 50: 256, 101: 256}


def rename(name):
    """Our name of a torchvision parameter."""
    stem = {"conv1.weight": "stem.conv1.weight"}
    if name in stem:
        return stem[name]
    name = name.replace("bn1.", "conv1.norm.", 1) if name.startswith("bn1.") else name
    if name.startswith("conv1."):
        return f"stem.{name}"
    for i in range(4, 0, -1):
        name = name.replace(f"layer{i}.", f"res{i + 1}.")
    for i in (1, 2, 3):
        name = name.replace(f".bn{i}.", f".conv{i}.norm.")
    return name.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")


@pytest.mark.parametrize("depth", BLOCKS)
@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_equals_torchvision(depth, norm):
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, f"resnet{depth}")(weights=None)
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.8, 1.2)
    ours = ResNet(depth, norm=norm, res2_channels=BLOCKS[depth])
    state = {rename(k): v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    if norm == "FrozenBN":
        state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    ours.load_state_dict(state)
    ours.eval().double()
    theirs.eval().double()
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        features = ours(image)
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
        for i in range(1, 5):
            x = getattr(theirs, f"layer{i}")(x)
            torch.testing.assert_close(features[f"res{i + 1}"], x)


def test_shapes_and_only_the_requested_features():
    net = ResNet(18, norm="GN", stem_channels=32, res2_channels=32, out_features=["res3", "res4"])
    features = net(torch.randn(2, 3, 64, 64))
    assert {k: tuple(v.shape) for k, v in features.items()} == {"res3": (2, 64, 8, 8), "res4": (2, 128, 4, 4)}
    assert {k: (v.channels, v.stride) for k, v in net.output_shape().items()} == {"res3": (64, 8), "res4": (128, 16)}


def test_frozen_norm_has_no_gradient_and_folds_into_the_convolution():
    torch.manual_seed(0)
    norm = FrozenBatchNorm2d(4)
    norm.running_mean.normal_()
    x = torch.randn(2, 4, 5, 5)
    reference = torch.nn.functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    torch.testing.assert_close(norm(x), reference)
    assert not list(norm.parameters())


def test_freezing():
    net = ResNet(18, norm="FrozenBN", res2_channels=64, freeze_at=2)
    frozen = {name.split(".")[0] for name, p in net.named_parameters() if not p.requires_grad}
    assert frozen == {"stem", "res2"}
    with pytest.raises(ValueError, match="freeze_at is 1 with norm 'BN'"):
        ResNet(18, norm="BN", freeze_at=1)


def test_unknown_norms():
    with pytest.raises(ValueError, match="norm 'LN' is not known"):
        build_norm("LN", 32)
    with pytest.raises(ValueError, match="33 channels"):
        build_norm("GN", 33)
