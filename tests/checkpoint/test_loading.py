"""Which weights go into which model, and that a refused file leaves the model as it was."""

import logging
import pickle

import pytest
import torch
import torchvision
from torch import nn
from torch.testing import assert_close

from fasegr.checkpoint import load_checkpoint, read_checkpoint
from fasegr.checkpoint.loading import load_weights
from fasegr.modeling.backbone.resnet import ResNet
from fasegr.modeling.backbone.swin import SwinTransformer
from fasegr.modeling.backbone.timm import TimmBackbone


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


class Other(nn.Module):
    """A segmentor of another backbone."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = nn.ModuleDict({"predictor": nn.ModuleDict({"query_feat": nn.Embedding(5, 8)})})


def swin(window=4, depths=(2, 1, 1, 1), **kwargs):
    model = SwinTransformer(embed_dim=8, depths=depths, num_heads=(1, 2, 2, 4), window_size=window, **kwargs)
    for parameter in model.parameters():
        parameter.data.normal_()
    return model


def classifier_of(model):
    """The state dict of the ImageNet classifier that a Swin is cut from, in the original's names."""
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("norm")}
    mask = {"layers.0.blocks.1.attn_mask": torch.zeros(16, 16, 16)}
    last = {"norm.weight": torch.ones(64), "norm.bias": torch.zeros(64)}
    return {**state, **mask, **last, "head.weight": torch.ones(10, 64), "head.bias": torch.ones(10)}


def as_timm(state):
    """In the names of timm: a stage starts with what leads to it, and nothing is kept that follows from the sizes."""
    state = {k: v for k, v in state.items() if not k.endswith(("attn_mask", "relative_position_index"))}
    for i in (2, 1, 0):
        for name in [name for name in state if name.startswith(f"layers.{i}.downsample")]:
            state[name.replace(f"layers.{i}", f"layers.{i + 1}")] = state.pop(name)
    return {name.replace("head.", "head.fc."): value for name, value in state.items()}


@pytest.mark.parametrize("form", ["swin", "mask2former", "timm"])
@pytest.mark.parametrize("whole", [True, False], ids=["segmentor", "backbone"])
def test_imagenet_swin(form, whole, save, tmp_path):
    source, backbone = swin(), swin()
    target = Other(backbone) if whole else backbone
    before = copy_of(target)
    if form == "mask2former":
        path = tmp_path / "swin.pkl"
        converted = {"model": classifier_of(source), "__author__": "third_party", "matching_heuristics": True}
        path.write_bytes(pickle.dumps(converted))
    else:
        path = save({"model": classifier_of(source)} if form == "swin" else as_timm(classifier_of(source)))
    report = load_checkpoint(target, str(path))
    assert report.kind == "backbone"
    assert not (report.unexpected or report.mismatched or report.resized)
    norms = {f"{'backbone.' * whole}norm{i}.{part}" for i in range(4) for part in ("weight", "bias")}
    assert {name for name in report.missing if "sem_seg_head" not in name} == norms
    given = {("backbone." * whole) + k: v for k, v in source.state_dict().items() if not k.startswith("norm")}
    assert_close(target.state_dict(), {**before, **given}, rtol=0, atol=0)


def test_position_tables_of_another_window_are_resized(save, caplog):
    source, target = swin(4), Other(swin(6))
    index = target.backbone.layers[0].blocks[0].attn.relative_position_index.clone()
    # a table that is linear in dy and dx nearly stays so, apart from its rim
    rows = torch.arange(7.0)
    for name, value in source.state_dict().items():
        if name.endswith("table"):
            value.copy_((rows[:, None] + 10 * rows).flatten()[:, None])
    with caplog.at_level(logging.INFO, "fasegr"):
        report = load_checkpoint(target, save(classifier_of(source)))
    assert report.kind == "backbone"
    name = "backbone.layers.0.blocks.0.attn.relative_position_bias_table"
    assert report.resized[0] == (name, (49, 1), (121, 1))
    assert len(report.resized) == 5
    assert "resized by bicubic interpolation: " + name + " from (49, 1) to (121, 1)" in caplog.text
    table = target.state_dict()[name].view(11, 11)
    place = (torch.arange(11.0) + 0.5) * 7 / 11 - 0.5  # pixel centres
    expected = place[:, None] + 10 * place
    assert_close(table[3:8, 3:8], expected[3:8, 3:8], atol=0.6, rtol=0)
    assert_close(target.backbone.layers[0].blocks[0].attn.relative_position_index, index, rtol=0, atol=0)


@pytest.mark.parametrize(
    "other",
    [
        lambda: Other(swin(4)).state_dict(),  # a whole segmentor of other windows
        lambda: classifier_of(swin(6, (2, 1, 2, 1))),
        lambda: {k: v for k, v in classifier_of(swin(6)).items() if "layers.2" not in k},
        lambda: {k: v for k, v in swin(6).state_dict().items() if "norm2" not in k or "layers" in k},
        lambda: {k: v[:, :1] if k.endswith("table") else v for k, v in classifier_of(swin(6)).items()},
        lambda: {k: v[:100] if k.endswith("table") else v for k, v in classifier_of(swin(6)).items()},
    ],
    ids=["windows", "deeper", "half", "half of the norms", "heads", "no square"],
)
def test_other_swins_are_refused(other, save):
    target = Other(swin(6))
    before = copy_of(target)
    with pytest.raises(ValueError, match="weights of another model"):
        load_checkpoint(target, save(other()))
    assert_close(target.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["convnext_atto", "resnet10t", "efficientnet_lite0"])
