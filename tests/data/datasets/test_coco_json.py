import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fasegr.d2 import DatasetCatalog, MetadataCatalog
from fasegr.data.datasets.coco_json import (
    Category,
    instance_metadata,
    load_instances,
    load_panoptic,
    panoptic_metadata,
    read_categories,
    register_instances,
    register_panoptic,
)
from fasegr.data.datasets.root import DatasetPath
from fasegr.data.image_io import BadFile

pytestmark = pytest.mark.usefixtures("catalogs")

CATEGORIES = [
    Category(3, "cat", True, (1, 2, 3)),
    Category(5, "grass", False, (4, 5, 6)),
    Category(9, "dog", True, (7, 8, 9)),
]
IDS = {3: 0, 9: 1}
TRIANGLE = [1, 1, 8, 1, 8, 6]


def annotation(number, image, category=3, **changes):
    fields = {"id": number, "image_id": image, "category_id": category, "bbox": [1, 1, 7, 5], "iscrowd": 0}
    return {**fields, "segmentation": [TRIANGLE], **changes}


@pytest.fixture
def dataset(tmp_path):
    """Writes the files that a dict describes, and returns the arguments of the two loaders."""
    (tmp_path / "images").mkdir()
    (tmp_path / "segments").mkdir()
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 10, "width": 12} for i in (7, 4)]
    for image in images:
        Image.new("RGB", (12, 10)).save(tmp_path / "images" / image["file_name"])
        Image.new("RGB", (12, 10)).save(tmp_path / "segments" / f"{image['id']}.png")

    def write(annotations, **changes):
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps({"images": images, "annotations": annotations, **changes}))
        return path

    return write


def instances(path, **options):
    return load_instances("mine", path, path.parent / "images", IDS, **options)


def panoptic(path):
    return load_panoptic(
        "mine", path, path.parent / "segments", path.parent / "images", {3: 0, 9: 2}, {3: 0, 5: 1, 9: 2}
    )


def test_records_of_instances(dataset):
    code = {"size": [10, 12], "counts": [20, 5, 95]}
    path = dataset([annotation(1, 7, 9), annotation(2, 7, segmentation=code, iscrowd=1), annotation(3, 7)])
    first, second = instances(path)
    assert first == {
        "file_name": str(path.parent / "images" / "4.jpg"),
        "image_id": 4,
        "height": 10,
        "width": 12,
        "annotations": [],
    }
    assert second["image_id"] == 7 and [o["category_id"] for o in second["annotations"]] == [1, 0, 0]
    assert [o["iscrowd"] for o in second["annotations"]] == [0, 1, 0]
    assert second["annotations"][0]["segmentation"] == [TRIANGLE]
    assert second["annotations"][1]["segmentation"] == code
    assert second["annotations"][0]["bbox"] == [1, 1, 7, 5] and second["annotations"][0]["bbox_mode"] == 1


def test_records_are_those_of_detectron2(dataset):
    theirs = pytest.importorskip("detectron2.data.datasets.coco")
    annotations = [annotation(1, 7, 9), annotation(2, 4), annotation(3, 7, segmentation=[TRIANGLE, [1, 2, 3, 4]])]
    categories = [{"id": number, "name": str(number)} for number in IDS]
    path = dataset(annotations, categories=categories)
    assert instances(path) == theirs.load_coco_json(str(path), str(path.parent / "images"), "coco_format_of_a_test")
    MetadataCatalog.remove("coco_format_of_a_test")


def test_outlines_that_enclose_nothing(dataset, caplog):
    """Of two polygons, one may be too short; objects that have no outline at all are counted."""
    path = dataset(
        [
            annotation(1, 7, segmentation=[[], [1, 1, 2, 2], TRIANGLE, [1, 2, 3, 4, 5, 6, 7]]),
            annotation(2, 7, segmentation=[[1, 1, 2, 2]]),
            annotation(3, 7, segmentation=[]),
            {key: value for key, value in annotation(4, 7).items() if key != "segmentation"},
        ]
    )
    with caplog.at_level("WARNING"):
        (only,) = instances(path)[1]["annotations"]
    assert only["segmentation"] == [TRIANGLE]
    assert "mine: 3 objects of" in caplog.text and "have no outline" in caplog.text


def test_images_alone(dataset):
    """Of test images, whose truth the server keeps, the file has no annotations."""
    path = dataset([])
    content = json.loads(path.read_text())
    del content["annotations"]
    path.write_text(json.dumps(content))
    assert [record["annotations"] for record in instances(path)] == [[], []]


