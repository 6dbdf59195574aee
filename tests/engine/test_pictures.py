import pytest
from PIL import Image

from fasegr.engine import pictures
from fasegr.engine.pictures import draw_samples
from fasegr.engine.trainer import Trainer
from tests.engine.tiny_training import CLASSES, tiny_cfg


@pytest.mark.parametrize(("number", "drawn"), [(2, ["1.png", "4.png"]), (9, [f"{i}.png" for i in range(6)])])
def test_samples_are_spread_over_the_dataset(dataset_root, tmp_path, monkeypatch, number, drawn):
    def draw(rows, class_names, colours, ignore_label, titles):
        seen.extend(rows)
        assert (list(class_names), colours, ignore_label) == (list(CLASSES), None, 255)
        assert titles == ("Image", "Truth", "Prediction")
        return Image.new("RGB", (8, 8))

    seen, files = [], []
    monkeypatch.setattr(pictures, "side_by_side", draw)
    read = pictures.read_image
    monkeypatch.setattr(pictures, "read_image", lambda file: files.append(file) or read(file))
    cfg = tiny_cfg(dataset_root, tmp_path)
    model = Trainer.build_model(cfg).train()
    samples = Trainer.build_test_loader(cfg, "tiny_train").dataset
    draw_samples(model, samples, "tiny_train", str(tmp_path / "samples.png"), number)

    assert [file.rpartition("/")[2] for file in files] == drawn
    assert all(image.shape == (16, 16, 3) for image, *_ in seen)
    assert all(truth.shape == labels.shape == (16, 16) for _, truth, labels in seen)
    assert model.training, "as it was"
    assert Image.open(tmp_path / "samples.png").size == (8, 8)
