import logging
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from torch._utils import ExceptionWrapper

from fasegr.config import add_fasegr_config
from fasegr.d2 import default_argument_parser, get_cfg
from fasegr.engine import launch as launch_module
from fasegr.engine import output_lock
from fasegr.engine.interruption import Interrupted, Interruption
from fasegr.engine.launch import adapt_to_machine, launch, readable_errors, warnings_for_the_log
from fasegr.engine.slurm import Task


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
    assert "float16 is for NVIDIA GPUs" in note


def test_apple_gpus_are_for_one_process_and_bfloat16():
    cfg = make_cfg("SOLVER.AMP.ENABLED", True)
    cfg.MODEL.DEVICE = "mps"
    for several in ({"num_gpus": 2}, {"num_gpus": 1, "started": True}):
        with pytest.raises(ValueError, match="mps is one GPU"):
            adapt_to_machine(cfg, **several)
    (note,) = adapt_to_machine(cfg, num_gpus=1)
    assert cfg.SOLVER.AMP.DTYPE == "bfloat16" and "on mps" in note


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
    adapt_to_machine(make_cfg(), num_gpus=2, started=True)


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
    return SimpleNamespace(**{**options, "resume": False, "config_file": "", **changes})


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


@pytest.mark.parametrize("variable", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
@pytest.mark.parametrize(
    ("count", "eval_only", "resumes"),
    [("1", False, True), ("10", False, True), ("0", False, False), ("", False, False), ("2", True, False)],
)
def test_a_restart_resumes_by_itself_and_says_so(tmp_path, monkeypatch, variable, count, eval_only, resumes):
    monkeypatch.setenv(variable, count)
    seen = []
    out = make_cfg("OUTPUT_DIR", str(tmp_path))
    launch(lambda args, cfg: seen.append(args.resume), arguments(eval_only=eval_only), out)
    assert seen == [resumes]
    assert (f"This is a restart ({variable} is {count})" in (tmp_path / "log.txt").read_text()) == resumes


def test_an_output_dir_is_of_one_training_and_any_evaluation(tmp_path, capsys):
    """Nothing of the training that is there is touched, its log included."""

    def beside(args, cfg):
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        assert ".lock" in before
        held = dict(output_lock._held)
        output_lock._held.clear()  # as if in another process
        with pytest.raises(SystemExit) as stopped:
            launch(lambda args, cfg: pytest.fail("it started"), arguments(), make_cfg("OUTPUT_DIR", str(tmp_path)))
        assert stopped.value.code == 2
        assert "in use by another training" in capsys.readouterr().err
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
        launch(lambda args, cfg: ran.append(cfg), arguments(eval_only=True), make_cfg("OUTPUT_DIR", str(tmp_path)))
        output_lock._held.update(held)

    ran = []
    launch(beside, arguments(), make_cfg("OUTPUT_DIR", str(tmp_path)))
    assert len(ran) == 1
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize("wanted", [False, True])
def test_deterministic_is_a_key(tmp_path, monkeypatch, wanted):
    called = []
    monkeypatch.setattr(launch_module, "be_deterministic", lambda: called.append("be_deterministic"))
    cfg = make_cfg("OUTPUT_DIR", str(tmp_path), "SPEED.DETERMINISTIC", wanted)
    launch(lambda args, cfg: called.append("main"), arguments(), cfg)
    assert called == ["be_deterministic"] * wanted + ["main"]


@pytest.mark.parametrize(
    ("changes", "timed"),
    [
        (("INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute"), True),
        (("INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute", "CUDNN_BENCHMARK", False), False),
        (("INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute", "SPEED.DETERMINISTIC", True), False),
        (("INPUT.CROP.ENABLED", False), False),
        (("INPUT.CROP.ENABLED", False, "INPUT.DATASET_MAPPER_NAME", "coco_panoptic_lsj"), True),
    ],
)
def test_cudnn_times_its_algorithms_for_one_size_only(tmp_path, monkeypatch, changes, timed):
    seen = []
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr("fasegr.engine.launch.be_deterministic", lambda: None)
    launch(
        lambda args, cfg: seen.append(torch.backends.cudnn.benchmark),
        arguments(),
        make_cfg("OUTPUT_DIR", str(tmp_path), *changes),
    )
    assert seen == [timed]


def fail_in_process_one(args, cfg):
    if int(os.environ.get("RANK", torch.distributed.get_rank())) == 1:
        raise ValueError("the labels are wrong")
    torch.distributed.barrier()


@pytest.mark.slow
def test_processes_that_fail_end_the_program_with_their_code(tmp_path, capfd):
    """Started as --num-gpus 2 does on a machine without a GPU."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU, where --num-gpus starts NCCL processes")
    with pytest.raises(SystemExit) as stopped:
        launch(fail_in_process_one, arguments(num_gpus=2), make_cfg("OUTPUT_DIR", str(tmp_path)))
    assert stopped.value.code == 2
    assert "error in process 1: the labels are wrong" in capfd.readouterr().err


def worker_errors():
    """Errors as torch's loader raises them."""
    text = "DataLoader worker (pid 7) is killed by signal: Killed. "
    found = RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")
    found.__cause__ = RuntimeError(text)
    yield found, "killed by signal: Killed. Often memory has run out"
    yield RuntimeError(text), "DATALOADER.NUM_WORKERS"
    yield (
        RuntimeError(
            "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
            "RuntimeError: unable to write to file </torch_8_9>: No space left on device (28)"
        ),
        "unable to write to file </torch_8_9>: No space left on device (28). Often memory has run out",
    )


@pytest.mark.parametrize(
    ("error", "said"),
    [
        *worker_errors(),
        (
            RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed"),
            "another process",
        ),
        (torch.distributed.DistNetworkError("port: 29500, useIpv6: 0, code: -98, name: EADDRINUSE"), "MASTER_PORT"),
    ],
)
def test_what_torch_says_of_processes_is_one_message(error, said, capsys):
    with pytest.raises(SystemExit) as stopped, readable_errors():
        raise error
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert said in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    "text", ["mat1 and mat2 shapes cannot be multiplied", "Caught RuntimeError in DataLoader worker process 0."]
)
def test_other_errors_of_torch_are_not_hidden(text):
    with pytest.raises(RuntimeError, match=text), readable_errors():
        raise RuntimeError(text)