def test_records_of_segments(dataset):
    segments = [{"id": 70000, "category_id": 9, "iscrowd": 1, "area": 5}, {"id": 4, "category_id": 5}]
    path = dataset([{"image_id": 7, "file_name": "7.png", "segments_info": segments}])
    assert panoptic(path) == [
        {
            "file_name": str(path.parent / "images" / "7.jpg"),
            "image_id": 7,
            "height": 10,
            "width": 12,
            "pan_seg_file_name": str(path.parent / "segments" / "7.png"),
            "segments_info": [
                {"id": 70000, "category_id": 2, "isthing": True, "iscrowd": 1},
                {"id": 4, "category_id": 1, "isthing": False, "iscrowd": 0},
            ],
        }
    ]


def test_missing_files_are_named(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    message = r"dataset mine: no file .*none\.json .*Ask them\. DETECTRON2_DATASETS is "
    with pytest.raises(FileNotFoundError, match=message):
        instances(tmp_path / "none.json", source="Ask them. ")
    path = dataset([{"image_id": 7, "file_name": "7.png", "segments_info": []}])
    (tmp_path / "segments" / "7.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"dataset mine: no image .*segments/7\.png"):
        panoptic(path)
    for image in (tmp_path / "images").iterdir():
        image.unlink()
    with pytest.raises(FileNotFoundError, match=r"dataset mine: no image .*images/7\.jpg"):
        panoptic(path)
    with pytest.raises(FileNotFoundError, match=r"dataset mine: no image .*images/4\.jpg"):
        instances(dataset([]))


def test_bad_files_are_named(dataset, tmp_path):
    path = dataset([annotation(1, 7, category=5)])
    with pytest.raises(BadFile, match=r"json: annotations\[0\] \(id 1\) has the category_id 5, .* of the 2 categories"):
        instances(path)
    with pytest.raises(BadFile, match="has annotations of the image 99"):
        instances(dataset([annotation(1, 99)]))
    with pytest.raises(BadFile, match="has annotations of the image 99"):
        panoptic(dataset([{"image_id": i, "file_name": "7.png", "segments_info": []} for i in (7, 99)]))
    with pytest.raises(BadFile, match=r"images\[1\] has the id 4 of an image before it"):
        instances(dataset([], images=[{"id": 4, "file_name": "4.jpg", "height": 1, "width": 1}] * 2))
    with pytest.raises(BadFile, match="has no segments of its images"):
        panoptic(dataset([]))
    with pytest.raises(BadFile, match=r"has \['file_name', 'image_id', 'segments_info'\] and no category_id"):
        instances(dataset([{"image_id": 7, "file_name": "7.png", "segments_info": []}]))
    with pytest.raises(BadFile, match=r"images\[0\] has \['id'\] and no file_name or height or width"):
        instances(dataset([], images=[{"id": 4}]))
    with pytest.raises(BadFile, match="lists no images"):
        instances(dataset([], images=[]))
    path.write_text("[1, 2")
    with pytest.raises(BadFile, match=r"annotations\.json: is not valid JSON"):
        instances(path)


def test_metadata_of_instances():
    assert instance_metadata(CATEGORIES) == {
        "thing_classes": ["cat", "dog"],
        "thing_colors": [(1, 2, 3), (7, 8, 9)],
        "thing_dataset_id_to_contiguous_id": {3: 0, 9: 1},
    }


def test_metadata_of_segments():
    metadata = panoptic_metadata(CATEGORIES)
    assert metadata["stuff_classes"] == ["cat", "grass", "dog"] and metadata["thing_classes"] == ["cat", "dog"]
    assert metadata["thing_dataset_id_to_contiguous_id"] == {3: 0, 9: 2}
    assert metadata["stuff_dataset_id_to_contiguous_id"] == {3: 0, 5: 1, 9: 2}


def test_registration(dataset, monkeypatch):
    """Nothing on disk is looked at before the records are asked for; files may be made only then."""
    root = dataset([annotation(1, 7)]).parent
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root / "elsewhere"))
    made = []
    files = {"json_file": DatasetPath("annotations.json"), "image_root": DatasetPath("images")}
    for _ in range(2):
        register_instances("my_things", CATEGORIES, prepare=lambda: made.append(1), **files)
        register_panoptic(
            "my_segments",
            CATEGORIES,
            files["json_file"],
            DatasetPath("segments"),
            files["image_root"],
            files["json_file"],
        )
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    assert not made
    assert len(DatasetCatalog.get("my_things")) == 2 and made == [1]
    with pytest.raises(BadFile, match=r"annotations\[0\] .* and no file_name or segments_info; instances and"):
        DatasetCatalog.get("my_segments")
    meta = MetadataCatalog.get("my_things")
    assert meta.evaluator_type == "coco" and Path(meta.json_file) == root / "annotations.json"
    meta = MetadataCatalog.get("my_segments")
    assert meta.evaluator_type == "coco_panoptic_seg" and os.fspath(meta.panoptic_root) == str(root / "segments")


