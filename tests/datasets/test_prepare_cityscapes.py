import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fasegr.data.datasets.cityscapes import register_cityscapes
from fasegr.data.image_io import BadFile, read_label
from tests.data.catalogs import CITYSCAPES, without
from tests.data.cityscapes_tree import write_cityscapes
from tests.datasets.oracle import evaluate

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def maps(tree: Path, ending: str) -> dict[str, np.ndarray]:
    """Label maps of one kind, by what their names have in common."""
    return {file.name.removesuffix(ending): read_label(file) for file in sorted(tree.rglob(f"*{ending}"))}


def assert_equal_maps(these, those):
    assert list(these) == list(those) and these
    for name, labels in these.items():
        np.testing.assert_array_equal(labels, those[name], err_msg=name)


def test_from_the_archive_to_the_server(program, tmp_path, capsys):
    write_cityscapes(tmp_path, splits=[("train", 2), ("val", 3), ("test", 1)])
    assert program.main(["--workers", "1"]) == 0
    out, err = capsys.readouterr()
    assert "train: 2 label maps made" in out and "there are 3 annotations, and 500" in err

    with without(*CITYSCAPES):
        register_cityscapes()
        scores = evaluate("cityscapes_fine_sem_seg_val", 19, tmp_path / "out")["sem_seg"]
        assert {scores[name] for name in ("mIoU", "IoU", "iIoU", "IoU_sup", "iIoU_sup", "BoundaryIoU")} == {100}
        label_ids = maps(tmp_path / "cityscapes" / "gtFine" / "val", "_gtFine_labelIds.png")
        answers = maps(tmp_path / "out" / "inference" / "submission", "_leftImg8bit.png")
        evaluated = [7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33]
        truth = {name: np.where(np.isin(ids, evaluated), ids, 12) for name, ids in label_ids.items()}
        assert_equal_maps(answers, truth)

        assert evaluate("cityscapes_fine_sem_seg_test", 19, tmp_path / "test") == {}
        (answer,) = (tmp_path / "test" / "inference" / "submission").iterdir()
        assert answer.name == "aachen_000000_000019_leftImg8bit.png" and (read_label(answer) == 12).all()


def test_polygons_give_what_label_ids_give(program, tmp_path):
    write_cityscapes(tmp_path / "ids")
    write_cityscapes(tmp_path / "polygons", label_ids=False)
    results = []
    for name in ("ids", "polygons"):
        os.environ["DETECTRON2_DATASETS"] = str(tmp_path / name)  # put back by `program`
        assert program.main(["--workers", "1"]) == 0
        results.append(maps(tmp_path / name, "_gtFine_labelTrainIds.png"))
    assert_equal_maps(*results)
    assert len(set(np.unique(list(results[0].values())).tolist())) > 12


def test_polygons_are_drawn_as_by_cityscapesscripts(program, tmp_path):
    theirs = pytest.importorskip("cityscapesscripts.preparation.json2labelImg")
    write_cityscapes(tmp_path)
    for file in tmp_path.rglob("*_polygons.json"):
        theirs.json2labelImg(str(file), str(tmp_path / "theirs.png"), "trainIds")
        np.testing.assert_array_equal(program.read_annotation(file), read_label(tmp_path / "theirs.png"))
        theirs.json2labelImg(str(file), str(tmp_path / "theirs.png"), "ids")
        ids = file.with_name(file.name.replace("polygons.json", "labelIds.png"))
        np.testing.assert_array_equal(read_label(ids), read_label(tmp_path / "theirs.png"))


def test_from_the_command_line(tmp_path):
    write_cityscapes(tmp_path, splits=[("val", 3)])
    command = [sys.executable, ROOT / "datasets" / "prepare_cityscapes.py", "--workers", "2"]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path), "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "val: 3 label maps made" in finished.stdout and "train: warning: no annotations" in finished.stderr
    assert len(maps(tmp_path, "_gtFine_labelTrainIds.png")) == 3


def test_continues(program, tmp_path, capsys):
    write_cityscapes(tmp_path)
    program.main(["--workers", "1"])
    next(tmp_path.rglob("val/*/*_labelTrainIds.png")).unlink()
    capsys.readouterr()
    assert program.main(["--workers", "1"]) == 0
    out = capsys.readouterr().out
    assert "train: 0 label maps made, 3 were there" in out and "val: 1 label maps made, 3 were" in out


def test_bad_files_are_named(program, tmp_path, capsys):
    write_cityscapes(tmp_path, splits=[("train", 4), ("val", 4)])
    train = sorted(tmp_path.rglob("train/*/*_labelIds.png"))
    Image.fromarray(np.full((48, 96), 34, np.uint8)).save(train[0])
    Image.new("L", (96, 40)).save(train[1])
    for file in tmp_path.rglob("val/*/*_labelIds.png"):
        file.unlink()
    val = sorted(tmp_path.rglob("val/*/*.json"))
    annotation = json.loads(val[0].read_text())
    annotation["objects"][0]["label"] = "unicorn"
    val[0].write_text(json.dumps(annotation))
    val[1].write_text("{}")
    val[2].write_text("no JSON")
    assert program.main(["--workers", "1"]) == 1
    out, err = capsys.readouterr()
    assert "train: 2 label maps made" in out and "val: 1 label maps made" in out
    assert f"{train[0]}: holds the label id 34; Cityscapes has 0..33" in err
    assert f"{train[1]}: is 96 x 40" in err
    assert f"{val[0]}: an object is labelled 'unicorn'" in err
    assert f"{val[1]}: is not a Cityscapes annotation (KeyError: 'imgWidth')" in err
    assert f"{val[2]}: is not valid JSON" in err


@pytest.mark.parametrize(
    "content",
    [
        *("[]", "[" * 100_000, '{"imgWidth": 1e400}', '{"imgWidth": -3, "imgHeight": 3, "objects": []}'),
        '{"imgWidth": 1000000000, "imgHeight": 1000000000, "objects": []}',
        *(
            json.dumps({"imgWidth": 96, "imgHeight": 48, "objects": [{"label": "road", "polygon": polygon}]})
            for polygon in ([], [[1, 2]], [[1], [2]], [["1", "2"]] * 3, 7, [[10**400, 1]] * 3, None)
        ),
        *(json.dumps({"imgWidth": 96, "imgHeight": 48, "objects": objects}) for objects in (3, [3], [{"label": [1]}])),
    ],
)
def test_bad_polygons_are_named(program, tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(BadFile, match=r"a\.json: is not"):
        program.draw_polygons(path)


def test_annotations_without_images(program, tmp_path, capsys):
    write_cityscapes(tmp_path, splits=[("val", 2)])
    next(tmp_path.rglob("val/*/*_leftImg8bit.png")).unlink()
    assert program.main(["--workers", "1"]) == 0
    assert "val: warning: 1 annotations have no image" in capsys.readouterr().err


def test_nothing_to_do(program, tmp_path, capsys):
    assert program.main([]) == 2
    err = capsys.readouterr().err
    assert f"in {tmp_path}/cityscapes/gtFine/SPLIT/CITY" in err
    assert "cityscapes-dataset.com" in err and f"DETECTRON2_DATASETS is {tmp_path}" in err
