"""The average of the weights: against a loop over iterations, through a resume, and in the files of a training."""

import signal

import pytest
import torch
from torch import nn

from fasegr import load_checkpoint
from fasegr.checkpoint import read_checkpoint
from fasegr.d2 import HookBase
from fasegr.engine import Trainer
from fasegr.engine.interruption import Interrupted
from fasegr.engine.weight_average import WeightAverage
from tests.engine.test_trainer import SignalAt, metrics, run
from tests.engine.tiny_training import tiny_cfg

pytestmark = pytest.mark.usefixtures("no_pictures")
EMA = ("SOLVER.EMA.ENABLED", True, "SOLVER.EMA.DECAY", 0.5)


class Notes(HookBase):
    """Keeps the weights after each iteration."""

    def __init__(self):
        self.weights = []

    def after_step(self):
        state = self.trainer.unwrapped_model.state_dict()
        self.weights.append({name: value.double().clone() for name, value in state.items()})


def test_it_is_the_average_of_a_loop_over_iterations(dataset_root, tmp_path):
    notes = Notes()
    trainer = Trainer(tiny_cfg(dataset_root, tmp_path, *EMA, "SOLVER.EMA.DECAY", 0.3))
    expected = {name: value.double().clone() for name, value in trainer.model.state_dict().items()}
    trainer.register_hooks([notes])
    trainer.train()
    for n, weights in enumerate(notes.weights, start=1):
        decay = min(0.3, (1 + n) / (10 + n))  # 2 / 11 and 3 / 12, then 0.3
        expected = {name: decay * expected[name] + (1 - decay) * weights[name] for name in expected}
    averaged = read_checkpoint(str(tmp_path / "model_final_ema.pth")).weights
    torch.testing.assert_close({n: v.double() for n, v in averaged.items()}, expected, rtol=1e-5, atol=1e-7)
    assert not torch.equal(averaged["head.bias"].double(), notes.weights[-1]["head.bias"])


def test_a_training_with_an_average(dataset_root, tmp_path):
    """Weights and their scores are those without; those of the average stand beside them and belong to its files."""
    options = ("TEST.EVAL_PERIOD", 2)
    plain = run(tiny_cfg(dataset_root, tmp_path / "plain", *options))
    whole = run(tiny_cfg(dataset_root, tmp_path / "whole", *options, *EMA))
    torch.testing.assert_close(whole.model.state_dict(), plain.model.state_dict(), rtol=0, atol=0)
    for line, without in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "plain"), strict=True):
        assert {name: value for name, value in line.items() if "_EMA/" not in name} == without
    scores = [line["sem_seg_EMA/mIoU"] for line in metrics(tmp_path / "whole") if "sem_seg_EMA/mIoU" in line]
    best = read_checkpoint(str(tmp_path / "whole" / "model_best_ema.pth"))
    assert best.rest["sem_seg_EMA/mIoU"] == max(scores)
    assert (tmp_path / "whole" / "model_best.pth").exists()

    model = Trainer.build_model(plain.cfg)
    assert load_checkpoint(model, str(tmp_path / "whole" / "model_final_ema.pth")).kind == "full"
    assert Trainer.test(plain.cfg, model)["sem_seg"]["mIoU"] == pytest.approx(scores[-1], abs=1e-9)

    cfg = tiny_cfg(dataset_root, tmp_path / "parts", *options, *EMA)
    with pytest.raises(Interrupted):
        run(cfg, hooks=[SignalAt(2, signal.SIGTERM)])
    run(cfg, resume=True)
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    for name in ("model_final_ema.pth", "model_best_ema.pth"):
        files = [read_checkpoint(str(tmp_path / folder / name)).weights for folder in ("parts", "whole")]
        torch.testing.assert_close(*files, rtol=0, atol=0)


def test_an_average_that_begins_later_says_so(dataset_root, tmp_path, caplog):
    with pytest.raises(Interrupted):
        run(tiny_cfg(dataset_root, tmp_path, "DATASETS.TEST", ()), hooks=[SignalAt(2)])
    resumed = run(tiny_cfg(dataset_root, tmp_path, "DATASETS.TEST", (), *EMA), resume=True)
    assert "it begins here" in caplog.text
    averaged = read_checkpoint(str(tmp_path / "model_final_ema.pth")).weights["head.weight"]
    assert (averaged - resumed.model.state_dict()["head.weight"]).abs().max() < 0.1


def test_statistics_are_averaged_and_frozen_parameters_shared():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[0].weight.requires_grad_(False)
    average = WeightAverage(model, 0.9)
    average.updates = 0
    model(torch.randn(5, 2))
    average.after_step()
    assert average.model[0].weight is model[0].weight
    decay = 2 / 11
    torch.testing.assert_close(average.model[1].running_mean, (1 - decay) * model[1].running_mean)
    assert average.model[1].num_batches_tracked == 1
    assert not average.model.training
    assert not any(parameter.requires_grad for parameter in average.model[1].parameters())
