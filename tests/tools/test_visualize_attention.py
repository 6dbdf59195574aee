from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fasegr.visualization.attention import AttentionRecord
from tools import visualize_attention as tool


@pytest.fixture
def run(tiny_models, monkeypatch, tmp_path, capsys):
    """run(*arguments, models=1) -> exit code, standard output, standard error; a.png is of sky above grass."""
    monkeypatch.setattr(tool, "setup_logger", lambda **options: None)
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save("a.png")
    labels = np.zeros((40, 60), np.uint8)
    labels[20:], labels[20:, 50:] = 2, 255
    Image.fromarray(labels).save("labels.png")

    def run(*arguments, models=1):
        named = [x for config, weights in tiny_models[:models] for x in ("--config-file", config, "--weights", weights)]
        try:
            code = tool.main(["--image", "a.png", *named, *map(str, arguments)])
        except SystemExit as stopped:
            code = stopped.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def test_one_model(run):
    code, out, _ = run("--labels", "labels.png", "--output", "made/here.png", "--cell-width", 80)
    assert code == 0 and "2 targets, 1 models" in out
    picture = Image.open("made/here.png")
    assert picture.width == 7 * 80 + 6 * 4 + 4 * 4


def test_models_side_by_side(run):
    both = {"models": 2}
    code, out, _ = run("--labels", "labels.png", "--class", "grass", "sky", "--cell-width", 80, **both)
    assert code == 0 and "2 targets, 2 models" in out
    two = Image.open("attention.png").height
    assert run("--labels", "labels.png", "--point", 59, 10, "--cell-width", 80, "--names", "A", "B", **both)[0] == 0
    assert Image.open("attention.png").height < two
    assert run("--targets", 1, "--cell-width", 80, **both)[0] == 0  # of what the first model predicts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--class", "unicorn"], "--class unicorn: the models know sky, mountain"),
        (
            ["--labels", "labels.png", "--class", "car"],
            "--class car: there is none in labels.png; there are sky, grass",
        ),
        (["--point", "60", "0"], "--point is 60 0; the image is 60 x 40"),
        (["--labels", "labels.png", "--point", "55", "30"], "--point 55 30 is not labelled in labels.png"),
        (["--query", "4"], "--query is 4; the first model has queries 0 to 3"),
        (["--names", "A", "B"], "--names has 2 (A, B) for 1"),
        (["--weights", "more.pth"], "there are 2 --weights for 1 --config-file"),
        (["--output", "a.jpg"], "--output is a.jpg"),
        (["--labels", "a.png"], "a.png: has colours"),
        (["--image", "missing.png"], "missing.png: there is no such file"),
        (["--cell-width", "3"], "--cell-width is 3"),
        (["--targets", "0"], "--targets is 0"),
        (["--opts", "MODEL.NOTHING", "1"], "MODEL.NOTHING does not exist"),
    ],
)
def test_what_cannot_be_done_is_one_message(run, arguments, message):
    code, _, err = run(*arguments)
    assert code == 2 and message in err and "Traceback" not in err
    assert not Path("attention.png").exists()


def test_a_query_is_its_own_target():
    """Masks of two queries at the size of the panels; the second is empty."""
    masks = torch.zeros(2, 4, 6)
    masks[0, :2] = 0.9
    record = AttentionRecord(None, torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.2, 0.3]]), masks, [], (1.0, 1.0), (16, 24))
    args = tool.parse_args(["--image", "a.png", "--config-file", "x.yaml", "--query", "0"])
    (target,) = tool.choose_targets(args, record, None, ["sea", "land"], (60, 40))
    assert target.name == "land" and target.mask[:2].all() and not target.mask[2:].any()
    args.query = 1
    with pytest.raises(ValueError, match="--query 1: its mask is empty"):
        tool.choose_targets(args, record, None, ["sea", "land"], (60, 40))
