import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from demo import demo
from fasegr import Predictor, build_model, load_cfg
from fasegr.data.augmentation import ResizeShortestEdge
from fasegr.modeling.meta_arch.instance_inference import Instances

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs" / "quickstart" / "faseg_scenes.yaml"
SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "4", "MODEL.MASK_FORMER.DEC_LAYERS", "5"),
    *("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", "1", "INPUT.MIN_SIZE_TEST", "64"),
]


class Thresholds(nn.Module):
    """A segmentor of two classes, dark and bright. It runs out of memory on images of one pixel."""

    def forward(self, samples):
        (sample,) = samples
        size = (sample["height"], sample["width"])
        if size == (1, 1):
            raise torch.OutOfMemoryError("out of memory")
        bright = nn.functional.interpolate(sample["image"].float().mean(0)[None, None] - 128, size)[0, 0]
        return [{"sem_seg": torch.stack([-bright, bright])}]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the program in this process, on a model that needs no weights: run(*arguments) -> exit code."""
    monkeypatch.setattr(demo, "tune_process", lambda **kw: None)  # a setting of the whole process
    monkeypatch.chdir(tmp_path)

    def run(*arguments, model=Thresholds):
        resize = ResizeShortestEdge(32, 64)
        monkeypatch.setattr(
            demo, "Predictor", lambda cfg: Predictor(model=model(), resize=resize, class_names=["dark", "bright"])
        )
        try:
            return demo.main(["--config-file", str(QUICKSTART), *map(str, arguments)])
        except SystemExit as exit:
            return exit.code

    return run


def photo(path, size=(40, 30), mode="RGB", **options) -> Path:
    """A picture that is dark above and bright below."""
    pixels = np.full((size[1], size[0], 3), 10, np.uint8)
    pixels[size[1] // 2 :] = 240
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


def files(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


def test_predictions_for_other_programs(run, tmp_path):
    photo(tmp_path / "shots" / "ä.jpg")
    photo(tmp_path / "shots" / "below" / "b.png")
    formats = ("coco", "cvat", "labelme", "png", "confidence")
    assert run("--input", "shots", "--output", "out", "--save", *formats) == 0
    assert files("out") == [
        "below/b_overlay.png",
        "coco.json",
        "confidence/below/b.png",
        "confidence/ä.png",
        "cvat.xml",
        "labelme/below/b.json",
        "labelme/ä.json",
        "png/below/b.png",
        "png/ä.png",
        "ä_overlay.png",
    ]
    assert set(np.unique(Image.open("out/png/ä.png"))) == {0, 1}
    found = json.loads(Path("out/coco.json").read_text())
    assert [image["file_name"] for image in found["images"]] == ["below/b.png", "ä.jpg"]
    assert len(found["annotations"]) == 4


def test_formats_that_the_model_cannot_fill_are_refused(run, tmp_path, capsys):
    photo(tmp_path / "a.png")
    labels = ("--opts", "MODEL.MASK_FORMER.TEST.SEMANTIC_OUTPUT", "labels")
    assert run("--input", "a.png", "--output", "out", "--save", "confidence", *labels) == 2
    assert "confidence is computed from scores" in capsys.readouterr().err
    assert run("--input", "a.png", "--output", "out", "--save", "yolo") == 2


def test_images_folders_and_patterns(run, tmp_path):
    photo(tmp_path / "one.jpg")
    photo(tmp_path / "folder" / "two.JPG")
    photo(tmp_path / "folder" / "below" / "three.png")
    (tmp_path / "folder" / "notes.txt").write_text("no image")
    photo(tmp_path / "shots" / "four.png")
    photo(tmp_path / "shots" / "five.jpg")
    assert run("--input", "one.jpg", "folder", "shots/*.png", "one.jpg", "--output", "out") == 0
    assert files("out") == [
        "folder/below/three_overlay.png",
        "folder/two_overlay.png",
        "one_overlay.png",
        "shots/four_overlay.png",
    ]


def test_labels_on_request(run, tmp_path):
    photo(tmp_path / "a.jpg")
    assert run("--input", "a.jpg", "--output", "out", "--labels") == 0
    assert files("out") == ["a_labels.png", "a_overlay.png"]
    labels = np.asarray(Image.open("out/a_labels.png"))
    assert labels.shape == (30, 40) and labels.dtype == np.uint8
    assert labels[[0, 29]].tolist() == [[0] * 40, [1] * 40]


def test_labels_of_a_model_of_instances(run, tmp_path, capsys):
    photo(tmp_path / "a.jpg")
    keys = ("MODEL.MASK_FORMER.TEST.SEMANTIC_ON", False, "MODEL.MASK_FORMER.TEST.INSTANCE_ON", True)
    assert run("--input", "a.jpg", "--output", "out", "--labels", "--opts", *keys) == 2
    assert "--labels writes a class for each pixel" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_instances_of_a_low_score_are_drawn_on_request(run, tmp_path):
    class Instance(nn.Module):
        """Finds one instance, the whole image, with a score of 0.3."""

        def forward(self, samples):
            mask = torch.ones(1, samples[0]["height"], samples[0]["width"], dtype=torch.bool)
            return [{"instances": Instances(torch.tensor([0.3]), torch.zeros(1, dtype=torch.int64), mask)}]

    photo(tmp_path / "a.png", size=(400, 300))
    arguments = ("--input", "a.png", "--output", "out", "--alpha", 1)
    assert run(*arguments, model=Instance) == 0
    assert Image.open("out/a_overlay.png").getpixel((40, 40)) == (10, 10, 10)
    assert run(*arguments, "--min-score", 0.25, model=Instance) == 0
    assert Image.open("out/a_overlay.png").getpixel((40, 40)) != (10, 10, 10)


def test_any_kind_of_image(run, tmp_path):
    photo(tmp_path / "in" / "grey.png", mode="L")
    photo(tmp_path / "in" / "transparent.png", mode="RGBA")
    photo(tmp_path / "in" / "palette.png", mode="P")
    Image.fromarray(np.array([[2000], [60000]], np.uint16).repeat(5, 0).repeat(10, 1)).save(
        tmp_path / "in" / "deep.png"
    )
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    photo(tmp_path / "in" / "turned.jpg", exif=exif)
    assert run("--input", "in", "--output", "out", "--labels") == 0
    for name in ("grey", "transparent", "palette", "deep", "turned"):
        labels = np.asarray(Image.open(f"out/{name}_labels.png"))
        assert labels[[0, -1], 0].tolist() == ([1, 0] if name == "turned" else [0, 1])


def test_alpha_is_that_of_the_overlay(run, tmp_path):
    photo(tmp_path / "a.png", size=(400, 300))
    assert run("--input", "a.png", "--output", "out", "--alpha", 0) == 0
    assert Image.open("out/a_overlay.png").getpixel((1, 1)) == (10, 10, 10)


def test_equal_names_do_not_collide(run, tmp_path):
    for name in ("x/a.jpg", "y/a.jpg", "y/a.png", "y/a_overlay.png", "y/a_labels.png"):
        photo(tmp_path / "in" / name)
    assert run("--input", "in", "--output", "out", "--labels") == 0
    assert len(files("out")) == 10


def test_a_failed_file_is_named_and_the_rest_goes_on(run, tmp_path, capsys):
    photo(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "broken.png").write_bytes((tmp_path / "in" / "a.png").read_bytes()[:60])
    photo(tmp_path / "in" / "huge.png", size=(1, 1))
    photo(tmp_path / "in" / "z.png")
    assert run("--input", "in", "--output", "out") == 1
    assert files("out") == ["a_overlay.png", "z_overlay.png"]
    captured = capsys.readouterr()
    assert "2 of 4 images" in captured.out
    listed = captured.err.split("Failed:")[1]
    assert "broken.png" in listed and "huge.png: out of memory" in listed and "z.png" not in listed


def test_nothing_to_do(run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    photo(tmp_path / "a.png")
    for nothing, complaint in (
        ("empty", "--input empty: no image in this folder"),
        ("*.gif", "--input *.gif: no such file"),
        ("missing.jpg", "--input missing.jpg: no such file"),
    ):
        assert run("--input", "a.png", nothing, "--output", "out") == 2
        assert complaint in capsys.readouterr().err
    assert not Path("out").exists()


def test_inputs_are_never_written_over(run, tmp_path, capsys):
    photo(tmp_path / "in" / "a.png")
    assert run("--input", "in", "--output", "in") == 0
    assert files("in") == ["a.png", "a_overlay.png"]
    before = (tmp_path / "in" / "a_overlay.png").read_bytes()
    assert run("--input", "in", "--output", "in") == 2
    assert "would overwrite" in capsys.readouterr().err
    assert (tmp_path / "in" / "a_overlay.png").read_bytes() == before
    assert files("in") == ["a.png", "a_overlay.png"]


def test_a_second_run_draws_the_same(run, tmp_path):
    photo(tmp_path / "a.png")
    for _ in range(2):
        assert run("--input", ".", "--output", "out") == 0
        assert files("out") == ["a_overlay.png"]


def test_bad_arguments(run, tmp_path, capsys):
    photo(tmp_path / "a.png")
    assert run("--input", "a.png", "--output", "out", "--alpha", 2) == 2
    assert "--alpha is 2.0" in capsys.readouterr().err
    assert run("--input", "a.png", "--output", "out", "--opts", "MODEL.NOTHING", 1) == 2
    assert "MODEL.NOTHING does not exist" in capsys.readouterr().err


def test_needs_weights(tmp_path, capsys):
    image = photo(tmp_path / "a.jpg")
    with pytest.raises(SystemExit) as exit:
        demo.main(["--config-file", str(QUICKSTART), "--input", str(image), "--output", "out", "--opts", *SMALL])
    assert exit.value.code == 2
    assert "error: MODEL.WEIGHTS is empty" in capsys.readouterr().err


def test_as_a_program(tmp_path):
    """From a checkpoint of a real model, started in another folder."""
    photo(tmp_path / "in" / "a.jpg")
    torch.manual_seed(0)
    torch.save({"model": build_model(load_cfg(QUICKSTART, SMALL)).state_dict()}, tmp_path / "model.pth")
    command = [sys.executable, str(ROOT / "demo/demo.py"), "--config-file", str(QUICKSTART), "--input", "in"]
    command += ["--output", "out", "--labels", "--opts", "MODEL.WEIGHTS", "model.pth", *SMALL]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 images" in done.stdout
    assert files(tmp_path / "out") == ["a_labels.png", "a_overlay.png"]
    assert np.asarray(Image.open(tmp_path / "out" / "a_labels.png")).shape == (30, 40)