def test_timms_classifier_into_its_backbone(name, save):
    timm = pytest.importorskip("timm")
    source, target = timm.create_model(name), Other(TimmBackbone(name))
    report = load_checkpoint(target, save(source.state_dict()))
    assert report.kind == "backbone"
    assert all("sem_seg_head" in missing for missing in report.missing)
    source.double().eval()
    target.double().eval()
    image = torch.rand(1, 3, 64, 96, dtype=torch.float64)
    *_, last = source.forward_intermediates(image, intermediates_only=True)
    assert_close(target.backbone(image)["res5"], last)
    with pytest.raises(ValueError, match="weights of another model"):
        load_checkpoint(Other(TimmBackbone("resnet18")), save(source.state_dict()))


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
    assert "19 classes; our 7 classes start from random weights (fine-tuning)" in caplog.text
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


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_weights_that_are_not_finite_are_named(number, save):
    model, file = small(), copy_of(small())
    file["backbone.stem.conv1.weight"] = file["backbone.stem.conv1.weight"].double()
    file["backbone.stem.conv1.weight"][0, 0, 0, 0] = number  # 1e300 is infinite in the model's float32
    before = copy_of(model)
    with pytest.raises(ValueError, match=r"weights\.pth cannot be used: backbone\.stem\.conv1\.weight has NaN or inf"):
        load_checkpoint(model, save(file))
    assert_close(model.state_dict(), before, rtol=0, atol=0)


OTHER_TYPES = (torch.complex64, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2)


@pytest.mark.parametrize("dtype", OTHER_TYPES, ids=str)
def test_weights_of_a_type_that_cannot_be_are_named(dtype, save):
    file = copy_of(small())
    file["backbone.stem.conv1.weight"] = file["backbone.stem.conv1.weight"].to(dtype)
    with pytest.raises(ValueError, match=rf"conv1\.weight is {dtype}, in the model torch\.float32"):
        load_checkpoint(small(), save(file))


def test_a_step_count_is_an_integer(save):
    file = copy_of(small(norm="BN"))
    name = next(name for name in file if name.endswith("num_batches_tracked"))
    with pytest.raises(ValueError, match=r"num_batches_tracked is torch\.float32, in the model torch\.int64"):
        load_checkpoint(small(norm="BN"), save({**file, name: torch.tensor(1.0)}))


def test_dtype_of_the_model_is_kept(save):
    source, target = small(), small()
    load_checkpoint(target, save(source.half().state_dict()))
    assert_close(target.state_dict(), {name: value.float() for name, value in source.state_dict().items()})


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrapped_model(wrap, save):
    source, target = small(), small()
    assert load_checkpoint(wrap(target), save(wrap(source).state_dict())).kind == "full"
    assert_close(target.state_dict(), source.state_dict())


class OtherQueries(nn.Module):
    """A model that differs from `small(7)` in queries, classes, one part that only it has and one that it lacks."""

    def __init__(self):
        super().__init__()
        model = small()
        self.backbone, self.sem_seg_head = model.backbone, model.sem_seg_head
        self.sem_seg_head.predictor["query_feat"] = nn.Embedding(9, 8)
        self.sem_seg_head.predictor["extra"] = nn.Linear(2, 2)


def test_part_of_another_model_where_it_is_asked_for(save, caplog):
    source, target = OtherQueries(), small(7)
    before = copy_of(target)
    path = save(source.state_dict())
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS_PARTIAL True"):
        load_checkpoint(target, path)
    assert_close(target.state_dict(), before, rtol=0, atol=0)
    with caplog.at_level("INFO", "fasegr"):
        report = load_weights(target, read_checkpoint(path).weights, path, partial=True)
    assert report.kind == "partial"
    anew = {"predictor.query_feat.weight", "predictor.class_embed.weight", "predictor.class_embed.bias"}
    for name, value in target.state_dict().items():
        fresh = name.removeprefix("sem_seg_head.") in anew
        assert_close(value, before[name] if fresh else source.state_dict()[name], rtol=0, atol=0)
    assert "query_feat      1 entries  (9, 8) in the file" in caplog.text
    assert "no place for 2 entries: sem_seg_head.predictor.extra.weight" in caplog.text


def test_nothing_in_common_is_refused_even_then(save):
    with pytest.raises(ValueError, match="another model: 0 of") as error:
        load_weights(small(), {"a": torch.zeros(2)}, "a.pth", partial=True)
    assert "WEIGHTS_PARTIAL" not in str(error.value)


def test_weights_that_fit_load_as_always_when_parts_are_allowed(save):
    target = small()
    assert load_weights(target, small().state_dict(), "a.pth", partial=True).kind == "full"
