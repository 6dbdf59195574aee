import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import yaml

from fasegr.checkpoint import Checkpointer, read_checkpoint
from fasegr.d2 import HookBase, MetadataCatalog
from fasegr.engine import Trainer
from fasegr.engine.interruption import Interrupted
from fasegr.engine.train_step import NonFiniteLoss, TrainStep
from fasegr.utils.metrics_file import read_metrics
from tests.engine.tiny_training import AsOnGPU, TinySegmentor, tiny_cfg

ROOT = Path(__file__).parents[2]


class SignalAt(HookBase):
    """Sends this process a signal during one iteration, or in an evaluation."""

    def __init__(self, iteration, signum=signal.SIGINT):
        self.iteration, self.signum = iteration, signum

    def before_step(self):
        if self.trainer.iter == self.iteration:
            os.kill(os.getpid(), self.signum)


def run(cfg, resume=False, hooks=()):
    trainer = Trainer(cfg)
    trainer.register_hooks(hooks)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def metrics(output_dir):
    clocks = ("time", "data_time", "eta_seconds", "memory")
    lines = read_metrics(output_dir / "metrics.json")
    return [{name: value for name, value in line.items() if name not in clocks} for line in lines]


def test_the_report_of_a_training_is_that_of_its_last_evaluation(dataset_root, tmp_path):
    run(tiny_cfg(dataset_root, tmp_path, "TEST.EVAL_PERIOD", 4, "TEST.REPORT", True))
    folder = tmp_path / "inference" / "report"
    report = json.loads((folder / "report.json").read_text())
    assert report["weights"] == f"{tmp_path}, iteration 6"
    last = [line for line in metrics(tmp_path) if "sem_seg/mIoU" in line][-1]
    assert report["scores"]["mIoU"][0] == pytest.approx(last["sem_seg/mIoU"])
    assert "iteration 6" in (folder / "report.html").read_text(encoding="utf-8")


def test_predictions_are_written_beside_an_evaluation(dataset_root, tmp_path):
    run(tiny_cfg(dataset_root, tmp_path, "TEST.SAVE_PREDICTIONS", ["coco", "confidence"], "TEST.EVAL_PERIOD", 0))
    folder = tmp_path / "inference" / "predictions"
    assert len(json.loads((folder / "coco.json").read_text())["images"]) == 3
    assert len([*folder.rglob("confidence/*.png")]) == 3
    assert any("sem_seg/mIoU" in line for line in metrics(tmp_path))