def test_categories(tmp_path):
    """Of an annotation file, or alone."""
    entries = [{"id": c.id, "name": c.name, "isthing": int(c.is_thing), "color": list(c.colour)} for c in CATEGORIES]
    for content in (entries[::-1], {"categories": entries, "images": []}):
        (tmp_path / "categories.json").write_text(json.dumps(content))
        assert read_categories(tmp_path / "categories.json") == CATEGORIES
    (tmp_path / "categories.json").write_text('[{"id": 1, "name": "cat"}]')
    categories = read_categories(tmp_path / "categories.json")
    assert categories == [Category(1, "cat", True, None)]
    assert set(instance_metadata(categories)) == {"thing_classes", "thing_dataset_id_to_contiguous_id"}
    (tmp_path / "categories.json").write_text("{")
    with pytest.raises(BadFile, match=r"categories\.json is not valid JSON"):
        read_categories(tmp_path / "categories.json")
    strange = ({"id": 1}, {"id": "1", "name": "a"}, {"id": 1, "name": 2}, {"id": 1, "name": "a", "isthing": 2})
    for content in (
        *('{"images": []}', "[3]", '"secret"', '{"categories": "secret"}', json.dumps(["secret"])),
        *(json.dumps([entry]) for entry in strange),
        *(
            json.dumps([{"id": 1, "name": "a", "color": colour}])
            for colour in ([1, 2], [1, 2, 300], "red", [1, 2, "3"])
        ),
    ):
        (tmp_path / "categories.json").write_text(content)
        with pytest.raises(BadFile, match=r"categories\.json: cannot be read as categories") as error:
            read_categories(tmp_path / "categories.json")
        assert "secret" not in str(error.value)
    (tmp_path / "categories.json").write_text('[{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]')
    with pytest.raises(BadFile, match="has 2 categories; expected one or more with different ids"):
        read_categories(tmp_path / "categories.json")
    with pytest.raises(FileNotFoundError, match="there is no such list of categories"):
        read_categories(tmp_path / "none.json")


def test_images_are_not_looked_for_one_by_one(dataset, tmp_path):
    """A missing one among many is found when it is read."""
    path = dataset([])
    (tmp_path / "images" / "7.jpg").unlink()
    assert len(instances(path)) == 2
    assert np.asarray(Image.open(tmp_path / "images" / "4.jpg")).shape == (10, 12, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segmentation": [TRIANGLE, TRIANGLE[0]]}, "for a polygon; expected polygons of numbers"),
        ({"segmentation": [["1"] * 6]}, r"has the polygon \['1'.*expected polygons of numbers"),
        ({"segmentation": [[1, 1, 8, 1, 8, float("nan")]]}, "corners at -inf and inf"),
        ({"segmentation": [[1, 1, 8, 1, 8, 1e9]]}, "corners at 1 and 1000000000.0, far from its image of 10 x 12"),
        ({"segmentation": {"size": [12, 10], "counts": [120]}}, r"has the size \[12, 10\] in an image of \[10, 12\]"),
        ({"segmentation": {"size": None, "counts": [120]}}, "has the size None"),
        ({"segmentation": {"size": [10, 12], "counts": [20, 5]}}, "has runs of 25 pixels.* 10 x 12 = 120"),
        ({"segmentation": {"size": [10, 12], "counts": [130, -10]}}, "of -10 to 130 each"),
        ({"segmentation": {"size": [10, 12], "counts": "5555"}}, "has runs of"),
        ({"segmentation": {"size": [10, 12], "counts": "P"}}, "'counts' that are neither"),
        ({"segmentation": {"size": [10, 12], "counts": 7}}, "'counts' that are neither"),
        ({"segmentation": "mask"}, "a segmentation is a str"),
        ({"category_id": "3"}, "has the category_id '3'"),
        ({"category_id": [3]}, r"has the category_id \[3\]"),
        ({"image_id": 7.0}, r"has the image_id 7\.0"),
        ({"iscrowd": "no"}, "has the iscrowd 'no'; expected 0 or 1"),
        ({"area": float("nan")}, "has the area nan"),
    ],
)
def test_bad_objects_are_named(dataset, changes, message):
    path = dataset([annotation(1, 4), annotation(2, 7, **changes)])
    with pytest.raises(BadFile, match=rf"annotations\.json: annotations\[1\] \(id 2\) .*{message}"):
        instances(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 0}, "has the height 0 and the width 12; expected numbers of pixels"),
        ({"width": "12"}, "the width '12'"),
        ({"width": 10**9, "height": 10**9}, "expected numbers of pixels"),
        ({"id": None}, "has the id None; expected an integer or text"),
        ({"id": "a"}, "ids of images that are numbers and some that are text"),
    ],
)
def test_bad_images_are_named(dataset, changes, message):
    good = {"id": 1, "file_name": "4.jpg", "height": 10, "width": 12}
    with pytest.raises(BadFile, match=message):
        instances(dataset([], images=[good, {**good, "id": 2, **changes}]))


