import io
import json
import logging
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fasegr.d2 import EventStorage
from fasegr.engine import hooks
from fasegr.engine.hooks import BestCheckpoint, Checkpoints, Evaluation, LearningRate, Metrics, Progress
from fasegr.engine.interruption import Interrupted, Interruption
from fasegr.utils.metrics_file import read_metrics


@pytest.fixture
def trainer():
    cfg = SimpleNamespace(MODEL=SimpleNamespace(DEVICE="cpu"))
    trainer = SimpleNamespace(cfg=cfg, iter=0, start_iter=0, max_iter=7, interruption=Interruption())
    trainer.finish_step = lambda: None
    with EventStorage(0) as trainer.storage:
        yield trainer


def attach(trainer, *attached):
    for hook in attached:
        hook.trainer = trainer
        hook.before_train()


def go(trainer, attached, first, last):
    """Iterations first .. last, in which the loss is 10 times the iteration."""
    for trainer.iter in range(first, last + 1):
        trainer.storage.iter = trainer.iter
        trainer.storage.put_scalars(total_loss=10.0 * trainer.iter, loss_mask_3=1.0, time=0.1, data_time=0.0)
        for hook in attached:
            hook.after_step()


def lines(tmp_path):
    return read_metrics(tmp_path / "metrics.json")


def test_metrics_are_means_of_periods(trainer, tmp_path, caplog):
    metrics = Metrics(str(tmp_path), period=3)
    attach(trainer, metrics)
    with caplog.at_level(logging.INFO, "fasegr"):
        go(trainer, [metrics], 0, 6)
    metrics.close()
    assert [(line["iteration"], line["total_loss"]) for line in lines(tmp_path)] == [(2, 10.0), (5, 40.0), (6, 60.0)]
    assert lines(tmp_path)[0]["eta_seconds"] == pytest.approx(0.4)
    assert lines(tmp_path)[0]["memory"] > 1
    assert "iteration 3 of 7  0:00:00 left  total_loss 10  0.100 s a step" in caplog.text
    assert "loss_mask_3" not in caplog.text
    assert lines(tmp_path)[0]["loss_mask_3"] == 1.0


def test_values_that_come_a_step_later_are_in_the_means(trainer, tmp_path):
    """As on a GPU: the loss of a step is known in the next one, or when it is asked for."""
    metrics = Metrics(str(tmp_path), period=3)
    attach(trainer, metrics)

    def put(iteration):
        trainer.storage.put_scalar("total_loss", 10.0 * iteration, cur_iter=iteration)

    trainer.finish_step = lambda: put(trainer.iter)
    for trainer.iter in range(7):
        if trainer.iter % 3:  # that of the last step of a period has been asked for
            put(trainer.iter - 1)
        trainer.storage.put_scalars(time=0.1, data_time=0.0, cur_iter=trainer.iter)
        metrics.after_step()
    metrics.close()
    assert [line["total_loss"] for line in lines(tmp_path)] == [10.0, 40.0, 60.0]


def test_metrics_are_the_same_after_a_resume(trainer, tmp_path):
    metrics = Metrics(str(tmp_path), period=3)
    attach(trainer, metrics)
    go(trainer, [metrics], 0, 3)
    state = metrics.state_dict()  # of a checkpoint in the middle of a period
    go(trainer, [metrics], 4, 5)  # killed after it had written one more line
    metrics.close()

    metrics = Metrics(str(tmp_path), period=3)
    metrics.load_state_dict(state)
    trainer.start_iter = 4
    attach(trainer, metrics)
    go(trainer, [metrics], 4, 6)
    metrics.close()
    assert [(line["iteration"], line["total_loss"]) for line in lines(tmp_path)] == [(2, 10.0), (5, 40.0), (6, 60.0)]


def test_checkpoints_and_the_final_one(trainer):
    saved = []
    hook = Checkpoints(SimpleNamespace(save=lambda name, iteration: saved.append((name, iteration))), period=3)
    attach(trainer, hook)
    go(trainer, [hook], 0, 6)
    assert saved == [("model_0000002", 2), ("model_0000005", 5), ("model_final", 6)]


