"""The end of a training without better scores, and what resuming it does."""

import os
import signal

import pytest
import torch

from fasegr.checkpoint import read_checkpoint
from fasegr.engine import Trainer
from fasegr.engine.early_stop import Patience
from fasegr.engine.interruption import Interrupted
from tests.engine.test_trainer import SignalAt, metrics, run
from tests.engine.tiny_training import tiny_cfg

pytestmark = pytest.mark.usefixtures("no_pictures")
OPTIONS = ("SOLVER.MAX_ITER", 8, "TEST.EVAL_PERIOD", 1, "SOLVER.CHECKPOINT_PERIOD", 3)


def cfg(dataset_root, output_dir, patience=2):
    return tiny_cfg(dataset_root, output_dir, *OPTIONS, "SOLVER.PATIENCE", patience)


@pytest.fixture
def scores(monkeypatch):
    """Scores of the evaluations by the iterations done; the best is after the second."""
    values = dict(enumerate([10.0, 30.0, 20.0, 30.0, 50.0, 5.0, 5.0, 60.0], start=1))

    def test(cfg, model):
        return {"sem_seg": {"mIoU": values[int(cfg.MODEL.WEIGHTS.rpartition(" ")[2])]}}

    monkeypatch.setattr(Trainer, "test", staticmethod(test))


def evaluations(folder):
    return [(line["iteration"], line["sem_seg/mIoU"]) for line in metrics(folder) if "sem_seg/mIoU" in line]


def test_it_ends_after_evaluations_without_a_better_score(dataset_root, tmp_path, scores, caplog):
    trainer = run(cfg(dataset_root, tmp_path))
    assert trainer.iter == trainer.max_iter == 4
    assert evaluations(tmp_path) == [(0, 10.0), (1, 30.0), (2, 20.0), (3, 30.0)]
    assert read_checkpoint(str(tmp_path / "model_final.pth")).rest["iteration"] == 3

    run(cfg(dataset_root, tmp_path), resume=True)  # nothing is trained
    assert len(evaluations(tmp_path)) == 4

    run(cfg(dataset_root, tmp_path, patience=0), resume=True)  # what was to be trained is
    whole = run(cfg(dataset_root, tmp_path / "whole", patience=0))
    torch.testing.assert_close(
        read_checkpoint(str(tmp_path / "model_final.pth")).weights, whole.model.state_dict(), rtol=0, atol=0
    )
    assert evaluations(tmp_path) == evaluations(tmp_path / "whole")


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_run_that_was_stopped_ends_at_the_same_iteration(dataset_root, tmp_path, scores, at):
    with pytest.raises(Interrupted):
        run(cfg(dataset_root, tmp_path), hooks=[SignalAt(at, signal.SIGTERM)])
    trainer = run(cfg(dataset_root, tmp_path), resume=True)
    assert trainer.max_iter == 4
    assert evaluations(tmp_path) == [(0, 10.0), (1, 30.0), (2, 20.0), (3, 30.0)]
    assert read_checkpoint(str(tmp_path / "model_final.pth")).rest["iteration"] == 3


def test_a_better_score_of_either_kind_counts(tmp_path):
    patience = Patience(2, 1, ["sem_seg/mIoU", "sem_seg_EMA/mIoU"], str(tmp_path))
    rows = [(10, 10), (9, 11), (9, 10), (None, 12), (9, 9), (10, 12)]
    for i, (plain, average) in enumerate(rows):
        with open(os.path.join(tmp_path, "metrics.json"), "a") as file:
            scores = {"sem_seg/mIoU": plain, "sem_seg/IoU-road": 1.0, "sem_seg_EMA/mIoU": average}
            known = ", ".join(f'"{name}": {value}' for name, value in scores.items() if value is not None)
            file.write(f'{{"iteration": {i}, "loss": 1}}\n{{"iteration": {i}, {known}}}\n')
        patience.before_train()
        assert patience.exhausted == (i == 5)
