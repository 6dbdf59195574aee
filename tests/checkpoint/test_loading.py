"""Which weights go into which model, and that a refused file leaves the model as it was."""

import logging

import pytest
import torch
import torchvision
from torch import nn
from torch.testing import assert_close

from fasegr.checkpoint import load_checkpoint
from fasegr.modeling.backbone.resnet import ResNet


class Segmentor(nn.Module):
    """As much of a segmentor as names and shapes need."""

    def __init__(self, classes=4, *, depth=18, norm="FrozenBN", width=8, res2_channels=64, stem_channels=64):
        super().__init__()
        self.backbone = ResNet(depth, norm=norm, res2_channels=res2_channels, stem_channels=stem_channels)
        self.sem_seg_head = nn.Module()
        self.sem_seg_head.pixel_decoder = nn.ModuleDict({"mask_features": nn.Conv2d(8, width, 1)})
        self.sem_seg_head.predictor = nn.ModuleDict(
            {"query_feat": nn.Embedding(5, width), "class_embed": nn.Linear(width, classes + 1)}
        )
        for value in self.state_dict().values():
            if value.is_floating_point():
                value.uniform_(0.5, 1.5)


def small(classes=4, **kwargs):
    return Segmentor(classes, res2_channels=8, stem_channels=8, **kwargs)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def save(tmp_path):
    def save(data, name="weights.pth"):
        torch.save(data, tmp_path / name)
        return str(tmp_path / name)

    return save


def copy_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def split(state, part="backbone."):
    """The entries of `part`, and the others."""
    inside = {name: value for name, value in state.items() if name.startswith(part)}
    return inside, {name: value for name, value in state.items() if name not in inside}


def test_whole_model(save):
    source, target = small(), small()
    report = load_checkpoint(target, save({"model": source.state_dict(), "iteration": 3}))
    assert report.kind == "full"
    assert set(report.matched) == set(source.state_dict())
    assert not (report.renamed or report.missing or report.unexpected or report.mismatched or report.extras)
    assert_close(target.state_dict(), source.state_dict())


def test_released_file_with_older_names_and_extras(save):
    source, target = small(), small()
    state = source.state_dict()
    old = {
        name.replace("pixel_decoder.", "").replace("query_feat", "static_query"): value for name, value in state.items()
    }
    report = load_checkpoint(target, save({"model": {**old, "criterion.empty_weight": torch.ones(5)}}))
    assert report.kind == "full"
    assert report.extras == ["criterion.empty_weight"]
    assert report.renamed["sem_seg_head.predictor.query_feat.weight"] == "sem_seg_head.predictor.static_query.weight"
    assert_close(target.state_dict(), state)


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
@pytest.mark.parametrize("depth", [18, 50])
def test_torchvision_backbone_computes_what_torchvision_computes(depth, norm, save):
    source = getattr(torchvision.models, f"resnet{depth}")(weights=None)
    for name, value in source.state_dict().items():
        if "bn" in name or "downsample.1" in name:
            value.copy_(torch.rand(value.shape) + 0.5)
    target = Segmentor(depth=depth, norm=norm, res2_channels=64 if depth == 18 else 256)
    _, head = split(copy_of(target))

    report = load_checkpoint(target, save(source.state_dict()))

    assert report.kind == "backbone"
    assert all(name.startswith("backbone.") for name in report.matched)
    assert set(report.missing) == set(head)
    assert_close(split(target.state_dict())[1], head, rtol=0, atol=0)
    source.double().eval()
    target.double().eval()
    image = torch.rand(1, 3, 64, 96, dtype=torch.float64)
    x = source.maxpool(source.relu(source.bn1(source.conv1(image))))
    for level, features in target.backbone(image).items():
        x = getattr(source, f"layer{int(level[3]) - 1}")(x)
        assert_close(features, x)


def test_backbone_in_detectron2_names_without_the_steps_of_batch_norm(save):
    source, target = small(), small(norm="BN")
    inside, _ = split(source.state_dict())
    file = {name.removeprefix("backbone."): value for name, value in inside.items()}
    report = load_checkpoint(target, save({"model": file, "matching_heuristics": True}))
    assert report.kind == "backbone"
    loaded, _ = split(target.state_dict())
    assert_close({name: loaded[name] for name in inside}, inside)


