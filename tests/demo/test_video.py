import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from demo import demo, video
from fasegr import Predictor
from fasegr.data.augmentation import ResizeShortestEdge
from fasegr.modeling.meta_arch.instance_inference import Instances

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs" / "quickstart" / "faseg_scenes.yaml"


class Sides(nn.Module):
    """A segmentor of two classes, dark and bright, that remembers how many images it got at a time, and how bright."""

    def __init__(self):
        super().__init__()
        self.batches, self.brightness = [], []

    def forward(self, samples):
        self.batches.append(len(samples))
        results = []
        for sample in samples:
            self.brightness.append(sample["image"].float().mean().item())
            bright = sample["image"].float().mean(0) / 255
            bright = nn.functional.interpolate(bright[None, None], (sample["height"], sample["width"]))[0, 0]
            results.append({"sem_seg": torch.stack([1 - bright, bright])})
        return results


@pytest.fixture
def model():
    return Sides()


@pytest.fixture
def run(monkeypatch, tmp_path, model):
    """Run the program in this process, on a model that needs no weights: run(*arguments) -> exit code."""
    monkeypatch.setattr(demo, "tune_process", lambda **kw: None)  # a setting of the whole process
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        resize = ResizeShortestEdge(32, 64)
        monkeypatch.setattr(
            demo, "Predictor", lambda cfg: Predictor(model=model, resize=resize, class_names=["dark", "bright"])
        )
        try:
            return demo.main(["--config-file", str(QUICKSTART), *map(str, arguments)])
        except SystemExit as exit:
            return exit.code

    return run


def frame(number, size=(40, 60)) -> np.ndarray:
    """Dark on the left, bright on the right; the edge moves by two pixels a frame."""
    pixels = np.full((*size, 3), 20, np.uint8)
    pixels[:, 20 + 2 * number :] = 235
    return pixels


def write_video(path, count=10, fps=12.5, size=(40, 60), noise=0):
    random = np.random.default_rng(0)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*video.CODECS[path.suffix]), fps, size[::-1])
    for number in range(count):
        writer.write(cv2.add(frame(number, size), random.integers(0, noise + 1, (*size, 3), np.uint8)))
    writer.release()
    return path


def read_video(path) -> list[np.ndarray]:
    reader, frames = cv2.VideoCapture(str(path)), []
    while (got := reader.read())[0]:
        frames.append(got[1])
    return frames


