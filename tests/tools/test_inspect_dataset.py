"""What the page and the JSON say of datasets with known contents and known faults."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from fasegr.d2 import DatasetCatalog, MetadataCatalog
from fasegr.visualization import inspection_page
from fasegr.visualization.html_page import Markup
from tools.inspect_dataset import main

pytestmark = pytest.mark.slow

SIZE = (60, 80)


@pytest.fixture(autouse=True)
def _catalogs():
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


def photograph(seed):
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(*SIZE, 3)), (6, 6, 0))
    return Image.fromarray((255 * (noise - noise.min()) / np.ptp(noise)).astype(np.uint8))


def labels_of(rare=False):
    """Half ground, half sky with a strip to ignore, and one or two birds."""
    labels = np.zeros(SIZE, np.uint8)
    labels[:30], labels[:2] = 1, 255
    if rare:
        labels[10:14, 10:15] = labels[20:22, 60:62] = 2
    return labels


@pytest.fixture
def dataset(tmp_path):
    """dataset(train=[labels], val=[labels]) writes them with images, and the config."""

    def write(classes="ground\nsky\nbird\n", **splits):
        root = tmp_path / "data"
        for split, maps in splits.items():
            for kind in ("images", "annotations"):
                (root / kind / split).mkdir(parents=True)
            for i, labels in enumerate(maps):
                photograph(hash(split) % 1000 + i).save(root / f"images/{split}/{i}.png")
                (labels if isinstance(labels, Image.Image) else Image.fromarray(labels)).save(
                    root / f"annotations/{split}/{i}.png"
                )
        (tmp_path / "classes.txt").write_text(classes)
        (tmp_path / "config.yaml").write_text(
            f"MODEL: {{SEM_SEG_HEAD: {{NUM_CLASSES: {len(classes.splitlines())}}}}}\n"
            f"DATASETS: {{FOLDER: {{NAME: mine, ROOT: '{root}', CLASSES: classes.txt}}, TRAIN: [mine_train], "
            f"TEST: [{'mine_val' if 'val' in splits else ''}]}}\n"
            "INPUT: {MIN_SIZE_TRAIN: [60], MIN_SIZE_TEST: 60, CROP: {ENABLED: True, TYPE: absolute, SIZE: [32, 32]}}\n"
        )
        return root

    return write


@pytest.fixture
def inspect(tmp_path, capsys, monkeypatch):
    """inspect(options) runs the program without worker processes; (exit code, JSON, page, what it printed).

    plots: draw them, which takes most of the time.
    """

    def run(*options, plots=False):
        if not plots:
            monkeypatch.setattr(inspection_page, "plot", lambda *args, **options: Markup())
        output = tmp_path / "page"
        command = ["--config-file", str(tmp_path / "config.yaml"), "--output", str(output), "--workers", "0"]
        exit_code = main([*command, *options])
        page = (output / "inspection.html").read_text()
        HTMLParser().feed(page)
        return exit_code, json.loads((output / "inspection.json").read_text()), page, capsys.readouterr()

    return run


def titles(found):
    return [f"{finding['kind']}: {finding['title']}" for finding in found["findings"]]


def test_what_is_in_a_dataset(dataset, inspect):
    dataset(train=[labels_of()] * 14 + [labels_of(rare=True)], val=[labels_of(), labels_of()])
    exit_code, found, page, printed = inspect(plots=True)
    assert exit_code == 0
    assert page.count("<svg") == 3
    assert "17 images in" in printed.out
    train, val = found["splits"]["mine_train"], found["splits"]["mine_val"]
    assert (train["images"], train["labelled"], train["sizes"]) == (15, 15, {"80x60": 15})
    assert train["ignored_share"] == pytest.approx(2 / 60)
    bird = train["by_class"]["bird"]
    assert (bird["pixels"], bird["images"], bird["objects"]) == (24, 1, 2)
    assert bird["share"] == pytest.approx(24 / (15 * 80 * 58))
    assert (bird["smallest"]["area"], bird["smallest"]["box"]) == (4, [20, 60, 22, 62])
    assert (bird["largest"]["area"], bird["largest"]["box"]) == (20, [10, 10, 14, 15])
    assert bird["largest"]["image"].endswith("train/14.png")
    assert train["by_class"]["ground"]["median_area"] == pytest.approx(30 * 80, rel=0.2)
    assert val["by_class"]["bird"] == {
        "pixels": 0,
        "share": 0,
        "images": 0,
        "objects": 0,
        "median_area": None,
        "smallest": None,
        "largest": None,
    }
    assert titles(found) == [
        "warning: 1 of 3 classes is not in the validation set",
        "advice: 1 class is in fewer than 10 % of the training images",
        "advice: 1 class has less than 1 % of the labelled pixels",
    ]
    assert found["advice"] == {
        "DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler",
        "DATALOADER.REPEAT_THRESHOLD": 0.1,
        "MODEL.MASK_FORMER.CLASS_WEIGHTS": "inverse_sqrt",
        "INPUT.CROP.RARE_CLASS_PROB": 0.5,
    }
    assert page.index("<h3><span") < page.index(">bird</h3>") < page.index(">sky</h3>")  # rarest first
    assert page.count("<img ") == 1 + 4 + 4


def test_advice_can_be_pasted_into_the_config(dataset, inspect, tmp_path):
    dataset(train=[labels_of()] * 11 + [labels_of(rare=True)])
    _, found, _, _ = inspect()
    from fasegr import load_cfg

    options = [word for pair in found["advice"].items() for word in pair]
    assert load_cfg(tmp_path / "config.yaml", options).INPUT.CROP.RARE_CLASS_PROB == 0.5
    assert titles(inspect(*map(str, options))[1]) == []


def test_files_that_cannot_be_read_are_listed(dataset, inspect):
    root = dataset(train=[labels_of()] * 5, val=[labels_of()])
    for name in ("images/train/1.png", "annotations/train/2.png"):
        content = bytearray((root / name).read_bytes())
        middle = content.index(b"IDAT") + 6
        content[middle : middle + 20] = b"\0" * 20
        (root / name).write_bytes(bytes(content))
    exit_code, found, page, printed = inspect()
    assert exit_code == 1
    unreadable = found["splits"]["mine_train"]["unreadable"]
    assert [entry["file"].split("data/")[1] for entry in unreadable] == [
        "images/train/1.png",
        "annotations/train/2.png",
    ]
    assert all(entry["file"] in entry["reason"] and entry["reason"] in printed.err for entry in unreadable)
    assert "2 files cannot be read" in page and "Files that cannot be read" in page
    assert found["splits"]["mine_train"]["labelled"] == 4  # the rest was inspected


def test_all_files_with_bad_headers_are_listed(dataset, inspect):
    root = dataset(train=[labels_of()] * 5)
    (root / "images/train/1.png").write_bytes(b"no image")
    Image.new("L", (7, 7)).save(root / "annotations/train/3.png")
    exit_code, found, _, _ = inspect()
    assert exit_code == 1
    train = found["splits"]["mine_train"]
    assert [entry["file"][-5:] for entry in train["unreadable"]] == ["1.png", "3.png"]
    assert "cannot be read as an image" in train["unreadable"][0]["reason"]
    assert "is 7 x 7" in train["unreadable"][1]["reason"]
    assert train["labelled"] == 3


@pytest.mark.parametrize("kind", ["images", "annotations"])
def test_a_split_that_cannot_be_listed(dataset, inspect, kind):
    """The other splits are inspected all the same."""
    root = dataset(train=[labels_of()] * 3, val=[labels_of()])
    (root / kind / "val/0.png").write_bytes(b"no image")
    exit_code, found, _, _ = inspect()
    assert exit_code == 1
    assert found["splits"]["mine_train"]["images"] == 3
    assert f"{kind}/val/0.png" in found["splits"]["mine_val"]["unreadable"][0]["reason"]


def only(found, kind):
    return [f"{finding['title']} | {finding['text']}" for finding in found["findings"] if finding["kind"] == kind]


@pytest.mark.parametrize(
    ("change", "classes", "message"),
    [
        (lambda labels: labels + np.uint8(1) * (labels != 255), "ground\nsky\n", "seem to be counted from 1"),
        (lambda labels: np.where(labels == 255, 0, labels + 1), "ground\nsky\n", "0 may stand for 'no class'"),
        (lambda labels: np.where(labels == 1, 255, 0), "ground\nsky\n", "255 must become class 1"),
        (lambda labels: np.where(labels == 255, 254, labels), "ground\nsky\n", r"Found: 254 \(800 .*\. 254 beside 255"),
        (lambda labels: np.where(labels == 1, 77, labels), "ground\nsky\n", r"Found: 77 \(11200 pixels in 5 images"),
        (lambda labels: labels + np.arange(80) % 40, "ground\nsky\n", "resized with interpolation, saved with loss"),
    ],
)
def test_labels_that_mean_something_else(dataset, inspect, change, classes, message):
    dataset(train=[change(labels_of()).astype(np.uint8)] * 5, classes=classes)
    exit_code, found, _, _ = inspect()
    assert exit_code == 1
    (error,) = only(found, "error")[:1]
    assert re.search(message, error), error
    if "DATASETS.FOLDER.LABEL_MAP" in found["advice"]:  # which then reads these labels
        exit_code, found, _, _ = inspect("DATASETS.FOLDER.LABEL_MAP", str(found["advice"]["DATASETS.FOLDER.LABEL_MAP"]))
        assert exit_code == 0 and found["splits"]["mine_train"]["by_class"]["sky"]["pixels"] > 0


def test_palettes_of_another_order(dataset, inspect):
    image = Image.fromarray(np.where(labels_of() == 255, 0, labels_of()))
    image.putpalette([0, 0, 255, 0, 255, 0])
    dataset(train=[image] * 3, classes="ground,0,255,0\nsky,0,0,255\n")
    exit_code, found, _, _ = inspect()
    assert exit_code == 1
    (error,) = only(found, "error")
    assert (
        "3 label files has the classes in another order | Index 0 has the colour of sky there, and is ground" in error
    )


def test_copies_between_splits(dataset, inspect):
    root = dataset(train=[labels_of(rare=True)] * 4, val=[labels_of(rare=True)] * 3)
    Image.open(root / "images/train/2.png").resize((40, 30)).resize((80, 60)).save(root / "images/val/1.png")
    (root / "images/val/2.png").write_bytes((root / "images/train/0.png").read_bytes())
    _, found, page, _ = inspect()
    pairs = [(pair["train"][-11:], pair["validation"][-9:], pair["same_file"]) for pair in found["near_copies"]]
    assert sorted(pairs) == [("train/0.png", "val/2.png", True), ("train/2.png", "val/1.png", False)]
    assert [[file[-5:] for file in group] for group in found["same_files"]] == [["0.png", "2.png"]]
    assert "2 of 3 images of mine_val are nearly in mine_train" in page


def test_classes_that_are_missing(dataset, inspect):
    dataset(train=[labels_of()] * 2)
    _, found, _, _ = inspect()
    assert "warning: 1 of 3 classes is not in the training set" in titles(found)


def test_names_of_classes_are_text(dataset, inspect):
    dataset(train=[labels_of(rare=True)] * 2, classes="<b>ground</b>\nsky&\nbird\n")
    _, _, page, _ = inspect()
    assert "&lt;b&gt;ground&lt;/b&gt;" in page and "<b>ground" not in page


def test_a_wrong_config_is_one_message(dataset, inspect, tmp_path, capsys):
    dataset(train=[labels_of()])
    with pytest.raises(SystemExit) as stop:
        inspect("DATASETS.TRAIN", "('nothing',)")
    assert stop.value.code == 2
    assert "no dataset is registered as nothing" in capsys.readouterr().err


def test_objects_and_panoptic_segments(tmp_path, capsys, monkeypatch):
    """COCO's formats: annotated objects, not regions."""
    monkeypatch.setattr(inspection_page, "plot", lambda *args, **options: Markup())
    from fasegr.data.panoptic_png import write_segment_ids

    root = tmp_path / "coco"
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        (root / f"panoptic_{split}").mkdir()
        photograph(len(split)).save(root / split / "a.png")
        ids = np.zeros(SIZE, np.int64)
        ids[:30], ids[40:44, 5:10], ids[50:52, 60:70] = 5, 300, 301
        write_segment_ids(root / f"panoptic_{split}/a.png", ids)
        image = {"id": 1, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}
        categories = [{"id": 3, "name": "sky", "isthing": 0}, {"id": 7, "name": "car", "isthing": 1}]
        (root / "annotations").mkdir(exist_ok=True)
        info = [{"id": i, "category_id": c, "iscrowd": 0} for i, c in ((5, 3), (300, 7), (301, 7))]
        segments = [{"image_id": 1, "file_name": "a.png", "segments_info": info}]
        (root / f"annotations/panoptic_{split}.json").write_text(
            json.dumps({"images": [image], "annotations": segments, "categories": categories})
        )
        boxes = [[5, 40, 5, 4], [60, 50, 10, 2]]
        objects = [
            {"id": i, "image_id": 1, "category_id": 7, "iscrowd": 0, "bbox": [x, y, w, h], "area": w * h,
             "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}
            for i, (x, y, w, h) in enumerate(boxes, start=1)
        ]  # fmt: skip
        (root / f"annotations/instances_{split}.json").write_text(
            json.dumps({"images": [image], "annotations": objects, "categories": categories[1:]})
        )
    for kind, mapper, classes, more in (
        ("panoptic", "coco_panoptic_lsj", 2, "PANOPTIC: 'annotations/panoptic_{split}.json', "),
        ("instance", "coco_instance_lsj", 1, ""),
    ):
        on = {"panoptic": "PANOPTIC_ON: True", "instance": "INSTANCE_ON: True, SEMANTIC_ON: False"}[kind]
        config = tmp_path / f"{kind}.yaml"
        config.write_text(
            f"MODEL: {{SEM_SEG_HEAD: {{NUM_CLASSES: {classes}}}, MASK_FORMER: {{TEST: {{{on}}}}}}}\n"
            f"DATASETS: {{COCO: {{NAME: {kind}, ROOT: '{root}', {more}}}, TRAIN: [{kind}_train], TEST: [{kind}_val]}}\n"
            f"INPUT: {{DATASET_MAPPER_NAME: {mapper}}}\n"
        )
        output = tmp_path / kind
        assert main(["--config-file", str(config), "--output", str(output), "--workers", "0"]) == 0
        found = json.loads((output / "inspection.json").read_text())
        car = found["splits"][f"{kind}_train"]["by_class"]["car"]
        assert (car["pixels"], car["objects"], car["images"]) == (40, 2, 1)
        assert (car["largest"]["area"], car["smallest"]["box"]) == (20, car["smallest"]["box"])
        assert sorted([car["smallest"]["box"], car["largest"]["box"]])[0] in ([40, 5, 44, 10], [50, 60, 52, 70])
        assert "<h3>" in (output / "inspection.html").read_text()
    capsys.readouterr()