def test_backbone_into_a_backbone(save):
    source, target = small(), small()
    assert load_checkpoint(target.backbone, save(source.backbone.state_dict())).kind == "full"
    assert_close(target.backbone.state_dict(), source.backbone.state_dict())


def test_fine_tuning_leaves_the_classifier_at_its_start_and_says_so(save, caplog):
    source, target = small(classes=19), small(classes=7)
    before = copy_of(target)
    with caplog.at_level(logging.INFO, "fasegr"):
        report = load_checkpoint(target, save(source.state_dict()))
    assert report.kind == "fine-tune"
    assert report.mismatched == [
        ("sem_seg_head.predictor.class_embed.weight", (20, 8), (8, 8)),
        ("sem_seg_head.predictor.class_embed.bias", (20,), (8,)),
    ]
    assert "19 classes; our 7 classes keep their random start (fine-tuning)" in caplog.text
    classifier = [name for name, _, _ in report.mismatched]
    for name, value in target.state_dict().items():
        assert_close(value, before[name] if name in classifier else source.state_dict()[name], rtol=0, atol=0)


def without(state, *names):
    return {name: value for name, value in state.items() if not name.startswith(names)}


OTHERS = {
    "deeper": lambda: small(depth=34).state_dict(),
    "shallower": lambda: without(small().state_dict(), "backbone.res5"),
    "no norm statistics": lambda: {k: v for k, v in small().state_dict().items() if "running" not in k},
    "wider head": lambda: small(width=16).state_dict(),
    "wider head, other classes": lambda: small(7, width=16).state_dict(),
    "other classes, head incomplete": lambda: without(small(7).state_dict(), "sem_seg_head.predictor.query_feat"),
    "other classes, something more": lambda: {
        **small(7).state_dict(),
        "sem_seg_head.predictor.hat.bias": torch.ones(1),
    },
    "half a backbone": lambda: without(small().state_dict(), "backbone.res5", "sem_seg_head"),
    "backbone and half a head": lambda: without(small().state_dict(), "sem_seg_head.predictor"),
    "wider backbone": lambda: split(Segmentor().state_dict())[0],
    "head alone": lambda: without(small().state_dict(), "backbone."),
    "nothing in common": lambda: nn.Linear(2, 2).state_dict(),
}


@pytest.mark.parametrize("other", OTHERS)
def test_other_weights_are_refused_before_anything_is_loaded(other, save):
    model = small()
    before = copy_of(model)
    with pytest.raises(ValueError, match=r"weights\.pth holds weights of another model: \d+ of \d+ entries fit"):
        load_checkpoint(model, save(OTHERS[other]()))
    assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_the_refusal_shows_a_short_table(save):
    with pytest.raises(ValueError) as error:
        load_checkpoint(small(width=16), save(without(small(depth=34).state_dict(), "backbone.res4")))
    message = str(error.value)
    assert len(message.splitlines()) < 20
    rows = {line.split()[0]: line.split()[1:] for line in message.splitlines()[1:] if line}
    assert rows["module"] == ["matched", "missing", "unexpected", "other", "shape"]
    assert rows["backbone.res3"] == ["25", "-", "20", "-"]
    assert rows["backbone.res4"] == ["-", "25", "-", "-"]
    assert rows["sem_seg_head.predictor"] == ["1", "-", "-", "2"]
    assert "class_embed.weight (5, 8) in the file, (5, 16) in the model" in message
    assert "unexpected: backbone.res2.2.conv1.weight; " in message
    assert "MODEL keys" in message


def test_dtype_of_the_model_is_kept(save):
    source, target = small(), small()
    load_checkpoint(target, save(source.half().state_dict()))
    assert_close(target.state_dict(), {name: value.float() for name, value in source.state_dict().items()})


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrapped_model(wrap, save):
    source, target = small(), small()
    assert load_checkpoint(wrap(target), save(wrap(source).state_dict())).kind == "full"
    assert_close(target.state_dict(), source.state_dict())
