import os

from fasegr.data.datasets.root import DatasetPath


def test_paths_follow_the_environment(monkeypatch, tmp_path):
    path = DatasetPath("coco/a.json")
    for folder in ("one", "two"):
        monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / folder))
        assert os.fspath(path) == str(path) == str(tmp_path / folder / "coco" / "a.json")
    assert path == DatasetPath("coco/a.json")
    assert os.fspath(DatasetPath(str(tmp_path / "b.json"))) == str(tmp_path / "b.json")
