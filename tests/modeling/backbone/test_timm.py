import importlib.util

import pytest
import torch

from fasegr.config import add_fasegr_config
from fasegr.d2 import build_backbone, get_cfg
from fasegr.modeling.backbone.timm import TimmBackbone

timm = pytest.importorskip("timm")


def config(*opts):
    cfg = get_cfg()
    add_fasegr_config(cfg)
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", "build_timm_backbone", *opts])
    return cfg


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("convnext_atto", [40, 80, 160, 320]),
        ("resnet10t", [64, 128, 256, 512]),
        ("mambaout_femto", [48, 96, 192, 288]),  # channels last
        ("swin_s3_tiny_224", [96, 192, 384, 768]),  # channels last, and of a fixed size by default
    ],
)
@torch.no_grad()
def test_maps_by_stride(name, channels):
    model = TimmBackbone(name).eval()
    specs = model.output_shape()
    assert {key: spec.stride for key, spec in specs.items()} == {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
    assert [spec.channels for spec in specs.values()] == channels
    features = model(torch.randn(1, 3, 64, 96))
    for key, spec in specs.items():
        assert features[key].shape == (1, spec.channels, 64 // spec.stride, 96 // spec.stride)


@torch.no_grad()
def test_maps_are_those_of_timm():
    torch.manual_seed(0)
    model, theirs = TimmBackbone("resnet10t").eval(), timm.create_model("resnet10t").eval()
    theirs.load_state_dict(model.timm.state_dict(), strict=False)
    image = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(model(image)["res5"], theirs.forward_features(image))


def test_every_parameter_is_trained():
    model = build_backbone(config("MODEL.TIMM.NAME", "convnext_atto", "MODEL.TIMM.DROP_PATH_RATE", 0.1))
    sum(value.square().mean() for value in model(torch.randn(2, 3, 64, 64)).values()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("convnext_ato", "does not know 'convnext_ato'; did you mean .*convnext_atto"),
        ("", "does not know"),
        ("convnext_atto.in99k", r"those for convnext_atto are \['convnext_atto\.d2_in1k'\]"),
        ("vit_tiny_patch16_224", r"only takes images of \(224, 224\) pixels"),
    ],
)
def test_unsuitable_networks_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        TimmBackbone(name)


def test_other_strides():
    with pytest.raises(ValueError, match=r"strides \[8, 16, 32, 64\]; the model needs \[4, 8, 16, 32\]"):
        TimmBackbone("selecsls42")


def test_drop_path_in_a_network_without_it():
    with pytest.raises(ValueError, match=r"vgg11.*drop_path_rate 0\.1"):
        TimmBackbone("vgg11", drop_path_rate=0.1)


@pytest.mark.parametrize(("weights", "fetched"), [("", True), ("some.pth", False)])
def test_timms_weights_are_fetched_if_no_others_are_named(monkeypatch, weights, fetched):
    asked = []
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda *a, pretrained, **k: asked.append(pretrained) or create(*a, pretrained=False, **k)
    )
    build_backbone(config("MODEL.TIMM.NAME", "resnet10t", "MODEL.TIMM.PRETRAINED", True, "MODEL.WEIGHTS", weights))
    assert asked == [fetched]


def test_without_timm(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "timm" else find(name))
    with pytest.raises(ImportError, match="timm, which is not installed; run `pip install timm`"):
        TimmBackbone("resnet18")
