import json
import os

import pytest

from fasegr.utils.files import replacing, write_json


@pytest.mark.parametrize("durable", [False, True])
def test_the_file_appears_when_the_block_ends(tmp_path, durable):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path, durable=durable) as file:
        file.write("näw")
        assert path.read_text() == "old"
    assert path.read_text(encoding="utf-8") == "näw"
    assert list(tmp_path.iterdir()) == [path]


def test_a_durable_file_and_its_name_are_on_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append((os.fstat(file).st_ino, path.exists())))
    path = tmp_path / "a.txt"
    with replacing(path, durable=True) as file:
        file.write("a")
    assert synced == [(path.stat().st_ino, False), (tmp_path.stat().st_ino, True)]


def test_an_error_or_a_failed_check_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def refuse(name):
        raise ValueError(f"{name} is wrong")

    with pytest.raises(RuntimeError), replacing(path, "wb") as file:
        file.write(b"new")
        raise RuntimeError
    with pytest.raises(ValueError, match="is wrong"), replacing(path, "wb", refuse) as file:
        file.write(b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_creates_its_folder(tmp_path):
    path = tmp_path / "below" / "a.json"
    write_json({"a": [1, 2]}, path, indent=1)
    assert json.loads(path.read_text()) == {"a": [1, 2]}
