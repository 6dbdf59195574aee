import logging
import os
import signal
import sys
from types import SimpleNamespace

import pytest
import torch
from torch._utils import ExceptionWrapper

from fasegr.config import add_fasegr_config
from fasegr.d2 import get_cfg
from fasegr.engine import launch as launch_module
from fasegr.engine.interruption import Interrupted
from fasegr.engine.launch import adapt_to_machine, launch, readable_errors, warnings_for_the_log


def make_cfg(*opts):
    cfg = get_cfg()
    add_fasegr_config(cfg)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *opts])
    return cfg


@pytest.fixture
def gpus(monkeypatch):
    """A machine with two GPUs, as far as torch says."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_float16_on_the_cpu_becomes_bfloat16():
    cfg = make_cfg("SOLVER.AMP.ENABLED", True)
    (note,) = adapt_to_machine(cfg, num_gpus=1)
    assert cfg.SOLVER.AMP.DTYPE == "bfloat16"
    assert "float16 is for GPUs" in note


def test_float32_on_the_cpu_stays(gpus):
    cfg = make_cfg()
    before = cfg.clone()
    assert adapt_to_machine(cfg, num_gpus=1) == []
    assert cfg == before


def test_no_gpus_means_the_cpu(gpus):
    cfg = make_cfg("MODEL.DEVICE", "cuda")
    adapt_to_machine(cfg, num_gpus=0)
    assert cfg.MODEL.DEVICE == "cpu"


def test_warnings_before_there_is_a_log_are_kept_for_it():
    with warnings_for_the_log() as notes:
        logging.getLogger("fasegr.config").warning("the CPU instead of %s", "cuda")
        logging.getLogger("fasegr.config").info("a detail")
    logging.getLogger("fasegr.config").warning("too late")
    assert notes == ["the CPU instead of cuda"]


def test_gpus_that_are_not_there(gpus):
    adapt_to_machine(make_cfg("MODEL.DEVICE", "cuda"), num_gpus=2)
    with pytest.raises(ValueError, match="--num-gpus is 3; this machine has 2"):
        adapt_to_machine(make_cfg("MODEL.DEVICE", "cuda"), num_gpus=3)
    with pytest.raises(ValueError, match=r"--num-gpus is 2, but MODEL.DEVICE is cpu; .* torchrun --nproc-per-node 2"):
        adapt_to_machine(make_cfg(), num_gpus=2)
    adapt_to_machine(make_cfg(), num_gpus=2, under_torchrun=True)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ValueError("labels/a.png: holds the label 9;\nexpected 0..7"),
            "labels/a.png: holds the label 9;\nexpected 0..7",
        ),
        (FileNotFoundError("no file a.png"), "no file a.png"),
        (KeyError("no dataset is registered as 'x'"), "no dataset is registered as 'x'"),
        (KeyError("x"), "KeyError: x"),
        (FloatingPointError("loss is nan"), "loss is nan"),
        (
            torch.OutOfMemoryError("Tried to allocate 2 GiB"),
            "out of memory. What helps: a larger SOLVER.ACCUMULATE",
        ),
    ],
)
def test_what_a_user_can_put_right_is_one_message(error, said, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_net.py"])
    (tmp_path / "log.txt").write_text("earlier\n")
    with pytest.raises(SystemExit) as stopped, readable_errors(str(tmp_path)):
        raise error
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("train_net.py: error: ")
    assert said in message
    assert "Traceback" not in message
    log = (tmp_path / "log.txt").read_text()
    assert log.startswith("earlier\n")
    assert "Traceback" in log


@pytest.mark.parametrize("error", [ValueError("a.png: cannot\nbe read"), KeyError("no dataset named x")])
def test_errors_of_data_workers_lose_their_trace(error, capsys):
    try:
        try:
            raise RuntimeError("what lies below")
        except RuntimeError as cause:
            raise error from cause
    except Exception:
        brought = ExceptionWrapper(where="in DataLoader worker process 0")  # as a loader brings it to the main process
    with pytest.raises(SystemExit), readable_errors():
        brought.reraise()
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert "what lies below" not in message
    assert "a.png: cannot\nbe read" in message or "no dataset named x" in message


def test_debugging_shows_the_trace(monkeypatch):
    monkeypatch.setenv("FASEGR_DEBUG", "1")
    with pytest.raises(ValueError, match="a bad value"), readable_errors():
        raise ValueError("a bad value")


def test_mistakes_of_the_program_are_not_hidden():
    with pytest.raises(AttributeError), readable_errors():
        raise AttributeError("no such attribute")


@pytest.mark.parametrize(
    ("error", "code"),
    [(Interrupted(signal.SIGTERM), 143), (Interrupted(signal.SIGINT), 130), (KeyboardInterrupt(), 130)],
)
def test_exit_codes_of_interruptions(error, code):
    with pytest.raises(SystemExit) as stopped, readable_errors():
        raise error
    assert stopped.value.code == code


def arguments(**changes):
    options = {"num_gpus": 1, "num_machines": 1, "machine_rank": 0, "dist_url": "auto", "eval_only": False}
    return SimpleNamespace(**{**options, "config_file": "", **changes})


@pytest.mark.parametrize(("eval_only", "drawn"), [(False, True), (True, False)])
def test_one_process_is_this_one(tmp_path, eval_only, drawn):
    def main(args, cfg):
        assert (cfg.SEED >= 0) == drawn
        assert cfg.is_frozen()
        assert args.num_gpus == 1
        ran.append(os.getpid())

    ran = []
    launch(main, arguments(eval_only=eval_only), make_cfg("OUTPUT_DIR", str(tmp_path)))
    assert ran == [os.getpid()]
    log = (tmp_path / "log.txt").read_text()
    assert "device cpu, 1 process(es)" in log
    assert ("SEED was drawn" in log) == drawn


@pytest.mark.parametrize("wanted", [False, True])
def test_deterministic_is_a_key(tmp_path, monkeypatch, wanted):
    called = []
    monkeypatch.setattr(launch_module, "be_deterministic", lambda: called.append("be_deterministic"))
    cfg = make_cfg("OUTPUT_DIR", str(tmp_path), "SPEED.DETERMINISTIC", wanted)
    launch(lambda args, cfg: called.append("main"), arguments(), cfg)
    assert called == ["be_deterministic"] * wanted + ["main"]


def fail_in_process_one(args, cfg):
    if int(os.environ.get("RANK", torch.distributed.get_rank())) == 1:
        raise ValueError("the labels are wrong")
    torch.distributed.barrier()


def test_processes_that_fail_end_the_program_with_their_code(tmp_path, capfd):
    """Started as --num-gpus 2 does on a machine without a GPU."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU, where --num-gpus starts NCCL processes")
    with pytest.raises(SystemExit) as stopped:
        launch(fail_in_process_one, arguments(num_gpus=2), make_cfg("OUTPUT_DIR", str(tmp_path)))
    assert stopped.value.code == 2
    assert "error in process 1: the labels are wrong" in capfd.readouterr().err
