"""One scene as each tool exports it becomes the same label map."""

import base64
import hashlib
import io
import json

import numpy as np
import pytest
from PIL import Image

from fasegr import load_cfg
from fasegr.d2 import DatasetCatalog, MetadataCatalog
from fasegr.data.semantic_labels import semantic_labels

pytestmark = pytest.mark.slow

HEIGHT, WIDTH = 20, 30
NAMES = ("a", "b")  # of the images
TRUTH = np.zeros((HEIGHT, WIDTH), np.uint8)  # a cat of 16 x 10 before it a dog of 4 x 4, and a second cat
TRUTH[4:14, 6:22], TRUTH[6:10, 10:14], TRUTH[15:19, 24:30] = 1, 2, 1
BOXES = [("dog", 10, 6, 14, 10), ("cat", 6, 4, 22, 14), ("cat", 24, 15, 30, 19)]


@pytest.fixture(autouse=True)
def _no_datasets_left():
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


def corners(box):
    _, x0, y0, x1, y1 = box
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


def images(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(folder / f"{name}.png")


def cvat(root):
    images(root / "images")
    shapes = []
    for i, box in enumerate(BOXES):
        label, x0, y0, x1, y1 = box
        # the order of the file is not the order of depth
        if i == 0:
            points = ";".join(f"{x},{y}" for x, y in corners(box))
            shapes.append(f'<polygon label="{label}" points="{points}" z_order="1"/>')
        elif i == 1:
            shapes.append(f'<box label="{label}" xtl="{x0}" ytl="{y0}" xbr="{x1}" ybr="{y1}" z_order="0"/>')
        else:
            size = f'left="{x0}" top="{y0}" width="{x1 - x0}" height="{y1 - y0}"'
            shapes.append(f'<mask label="{label}" rle="0, {(x1 - x0) * (y1 - y0)}" {size} z_order="0"/>')
    shapes.append('<points label="dog" points="1,1"/>')
    parts = [
        f'<image id="{i}" name="{name}.png" width="{WIDTH}" height="{HEIGHT}">{"".join(shapes)}</image>'
        for i, name in enumerate(NAMES)
    ]
    labels = "<meta><task><labels><label><name>cat</name></label><label><name>dog</name></label></labels></task></meta>"
    (root / "annotations.xml").write_text(f'<?xml version="1.0"?><annotations>{labels}{"".join(parts)}</annotations>')


def labelme(root):
    images(root)
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 6), 255, np.uint8)).save(buffer, "PNG")
    mask = base64.b64encode(buffer.getvalue()).decode()
    shapes = [
        {"label": "dog", "points": corners(BOXES[0]), "shape_type": "polygon"},
        {"label": "cat", "points": [[22, 14], [6, 4]], "shape_type": "rectangle"},
        {"label": "cat", "points": [[24, 15], [29, 18]], "shape_type": "mask", "mask": mask},
        {"label": "dog", "points": [[1, 1]], "shape_type": "point"},
    ]
    for name in NAMES:
        content = {"shapes": shapes, "imagePath": f"{name}.png", "imageHeight": HEIGHT, "imageWidth": WIDTH}
        (root / f"{name}.json").write_text(json.dumps(content))


def encode_brush(mask):
    """Two blocks of each kind, in the packing that Label Studio uses."""
    values = np.repeat(mask.ravel().astype(np.uint8) * 255, 4)
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{n - 1:04b}" for n in (3, 4, 8, 16))
    i = 0
    while i < len(values):
        end = i + 1
        while end < len(values) and values[end] == values[i] and end - i < 65536:
            end += 1
        if end - i > 8:
            bits += f"1{3:02b}{end - i - 1:016b}{values[i]:08b}"
        else:
            bits += f"0{0:02b}{end - i - 1:03b}" + f"{values[i]:08b}" * (end - i)
        i = end
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def label_studio(root):
    images(root / "images")
    cat = np.zeros((HEIGHT, WIDTH), bool)
    cat[4:14, 6:22] = True
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    polygon = [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in corners(BOXES[0])]
    box = {"x": 80, "y": 75, "width": 20, "height": 20, "rotation": 0, "rectanglelabels": ["cat"]}
    result = [
        {"type": "polygonlabels", "value": {"points": polygon, "polygonlabels": ["dog"]}, **size},
        {"type": "brushlabels", "value": {"format": "rle", "rle": encode_brush(cat), "brushlabels": ["cat"]}, **size},
        {"type": "rectanglelabels", "value": box, **size},
        {"type": "choices", "value": {"choices": ["day"]}},
    ]
    tasks = [
        {"id": i, "data": {"image": f"/data/upload/1/0123abcd-{name}.png"}, "annotations": [{"result": result}]}
        for i, name in enumerate(NAMES)
    ]
    (root / "project.json").write_text(json.dumps(tasks))