def test_a_whole_training(dataset_root, tmp_path, caplog):
    out = tmp_path / "out"
    with caplog.at_level(logging.INFO, "fasegr"):
        trainer = run(tiny_cfg(dataset_root, out, "TEST.EVAL_PERIOD", 4))
    assert {path.name for path in out.iterdir() if not path.name.startswith("events.out")} == {
        *("config.yaml", "metrics.json", "last_checkpoint", "curves.png", "samples.png"),
        *("model_0000001.pth", "model_0000003.pth", "model_final.pth", "model_best.pth"),
    }
    assert list(out.glob("events.out.tfevents.*"))
    assert (out / "last_checkpoint").read_text() == "model_final.pth"
    assert yaml.safe_load((out / "config.yaml").read_text())["SOLVER"]["MAX_ITER"] == 6
    assert "0.00 M parameters" in caplog.text
    assert "iteration 6 of 6" in caplog.text

    first, losses, last = metrics(out)
    assert first["iteration"] == 3
    assert last["iteration"] == losses["iteration"] == 5
    assert {"sem_seg/mIoU", "sem_seg/IoU-sky", "sem_seg/BoundaryIoU"} <= first.keys()
    assert losses["total_loss"] == pytest.approx(losses["loss_ce"] + losses["loss_ce_0"])
    assert losses["total_loss"] > 0
    best = read_checkpoint(str(out / "model_best.pth")).rest
    assert best["sem_seg/mIoU"] == max(first["sem_seg/mIoU"], last["sem_seg/mIoU"])
    assert trainer.unwrapped_model.training


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_equals_an_uninterrupted_one(dataset_root, tmp_path, workers, caplog):
    options = ("DATASETS.TEST", (), "DATALOADER.NUM_WORKERS", workers, "SOLVER.ACCUMULATE", 2)
    whole = run(tiny_cfg(dataset_root, tmp_path / "whole", *options))

    cfg = tiny_cfg(dataset_root, tmp_path / "parts", *options)
    before = signal.getsignal(signal.SIGINT)  # a shell's background job ignores it
    with pytest.raises(Interrupted) as stopped, caplog.at_level(logging.INFO, "fasegr"):
        run(cfg, hooks=[SignalAt(2)])
    assert stopped.value.exit_code == 130
    assert "Stopped by sigint after iteration 3" in caplog.text
    assert "--resume" in caplog.text
    assert (tmp_path / "parts" / "last_checkpoint").read_text() == "model_0000002.pth"
    assert signal.getsignal(signal.SIGINT) is before

    torch.rand(3)  # whatever was drawn before does not matter
    parts = run(cfg, resume=True)
    assert parts.start_iter == 3
    torch.testing.assert_close(parts.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    finals = [read_checkpoint(str(tmp_path / name / "model_final.pth")).rest["trainer"] for name in ("parts", "whole")]
    torch.testing.assert_close(*(final["_trainer"]["optimizer"] for final in finals), rtol=0, atol=0)
    assert finals[0]["hooks"]["LearningRate"] == finals[1]["hooks"]["LearningRate"]


def test_a_gpu_is_not_waited_for_and_nothing_else_changes(dataset_root, tmp_path):
    options = ("TEST.EVAL_PERIOD", 5, "SOLVER.CHECKPOINT_PERIOD", 5)
    plain = run(tiny_cfg(dataset_root, tmp_path / "plain", *options))
    cfg = tiny_cfg(dataset_root, tmp_path / "parts", *options)
    with pytest.raises(Interrupted):
        run(cfg, hooks=[AsOnGPU(), SignalAt(2)])
    assert (tmp_path / "parts" / "last_checkpoint").read_text() == "model_0000002.pth"
    parts = run(cfg, resume=True, hooks=[AsOnGPU()])
    torch.testing.assert_close(parts.model.state_dict(), plain.model.state_dict(), rtol=0, atol=0)
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "plain")


@pytest.mark.parametrize("saved_at", [2, 100])
def test_nothing_is_saved_of_a_bad_step_on_a_gpu(dataset_root, tmp_path, monkeypatch, saved_at):
    """NaN in the second step: it is noticed by the checkpoint after it, or in the third step, which fails otherwise."""

    class Break(HookBase):
        def before_step(self):
            if self.trainer.iter == 1:
                monkeypatch.setattr(TinySegmentor, "break_at", [f"{i}.png" for i in range(6)])

    cfg = tiny_cfg(dataset_root, tmp_path, "DATASETS.TEST", (), "SOLVER.CHECKPOINT_PERIOD", saved_at)
    hooks = [AsOnGPU(), Break()]
    if saved_at == 2:
        with pytest.raises(NonFiniteLoss, match="iteration 1: loss_ce is nan"):
            run(cfg, hooks=hooks)
    else:
        with pytest.raises(RuntimeError, match="out of order"):
            run(cfg, hooks=[*hooks, Fails(monkeypatch, (TrainStep, "fetch"), 2, RuntimeError("out of order"))])
    assert not list(tmp_path.glob("model_*.pth"))


def test_a_run_killed_after_its_checkpoint_writes_no_line_twice(dataset_root, tmp_path):
    class Killed(BaseException):
        pass

    class KillAt(HookBase):
        def before_step(self):
            if self.trainer.iter == 5:
                raise Killed

    cfg = tiny_cfg(dataset_root, tmp_path / "out", "DATASETS.TEST", ())
    whole = run(tiny_cfg(dataset_root, tmp_path / "whole", "DATASETS.TEST", ()))
    with pytest.raises(Killed):
        run(cfg, hooks=[KillAt()])
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_0000003.pth"
    with open(tmp_path / "out" / "metrics.json", "a") as file:
        file.write('{"iteration": 4, "total_loss": 99.0}\n')  # written after that checkpoint
    resumed = run(cfg, resume=True)
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
    assert metrics(tmp_path / "out") == metrics(tmp_path / "whole")


