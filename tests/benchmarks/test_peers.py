import importlib.util
import os
from pathlib import Path

import pytest

from benchmarks import models, peers
from benchmarks.measure import in_fresh_process

ROOT = Path(__file__).parents[2]
OURS = ROOT / "configs/ade20k/semantic-segmentation/faseg_r50.yaml"


def test_the_config_at_the_same_path(tmp_path):
    there = tmp_path / OURS.relative_to(ROOT)
    with pytest.raises(peers.Unusable, match="--peer-config"):
        peers.find_config(str(OURS), str(tmp_path), None)
    there.parent.mkdir(parents=True)
    there.touch()
    assert peers.find_config(str(OURS), str(tmp_path), None) == str(there)
    assert peers.find_config(str(OURS), str(tmp_path), "other.yaml") == "other.yaml"
    with pytest.raises(peers.Unusable, match=r"mine\.yaml"):
        peers.find_config("/elsewhere/mine.yaml", str(tmp_path), None)


def test_a_folder_that_is_not_a_checkout_is_an_error(tmp_path):
    with pytest.raises(peers.Unusable, match=r"has no train_net\.py"):
        peers.load_checkout(str(tmp_path))


def test_a_checkout_needs_detectron2(tmp_path, monkeypatch):
    (tmp_path / "mask2former").mkdir()
    (tmp_path / "train_net.py").touch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(peers.Unusable, match="needs detectron2"):
        peers.load_checkout(str(tmp_path))


def test_huggingface_needs_transformers(case, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(peers.Unusable, match="pip install transformers"):
        models.times(case("inference", peer="huggingface"))


def test_plain_names():
    assert peers.is_plain("plain")
    assert peers.is_plain("plain:a,b")
    assert not peers.is_plain("/a/plain")
    assert peers.plain_names("plain") == ()
    assert peers.plain_names("plain:a,b") == ("a", "b")


@pytest.mark.skipif("FASEGR_PEER" not in os.environ, reason="FASEGR_PEER is not set to a checkout of FASeg")
@pytest.mark.skipif(importlib.util.find_spec("detectron2") is None, reason="the peer needs detectron2")
def test_a_checkout_agrees(case):
    small = ("MODEL.MASK_FORMER.DEC_LAYERS", "6", "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", "1")
    values = case("training", config=str(OURS), opts=small, size=(192, 192), peer=os.environ["FASEGR_PEER"])
    found = in_fresh_process("benchmarks.models:agreement", {"case": values})
    assert max(found.values()) < 1e-8
