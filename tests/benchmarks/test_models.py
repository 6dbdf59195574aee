import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import models
from benchmarks.case import Case
from benchmarks.sides import Ours, images, labelled_images
from fasegr.analysis.flops import FORMULAS

CPU = torch.device("cpu")
NETWORK = ["backbone", "pixel decoder", "decoder"]


@pytest.mark.parametrize("kind", ["inference", "labels"])
def test_inference_by_part_beside_the_plain_forms(case, kind):
    result = models.times(case(kind, peer="plain", batch=2))
    parts = ["whole", *NETWORK, "semantic output"]
    assert {side: [list(r) for r in rounds] for side, rounds in result["seconds"].items()} == {
        "ours": [parts] * 2,
        "peer": [parts] * 2,
    }
    for reading in result["seconds"]["ours"]:
        assert reading["whole"] == pytest.approx(sum(reading[part] for part in parts[1:]))
    assert result["names"] == {"ours": "fasegr", "peer": "plain"}


def test_training_by_part(case):
    result = models.times(case("training"))
    (first, _) = result["seconds"]["ours"]
    assert set(first) == {"whole", *NETWORK, "criterion", "matching", "backward", "optimizer", "other"}
    assert first["matching"] < first["criterion"] < first["whole"]
    assert all(result["work"][f"{part}/flops"] > 0 for part in (*NETWORK, "criterion", "backward", "whole"))
    assert result["work"]["whole/flops"] > 2 * result["work"]["decoder/flops"]


def test_criterion_only(case):
    (first, _) = models.times(case("criterion"))["seconds"]["ours"]
    assert list(first) == ["whole", "criterion", "matching", "backward", "other"]


def test_work_is_counted_by_part(case):
    values = case("inference")
    work = models.times(values)["work"]
    backbone = Ours(values["config"], values["opts"], "cpu", "float32").model.backbone.requires_grad_(False)
    pixels = torch.zeros(1, 3, *values["size"])
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        maps = backbone.eval()(pixels)
    assert work["backbone/flops"] == counter.get_total_flops()
    assert work["backbone/bytes"] == 4 * sum(t.numel() for t in (*backbone.parameters(), pixels, *maps.values()))
    assert work["whole/flops"] == sum(work[f"{part}/flops"] for part in (*NETWORK, "semantic output"))
    assert not [name for name in work if name.endswith("/out")]


@pytest.mark.parametrize("kind", ["inference", "training"])
def test_the_plain_forms_agree(case, kind):
    found = models.agreement(case(kind, peer="plain"))
    assert list(found) == (["scores"] if kind == "inference" else ["scores", "losses", "gradients"])
    # A gradient that is zero up to rounding, 1e-18, is taken relative to the noise level, 1e-9.
    assert max(found.values()) < 1e-8
    assert torch.get_default_dtype() == torch.float32
    assert torch.rand(3).unique().numel() == 3


def test_a_different_result_is_noticed(case, monkeypatch):
    monkeypatch.setattr(models.peers.PlainForms, "load", lambda self, state: self.model.sem_seg_head.apply(_disturb))
    assert models.agreement(case("inference", peer="plain"))["scores"] > 1e-4


def _disturb(module):
    if isinstance(module, torch.nn.Linear):
        module.weight.data.mul_(1.1)


def test_memory_of_one_side(case):
    found = models.memory(case("inference"), "ours")
    assert found["whole"] >= max(found[part] for part in NETWORK)


def test_an_unknown_kind_is_an_error(case):
    with pytest.raises(ValueError, match="'inferense'"):
        models.times(case("inferense"))


def test_images_are_labelled_everywhere_by_different_classes():
    samples = labelled_images((40, 56), 2, CPU, num_classes=20, num_masks=6)
    for sample in samples:
        assert sample["image"].shape == (3, 40, 56)
        assert (sample["masks"].sum(0) == 1).all()
        assert sample["masks"].flatten(1).any(1).all()
        assert sample["labels"].unique().numel() == 6
    assert len(labelled_images((16, 16), 1, CPU, num_classes=3, num_masks=10)[0]["labels"]) == 3
    assert torch.equal(images((8, 8), 2, CPU)[1]["image"], images((8, 8), 2, CPU)[1]["image"])


def test_cases_survive_json(case):
    values = case("inference")
    assert Case.of(values | {"size": list(values["size"]), "opts": list(values["opts"])}) == Case.of(values)


def test_points_are_sampled_off_the_grid(case):
    values = case("inference")
    ours = Ours(values["config"], values["opts"], "cpu", "float32")
    offsets = [p for n, p in ours.model.named_parameters() if n.endswith("sampling_offsets.weight")]
    assert offsets
    assert all(parameter.count_nonzero() == parameter.numel() for parameter in offsets)


def test_the_clock_is_outside_of_what_is_compiled(case, monkeypatch):
    """One inside splits the head into graphs, and would time itself."""
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: self.__dict__.__setitem__("_compiled", True))
    values = case("inference", rounds=1)
    found = models.times(values | {"opts": [*values["opts"], "SPEED.COMPILE", "True"]})
    assert list(found["seconds"]["ours"][0]) == ["whole", "backbone", "head", "semantic output"]
    assert found["work"]["semantic output/bytes"] > 0
