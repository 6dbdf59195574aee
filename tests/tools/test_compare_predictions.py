from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fasegr.d2 import DatasetCatalog, MetadataCatalog
from tools import compare_predictions as tool

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tiny_models, monkeypatch, tmp_path, capsys):
    """run(*arguments, models=2) -> exit code, standard output, standard error; there are images and labels 0 to 4."""
    monkeypatch.setattr(tool, "setup_logger", lambda **options: None)
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(random.integers(0, 255, (40, 60, 3), np.uint8)).save(f"{i}.png")
        Image.fromarray(np.full((40, 60), i, np.uint8)).save(f"{i}_labels.png")

    def run(*arguments, models=2):
        named = [x for config, weights in tiny_models[:models] for x in ("--config-file", config, "--weights", weights)]
        try:
            code = tool.main([*named, "--cell-width", "80", *map(str, arguments)])
        except SystemExit as stopped:
            code = stopped.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def test_images_with_ground_truth_and_without(run):
    code, out, _ = run("--image", "0.png", "1.png", "--names", "A", "B")
    assert code == 0 and "0.png  B:" in out and "% same as A" in out and "2 images, 2 models" in out
    without = Image.open("comparison.png").width
    code, out, _ = run("--image", "0.png", "1.png", "--labels", "0_labels.png", "1_labels.png", "--zoom")
    assert code == 0 and "dfpq: mIoU" in out and "mask2former: mIoU" in out
    assert Image.open("comparison.png").width == without + 80 + 2


def test_a_dataset_is_sampled_evenly(run):
    name = "test_compare_predictions"
    records = [{"file_name": f"{i}.png", "sem_seg_file_name": f"{i}_labels.png"} for i in range(5)]
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(ignore_label=255)
    try:
        code, out, _ = run("--dataset", name, "--number", 2, models=1)
        assert code == 0 and [line.split()[0] for line in out.splitlines()[-3:-1]] == ["1.png", "3.png"]
        assert run("--dataset", name, "--number", 9, models=1)[1].count("mIoU") == 5
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_miou_is_over_the_classes_of_the_truth():
    truth = np.array([[0, 0, 1, 1, 255, 255]], np.uint8)
    prediction = np.array([[0, 2, 1, 1, 1, 2]])
    assert tool.miou(truth, prediction, 3) == pytest.approx(100 * (1 / 2 + 1) / 2)
    assert np.isnan(tool.miou(np.full((1, 2), 255), np.zeros((1, 2), int), 3))


def test_the_part_where_models_differ_most():
    image = Image.new("RGB", (60, 30))
    same, other, truth = (np.zeros((30, 60), int) for _ in range(3))
    other[21:27, 42:50], other[2, 2] = 1, 1
    left, top, right, bottom = tool.most_different(tool.Row(image, None, [same, other], []), 255)
    assert (right - left, bottom - top) == (20, 10)
    assert left <= 42 and right >= 50 and top <= 21 and bottom >= 27
    truth[20:] = 255  # not labelled: no difference that counts
    assert tool.most_different(tool.Row(image, truth, [same, other], []), 255)[:2] == (0, 0)
    truth[:] = 0
    assert tool.most_different(tool.Row(image, truth, [same], []), 255) is None
    assert tool.most_different(tool.Row(image, truth, [other], []), 255) == (left, top, right, bottom)
    tiny = np.zeros((2, 2), int)
    assert tool.most_different(tool.Row(image, None, [tiny, tiny + 1], []), 255) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "missing.png"], "missing.png: there is no such file"),
        (["--image", "0.png", "--labels", "0_labels.png", "1_labels.png"], "there are 2 --labels for 1 --image"),
        (["--dataset", "nowhere"], "--dataset is nowhere; the registered datasets are"),
        (["--dataset", "x", "--labels", "0_labels.png"], "a dataset has its own"),
        (["--dataset", "x", "--number", "0"], "--number is 0"),
        (["--image", "0.png", "--cell-width", "9"], "--cell-width is 9"),
        (["--image", "0.png", "--output", "."], "--output is ."),
        (["--image", "0.png", "--names", "A"], "--names has 1 (A) for 2"),
        (["--image", "0.png", "--opts", "DATASETS.TEST", "()", "MODEL.NOTHING", "1"], "MODEL.NOTHING does not exist"),
    ],
)
def test_what_cannot_be_done_is_one_message(run, arguments, message):
    code, _, err = run(*arguments)
    assert code == 2 and message in err and "Traceback" not in err
    assert not Path("comparison.png").exists()