def test_an_evaluation_can_be_interrupted_and_is_made_up(dataset_root, tmp_path, monkeypatch):
    cfg = tiny_cfg(dataset_root, tmp_path / "out", "TEST.EVAL_PERIOD", 3, "SOLVER.CHECKPOINT_PERIOD", 100)
    test = Trainer.test

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("it continues after the signal")

    monkeypatch.setattr(Trainer, "test", interrupted)
    with pytest.raises(Interrupted) as stopped:
        run(cfg)
    assert stopped.value.exit_code == 143
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_0000002.pth"
    monkeypatch.setattr(Trainer, "test", test)
    run(cfg, resume=True)
    lines = [(line["iteration"], "sem_seg/mIoU" in line) for line in metrics(tmp_path / "out")]
    assert lines == [(2, True), (5, False), (5, True)]


def test_workers_that_die_of_a_ctrl_c_do_not_cost_the_steps_before(dataset_root, tmp_path):
    class DyingLoader(SignalAt):
        def before_step(self):
            if self.trainer.iter == self.iteration:
                self.trainer._trainer._batches = self.fail()

        def fail(self):
            os.kill(os.getpid(), signal.SIGINT)
            raise RuntimeError("DataLoader worker exited unexpectedly")
            yield

    cfg = tiny_cfg(dataset_root, tmp_path, "DATASETS.TEST", ())
    with pytest.raises(Interrupted):
        run(cfg, hooks=[DyingLoader(3)])
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000002.pth"
    assert read_checkpoint(str(tmp_path / "model_0000002.pth")).rest["trainer"]["iteration"] == 2


class Fails(HookBase):
    """Raises `error` from the place `where`, in the iteration `iteration`."""

    def __init__(self, monkeypatch, where, iteration, error):
        self.monkeypatch, self.where, self.iteration, self.error = monkeypatch, where, iteration, error

    def before_step(self):
        if self.trainer.iter == self.iteration:
            self.monkeypatch.setattr(*self.where, self.fail)

    def fail(self, *args, **kwargs):
        raise self.error


@pytest.mark.parametrize(
    ("where", "saved"),
    [
        ((TrainStep, "fetch"), 2),
        ((TinySegmentor, "forward"), 2),
        ((torch.amp.GradScaler, "step"), 1),  # it may have changed some weights
        ((Trainer, "test"), 3),
    ],
)
def test_an_error_does_not_cost_the_steps_before(dataset_root, tmp_path, monkeypatch, where, saved):
    cfg = tiny_cfg(dataset_root, tmp_path / "out", "TEST.EVAL_PERIOD", 2, "SOLVER.CHECKPOINT_PERIOD", 2)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of order"):
        run(cfg, hooks=[Fails(patch, where, 3, RuntimeError("out of order"))])
    assert (tmp_path / "out" / "last_checkpoint").read_text() == f"model_{saved:07d}.pth"
    run(cfg, resume=True)
    run(tiny_cfg(dataset_root, tmp_path / "whole", "TEST.EVAL_PERIOD", 2, "SOLVER.CHECKPOINT_PERIOD", 2))
    assert metrics(tmp_path / "out") == metrics(tmp_path / "whole")


