import pickle

import pytest
import torch
from torch.testing import assert_close

from fasegr.checkpoint import read_checkpoint
from tools import convert_weights as tool


@pytest.fixture
def trained(tmp_path):
    """A checkpoint of a training: the weights of three classes, and what else it keeps."""
    weights = {
        "backbone.stem.conv1.weight": torch.randn(4, 3, 2, 2),
        "backbone.stem.conv1.norm.num_batches_tracked": torch.tensor(7),
        "sem_seg_head.pixel_decoder.mask_features.weight": torch.randn(6, 4).t(),  # not contiguous
        "sem_seg_head.predictor.class_embed.weight": torch.randn(4, 5),
    }
    torch.save({"model": weights, "optimizer": {"state": {}}, "iteration": 3}, tmp_path / "trained.pth")
    return weights


CLASS_WEIGHTS = {"criterion.empty_weight": torch.tensor([1.0, 1.0, 1.0, 0.1])}


@pytest.mark.parametrize("form", ["pth", "pkl", "safetensors"])
def test_every_form_holds_the_weights_and_what_a_release_has_besides(trained, tmp_path, form, capsys):
    output = str(tmp_path / f"out.{form}")
    tool.main([str(tmp_path / "trained.pth"), output])
    read = read_checkpoint(output)
    assert_close(read.weights, trained | CLASS_WEIGHTS, rtol=0, atol=0)
    assert not set(read.rest) - {"__author__"}
    printed = capsys.readouterr().out
    assert "sem_seg_head.predictor" in printed
    assert "total" in printed


def test_there_and_back(trained, tmp_path):
    path = str(tmp_path / "trained.pth")
    for form in ("safetensors", "pkl", "pth"):
        tool.main([path, str(tmp_path / f"back.{form}")])
        path = str(tmp_path / f"back.{form}")
    assert_close(read_checkpoint(path).weights, trained | CLASS_WEIGHTS, rtol=0, atol=0)


def test_pickles_are_as_detectron2_wants_them(trained, tmp_path):
    tool.main([str(tmp_path / "trained.pth"), str(tmp_path / "out.pkl")])
    content = pickle.loads((tmp_path / "out.pkl").read_bytes())
    assert "__author__" in content
    assert {type(value).__name__ for value in content["model"].values()} == {"ndarray"}


def test_a_backbone_gets_no_classes(tmp_path):
    torch.save({"layer1.0.conv1.weight": torch.ones(2)}, tmp_path / "resnet.pth")
    tool.main([str(tmp_path / "resnet.pth"), str(tmp_path / "resnet.safetensors")])
    assert set(read_checkpoint(str(tmp_path / "resnet.safetensors")).weights) == {"layer1.0.conv1.weight"}


def test_class_weights_that_are_there_stay(trained, tmp_path):
    own = {"criterion.empty_weight": torch.tensor([1.0, 2.0, 3.0, 0.5])}
    torch.save({"model": trained | own}, tmp_path / "released.pth")
    tool.main([str(tmp_path / "released.pth"), str(tmp_path / "out.pth"), "--no-object-weight", "0.3"])
    assert_close(read_checkpoint(str(tmp_path / "out.pth")).weights, trained | own, rtol=0, atol=0)


def test_an_existing_file_is_replaced_by_force_alone(trained, tmp_path, capsys):
    output = tmp_path / "out.pth"
    output.write_text("mine")
    arguments = [str(tmp_path / "trained.pth"), str(output)]
    with pytest.raises(SystemExit) as stopped:
        tool.main(arguments)
    assert stopped.value.code == 2
    assert "--force replaces it" in capsys.readouterr().err
    assert output.read_text() == "mine"
    tool.main([*arguments, "--force"])
    assert set(read_checkpoint(str(output)).weights) == set(trained | CLASS_WEIGHTS)


def test_a_failed_write_leaves_the_old_file(trained, tmp_path, monkeypatch):
    output = tmp_path / "out.pth"
    output.write_text("mine")

    def fail(weights, file):
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setitem(tool.FORMATS, ".pth", fail)
    with pytest.raises(SystemExit):
        tool.main([str(tmp_path / "trained.pth"), str(output), "--force"])
    assert output.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.pth", "trained.pth"]


def test_what_cannot_be_done_is_one_message(trained, tmp_path, capsys):
    def message(*arguments):
        with pytest.raises(SystemExit) as stopped:
            tool.main(arguments)
        assert stopped.value.code == 2
        return capsys.readouterr().err

    assert "out.onnx must end in .pth, .pkl, .safetensors" in message("trained.pth", "out.onnx")
    assert "there is no weights file 'nowhere.pth'" in message("nowhere.pth", str(tmp_path / "out.pth"))
