import json

import pytest
from PIL import Image

from fasegr.visualization.curves import plot_training

pytestmark = pytest.mark.slow


def write(path, entries) -> None:
    path.write_text("".join(entry if isinstance(entry, str) else json.dumps(entry) + "\n" for entry in entries))


def loss(iteration, value=1.0):
    return {"iteration": iteration, "total_loss": value, "loss_ce": value / 2, "loss_ce_0": value / 2, "lr": 0.1}


def score(iteration, value):
    return {"iteration": iteration, "sem_seg/mIoU": value, "sem_seg/pACC": 1.0}


@pytest.mark.parametrize(
    ("entries", "panels"),
    [
        ([loss(i, 9 - i / 20) for i in range(100)] + [score(99, 40.0)], 2),
        ([loss(0), loss(1)], 1),
        ([loss(0)], 1),
        ([loss(0, 0.0)], 1),
        ([score(10, 30.0)], 1),
        ([score(10, float("nan")), loss(11)], 1),
        ([loss(0), {"iteration": 0, "a_val/sem_seg/mIoU": 3.0, "b_val/sem_seg/mIoU": 5.0}], 2),
        ([loss(0), score(0, 1.0), '{"iteration": 1, "total'], 2),
        ([{"iteration": 9, "segm/AP": 3.0}], 1),
        ([loss(0), {"iteration": 0, "panoptic_seg/PQ": 5.0, "segm/AP": 3.0, "sem_seg/mIoU": 7.0}], 2),
    ],
    ids=["both", "losses", "one line", "zero", "only scores", "NaN score", "two datasets", "torn line", "AP", "all"],
)
def test_plot_training(tmp_path, entries, panels):
    write(tmp_path / "metrics.json", entries)
    plot_training(tmp_path / "metrics.json", tmp_path / "new" / "curves.png")
    with Image.open(tmp_path / "new" / "curves.png") as picture:
        assert picture.size == (896 * panels, 608)
        assert len(set(picture.convert("L").tobytes())) > 10


@pytest.mark.parametrize("entries", [[], [{"iteration": 3, "lr": 0.1}], [score(10, float("nan"))]])
def test_plot_of_nothing(tmp_path, entries):
    write(tmp_path / "metrics.json", entries)
    with pytest.raises(ValueError, match="neither losses nor scores"):
        plot_training(tmp_path / "metrics.json", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_what_a_resumed_training_did_again_replaces_the_first(tmp_path):
    def image(entries):
        write(tmp_path / "metrics.json", entries)
        plot_training(tmp_path / "metrics.json", tmp_path / "curves.png")
        return (tmp_path / "curves.png").read_bytes()

    resumed = [loss(0, 9), loss(20, 8), score(20, 5.0), loss(40, 7), loss(10, 6), loss(30, 5)]
    assert image(resumed) == image([loss(0, 9), loss(10, 6), loss(30, 5)])
    assert image(resumed) != image([loss(0, 9), loss(20, 8), loss(30, 5)])
