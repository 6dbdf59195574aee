"""One reader of folders."""

import os

from fasegr.data.datasets.image_files import find_files


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def names(found, folder):
    return [os.path.relpath(path, folder) for path in found.files]


def test_hidden_files_are_left_out_and_said(tmp_path, caplog):
    for name in ("b.PNG", "a/c.jpg", "._b.PNG", ".ipynb_checkpoints/b.png", "notes.txt", ".notes"):
        touch(tmp_path / name)
    found = find_files(tmp_path)
    assert names(found, tmp_path) == ["a/c.jpg", "b.PNG"]
    with caplog.at_level("INFO", "fasegr"):
        found.say_what_is_left_out(tmp_path)
    assert "2 left out, hidden (the name begins with a dot): ._b.PNG, .ipynb_checkpoints" in caplog.text


def test_links_are_followed_but_not_round(tmp_path):
    """A folder that two links lead to is there twice, as it is for other programs."""
    touch(tmp_path / "far/x/1.png")
    root = tmp_path / "root"
    touch(root / "0.png")
    for name, target in (("far", "../far"), ("again", "../far"), ("up", "."), ("gone.png", "nowhere")):
        (root / name).symlink_to(target)
    (tmp_path / "far/x/back").symlink_to(tmp_path / "far")  # a loop in the folder that is linked to
    (tmp_path / "far/other").symlink_to(root)  # and one through both
    (root / "file.jpg").symlink_to(tmp_path / "far/x/1.png")
    found = find_files(root)
    assert names(found, root) == ["0.png", "again/x/1.png", "far/x/1.png", "file.jpg"]
    why = {os.path.relpath(path, root): reason for path, reason in found.left_out.items()}
    assert why.pop("gone.png") == "links to nothing"
    assert set(why) == {"up", "far/other", "far/x/back", "again/other", "again/x/back"}
    assert set(why.values()) == {"links back to a folder above"}


def test_a_folder_that_is_passed_over(tmp_path):
    touch(tmp_path / "in/1.png")
    touch(tmp_path / "in/out/2.png")
    assert names(find_files(tmp_path / "in", but=tmp_path / "in/out"), tmp_path / "in") == ["1.png"]