def test_an_error_on_a_full_disk_stays_that_error(dataset_root, tmp_path, monkeypatch, caplog):
    def full(self, name, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(Checkpointer, "save", full)
    cfg = tiny_cfg(dataset_root, tmp_path, "SOLVER.CHECKPOINT_PERIOD", 100)
    with pytest.raises(RuntimeError, match="out of order"):
        run(cfg, hooks=[Fails(monkeypatch, (TrainStep, "fetch"), 3, RuntimeError("out of order"))])
    assert "iteration 3 could not be saved: No space left on device" in caplog.text


def test_interrupted_before_the_first_step_claims_no_checkpoint(dataset_root, tmp_path, monkeypatch, caplog):
    def fetch(self):
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("DataLoader worker exited unexpectedly")

    monkeypatch.setattr(TrainStep, "fetch", fetch)
    with caplog.at_level("INFO"), pytest.raises(Interrupted):
        run(tiny_cfg(dataset_root, tmp_path))
    assert "nothing to save" in caplog.text
    assert "a checkpoint is in" not in caplog.text


def test_a_finished_run_that_is_resumed_does_nothing(dataset_root, tmp_path, caplog):
    cfg = tiny_cfg(dataset_root, tmp_path)
    run(cfg)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix in (".json", ".pth")}
    with caplog.at_level(logging.INFO, "fasegr"):
        run(cfg, resume=True)
    assert "nothing is left to train" in caplog.text
    assert "nothing is left to do" in caplog.text
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_a_second_run_in_the_same_place_sets_the_first_aside(dataset_root, tmp_path, caplog):
    cfg = tiny_cfg(dataset_root, tmp_path, "SOLVER.MAX_ITER", 3)
    run(cfg)
    names = ("metrics.json", "last_checkpoint", "model_0000001.pth", "model_final.pth", "model_best.pth")
    first = [(tmp_path / name).read_bytes() for name in names]
    run(cfg)
    assert "metrics.1.json" in caplog.text
    aside = ("metrics.1.json", "last_checkpoint.1", "model_0000001.1.pth", "model_final.1.pth", "model_best.1.pth")
    assert [(tmp_path / name).read_bytes() for name in aside] == first
    assert len(metrics(tmp_path)) == 2


def test_resume_takes_the_newest_whole_checkpoint_and_never_starts_again(dataset_root, tmp_path, caplog):
    whole = run(tiny_cfg(dataset_root, tmp_path / "whole"))
    cfg = tiny_cfg(dataset_root, tmp_path / "out")
    with pytest.raises(Interrupted):
        run(cfg, hooks=[SignalAt(4)])
    for name in ("model_0000004.pth", "last_checkpoint"):
        os.truncate(tmp_path / "out" / name, 7)
    (tmp_path / "out" / "metrics.json").write_bytes(b'["\xff"]')
    assert run(cfg, resume=True).start_iter == 4
    assert "model_0000004.pth (7 bytes) cannot be read" in caplog.text
    finals = [read_checkpoint(str(tmp_path / name / "model_final.pth")) for name in ("out", "whole")]
    torch.testing.assert_close(finals[0].weights, finals[1].weights, rtol=0, atol=0)
    assert whole.start_iter == 0

    for path in (tmp_path / "out").glob("*.pth"):
        os.truncate(path, 1000)
    with pytest.raises(ValueError, match=r"can be resumed\. To start from the beginning, run without --resume"):
        run(cfg, resume=True)


def test_two_runs_in_one_place(dataset_root, tmp_path):
    """The second, in another process, ends before it touches a file."""
    cfg = tiny_cfg(dataset_root, tmp_path / "out", "DATASETS.TEST", ())
    other = f"""
        from pathlib import Path
        from fasegr.engine import Trainer
        from tests.engine.tiny_training import tiny_cfg
        Trainer(tiny_cfg(Path({str(dataset_root)!r}), Path({str(tmp_path / "out")!r}))).train()
    """

    class Beside(HookBase):
        def after_step(self):
            if self.trainer.iter == 2:
                before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
                program = [sys.executable, "-c", textwrap.dedent(other)]
                second = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
                assert second.returncode
                assert "in use by another training (process" in second.stderr
                assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before

    run(cfg, hooks=[Beside()])
    assert not (tmp_path / "out" / ".lock").exists()


def test_resume_without_a_checkpoint_says_so(dataset_root, tmp_path, caplog):
    run(tiny_cfg(dataset_root, tmp_path, "DATASETS.TEST", (), "SOLVER.MAX_ITER", 1), resume=True)
    assert f"No checkpoint in {tmp_path} to resume from" in caplog.text


