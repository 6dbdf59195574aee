import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fasegr.d2 import DatasetCatalog, MetadataCatalog
from fasegr.data.datasets.folder import ClassList, find_pairs, load_folder, read_classes, register_public
from fasegr.data.image_io import BadFile

pytestmark = pytest.mark.usefixtures("catalogs")


# classes


def write(tmp_path, text):
    path = tmp_path / "classes.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_classes_with_colours(tmp_path):
    text = "# the road\n\nroad, 128 64 128\n  sky\t70 130 180  \ntree, plant, 1,2,3\n"
    classes = read_classes(write(tmp_path, text))
    assert classes.names == ["road", "sky", "tree, plant"]
    assert classes.colours == [(128, 64, 128), (70, 130, 180), (1, 2, 3)]


def test_classes_without_colours(tmp_path):
    classes = read_classes(write(tmp_path, "\ufeffroad\ntraffic light 2\n"))
    assert classes.names == ["road", "traffic light 2"] and classes.colours == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("road\n\nsky, blue\n", r"classes\.txt, line 3: is not a class; expected .* `road, 128 64 128`"),
        ("road, 1 2\n", "line 1"),
        ("road, 1 2 256\n", "line 1"),
        ("road, 1 2 3 4\n", "line 1"),
        (", 1 2 3\n", "line 1"),
        ("road, 1 2 3333\n", "line 1"),
        ("road" + ", " * 100_000 + "x\n", "line 1: is not a class"),
        ("road\nsky\nroad\n", "line 3: has the name of line 1"),
        ("road, 1 2 3\nsky\n", "2 classes, 1 with a colour"),
        ("# nothing\n\n", "names no class"),
    ],
)
def test_mistakes_in_classes(tmp_path, text, message):
    with pytest.raises(BadFile, match=message):
        read_classes(write(tmp_path, text))


def test_mistakes_do_not_show_what_the_file_holds(tmp_path):
    """A config from strangers may name any file of this machine as a list of classes."""
    for text in ("secret, 1\n", "secret\nsecret\n", "secret, 1 2 3\nb\n", "secret" * 99):
        with pytest.raises(BadFile) as error:
            read_classes(write(tmp_path, text))
        assert "secret" not in str(error.value)


def test_classes_must_be_text(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt"):
        read_classes(tmp_path / "nowhere.txt")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadFile, match="UTF-8"):
        read_classes(tmp_path / "b.txt")


# files


def test_records(make_folder):
    root = make_folder()
    records = load_folder("mine", root / "images/train", root / "annotations/train")
    assert [Path(record["file_name"]).name for record in records] == [f"{i}.png" for i in range(5)]
    for record in records:
        assert set(record) == {"file_name", "sem_seg_file_name", "height", "width"}
        assert (record["height"], record["width"]) == (30, 40)
        assert record["sem_seg_file_name"] == record["file_name"].replace("images", "annotations")


def test_folders_inside_any_suffix_and_hidden_files(tmp_path):
    images, labels = tmp_path / "i", tmp_path / "l"
    pixels = Image.fromarray(np.zeros((4, 5, 3), np.uint8))
    names = ["b/z.JPG", "b/c/y.tif", "a.jpeg", "d.bmp", "e.webp", "f.dots.png"]
    for name in names:
        for path in (images / name, (labels / name).with_suffix(".png")):
            path.parent.mkdir(parents=True, exist_ok=True)
        pixels.save(images / name)
        pixels.convert("L").save((labels / name).with_suffix(".png"))
    (images / "._a.jpg").write_text("left by a Mac")
    (images / ".cache").mkdir()
    pixels.save(images / ".cache/t.png")
    (images / "notes.txt").write_text("not an image")
    found = [str(Path(record["file_name"]).relative_to(images)) for record in load_folder("x", images, labels)]
    assert found == ["a.jpeg", "b/c/y.tif", "b/z.JPG", "d.bmp", "e.webp", "f.dots.png"]


def test_photographs_on_their_side(tmp_path):
    (tmp_path / "i").mkdir()
    (tmp_path / "l").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "i/a.jpg", exif=exif)
    Image.fromarray(np.zeros((6, 4), np.uint8)).save(tmp_path / "l/a.png")
    (record,) = load_folder("x", tmp_path / "i", tmp_path / "l")
    assert (record["height"], record["width"]) == (6, 4)
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "l/a.png")
    with pytest.raises(BadFile, match=r"a\.png: is 6 x 4 .* is 4 x 6.*EXIF"):
        load_folder("x", tmp_path / "i", tmp_path / "l")