class Best:
    """Notes in `calls` what the evaluation does, and may be killed instead of writing model_best."""

    score = "sem_seg/mIoU"

    def __init__(self, calls, killed=False):
        self.calls, self.killed = calls, killed

    def keep(self, iteration, scores):
        if self.killed:
            raise KeyboardInterrupt
        self.calls.append(("best", iteration, scores[self.score]))


def make_evaluation(trainer, tmp_path, period=2, start_iter=0, killed=False):
    trainer.iter = trainer.start_iter = start_iter
    metrics = Metrics(str(tmp_path))
    calls = []

    def evaluate():
        calls.append(("evaluate", trainer.iter))
        return {"sem_seg": {"mIoU": 50.0 - trainer.iter, "IoU-boat": float("nan")}}

    evaluation = Evaluation(period, evaluate, metrics, Best(calls, killed))
    attach(trainer, metrics, evaluation)
    return metrics, evaluation, calls


def evaluated(calls):
    return [call[1] for call in calls if call[0] == "evaluate"]


def test_no_process_evaluates_where_one_has_got_a_signal(trainer, tmp_path, monkeypatch):
    """It would leave the others alone in the evaluation."""
    metrics, evaluation, calls = make_evaluation(trainer, tmp_path)
    monkeypatch.setattr(hooks.comm, "all_gather", lambda value: [value, True])
    with pytest.raises(Interrupted) as stopped:
        go(trainer, [evaluation], 0, 2)
    metrics.close()
    assert stopped.value.together
    assert not calls


def test_evaluation_comes_periodically_and_at_the_end(trainer, tmp_path):
    metrics, evaluation, calls = make_evaluation(trainer, tmp_path)
    go(trainer, [evaluation], 0, 6)
    assert evaluated(calls) == [1, 3, 5]
    trainer.iter = 7
    evaluation.after_train()
    metrics.close()
    assert evaluated(calls) == [1, 3, 5, 7]
    assert [line["iteration"] for line in lines(tmp_path)] == [1, 3, 5, 6]
    assert trainer.storage.latest()["sem_seg/mIoU"] == (43.0, 6)
    assert [call for call in calls if call[0] == "best"][-1] == ("best", 6, 43.0)


@pytest.mark.parametrize(("start", "at"), [(0, 6), (7, 7)])
def test_no_evaluation_after_a_failure(trainer, tmp_path, start, at):
    _, evaluation, calls = make_evaluation(trainer, tmp_path, period=0, start_iter=start)
    trainer.iter = at  # during the last iteration, or before the first of a run that has nothing left to do
    evaluation.after_train()
    assert calls == []