def test_a_seed_is_drawn_written_and_kept(dataset_root, tmp_path, caplog):
    options = ("DATASETS.TEST", (), "SEED", -1)
    cfg = tiny_cfg(dataset_root, tmp_path / "parts", *options)
    cfg.freeze()  # as programs do
    with pytest.raises(Interrupted), caplog.at_level(logging.INFO, "fasegr"):
        run(cfg, hooks=[SignalAt(2)])
    seed = yaml.safe_load((tmp_path / "parts" / "config.yaml").read_text())["SEED"]
    assert seed >= 0
    assert f"drawn {seed}" in caplog.text
    assert read_checkpoint(str(tmp_path / "parts" / "model_0000002.pth")).rest["trainer"]["seed"] == seed

    parts = run(cfg, resume=True)
    assert yaml.safe_load((tmp_path / "parts" / "config.yaml").read_text())["SEED"] == seed
    whole = run(tiny_cfg(dataset_root, tmp_path / "whole", *options[:2], "SEED", seed))
    torch.testing.assert_close(parts.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)


def test_seeds_make_other_runs(dataset_root, tmp_path):
    models = [
        run(tiny_cfg(dataset_root, tmp_path / str(seed), "DATASETS.TEST", (), "SOLVER.MAX_ITER", 1, "SEED", seed)).model
        for seed in (1, 2)
    ]
    assert not torch.equal(models[0].head.weight, models[1].head.weight)


def test_a_nan_loss_names_the_iteration_and_the_image(dataset_root, tmp_path, monkeypatch):
    monkeypatch.setattr(TinySegmentor, "break_at", ("3.png",))
    cfg = tiny_cfg(dataset_root, tmp_path, "SOLVER.IMS_PER_BATCH", 1)
    with pytest.raises(NonFiniteLoss, match=r"iteration \d: loss_ce is nan, loss_ce_0 is nan. Images .*/3.png\. ") as e:
        run(cfg)
    saved = list(tmp_path.glob("nan_*.pth"))
    assert len(saved) == 1
    assert str(saved[0]) in str(e.value)
    assert not (tmp_path / "model_final.pth").exists()


def test_several_test_datasets(dataset_root, tmp_path):
    cfg = tiny_cfg(dataset_root, tmp_path, "DATASETS.TEST", ("tiny_val", "tiny_train"), "SOLVER.MAX_ITER", 1)
    run(cfg)
    assert {"tiny_val/sem_seg/mIoU", "tiny_train/sem_seg/mIoU"} <= metrics(tmp_path)[-1].keys()
    assert "tiny_val/sem_seg/mIoU" in read_checkpoint(str(tmp_path / "model_best.pth")).rest
    assert MetadataCatalog.get("tiny_val").stuff_classes == ["sky", "road"]


@pytest.mark.parametrize("names", [("tiny_val",), ("tiny_val", "tiny_train")])
@pytest.mark.parametrize("original", [False, True])
def test_multi_scale_scores(dataset_root, tmp_path, names, original, deterministic_model):
    options = ("TEST.AUG.MIN_SIZES", (8, 16), "TEST.AUG.FROM_ORIGINAL", original, "TEST.SAVE_LABELS", True)
    cfg = tiny_cfg(dataset_root, tmp_path, "DATASETS.TEST", names, "INPUT.MIN_SIZE_TEST", 9, *options)
    model = Trainer.build_model(cfg)
    results = Trainer.test_with_TTA(cfg, model)
    results = [results] if len(names) == 1 else [results[name] for name in names]
    assert all(set(result) == {"sem_seg_TTA"} and result["sem_seg_TTA"]["mIoU"] > 0 for result in results)
    assert sum(len(files) for *_, files in os.walk(tmp_path / "inference_TTA")) == (3 if len(names) == 1 else 9)
    assert model.training, "as it was"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("SOLVER.AMP.ENABLED", True), r"AMP.DTYPE is 'float16' with MODEL.DEVICE cpu; it must be 'bfloat16'"),
    ],
)
def test_what_cannot_be_done_is_refused(dataset_root, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        Trainer(tiny_cfg(dataset_root, tmp_path, *options))


def test_bfloat16(dataset_root, tmp_path):
    cfg = tiny_cfg(dataset_root, tmp_path, "DATASETS.TEST", (), "SOLVER.AMP.ENABLED", True, "SOLVER.MAX_ITER", 2)
    cfg.SOLVER.AMP.DTYPE = "bfloat16"
    trainer = run(cfg)
    assert trainer._trainer.amp_dtype == torch.bfloat16
    assert metrics(tmp_path)[0]["total_loss"] > 0