def test_missing_folders(tmp_path, monkeypatch):
    (tmp_path / "i").mkdir()
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    with pytest.raises(FileNotFoundError, match=r"dataset x: no folder .*/l \(.*DETECTRON2_DATASETS is not set"):
        find_pairs("x", tmp_path / "i", tmp_path / "l")
    monkeypatch.setenv("DETECTRON2_DATASETS", "/some/where")
    with pytest.raises(FileNotFoundError, match=r"/j and no folder .*/l .*DETECTRON2_DATASETS is /some/where"):
        find_pairs("x", tmp_path / "j", tmp_path / "l")


def test_empty_folders_and_lonely_files(make_folder):
    root = make_folder()
    images, labels = root / "images/train", root / "annotations/train"
    with pytest.raises(BadFile, match="both in"):
        find_pairs("x", images, images)
    (labels / "3.png").unlink()
    with pytest.raises(BadFile, match=r"1 of 5 images have no label map in .*: 3\.png; expected 3\.png"):
        find_pairs("x", images, labels)
    for i in (0, 1, 3):
        (images / f"{i}.png").unlink()
    with pytest.raises(BadFile, match=r"2 of 4 label maps have no image in .*: 0\.png, 1\.png;"):
        find_pairs("x", images, labels)
    shutil.rmtree(images)
    images.mkdir()
    with pytest.raises(BadFile, match=r"no image in .*looked for \.bmp, "):
        find_pairs("x", images, labels)


def test_two_images_of_one_name(make_folder):
    root = make_folder()
    shutil.copy(root / "images/train/1.png", root / "images/train/1.bmp")
    with pytest.raises(BadFile, match=r"1\.bmp and .*|1\.png and .*rename one"):
        find_pairs("x", root / "images/train", root / "annotations/train")


def test_unreadable_and_wrongly_sized_files_are_named(make_folder):
    root = make_folder()
    arguments = ("x", root / "images/train", root / "annotations/train")
    Image.fromarray(np.zeros((30, 41), np.uint8)).save(root / "annotations/train/2.png")
    with pytest.raises(BadFile, match=r"annotations/train/2\.png: is 41 x 30"):
        load_folder(*arguments)
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(root / "annotations/train/2.png")
    with pytest.raises(BadFile, match=r"annotations/train/2\.png: has colours"):
        load_folder(*arguments)
    (root / "images/train/2.png").write_bytes(b"")
    with pytest.raises(BadFile, match=r"images/train/2\.png: cannot be read"):
        load_folder(*arguments)


# registration

NAME = "test_public"
CLASSES = ClassList(["sky", "road"], [(1, 2, 3), (4, 5, 6)])


def test_a_new_public_dataset():
    register_public(NAME, lambda: [1], CLASSES, [7, 8], "some_kind")
    meta = MetadataCatalog.get(NAME)
    assert DatasetCatalog.get(NAME) == [1]
    assert (meta.stuff_classes, meta.stuff_colors) == (CLASSES.names, CLASSES.colours)
    assert (meta.ignore_label, meta.evaluator_type, meta.submission_ids) == (255, "some_kind", [7, 8])


def test_a_registered_dataset_is_completed():
    """detectron2 knows neither the colours nor what the servers want."""
    DatasetCatalog.register(NAME, list)
    MetadataCatalog.get(NAME).set(stuff_classes=["sky ", "road"], evaluator_type="theirs")
    for _ in range(2):
        register_public(NAME, lambda: [1], CLASSES, [7, 8])
    meta = MetadataCatalog.get(NAME)
    assert DatasetCatalog.get(NAME) == []
    assert (meta.stuff_classes, meta.evaluator_type, meta.submission_ids) == (["sky ", "road"], "theirs", [7, 8])
    meta.set(stuff_colors=[[1, 2, 3], [4, 5, 6]])  # as Mask2Former does when it is imported; another value is an error


def test_a_dataset_with_other_classes_is_not():
    DatasetCatalog.register(NAME, list)
    MetadataCatalog.get(NAME).set(stuff_classes=["all"], stuff_colors=[(0, 0, 0)])
    register_public(NAME, lambda: [1], CLASSES, [7, 8])
    assert MetadataCatalog.get(NAME).stuff_colors == [(0, 0, 0)]
    assert MetadataCatalog.get(NAME).get("submission_ids") is None