def test_a_log_on_a_full_disk_is_said_once(tmp_path, capfd):
    def main(args, cfg):
        for _ in range(3):
            logging.getLogger("fasegr").warning("a line")

    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    (tmp_path / "log.txt").symlink_to("/dev/full")
    launch(main, arguments(), make_cfg("OUTPUT_DIR", str(tmp_path)))
    said = capfd.readouterr().err
    assert "No space left on device" in said
    assert said.count(str(tmp_path / "log.txt")) == 1
    assert "Traceback" not in said


def be_killed(args, cfg):
    with open(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint"), "w") as file:
        file.write("model_0000011.pth")
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with Interruption():
        torch.distributed.barrier()


def wait_for_a_signal(args, cfg):
    with Interruption() as interruption:
        torch.distributed.barrier()
        if torch.distributed.get_rank() == 1:
            os.kill(os.getppid(), signal.SIGTERM)  # not to both: the parent passes it on
        until = time.monotonic() + 30
        while interruption.signum is None and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.5)  # the checkpoint is being written
        open(os.path.join(cfg.OUTPUT_DIR, f"saved_{torch.distributed.get_rank()}"), "w").close()
        raise Interrupted(interruption.signum, together=True)


needs_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, --num-gpus starts NCCL processes")


@needs_cpu
@pytest.mark.slow
def test_a_process_that_is_killed(tmp_path, capfd):
    start = time.monotonic()
    url = default_argument_parser().get_default("dist_url")
    with pytest.raises(SystemExit) as stopped, socket.socket() as taken:
        with suppress(OSError):
            taken.bind(("127.0.0.1", int(url.rpartition(":")[2])))  # by another training on this machine
            taken.listen()
        launch(be_killed, arguments(num_gpus=2, dist_url=url), make_cfg("OUTPUT_DIR", str(tmp_path)))
    assert stopped.value.code == 137
    assert time.monotonic() - start < 60
    said = capfd.readouterr().err
    assert "process 1 was killed by SIGKILL" in said
    assert f"The last checkpoint is {tmp_path / 'model_0000011.pth'}; to continue" in said
    assert "Traceback" not in said


@needs_cpu
@pytest.mark.slow
def test_the_parent_passes_signals_on_and_waits(tmp_path):
    with pytest.raises(SystemExit) as stopped:
        launch(wait_for_a_signal, arguments(num_gpus=2), make_cfg("OUTPUT_DIR", str(tmp_path)))
    assert stopped.value.code == 143
    assert {"saved_0", "saved_1"} <= set(os.listdir(tmp_path))


@pytest.mark.parametrize(
    ("options", "joins"),
    [({}, True), ({"num_gpus": 0}, True), ({"num_gpus": 4}, True), ({"num_gpus": 8, "num_machines": 2}, False)],
)
def test_tasks_of_srun(monkeypatch, options, joins):
    task = Task(rank=5, world_size=8, local_rank=1, local_size=4, url="tcp://node1:1")
    monkeypatch.setattr(launch_module, "slurm_task", lambda: task)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert launch_module._started_task(arguments(**options)) == (task if joins else None)
    with pytest.raises(ValueError, match="srun started 8 tasks, 4 on each node, and --num-gpus is 8"):
        launch_module._started_task(arguments(num_gpus=8))
    for name, value in {"RANK": 3, "WORLD_SIZE": 4, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    assert launch_module._started_task(arguments()) == Task(3, 4, 1, 2, "env://"), "torchrun within srun"


def test_batch_norm_on_one_value_has_a_way_out():
    from fasegr.engine.launch import _message

    norm = torch.nn.BatchNorm2d(4)
    with pytest.raises(ValueError) as error:
        norm(torch.zeros(1, 4, 1, 1))
    message = _message(error.value)
    assert (
        "INPUT.CROP.SIZE" in message and "MODEL.RESNETS.NORM" in message and "size torch.Size([1, 4, 1, 1])" in message
    )