@pytest.mark.parametrize(("written", "runs"), [(False, 1), (True, 0)])
@pytest.mark.parametrize("score", ["sem_seg/mIoU", "sem_seg/pACC"])  # numbers that are not finite are not written
def test_an_evaluation_that_was_killed_is_made_up(trainer, tmp_path, written, runs, score):
    lines = [{"iteration": 3, "total_loss": 1.0}] + [{"iteration": 3, score: 40.0}] * written
    (tmp_path / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, _, calls = make_evaluation(trainer, tmp_path, start_iter=4)
    assert len(evaluated(calls)) == runs
    assert ("sem_seg/mIoU" in trainer.storage.latest()) == (runs == 1)


def test_a_run_killed_while_it_writes_model_best_evaluates_again(trainer, tmp_path):
    metrics, evaluation, calls = make_evaluation(trainer, tmp_path, killed=True)
    with pytest.raises(KeyboardInterrupt):
        go(trainer, [evaluation], 0, 1)
    metrics.close()
    _, _, calls = make_evaluation(trainer, tmp_path, start_iter=2)
    assert calls == [("evaluate", 2), ("best", 1, 48.0)]


@pytest.mark.parametrize(("written", "runs"), [(False, 1), (True, 0)])
def test_a_finished_run_is_evaluated_once(trainer, tmp_path, written, runs):
    (tmp_path / "metrics.json").write_text('{"iteration": 6, "sem_seg/mIoU": 40.0}\n' * written)
    metrics, evaluation, calls = make_evaluation(trainer, tmp_path, start_iter=7)
    trainer.iter = 8
    evaluation.after_train()
    metrics.close()
    assert len(evaluated(calls)) == runs
    assert [line["iteration"] for line in lines(tmp_path)] == [6]


def make_best(trainer, tmp_path, start_iter=0):
    model = nn.Linear(1, 1)
    best = BestCheckpoint(model, str(tmp_path), "sem_seg/mIoU")
    trainer.start_iter = start_iter
    attach(trainer, best)

    def keep(score, iteration):
        nn.init.constant_(model.weight, iteration)
        best.keep(iteration, {"sem_seg/mIoU": score})

    return keep


def best_iteration(tmp_path):
    saved = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert saved["model"]["weight"].item() == saved["iteration"]
    return saved["iteration"]


def test_the_best_weights_are_kept_and_known_to_a_resumed_run(trainer, tmp_path):
    keep = make_best(trainer, tmp_path)
    keep(float("nan"), 0)
    assert not (tmp_path / "model_best.pth").exists()
    for score, iteration, best in ((40.0, 1, 1), (50.0, 2, 2), (45.0, 3, 2)):
        keep(score, iteration)
        assert best_iteration(tmp_path) == best
    assert not (tmp_path / "last_checkpoint").exists(), "a run does not resume from the best checkpoint"

    keep = make_best(trainer, tmp_path, start_iter=4)
    for score, iteration, best in ((47.0, 5, 2), (51.0, 6, 6)):
        keep(score, iteration)
        assert best_iteration(tmp_path) == best


def damage(path, kind):
    if kind == "foreign":
        torch.save({"w": torch.zeros(1)}, path)
    elif kind == "score":
        torch.save({**torch.load(path, weights_only=True), "sem_seg/mIoU": "high"}, path)
    elif kind == "other model":
        torch.save({"model": {"weight": torch.zeros(2, 1), "bias": torch.zeros(2)}, "sem_seg/mIoU": 50.0}, path)
    else:
        data = bytearray(path.read_bytes())
        path.write_bytes(data[:-9] if kind == "torn" else b"")


@pytest.mark.parametrize("kind", ["torn", "empty", "foreign", "score", "other model"])
def test_a_damaged_model_best_does_not_keep_a_run_from_going_on(trainer, tmp_path, kind, caplog):
    make_best(trainer, tmp_path)(50.0, 1)
    damage(tmp_path / "model_best.pth", kind)
    keep = make_best(trainer, tmp_path, start_iter=2)
    assert any(r.levelname == "WARNING" and "model_best.pth" in r.getMessage() for r in caplog.records)
    keep(40.0, 3)
    assert best_iteration(tmp_path) == 3


def test_scalars_that_nothing_reads_are_forgotten(trainer, tmp_path):
    """detectron2's storage keeps them all."""
    metrics = Metrics(str(tmp_path), period=50)
    attach(trainer, metrics)
    trainer.max_iter = 10_000
    go(trainer, [metrics], 0, 499)
    metrics.close()
    kept = getattr(trainer.storage, "histories", dict)()
    assert all(len(history.values()) <= 150 for history in kept.values())
    assert trainer.storage.latest()["total_loss"] == (4990.0, 499)


def test_the_learning_rate_of_the_largest_group_is_noted(trainer):
    small, large = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(9))
    trainer.optimizer = torch.optim.SGD([{"params": [small], "lr": 0.5}, {"params": [large], "lr": 0.25}])
    trainer.scheduler = torch.optim.lr_scheduler.LambdaLR(trainer.optimizer, lambda i: 1 / (1 + i))
    hook = LearningRate()
    attach(trainer, hook)
    trainer.optimizer.step()
    hook.after_step()
    assert trainer.storage.latest()["lr"][0] == 0.25
    assert trainer.optimizer.param_groups[1]["lr"] == 0.125
    other = LearningRate()
    other.trainer = trainer
    other.load_state_dict(hook.state_dict())


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_progress(trainer, monkeypatch, kind):
    terminal = kind()
    monkeypatch.setattr("sys.stderr", terminal)
    trainer.start_iter = 2
    hook = Progress()
    attach(trainer, hook)
    go(trainer, [hook], 2, 6)
    hook.close()
    shown = terminal.getvalue()
    if kind is Terminal:
        assert "7/7" in shown
        assert "it/s" in shown or "s/it" in shown
        assert "loss 60.000, " in shown
        assert " MB" in shown
    else:
        assert shown == "", "a file or a pipe gets log lines only"
