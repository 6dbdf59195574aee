import json
import os
import re
import shutil
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fasegr.config.load import read_yaml
from fasegr.d2 import DatasetCatalog, MetadataCatalog
from fasegr.data.datasets import check_num_classes, register_from_config
from fasegr.data.image_io import BadFile
from fasegr.data.semantic_labels import semantic_labels

pytestmark = pytest.mark.usefixtures("catalogs")

CATEGORIES = [
    {"id": 8, "name": "dog", "isthing": 1, "color": [1, 2, 3]},
    {"id": 2, "name": "lawn", "isthing": 0, "color": [4, 5, 6]},
]


@pytest.fixture
def coco_cfg(cfg, tmp_path, monkeypatch):
    """A dataset of one image a split, below $DETECTRON2_DATASETS/pets."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    root = tmp_path / "pets"
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        for folder in (split, f"panoptic_{split}"):
            (root / folder).mkdir()
            Image.new("RGB", (9, 8)).save(root / folder / "a.png")
        images = [{"id": 1, "file_name": "a.png", "height": 8, "width": 9}]
        outline = [[1, 1, 5, 1, 5, 5]]
        things = [{"id": 1, "image_id": 1, "category_id": 8, "bbox": [1, 1, 4, 4], "segmentation": outline}]
        segments = [{"image_id": 1, "file_name": "a.png", "segments_info": [{"id": 5, "category_id": 2}]}]
        for task, annotations, categories in (
            ("instances", things, CATEGORIES[:1]),
            ("panoptic", segments, CATEGORIES),
        ):
            content = {"images": images, "annotations": annotations, "categories": categories}
            (root / "annotations" / f"{task}_{split}.json").write_text(json.dumps(content))
    cfg.DATASETS.COCO.NAME = "pets"
    cfg.DATASETS.COCO.ROOT = "pets"
    return cfg


def test_instances(coco_cfg):
    assert register_from_config(coco_cfg) == ["pets_train", "pets_val"]
    assert register_from_config(coco_cfg) == ["pets_train", "pets_val"]
    (record,) = DatasetCatalog.get("pets_val")
    assert os.path.isfile(record["file_name"]) and record["annotations"][0]["category_id"] == 0
    meta = MetadataCatalog.get("pets_val")
    assert meta.thing_classes == ["dog"] and meta.evaluator_type == "coco"
    coco_cfg.DATASETS.TRAIN = ("pets_train",)
    with pytest.raises(ValueError, match="NUM_CLASSES is 3, but pets_train has 1 classes"):
        check_num_classes(coco_cfg)


def test_panoptic(coco_cfg):
    coco_cfg.DATASETS.COCO.PANOPTIC = "annotations/panoptic_{split}.json"
    register_from_config(coco_cfg)
    (record,) = DatasetCatalog.get("pets_train")
    assert record["segments_info"] == [{"id": 5, "category_id": 0, "isthing": False, "iscrowd": 0}]
    meta = MetadataCatalog.get("pets_train")
    assert meta.stuff_classes == ["lawn", "dog"] and meta.thing_classes == ["dog"]
    assert meta.thing_dataset_id_to_contiguous_id == {8: 1} and meta.evaluator_type == "coco_panoptic_seg"
    assert os.path.isfile(meta.json_file)
    coco_cfg.DATASETS.COCO.INSTANCES = ""
    register_from_config(coco_cfg)
    assert MetadataCatalog.get("pets_train").json_file is None


def test_categories_of_a_file_of_their_own(coco_cfg, tmp_path):
    """Then nothing else needs to be there; the file lies beside the YAML that names it."""
    (tmp_path / "pets.json").write_text(json.dumps(CATEGORIES))
    (tmp_path / "pets.yaml").write_text("DATASETS: {COCO: {NAME: pets, CATEGORIES: pets.json}}\n")
    stated = read_yaml(tmp_path / "pets.yaml")["DATASETS.COCO.CATEGORIES"]
    assert stated == str((tmp_path / "pets.json").resolve())
    coco_cfg.DATASETS.COCO.CATEGORIES = stated
    coco_cfg.DATASETS.COCO.ROOT = "not_here"
    register_from_config(coco_cfg)
    with pytest.raises(FileNotFoundError, match=r"not_here/annotations/instances_train\.json .*Correct DATASETS\.COCO"):
        DatasetCatalog.get("pets_train")


def test_categories_in_the_config(coco_cfg):
    coco_cfg.DATASETS.COCO.CATEGORIES = [*CATEGORIES, {"id": 9, "name": "cat"}]
    register_from_config(coco_cfg)
    assert MetadataCatalog.get("pets_val").thing_classes == ["dog", "cat"]
    coco_cfg.DATASETS.COCO.CATEGORIES = [{"id": 9, "name": "cat", "isthing": 2}]
    with pytest.raises(BadFile, match=r"DATASETS\.COCO\.CATEGORIES: cannot be read as categories"):
        register_from_config(coco_cfg)


def test_mistakes_in_coco_are_named(coco_cfg):
    coco = coco_cfg.DATASETS.COCO
    coco.IMAGES = "images"
    with pytest.raises(ValueError, match=r"DATASETS\.COCO\.IMAGES is 'images' for the splits train, val"):
        register_from_config(coco_cfg)
    coco.IMAGES = "{split}"
    coco.ROOT = "not_here"
    with pytest.raises(FileNotFoundError, match=r"not_here/annotations/instances_train\.json: there is no such list"):
        register_from_config(coco_cfg)
    coco.ROOT, coco.INSTANCES = "pets", ""
    with pytest.raises(ValueError, match=r"INSTANCES and PANOPTIC are empty"):
        register_from_config(coco_cfg)
    coco.INSTANCES = "annotations/panoptic_{split}.json"
    register_from_config(coco_cfg)
    with pytest.raises(BadFile, match="no category_id"):
        DatasetCatalog.get("pets_train")
    coco.INSTANCES = "annotations/instances_{split}.json"
    coco.NAME = "others"
    DatasetCatalog.register("others_val", list)
    with pytest.raises(ValueError, match="another dataset is registered as others_val"):
        register_from_config(coco_cfg)


# folders


@pytest.fixture
def folder_cfg(cfg, make_folder):
    root = make_folder()
    cfg.DATASETS.FOLDER.NAME = "mine"
    cfg.DATASETS.FOLDER.ROOT = str(root)
    cfg.DATASETS.FOLDER.CLASSES = str(root / "classes.txt")
    return cfg


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


def test_classes_in_the_config(folder_cfg):
    (name,) = register_from_config(folder_cfg)[:1]
    count = len(MetadataCatalog.get(name).stuff_classes)
    classes = [[f"class, {i}", [i, 0, 0]] for i in range(count)]
    folder_cfg.DATASETS.FOLDER.CLASSES = classes
    register_from_config(folder_cfg)
    assert MetadataCatalog.get(name).stuff_classes == [names for names, _ in classes]
    assert MetadataCatalog.get(name).stuff_colors == [tuple(colour) for _, colour in classes]
    for wrong, message in (
        (["a", "a"], "names a class twice"),
        (["a", ["b", [1, 2, 3]]], "2 classes, 1 with a colour"),
    ):
        folder_cfg.DATASETS.FOLDER.CLASSES = wrong
        with pytest.raises(BadFile, match=message):
            register_from_config(folder_cfg)


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


# real photographs


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


# classes


@pytest.fixture
def data_cfg(folder_cfg):
    folder_cfg.DATASETS.TRAIN, folder_cfg.DATASETS.TEST = ("mine_train",), ("mine_val",)
    register_from_config(folder_cfg)
    return folder_cfg


def test_a_model_of_instances_has_only_the_things(data_cfg):
    MetadataCatalog.get("mine_train").thing_classes = ["one"]
    data_cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_ON = False
    data_cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON = True
    data_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 1
    check_num_classes(data_cfg)
    data_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 3
    with pytest.raises(ValueError, match="mine_train has 1 classes; set NUM_CLASSES to 1"):
        check_num_classes(data_cfg)


def test_a_dataset_of_instances_has_only_things(data_cfg):
    """Whatever the model is to give."""
    DatasetCatalog.register("some_objects", list)
    MetadataCatalog.get("some_objects").set(thing_classes=["one", "two"])
    data_cfg.DATASETS.TRAIN, data_cfg.DATASETS.TEST = ("some_objects",), ()
    with pytest.raises(ValueError, match="NUM_CLASSES is 3, but some_objects has 2 classes"):
        check_num_classes(data_cfg)


def test_number_of_classes(data_cfg):
    check_num_classes(data_cfg)
    data_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 4
    with pytest.raises(ValueError, match="NUM_CLASSES is 4, but mine_train has 3 classes; set"):
        check_num_classes(data_cfg)
    data_cfg.DATASETS.TRAIN, data_cfg.DATASETS.TEST = ("not_registered",), ()
    check_num_classes(data_cfg)


def test_ignore_label_of_the_model(data_cfg):
    data_cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = 254
    with pytest.raises(ValueError, match="IGNORE_VALUE is 254, but mine_train ignores 255"):
        check_num_classes(data_cfg)


def test_datasets_with_different_classes(data_cfg):
    DatasetCatalog.register("other_val", list)
    MetadataCatalog.get("other_val").set(stuff_classes=["one", "three", "two"], ignore_label=255)
    data_cfg.DATASETS.TEST = ("other_val",)
    with pytest.raises(ValueError, match="other_val and mine_train have different classes, of which class 1"):
        check_num_classes(data_cfg)


# own data in other forms


def own_cfg(cfg, root, **keys):
    folder = cfg.DATASETS.FOLDER
    folder.NAME, folder.ROOT, folder.CLASSES = "own", str(root), str(root / "classes.txt")
    for key, value in keys.items():
        folder[key] = value
    return cfg


def names_of(dataset):
    return sorted(Path(record["file_name"]).stem for record in DatasetCatalog.get(dataset))


@pytest.fixture
def one_folder(tmp_path):
    """Ten images beside their masks of 0 and 255 in one folder."""
    root = tmp_path / "one"
    root.mkdir()
    for video in "abcde":
        for i in range(2):
            Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(root / f"{video}{i}.jpg")
            Image.fromarray(np.array([[0, 0, 0, 255, 255]] * 4, np.uint8)).save(root / f"{video}{i}_mask.tif")
    (root / "classes.txt").write_text("nothing\nthing\n")
    return root


def test_masks_beside_their_images_and_a_drawn_share(cfg, one_folder):
    keys = {"IMAGES": "", "LABELS": "", "LABEL_SUFFIX": "_mask", "VAL_SHARE": 0.2}
    register_from_config(own_cfg(cfg, one_folder, LABEL_MAP=[[0, "nothing"], [255, "thing"]], **keys))
    train, val = names_of("own_train"), names_of("own_val")
    assert len(train) == 8 and len(val) == 2 and not set(train) & set(val)
    assert val[0][0] == val[1][0]  # of one video
    record = DatasetCatalog.get("own_val")[0]
    assert semantic_labels(record).tolist() == [[0, 0, 0, 1, 1]] * 4


def test_split_lists(cfg, one_folder):
    (one_folder / "train.txt").write_text("a0\nc1.jpg\n")
    (one_folder / "val.txt").write_text("b0\n")
    keys = {"IMAGES": "", "LABELS": "", "LABEL_SUFFIX": "_mask", "SPLIT_LISTS": "{split}.txt"}
    register_from_config(own_cfg(cfg, one_folder, LABEL_MAP=[[0, 0], [255, 1]], **keys))
    assert names_of("own_train") == ["a0", "c1"] and names_of("own_val") == ["b0"]


def test_a_split_without_labels(cfg, make_folder, caplog):
    root = make_folder({"train": 2, "test": 2})
    shutil.rmtree(root / "annotations/test")
    register_from_config(own_cfg(cfg, root, SPLITS=["train", "test"]))
    assert all("sem_seg_file_name" not in record for record in DatasetCatalog.get("own_test"))
    assert "own_test: there are no label maps in" in caplog.text
    shutil.rmtree(root / "annotations/train")
    cfg.DATASETS.TRAIN = ("own_train",)
    register_from_config(cfg)
    with pytest.raises(FileNotFoundError, match=r"own_train: no folder .*annotations/train"):
        DatasetCatalog.get("own_train")


def test_several_datasets(cfg, make_folder, tmp_path):
    first, second = make_folder(root=tmp_path / "1"), make_folder(root=tmp_path / "2")
    own_cfg(cfg, first)
    cfg.DATASETS.FOLDERS = [{"NAME": "more", "ROOT": str(second), "LABEL_MAP": [[0, 1], [1, 0], [2, "ignore"]]}]
    assert register_from_config(cfg) == ["own_train", "own_val", "more_train", "more_val"]
    labels = [semantic_labels(DatasetCatalog.get(name)[0]) for name in ("own_train", "more_train")]
    np.testing.assert_array_equal(np.array([1, 0, 255], np.uint8)[labels[0]], labels[1])
    cfg.DATASETS.FOLDERS = [{"ROOT": str(second)}]
    with pytest.raises(ValueError, match="each needs a NAME"):
        register_from_config(cfg)


def test_a_suffix_that_would_help_is_named(cfg, one_folder):
    cfg.DATASETS.TRAIN = ("own_train",)
    (one_folder / "i").mkdir()
    for path in one_folder.glob("*.jpg"):
        path.rename(one_folder / "i" / path.name)
    register_from_config(own_cfg(cfg, one_folder, IMAGES="i", LABELS="", SPLITS=["train"]))
    with pytest.raises(BadFile, match=r"set DATASETS\.FOLDER\.LABEL_SUFFIX _mask"):
        DatasetCatalog.get("own_train")


def test_shares_of_folders_of_splits_make_no_sense(cfg, make_folder):
    with pytest.raises(ValueError, match=r"VAL_SHARE is 0\.2 .* drawn from one folder"):
        register_from_config(own_cfg(cfg, make_folder(), VAL_SHARE=0.2))


def test_classes_of_pixels_from_objects(cfg, tmp_path):
    """The smaller object is in front, crowds are behind, and what is no object is the background."""

    def box(x, y, w, h):
        return [[x, y, x + w, y, x + w, y + h, x, y + h]]

    annotations = [
        {"id": 1, "image_id": 1, "category_id": 9, "segmentation": box(2, 2, 2, 2)},
        {"id": 2, "image_id": 1, "category_id": 4, "segmentation": box(0, 0, 8, 6)},
        {
            "id": 3,
            "image_id": 1,
            "category_id": 9,
            "iscrowd": 1,
            "segmentation": {"size": [10, 10], "counts": [0, 100]},
        },
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 10, "width": 10}],
        "annotations": annotations[:2],
        "categories": [{"id": 9, "name": "cat"}, {"id": 4, "name": "dog"}],
    }
    (tmp_path / "train").mkdir()
    Image.fromarray(np.zeros((10, 10, 3), np.uint8)).save(tmp_path / "train/a.png")
    cfg.DATASETS.COCO.NAME, cfg.DATASETS.COCO.ROOT, cfg.DATASETS.COCO.SPLITS = "own", str(tmp_path), ["train"]
    cfg.DATASETS.COCO.INSTANCES, cfg.DATASETS.COCO.SEMANTIC = "{split}.json", True
    expected = np.zeros((10, 10), int)
    expected[:6, :8] = 1
    expected[2:4, 2:4] = 2
    for background, objects, nothing in (("ground", annotations[:2], 0), ("", annotations, 1)):
        (tmp_path / "train.json").write_text(json.dumps({**content, "annotations": objects}))
        cfg.DATASETS.COCO.BACKGROUND = background
        register_from_config(cfg)
        names = [*([background] if background else []), "dog", "cat"]
        assert MetadataCatalog.get("own_train").stuff_classes == names
        labels = semantic_labels(DatasetCatalog.get("own_train")[0])
        shown = expected if background else np.where(expected == 0, 1, expected - 1)  # the crowd, a cat
        assert labels.tolist() == shown.tolist(), nothing


@pytest.mark.parametrize("form", [[1, 1, 6, 1, 6, 6], [{"size": [10, 10], "counts": [0, 50, 50]}]])
def test_outlines_as_other_programs_write_them(cfg, tmp_path, form):
    """A flat polygon, and a list of one code."""
    annotation = {"id": 0, "image_id": 1, "category_id": 2, "segmentation": form}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 10, "width": 10}],
        "annotations": [annotation],
        "categories": [{"id": 2, "name": "cat"}],
    }
    (tmp_path / "train").mkdir()
    Image.fromarray(np.zeros((10, 10, 3), np.uint8)).save(tmp_path / "train/a.png")
    coco = cfg.DATASETS.COCO
    coco.NAME, coco.ROOT, coco.INSTANCES = "own", str(tmp_path), "{split}.json"
    (tmp_path / "train.json").write_text(json.dumps(content))
    other = {**content, "categories": [{"id": 2, "name": "dog"}]}
    (tmp_path / "val.json").write_text(json.dumps(other))
    register_from_config(cfg)
    (read,) = DatasetCatalog.get("own_train")[0]["annotations"]
    assert read["segmentation"] == (form[0] if isinstance(form[0], dict) else [form])
    with pytest.raises(BadFile, match=r"val\.json: 1 categories have other names .* the id 2 first"):
        DatasetCatalog.get("own_val")
    (tmp_path / "train.json").write_text(
        json.dumps({**content, "categories": [*other["categories"], {"id": 3, "name": "dog"}]})
    )
    with pytest.raises(BadFile, match="the categories 2 and 3 have the same name"):
        register_from_config(cfg)
