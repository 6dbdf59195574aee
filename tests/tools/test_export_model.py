"""The format hub of the command; the others are in tests/inference/test_export.py."""

import pytest
import torch

import fasegr
from tests.checkpoint.hub_server import Hub
from tools.export_model import main

TINY = [
    *("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "5", "MODEL.RESNETS.RES2_OUT_CHANNELS", "8"),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", "32", "MODEL.MASK_FORMER.HIDDEN_DIM", "32"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.MASK_FORMER.DEC_LAYERS", "5"),
]


@pytest.fixture
def arguments(tmp_path):
    cfg = fasegr.load_cfg("quickstart/faseg_scenes.yaml", [*TINY, "MODEL.DEVICE", "cpu"])
    torch.save(fasegr.build_model(cfg).state_dict(), tmp_path / "model_best.pth")
    common = ["--config-file", "quickstart/faseg_scenes.yaml", "--weights", str(tmp_path / "model_best.pth")]
    return lambda *more: [*common, "--format", "hub", *more, "--opts", *TINY]


def test_to_a_folder_and_to_the_hub(arguments, tmp_path, monkeypatch, capsys):
    pytest.importorskip("huggingface_hub")
    hub = Hub()
    try:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        out = tmp_path / "out"
        main(arguments("--output", str(out), "--push", "me/scenes", "--private", "--license", "mit"))
        assert f"{hub.address}/me/scenes" in capsys.readouterr().out
    finally:
        hub.close()
    assert hub.private == {"me/scenes"}
    assert hub.models["me/scenes"] == {file.name: file.read_bytes() for file in out.iterdir()}
    assert b"license: mit" in hub.models["me/scenes"]["README.md"]
    assert fasegr.load_cfg(out, ["MODEL.DEVICE", "cpu"]).MODEL.MASK_FORMER.NUM_OBJECT_QUERIES == 5


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "needs --output FOLDER, --push OWNER/NAME, or both"),
        (("--output", "x", "--private"), "--private goes with --push"),
        (("--push", "scenes"), "'scenes' is no name of a model on the hub"),
        (("--output", "."), "is not empty"),
    ],
)
def test_what_cannot_be_written_is_one_message(more, message, arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(arguments(*more))
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