def edge(labels) -> int:
    return int(np.argmax(labels[len(labels) // 2] == 1))


@pytest.mark.parametrize("suffix", sorted(video.CODECS))
def test_a_video(run, tmp_path, suffix):
    write_video(tmp_path / "in.avi")
    assert run("--video-input", "in.avi", "--output", f"seen/out{suffix}") == 0
    seen = read_video(f"seen/out{suffix}")
    assert len(seen) == 10 and cv2.VideoCapture(f"seen/out{suffix}").get(cv2.CAP_PROP_FPS) == 12.5
    assert np.abs(np.diff([picture.astype(int) for picture in seen], axis=0)).max() > 50  # it moves
    assert sorted(path.name for path in Path("seen").iterdir()) == [f"out{suffix}"]


def test_labels_of_frames_in_batches(run, tmp_path, model):
    write_video(tmp_path / "in.avi")
    assert run("--video-input", "in.avi", "--output", "out.webm", "--labels", "--batch-size", 4) == 0
    assert model.batches == [4, 4, 2]
    files = sorted(Path("out_labels").iterdir())
    assert [file.name for file in files] == [f"{number:06d}.png" for number in range(10)]
    for number, file in enumerate(files):
        labels = np.asarray(Image.open(file))
        assert labels.shape == (40, 60) and abs(edge(labels) - 20 - 2 * number) <= 2


def test_a_folder_of_frames(run, tmp_path, capsys, model):
    """In the order of their numbers; broken frames and those of another size are named, and the others are done."""
    (tmp_path / "shots").mkdir()
    for number in range(12):
        Image.fromarray(frame(number, (41, 61))).save(tmp_path / f"shots/f{number}.png")
    (tmp_path / "shots/f3.png").write_bytes((tmp_path / "shots/f3.png").read_bytes()[:60])
    Image.fromarray(frame(5, (20, 30))).save(tmp_path / "shots/f5.png")
    Path("out").mkdir()
    assert run("--video-input", "shots", "--output", "out", "--labels", "--fps", 5) == 1
    seen = read_video("out/shots.mp4")
    assert len(seen) == 10 and cv2.VideoCapture("out/shots.mp4").get(cv2.CAP_PROP_FPS) == 5
    assert seen[0].shape[0] % 2 == 0 and seen[0].shape[0] >= 41  # no row is cut off
    assert edge(np.asarray(Image.open("out/shots_labels/f10.png"))) == pytest.approx(40, abs=2)
    assert model.brightness == sorted(model.brightness, reverse=True)
    captured = capsys.readouterr()
    assert "10 frames done" in captured.out
    listed = captured.err.split("Failed:")[1]
    assert "f3.png" in listed and "f5.png: is 30 x 20, and the first frame is 61 x 41" in listed


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".avi"])
def test_a_video_with_missing_frames_is_named(run, tmp_path, capsys, suffix):
    """Decoders pass over what is damaged, in silence."""
    path = write_video(tmp_path / f"in{suffix}", count=20, noise=60)
    whole = path.read_bytes()
    middle = len(whole) // 2
    # an MP4 without its end has no list of frames, and is no video
    rest = bytes(3000) + whole[middle + 3000 :] if suffix == ".mp4" else whole[middle : middle + 3000]
    path.write_bytes(whole[:middle] + rest)
    assert run("--video-input", path.name, "--output", "out.webm") == 1
    done = len(read_video("out.webm"))
    assert 5 < done < 20
    error = capsys.readouterr().err
    assert f"in{suffix}: only {done} of 20 frames can be read" in error


def test_what_cannot_be_read(run, tmp_path, capsys):
    (tmp_path / "notes.mp4").write_text("no video")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/a.png").write_text("no image")
    for name, complaint in (
        ("notes.mp4", "notes.mp4: cannot be read as a video"),
        ("missing.mp4", "missing.mp4: there is no such file"),
        ("empty", "no image in this folder"),
        ("broken", "none of its 1 images can be read"),
    ):
        assert run("--video-input", name, "--output", "out.mp4") == 2
        assert complaint in capsys.readouterr().err
    assert not Path("out.mp4").exists()


def test_outputs_that_cannot_be_written(run, tmp_path, capsys):
    write_video(tmp_path / "in.avi")
    before = (tmp_path / "in.avi").read_bytes()
    for output, complaint in (("out.gif", "a video ends in one of"), ("in.avi", "would overwrite --video-input")):
        assert run("--video-input", "in.avi", "--output", output) == 2
        assert complaint in capsys.readouterr().err
    assert (tmp_path / "in.avi").read_bytes() == before


def test_a_full_disk_leaves_no_video(run, tmp_path, capsys, monkeypatch):
    """OpenCV says nothing of frames that it could not write."""
    write_video(tmp_path / "in.avi")
    writer = cv2.VideoWriter

    class Forgetful:
        def __init__(self, *arguments):
            self.writer, self.count = writer(*arguments), 0
            self.isOpened, self.release = self.writer.isOpened, self.writer.release

        def write(self, image):
            self.count += 1
            if self.count < 6:
                self.writer.write(image)

    monkeypatch.setattr(video.cv2, "VideoWriter", Forgetful)
    assert run("--video-input", "in.avi", "--output", "out.mp4") == 2
    assert "10 frames were written and 5 can be read" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.avi"]


def test_ctrl_c_keeps_what_is_done(run, tmp_path, capsys, model):
    write_video(tmp_path / "in.avi")

    def forward(samples):
        if len(model.batches) == 3:
            raise KeyboardInterrupt
        return Sides.forward(model, samples)

    model.forward = forward
    assert run("--video-input", "in.avi", "--output", "out.mp4") == 1
    assert len(read_video("out.mp4")) == 3
    assert "stopped after 3 frames" in capsys.readouterr().err


class Window:
    """Stands in for a screen and a camera of three frames; Esc is pressed at the second frame."""

    def __init__(self, monkeypatch, gui="QT5"):
        self.shown = []
        monkeypatch.setenv("DISPLAY", ":0")
        monkeypatch.setattr(cv2, "getBuildInformation", lambda: f"  GUI:                           {gui}\n")
        monkeypatch.setattr(cv2, "imshow", lambda name, image: self.shown.append(image))
        monkeypatch.setattr(cv2, "waitKey", lambda delay: 27 if len(self.shown) == 2 else -1)
        monkeypatch.setattr(cv2, "destroyAllWindows", lambda: None)
        monkeypatch.setattr(cv2, "VideoCapture", lambda source: self)

    def isOpened(self):
        return True

    def read(self):
        return True, frame(0)

    def release(self):
        self.shown.append("released")


def test_webcam(run, monkeypatch, capsys):
    window = Window(monkeypatch)
    assert run("--webcam") == 0
    assert window.shown[0].shape[0] >= 40 and window.shown[2:] == ["released"]
    assert "2 frames shown" in capsys.readouterr().out


def test_webcam_says_what_it_needs(run, monkeypatch, capsys):
    Window(monkeypatch, gui="NONE")
    assert run("--webcam") == 2
    assert "pip install opencv-python." in capsys.readouterr().err
    window = Window(monkeypatch)
    window.read = lambda: (False, None)
    assert run("--webcam") == 2
    assert "camera 0 cannot be opened" in capsys.readouterr().err
    if sys.platform == "linux":
        monkeypatch.delenv("DISPLAY")
        monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
        assert run("--webcam") == 2
        assert "there is no screen" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "one of the arguments --input --video-input --webcam is required"),
        (("--input", "a.png"), "--input needs --output"),
        (("--webcam", "--output", "a.mp4"), "--webcam shows its result"),
        (("--video-input", "a.mp4", "--save", "coco", "--output", "b.mp4"), "--save goes with --input"),
        (("--video-input", "a.mp4", "--labels"), "--labels needs --output"),
        (("--video-input", "a.mp4", "--batch-size", 0), "--batch-size is 0"),
        (("--video-input", "a.mp4", "--fps", 0), "--fps is 0.0"),
        (("--video-input", "a.mp4", "--confidence", 1.5), "--confidence is 1.5"),
        (("--video-input", "a.mp4", "--min-area", -1), "--min-area is -1"),
    ],
)
def test_bad_arguments(run, capsys, arguments, complaint):
    assert run(*arguments) == 2
    assert complaint in capsys.readouterr().err


