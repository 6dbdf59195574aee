from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import pytest

from fasegr.checkpoint import download, local_path

ZOO_FILE = "ImageNetPretrained/torchvision/R-50.pkl"
ZOO_URL = f"https://dl.fbaipublicfiles.com/detectron2/{ZOO_FILE}"


@pytest.fixture
def network(monkeypatch, tmp_path):
    """A network that counts its downloads and can be unplugged; the cache is in `tmp_path`."""

    network = SimpleNamespace(asked=[], plugged_in=True)

    def fetch(url, target):
        network.asked.append(url)
        if not network.plugged_in:
            raise URLError("no route to host")
        with open(target, "w") as file:
            file.write("weights")

    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "_download", fetch)
    return network


def test_local_file_stays_where_it_is(tmp_path):
    path = tmp_path / "weights.pth"
    path.touch()
    assert local_path(str(path)) == str(path)


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "weights.pth").touch()
    assert local_path("~/weights.pth") == str(tmp_path / "weights.pth")


@pytest.mark.parametrize("name", [f"detectron2://{ZOO_FILE}", ZOO_URL])
def test_zoo_name_and_url_are_downloaded_once(network, tmp_path, name):
    path = local_path(name)
    assert Path(path).read_text() == "weights"
    assert path.startswith(str(tmp_path / "cache"))
    assert local_path(name) == path
    assert network.asked == [ZOO_URL]


def test_offline_says_where_the_file_belongs_and_finds_it_there(network, tmp_path):
    network.plugged_in = False
    place = tmp_path / "cache" / "detectron2" / ZOO_FILE
    with pytest.raises(ConnectionError, match="no route to host") as error:
        local_path(f"detectron2://{ZOO_FILE}")
    assert str(place) in str(error.value)
    assert "MODEL.WEIGHTS" in str(error.value)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("by hand")
    assert Path(local_path(f"detectron2://{ZOO_FILE}")).read_text() == "by hand"


def test_released_checkpoints_have_names_and_a_licence(network, tmp_path, caplog):
    caplog.set_level("INFO", logger="fasegr")
    path = local_path("fasegr://ade20k/faseg_r50")
    assert network.asked == ["https://github.com/ziplab/FASeg/releases/download/V1/ade_faseg_r50.pth"]
    assert path == str(tmp_path / "cache/ziplab/FASeg/releases/download/V1/ade_faseg_r50.pth")
    assert "CC BY-NC 4.0" in caplog.text


def test_released_checkpoint_offline_says_where_to_put_it(network, tmp_path):
    network.plugged_in = False
    with pytest.raises(ConnectionError) as error:
        local_path("fasegr://cityscapes/faseg_r50")
    assert str(tmp_path / "cache/ziplab/FASeg/releases/download/V1/cityscapes_faseg_r50.pth") in str(error.value)
    assert "https://github.com/ziplab/FASeg/releases/download/V1/cityscapes_faseg_r50.pth" in str(error.value)


def test_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth.*MODEL\.WEIGHTS"):
        local_path("nowhere.pth")


def test_folder_lists_its_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights file in it"):
        local_path(str(tmp_path))
    (tmp_path / "model_final.pth").touch()
    with pytest.raises(FileNotFoundError, match=r"is a folder.*model_final\.pth"):
        local_path(str(tmp_path))


def test_unknown_scheme_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"s3://bucket/x\.pth.*detectron2://"):
        local_path("s3://bucket/x.pth")