def voc(root):
    images(root / "JPEGImages")
    (root / "SegmentationClass").mkdir()
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    colours = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0]], np.uint8)
    for name in NAMES:
        Image.fromarray(colours[TRUTH]).save(root / f"SegmentationClass/{name}.png")
    (root / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,0::\ndog:0,128,0::\n"
    )
    (root / "ImageSets/Segmentation/train.txt").write_text("a\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("b\n")


def yolo(root):
    for split, name in zip(("train", "valid"), NAMES, strict=True):
        images(root / split / "images")
        (root / split / "images" / f"{NAMES[1] if name == NAMES[0] else NAMES[0]}.png").unlink()
        (root / split / "labels").mkdir()
        lines = [
            f"{('cat', 'dog').index(box[0])} " + " ".join(f"{x / WIDTH} {y / HEIGHT}" for x, y in corners(box))
            for box in BOXES
        ]
        (root / split / "labels" / f"{name}.txt").write_text("\n".join([*lines, "0 0.5 0.5 0.2 0.2", ""]))
    (root / "data.yaml").write_text("names: [cat, dog]\nnc: 2\n")


def coco(root):
    images(root / "images")
    (root / "annotations").mkdir()
    content = {
        "images": [{"id": i, "file_name": f"{n}.png", "height": HEIGHT, "width": WIDTH} for i, n in enumerate(NAMES)],
        "annotations": [
            {
                "id": 10 * i + j,
                "image_id": i,
                "category_id": {"cat": 3, "dog": 7}[box[0]],
                "segmentation": [np.ravel(corners(box)).tolist()],
            }
            for i in range(2)
            for j, box in enumerate(BOXES)
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
    }
    (root / "annotations/instances_default.json").write_text(json.dumps(content))


FORMATS = {write.__name__: write for write in (cvat, labelme, label_studio, voc, yolo, coco)}


def state_of(folder):
    return {
        p: (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()
    }


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_the_same_dataset(program, tmp_path, name, capsys):
    source, out = tmp_path / "export", tmp_path / "out"
    source.mkdir()
    FORMATS[name](source)
    before = state_of(source)
    assert program.main([str(source), str(out), "--name", "pets"]) == 0
    assert state_of(source) == before
    said = capsys.readouterr().out
    assert f"{name}: 2 images made, 0 were there already; 3 classes: background, cat, dog" in said
    assert ("left out: 2 of" in said) == (name in ("cvat", "labelme", "label_studio", "yolo"))
    cfg = load_cfg(out / "pets.yaml", ["MODEL.DEVICE", "cpu"])
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 3
    records = [record for split in ("train", "val") for record in DatasetCatalog.get(f"pets_{split}")]
    assert len(records) == 2
    for record in records:
        np.testing.assert_array_equal(semantic_labels(record), TRUTH)
    made = state_of(out / "annotations")
    assert program.main([str(source), str(out), "--name", "pets"]) == 0
    assert "0 images made, 2 were there already" in capsys.readouterr().out
    assert state_of(out / "annotations") == made


def test_other_class_numbers_are_not_kept(program, tmp_path):
    source, out = tmp_path / "export", tmp_path / "out"
    source.mkdir()
    coco(source)
    assert program.main([str(source), str(out)]) == 0
    assert program.main([str(source), str(out), "--background", "", "--link"]) == 0
    labels = np.asarray(Image.open(out / "annotations/a.png"))
    np.testing.assert_array_equal(labels, TRUTH - np.uint8(1))  # 0 has become 255
    assert (out / "images/a.png").is_symlink()


BAD = {
    "cvat": (
        "annotations.xml",
        'points="10,6;',
        'points="10;',
        r"image a\.png: .*polygon 0 \(dog\) has the point .*expected 2",
    ),
    "labelme": (
        "a.json",
        "[[22, 14], [6, 4]]",
        "[[22, 14]]",
        r"a\.json: shapes\[1\] \(cat, rectangle\) has 1 points; expected 2",
    ),
    "label_studio": ("project.json", '"format": "rle"', '"format": "png"', r"task 0: result\[1\] .* has no 'rle'"),
    "voc": ("labelmap.txt", "dog:0,128,0", "dog:0,0,128", r"a\.png: holds colours .* \[0, 128, 0\] \(16 pixels\)"),
    "yolo": ("train/labels/a.txt", "1 ", "5 ", r"a\.txt, line 1: has the class 5; data\.yaml has 0\.\.1"),
    "coco": ("annotations/instances_default.json", '"category_id": 7', '"category_id": 8', r"category_id 8"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_with_its_object(program, tmp_path, name, capsys):
    source, (file, old, new, message) = tmp_path / "export", BAD[name]
    source.mkdir()
    FORMATS[name](source)
    text = (source / file).read_text()
    assert old in text
    (source / file).write_text(text.replace(old, new, 1))
    assert program.main([str(source), str(tmp_path / "out")]) in (1, 2)
    import re

    assert re.search(message, capsys.readouterr().err)


def test_names_that_lead_out_of_the_folder(program, tmp_path, capsys):
    source = tmp_path / "export"
    source.mkdir()
    cvat(source)
    text = (source / "annotations.xml").read_text()
    (source / "annotations.xml").write_text(text.replace('name="a.png"', 'name="../../a.png"'))
    assert program.main([str(source), str(tmp_path / "out")]) == 1
    assert "is no name below a folder" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.png")) and not list(tmp_path.parent.glob("*.png"))


def test_nothing_that_is_known(program, tmp_path, capsys):
    assert program.main([str(tmp_path / "nowhere"), str(tmp_path / "out")]) == 2
    (tmp_path / "empty").mkdir()
    assert program.main([str(tmp_path / "empty"), str(tmp_path / "out")]) == 2
    assert "has nothing of cvat" in capsys.readouterr().err
