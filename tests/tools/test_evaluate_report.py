import json

import numpy as np
import pytest
from PIL import Image

from tools import evaluate_report as tool

pytestmark = pytest.mark.slow


@pytest.fixture
def dataset(tmp_path):
    """Keys of a dataset of three images with 12 classes."""
    rng = np.random.default_rng(0)
    for kind in ("images", "annotations"):
        (tmp_path / "own" / kind / "val").mkdir(parents=True)
    for i in range(3):
        Image.fromarray(rng.integers(0, 255, (48, 64, 3), np.uint8)).save(tmp_path / f"own/images/val/{i}.png")
        labels = rng.integers(0, 12, (6, 8), np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(labels).save(tmp_path / f"own/annotations/val/{i}.png")
    (tmp_path / "classes.txt").write_text("\n".join(f"class {i}" for i in range(12)))
    keys = {"NAME": "own", "ROOT": tmp_path / "own", "CLASSES": tmp_path / "classes.txt", "SPLITS": "['val']"}
    named = [str(x) for key, value in keys.items() for x in (f"DATASETS.FOLDER.{key}", value)]
    return [*named, "DATASETS.TRAIN", "()", "DATASETS.TEST", "('own_val',)", "DATALOADER.NUM_WORKERS", "0"]


def run(capsys, *arguments) -> tuple[int, str, str]:
    try:
        code = tool.main([*map(str, arguments)])
    except SystemExit as stopped:
        code = stopped.code
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_two_models_evaluated_and_compared(tiny_models, dataset, tmp_path, capsys):
    for (config, weights), name in zip(tiny_models, "ab", strict=True):
        arguments = ("--config-file", config, "--weights", weights, "--output", tmp_path / name, *dataset)
        code, _, err = run(capsys, *arguments)
        assert code == 0, err
        folder = tmp_path / name / "inference" / "report"
        assert sorted(file.name for file in folder.iterdir()) == ["images.csv", "report.html", "report.json"]
        assert json.loads((folder / "report.json").read_text())["weights"] == weights
    code, out, _ = run(capsys, "--compare", tmp_path / "a", tmp_path / "b", "--output", tmp_path / "c")
    assert code == 0 and str(tmp_path / "c" / "comparison.html") in out
    found = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert found["names"] == ["dfpq", "mask2former"] and found["num_images"] == 3
    page = (tmp_path / "c" / "comparison.html").read_text(encoding="utf-8")
    assert "mask2former against dfpq" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--compare", "a", "b", "MODEL.DEVICE", "cpu"), "runs no model"),
        (("--compare", "a", "b"), "a: there is no such file"),
        (("--config-file", "x.yaml", "--names", "A", "B"), "--names goes with --compare"),
        ((), "required"),
    ],
)
def test_mistakes(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *arguments)
    assert code == 2 and message in err.replace("a/report.json", "a") and "Traceback" not in err