def test_an_image_is_listed_once(dataset):
    image = {"id": 1, "file_name": "4.jpg", "height": 10, "width": 12}
    with pytest.raises(BadFile, match=r"several images have the file .*images/4\.jpg"):
        instances(dataset([], images=[image, {**image, "id": 2}]))


@pytest.mark.parametrize("content", ["[" * 100_000, '{"images": [3]}', '{"images": [{}], "annotations": 3}', "\xff"])
def test_files_of_another_structure_are_named(tmp_path, content):
    (tmp_path / "a.json").write_text(content, encoding="latin1")
    for load in (instances, panoptic):
        with pytest.raises(BadFile, match=r"dataset mine: .*a\.json"):
            load(tmp_path / "a.json")


@pytest.mark.parametrize("number", [0, -1, 256**3, "4", 4.5, None, 9])
def test_ids_of_segments(dataset, number):
    segments = [{"id": 9, "category_id": 5}, {"id": number, "category_id": 5}]
    path = dataset([{"image_id": 7, "file_name": "7.png", "segments_info": segments}])
    with pytest.raises(BadFile, match=r"annotations\[0\] .* has a segment with the id .* different integers of 1\.\."):
        panoptic(path)


def test_boxes_alone_are_not_enough(dataset):
    with pytest.raises(BadFile, match=r"annotations\.json: none of its 2 objects has an outline; boxes are not enough"):
        instances(dataset([annotation(1, 7, segmentation=None), annotation(2, 4, segmentation=[])]))


def test_sizes_may_be_written_with_a_point(dataset):
    path = dataset([annotation(1, 4)], images=[{"id": 4, "file_name": "4.jpg", "height": 10.0, "width": 12}])
    (record,) = instances(path)
    assert (record["height"], record["width"]) == (10, 12) and isinstance(record["height"], int)


def _image(name):
    return [{"id": 1, "file_name": name, "height": 10, "width": 12}]


def test_files_outside_of_the_folder_are_refused(dataset, tmp_path):
    """By their name, or because the name is that of a link, of a file or of a folder."""
    inside, outside = tmp_path / "images", tmp_path / "outside"
    (inside / "deeper").mkdir()
    outside.mkdir()
    Image.new("RGB", (12, 10)).save(outside / "secret.jpg")
    (inside / "link.jpg").symlink_to(outside / "secret.jpg")
    (inside / "deeper" / "link.jpg").symlink_to("../../outside/secret.jpg")
    (inside / "folder").symlink_to(outside)
    for name in (
        *(
            "../outside/secret.jpg",
            "deeper/../../outside/secret.jpg",
            str(outside / "secret.jpg"),
            "link.jpg",
            "folder/../4.jpg",
        ),
        *("deeper/link.jpg", "folder/secret.jpg", "..", ".", "", "4.jpg\0", "\ud800.jpg", 4, None, ["4.jpg"]),
    ):
        with pytest.raises(BadFile, match=r"dataset mine: .*annotations\.json names the file .* is not in the folder"):
            instances(dataset([], images=_image(name)))
    path = dataset([{"image_id": 7, "file_name": "../images/7.jpg", "segments_info": []}])
    with pytest.raises(BadFile, match=r"names the file '\.\./images/7\.jpg'"):
        panoptic(path)


def test_files_inside_the_folder_may_be_named_in_any_way(dataset, tmp_path):
    """Also when the folder itself is a link, or below one, and through links that stay in it."""
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "images" / "same.jpg").symlink_to("4.jpg")
    (tmp_path / "images" / "folder").symlink_to(".")
    real = tmp_path / "images"
    for name in ("4.jpg", "./4.jpg", "same.jpg", "folder//4.jpg", str(real / "4.jpg")):
        for root in (real, tmp_path / "link" / "images"):
            path = dataset([], images=_image(name))
            (record,) = load_instances("mine", path, root, IDS)
            assert record["file_name"] == os.path.join(root, name)
