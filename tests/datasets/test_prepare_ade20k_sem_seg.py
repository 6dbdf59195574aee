import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fasegr.data.datasets.ade20k import register_ade20k
from fasegr.data.image_io import read_label
from tests.data.catalogs import ADE20K, without
from tests.datasets.oracle import evaluate

pytestmark = pytest.mark.slow

SPLITS = {"training": ("train", 5), "validation": ("val", 3)}
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tree(tmp_path):
    """ADE20K as its archive unpacks, but tiny."""
    rng = np.random.default_rng(0)
    tree = tmp_path / "ADEChallengeData2016"
    for split, (short, number) in SPLITS.items():
        for i in range(1, number + 1):
            size = tuple(rng.integers(10, 30, 2))
            for kind in ("images", "annotations"):
                (tree / kind / split).mkdir(parents=True, exist_ok=True)
            name = f"{split}/ADE_{short}_{i:08d}"
            Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tree / "images" / f"{name}.jpg")
            labels = rng.choice([0, 1, 13, 150], size).astype(np.uint8)
            Image.fromarray(labels).save(tree / "annotations" / f"{name}.png")
    return tree


def assert_prepared(tree):
    annotations = sorted((tree / "annotations").rglob("*.png"))
    made = sorted((tree / "annotations_detectron2").rglob("*"))
    assert [file.relative_to(tree / "annotations") for file in annotations] == [
        file.relative_to(tree / "annotations_detectron2") for file in made if file.is_file()
    ]
    for annotation in annotations:
        before = read_label(annotation).astype(int)
        after = read_label(tree / "annotations_detectron2" / annotation.relative_to(tree / "annotations"))
        np.testing.assert_array_equal(after, np.where(before == 0, 255, before - 1))


def test_from_the_archive_to_the_server(program, tree, tmp_path, capsys):
    assert program.main(["--workers", "1"]) == 0
    assert_prepared(tree)
    out, err = capsys.readouterr()
    assert "training: 5 label maps made" in out and "there are 3 annotations, and 2000" in err

    with without(*ADE20K):
        register_ade20k()
        scores = evaluate("ade20k_sem_seg_val", 150, tmp_path / "out")["sem_seg"]
        assert scores["mIoU"] == scores["BoundaryIoU"] == 100
        for i in range(1, 4):
            answer = read_label(tmp_path / "out" / "inference" / "submission" / f"ADE_val_{i:08d}.png")
            truth = read_label(tree / "annotations" / "validation" / f"ADE_val_{i:08d}.png")
            np.testing.assert_array_equal(answer, np.where(truth == 0, 4, truth))  # the server's numbers count from 1

        testing = tmp_path / "release_test" / "testing"
        testing.mkdir(parents=True)
        Image.new("RGB", (20, 10)).save(testing / "ADE_test_00000001.jpg")
        assert evaluate("ade20k_sem_seg_test", 150, tmp_path / "test") == {}
        (answer,) = (tmp_path / "test" / "inference" / "submission").iterdir()
        assert answer.name == "ADE_test_00000001.png" and (read_label(answer) == 4).all()


def test_from_the_command_line(tree, tmp_path):
    command = [sys.executable, ROOT / "datasets" / "prepare_ade20k_sem_seg.py", "--workers", "2"]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path), "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "validation: 100%" in finished.stderr
    assert_prepared(tree)


def test_is_what_detectron2_reads(program, tree):
    detectron2 = pytest.importorskip("detectron2.data.datasets.coco")
    program.main(["--workers", "1"])
    labels, images = (str(tree / kind / "validation") for kind in ("annotations_detectron2", "images"))
    records = detectron2.load_sem_seg(labels, images, gt_ext="png", image_ext="jpg")
    assert len(records) == 3 and all(os.path.isfile(record["sem_seg_file_name"]) for record in records)


def test_continues(program, tree, capsys):
    program.main(["--workers", "1"])
    made = tree / "annotations_detectron2" / "validation" / "ADE_val_00000002.png"
    made.unlink()
    capsys.readouterr()
    assert program.main(["--workers", "1"]) == 0
    out = capsys.readouterr().out
    assert "training: 0 label maps made, 5 were there" in out and "validation: 1 label maps made, 2 were" in out
    assert_prepared(tree)


def test_bad_files_are_named(program, tree, capsys):
    folder = tree / "annotations" / "training"
    Image.fromarray(np.full((8, 8), 151, np.uint8)).save(folder / "ADE_train_00000001.png")
    Image.new("RGB", (8, 8)).save(folder / "ADE_train_00000002.png")
    Image.new("L", (8, 8)).save(folder / "ADE_train_00000003.png")
    assert program.main(["--workers", "1"]) == 1
    out, err = capsys.readouterr()
    assert "training: 2 label maps made" in out and "validation: 3 label maps made" in out
    assert "ADE_train_00000001.png: holds the value 151; expected 0 (no class) to 150" in err
    assert "ADE_train_00000002.png: has colours" in err
    assert "ADE_train_00000003.png: is 8 x 8" in err


def test_nothing_to_do(program, tmp_path, capsys):
    assert program.main([]) == 2
    err = capsys.readouterr().err
    assert f"error: no annotations in {tmp_path}/ADEChallengeData2016/annotations/training" in err
    assert "http://sceneparsing.csail.mit.edu" in err and f"DETECTRON2_DATASETS is {tmp_path}" in err


def test_half_an_archive(program, tree, capsys):
    (tree / "annotations" / "validation" / "ADE_val_00000002.png").unlink()
    assert program.main([]) == 2
    assert "1 images in" in (err := capsys.readouterr().err) and "the first ADE_val_00000002.jpg" in err
    assert not (tree / "annotations_detectron2").exists()
