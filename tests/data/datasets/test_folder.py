import os
import re
import shutil
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fasegr.d2 import DatasetCatalog, MetadataCatalog
from fasegr.data.datasets.folder import find_pairs, load_folder, read_classes, register_from_config
from fasegr.data.image_io import BadFile

pytestmark = pytest.mark.usefixtures("catalogs")


@pytest.fixture
def folder_cfg(cfg, make_folder):
    root = make_folder()
    cfg.DATASETS.FOLDER.NAME = "mine"
    cfg.DATASETS.FOLDER.ROOT = str(root)
    cfg.DATASETS.FOLDER.CLASSES = str(root / "classes.txt")
    return cfg


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
        ("road\n\nsky, blue\n", r"classes\.txt, line 3: 'sky, blue' is not a class; expected .* `road, 128 64 128`"),
        ("road, 1 2\n", "line 1"),
        ("road, 1 2 256\n", "line 1"),
        ("road, 1 2 3 4\n", "line 1"),
        (", 1 2 3\n", "line 1"),
        ("road\nsky\nroad\n", "line 3: 'road' is there already"),
        ("road, 1 2 3\nsky\n", "2 classes, 1 with a colour"),
        ("# nothing\n\n", "names no class"),
    ],
)
def test_mistakes_in_classes(tmp_path, text, message):
    with pytest.raises(BadFile, match=message):
        read_classes(write(tmp_path, text))


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


def test_nothing_to_register(cfg):
    before = DatasetCatalog.list()
    assert register_from_config(cfg) == []
    assert DatasetCatalog.list() == before


def test_registration(folder_cfg):
    assert register_from_config(folder_cfg) == ["mine_train", "mine_val"]
    assert len(DatasetCatalog.get("mine_train")) == 5 and len(DatasetCatalog.get("mine_val")) == 2
    meta = MetadataCatalog.get("mine_val")
    assert meta.stuff_classes == ["one", "two", "three"]
    assert meta.ignore_label == 255 and meta.evaluator_type == "sem_seg"
    assert getattr(meta, "stuff_colors", None) is None


def test_registration_again_takes_the_later_config(folder_cfg, make_folder, tmp_path):
    register_from_config(folder_cfg)
    register_from_config(folder_cfg)
    other = make_folder({"train": 1, "val": 1}, tmp_path / "other", "a, 1 2 3\nb, 4 5 6\nc, 7 8 9\n")
    folder_cfg.DATASETS.FOLDER.ROOT = str(other)
    folder_cfg.DATASETS.FOLDER.CLASSES = str(other / "classes.txt")
    register_from_config(folder_cfg)
    assert len(DatasetCatalog.get("mine_train")) == 1
    assert MetadataCatalog.get("mine_train").stuff_colors == [(1, 2, 3), (4, 5, 6), (7, 8, 9)]


def test_names_of_others_are_left_alone(folder_cfg):
    DatasetCatalog.register("mine_train", list)
    with pytest.raises(ValueError, match="another dataset is registered as mine_train"):
        register_from_config(folder_cfg)
    assert DatasetCatalog.get("mine_train") == []


def test_data_is_looked_for_when_asked_for(folder_cfg, monkeypatch, tmp_path, make_folder):
    folder_cfg.DATASETS.FOLDER.ROOT = "sub/mine"
    register_from_config(folder_cfg)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "data/sub/mine/images/train")):
        DatasetCatalog.get("mine_train")
    make_folder(root=tmp_path / "data/sub/mine")
    assert len(DatasetCatalog.get("mine_train")) == 5


def test_other_layouts(folder_cfg, make_folder):
    root = Path(folder_cfg.DATASETS.FOLDER.ROOT)
    (root / "train").mkdir()
    os.rename(root / "images/train", root / "train/rgb")
    os.rename(root / "annotations/train", root / "train/labels")
    folder_cfg.DATASETS.FOLDER.IMAGES = "{split}/rgb"
    folder_cfg.DATASETS.FOLDER.LABELS = "{split}/labels"
    folder_cfg.DATASETS.FOLDER.SPLITS = ["train"]
    assert register_from_config(folder_cfg) == ["mine_train"]
    assert len(DatasetCatalog.get("mine_train")) == 5


def test_contradicting_settings(folder_cfg):
    folder = folder_cfg.DATASETS.FOLDER
    folder.LABELS = "labels"
    with pytest.raises(ValueError, match=r"LABELS is 'labels' for the splits train, val; it must contain \{split\}"):
        register_from_config(folder_cfg)
    folder.LABELS = "annotations/{split}"
    folder.IGNORE_LABEL = 2
    with pytest.raises(ValueError, match="IGNORE_LABEL is 2"):
        register_from_config(folder_cfg)
    folder.CLASSES = ""
    with pytest.raises(ValueError, match="CLASSES is empty"):
        register_from_config(folder_cfg)


def test_worked_example_of_the_readme(tmp_path, make_folder, monkeypatch):
    from fasegr import load_cfg

    repository = Path(__file__).parents[3]
    text = (repository / "datasets" / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^    # (configs/garden/\S+)\n((?:    .*\n)+)", text, flags=re.MULTILINE)
    assert [name for name, _ in blocks] == ["configs/garden/classes.txt", "configs/garden/faseg_r50.yaml"]
    shutil.copytree(repository / "configs" / "camvid", tmp_path / "configs" / "camvid")
    for name, block in blocks:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(block))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    make_folder(root=tmp_path / "garden")
    cfg = load_cfg(tmp_path / "configs/garden/faseg_r50.yaml", ["MODEL.DEVICE", "cpu"])
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 4
    assert cfg.DATASETS.TRAIN == ("garden_train",)
    assert len(DatasetCatalog.get("garden_train")) == 5
    assert MetadataCatalog.get("garden_val").stuff_classes == ["lawn", "path", "water", "plant"]


# real photographs, where they are at hand


def test_camvid(camvid, cfg):
    root, classes = camvid
    cfg.DATASETS.FOLDER.NAME = "camvid_under_test"
    cfg.DATASETS.FOLDER.ROOT = str(root)
    cfg.DATASETS.FOLDER.CLASSES = str(classes)
    names = register_from_config(cfg)
    records = [DatasetCatalog.get(name) for name in names]
    assert [len(split) for split in records] == [367, 101]
    assert {(record["height"], record["width"]) for split in records for record in split} == {(360, 480)}
    assert len(MetadataCatalog.get(names[0]).stuff_classes) == len(MetadataCatalog.get(names[0]).stuff_colors) == 11