def test_confidence_and_area_of_an_image(run, tmp_path):
    """The dark side is sure by 0.92; the grey strip by 0.55, and the small spot has 9 pixels."""
    pixels = frame(0, (60, 60))
    pixels[:10] = 140
    pixels[40:43, 5:8] = 235
    Image.fromarray(pixels).save(tmp_path / "a.png")
    size = ("--opts", "INPUT.MIN_SIZE_TEST", 60)
    for options, left_out in (((), 0), (("--confidence", 0.7), 600), (("--min-area", 30), 9)):
        assert run("--input", "a.png", "--output", "out", "--labels", *options, *size) == 0
        labels = np.asarray(Image.open("out/a_labels.png"))
        assert abs(int((labels == 255).sum()) - left_out) <= left_out // 4


def test_confidence_of_instances(run, tmp_path, model):
    mask = torch.ones(1, 60, 60, dtype=torch.bool)
    model.forward = lambda samples: [{"instances": Instances(torch.tensor([0.4]), torch.tensor([1]), mask)}]
    Image.fromarray(np.full((60, 60, 3), 9, np.uint8)).save(tmp_path / "a.png")
    instances = ("--opts", "MODEL.MASK_FORMER.TEST.SEMANTIC_ON", False, "MODEL.MASK_FORMER.TEST.INSTANCE_ON", True)
    for options, number in (((), 0), (("--confidence", 0.3), 1), (("--confidence", 0.3, "--min-area", 3601), 0)):
        assert run("--input", "a.png", "--output", "out", "--save", "coco", *options, *instances) == 0
        assert Path("out/coco.json").read_text().count('"score"') == number


def test_confidence_needs_scores(run, tmp_path, capsys):
    Image.fromarray(frame(0)).save(tmp_path / "a.png")
    arguments = ("--input", "a.png", "--output", "out", "--confidence", 0.5, "--opts")
    assert run(*arguments, "MODEL.MASK_FORMER.TEST.SEMANTIC_OUTPUT", "labels") == 2
    assert "needs scores" in capsys.readouterr().err
    assert run(*arguments, "MODEL.MASK_FORMER.TEST.PANOPTIC_ON", True) == 2
    assert "panoptic segments have no score" in capsys.readouterr().err
