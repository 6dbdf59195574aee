"""The program on a few small scenes: trained, killed, resumed, stopped, evaluated, and given wrong options."""

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import train_net
from fasegr.checkpoint import read_checkpoint
from fasegr.data.datasets.scenes.semantic import generate_scenes, scenes_folder
from fasegr.engine.hooks import LOGGERS
from fasegr.utils.metrics_file import read_metrics

ROOT = Path(__file__).parents[1]
SMALL = {
    "_BASE_": str(ROOT / "configs" / "quickstart" / "faseg_scenes.yaml"),
    "MODEL": {
        "DEVICE": "cpu",
        "SEM_SEG_HEAD": {"CONVS_DIM": 32, "MASK_DIM": 32, "TRANSFORMER_ENC_LAYERS": 1},
        "MASK_FORMER": {"HIDDEN_DIM": 32, "NUM_OBJECT_QUERIES": 10, "DEC_LAYERS": 5, "TRAIN_NUM_POINTS": 64},
    },
    "INPUT": {"MIN_SIZE_TRAIN": [64], "MIN_SIZE_TEST": 64, "CROP": {"SIZE": [64, 64]}, "SIZE_DIVISIBILITY": 64},
    "SOLVER": {"IMS_PER_BATCH": 2, "MAX_ITER": 8, "CHECKPOINT_PERIOD": 2},
    "TEST": {"EVAL_PERIOD": 4},
}


@pytest.fixture(scope="module", autouse=True)
def datasets(tmp_path_factory):
    """DETECTRON2_DATASETS with a few small scenes, under the names of the quickstart's."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("datasets")
        patch.setenv("DETECTRON2_DATASETS", str(root))
        generate_scenes(scenes_folder(), {"train": 6, "val": 3}, size=64)
        yield root


@pytest.fixture(autouse=True)
def terminals():
    """Each test has its own standard output; loggers must not keep that of an earlier test."""
    yield
    for logger in map(logging.getLogger, LOGGERS):
        for handler in logger.handlers[:]:
            if not str(getattr(handler.stream, "name", "")).endswith("log.txt"):
                logger.removeHandler(handler)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return str(path)


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    """OUTPUT_DIR of an uninterrupted training."""
    out = tmp_path_factory.mktemp("trained")
    train_net.run(["--config-file", config, "OUTPUT_DIR", str(out)])
    return out


def scores(out):
    lines = read_metrics(out / "metrics.json")
    clocks = ("time", "data_time", "eta_seconds", "memory")
    return [{name: value for name, value in line.items() if name not in clocks} for line in lines]


def start(*arguments, **env):
    """The program in a new process and session."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train_net.py"), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


def test_a_training_leaves_everything(trained):
    assert {path.name for path in trained.iterdir() if not path.name.startswith("events.out")} == {
        *("config.yaml", "log.txt", "metrics.json", "last_checkpoint", "curves.png", "samples.png"),
        *("model_0000001.pth", "model_0000003.pth", "model_0000005.pth", "model_final.pth", "model_best.pth"),
    }
    losses = [line["total_loss"] for line in scores(trained) if "total_loss" in line]
    assert len(losses) == 1
    assert 0 < losses[0] < 1000
    assert [line["iteration"] for line in scores(trained) if "sem_seg/mIoU" in line] == [3, 7]
    log = (trained / "log.txt").read_text()
    assert re.search(r"Runtime (builtin|detectron2), device cpu, 1 process", log)
    assert "iteration 8 of 8" in log


@pytest.mark.slow
def test_killed_resumed_stopped_and_resumed_again(config, trained, tmp_path):
    """tests/faults has every signal."""
    command = ["--config-file", config, "OUTPUT_DIR", str(tmp_path)]
    process = start(*command)
    wait_for(tmp_path / "model_0000001.pth", process)
    process.kill()
    process.communicate()

    process = start(*command[:2], "--resume", *command[2:], "DATALOADER.NUM_WORKERS", "2")
    wait_for(tmp_path / "model_0000005.pth", process)
    os.killpg(process.pid, signal.SIGTERM)  # as a terminal, `timeout` or systemd does, to data workers too
    output = process.communicate()[0]
    assert process.returncode == 143, output
    assert "run the same command with --resume" in output
    assert "Traceback" not in output

    train_net.run([*command[:2], "--resume", *command[2:]])
    assert scores(tmp_path) == scores(trained)
    weights = [read_checkpoint(str(out / "model_final.pth")).weights for out in (tmp_path, trained)]
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_evaluation(config, trained, tmp_path):
    weights = str(trained / "model_final.pth")
    options = ["MODEL.WEIGHTS", weights, "OUTPUT_DIR", str(tmp_path), "TEST.SAVE_LABELS", "True"]
    train_net.run(["--config-file", config, "--eval-only", *options])
    assert f"mIoU {scores(trained)[-1]['sem_seg/mIoU']:.2f}" in (tmp_path / "log.txt").read_text()
    labels = sorted((tmp_path / "inference" / "labels").rglob("*.png"))
    assert len(labels) == 3
    assert np.asarray(Image.open(labels[0])).shape == (64, 64)


def test_multi_scale_evaluation(config, trained, tmp_path):
    options = ["MODEL.WEIGHTS", str(trained / "model_final.pth"), "OUTPUT_DIR", str(tmp_path), "TEST.AUG.ENABLED"]
    train_net.run(["--config-file", config, "--eval-only", *options, "True", "TEST.AUG.MIN_SIZES", "[32, 64]"])
    single = scores(trained)[-1]["sem_seg/mIoU"]
    assert re.search(rf"mIoU: sem_seg {single:.2f}, sem_seg_TTA \d+\.\d\d", (tmp_path / "log.txt").read_text())


def test_evaluation_of_the_last_checkpoint(config, trained):
    before, log = (trained / "metrics.json").read_text(), trained / "log.txt"
    length = len(log.read_text())
    train_net.run(["--config-file", config, "--eval-only", "--resume", "OUTPUT_DIR", str(trained)])
    assert f"mIoU {scores(trained)[-1]['sem_seg/mIoU']:.2f}" in log.read_text()[length:]
    assert (trained / "metrics.json").read_text() == before


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs /proc to find the workers")
@pytest.mark.slow
def test_a_data_worker_hangs(config, tmp_path):
    """tests/faults has those that die."""
    options = ["OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_ITER", "100000", "SOLVER.CHECKPOINT_PERIOD", "100000"]
    options += ["DATALOADER.NUM_WORKERS", "1", "DATALOADER.TIMEOUT", "2", "TEST.EVAL_PERIOD", "0"]
    process = start("--config-file", config, *options)
    wait_for(tmp_path / "metrics.json", process)
    while "20" not in (tmp_path / "metrics.json").read_text():  # iterations
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGSTOP)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 2, output
    assert "DATALOADER.TIMEOUT" in output
    assert "Traceback" not in output
    (saved,) = tmp_path.glob("model_*.pth")
    assert f"Iteration {int(saved.stem[6:]) + 1} is saved in {tmp_path}" in output
    assert (tmp_path / "last_checkpoint").read_text() == saved.name


@pytest.mark.slow
def test_srun(config, tmp_path):
    """Two tasks, described as SLURM does: one training."""
    names = {"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"}
    arguments = ["--config-file", config, "SOLVER.MAX_ITER", "2", "TEST.EVAL_PERIOD", "0", "OUTPUT_DIR", str(tmp_path)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        names["MASTER_PORT"] = str(free.getsockname()[1])
    tasks = [start(*arguments, **names, SLURM_PROCID=rank, SLURM_LOCALID=rank) for rank in ("0", "1")]
    outputs = [task.communicate()[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], outputs
    assert "device cpu, 2 process(es)" in (tmp_path / "log.txt").read_text()


def test_torchrun(config, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["SOLVER.MAX_ITER", "2", "OUTPUT_DIR", str(tmp_path)]
    done = subprocess.run(
        [*command, str(ROOT / "train_net.py"), "--config-file", config, *options], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "device cpu, 2 process(es)" in (tmp_path / "log.txt").read_text()
    assert (tmp_path / "model_final.pth").exists()
    assert (tmp_path / "samples.png").exists()
    assert "sem_seg/mIoU" in scores(tmp_path)[-1]
    for line in (r"\| class +\|", r"\| water +\| ", r"mIoU \d+\.\d\d "):
        assert re.search(line, done.stdout), "the table is printed, too"


def fails(capsys, *arguments):
    """What the program says when it ends with exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        train_net.run(list(arguments))
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert "error: " in message
    assert "Traceback" not in message
    return message.partition("error: ")[2]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["SOLVER.BASE_LRR", "1"], "SOLVER.BASE_LRR does not exist; did you mean SOLVER.BASE_LR?"),
        (["SOLVER.BASE_LR"], "'SOLVER.BASE_LR' has no value"),
        (["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "3"], "NUM_CLASSES is 3, but scenes_train has"),
        (["DATASETS.TRAIN", "('nowhere_train',)"], "no dataset is registered as nowhere_train"),
        (["SOLVER.IMS_PER_BATCH", "3", "SOLVER.ACCUMULATE", "2"], "SOLVER.ACCUMULATE is 2"),
        (["MODEL.WEIGHTS", "missing.pth"], "missing.pth"),
        (["--eval-only", "DATASETS.TEST", "()"], "DATASETS.TEST is empty"),
        (["--eval-only"], "--eval-only without weights would score a random model; add MODEL.WEIGHTS"),
        (["--eval-only", "MODEL.WEIGHTS", "missing.pth"], "missing.pth"),
    ],
)
def test_what_cannot_work_is_said_in_one_message(config, tmp_path, capsys, options, said):
    switches = [option for option in options if option.startswith("--")]
    pairs = [option for option in options if not option.startswith("--")]
    arguments = ["--config-file", config, *switches, "OUTPUT_DIR", str(tmp_path), *pairs]
    assert said in fails(capsys, *arguments)


def test_config_files_that_are_not_there(capsys):
    assert "nowhere.yaml does not exist" in fails(capsys, "--config-file", "nowhere.yaml")
    assert "--config-file is required" in fails(capsys)


def test_weights_of_another_model(config, tmp_path, capsys):
    path = tmp_path / "other.pth"
    torch.save({"model": {"fc.weight": torch.zeros(3, 3)}}, path)
    message = fails(capsys, "--config-file", config, "OUTPUT_DIR", str(tmp_path), "MODEL.WEIGHTS", str(path))
    assert str(path) in message
    assert "fc.weight" in message


def test_a_backbone_alone_is_not_scored(config, trained, tmp_path, capsys):
    path = tmp_path / "backbone.pth"
    weights = read_checkpoint(str(trained / "model_final.pth")).weights
    torch.save({"model": {name: value for name, value in weights.items() if name.startswith("backbone.")}}, path)
    arguments = ("--config-file", config, "--eval-only", "OUTPUT_DIR", str(tmp_path), "MODEL.WEIGHTS", str(path))
    assert "fits only part of this model (backbone)" in fails(capsys, *arguments)


def test_a_label_out_of_range(config, datasets, tmp_path, capsys):
    root = tmp_path / "data"
    for kind in ("images", "annotations"):
        (root / kind / "train").mkdir(parents=True)
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(root / "images" / "train" / "a.png")
    Image.fromarray(np.full((64, 64), 77, np.uint8)).save(root / "annotations" / "train" / "a.png")
    folder = {"NAME": "own", "ROOT": str(root), "SPLITS": "['train']", "CLASSES": str(scenes_folder() / "classes.txt")}
    options = [word for key, value in folder.items() for word in (f"DATASETS.FOLDER.{key}", value)]
    options += ["DATASETS.TRAIN", "('own_train',)", "DATASETS.TEST", "()", "OUTPUT_DIR", str(tmp_path / "out")]
    message = fails(capsys, "--config-file", config, *options)
    assert "annotations/train/a.png: holds the label 77" in message
    assert "Traceback" in (tmp_path / "out" / "log.txt").read_text(), "for finding the cause"


def test_a_training_that_diverges(config, tmp_path, capsys):
    options = ["SOLVER.BASE_LR", "1000", "SOLVER.BACKBONE_MULTIPLIER", "100", "OUTPUT_DIR", str(tmp_path)]
    message = fails(capsys, "--config-file", config, *options)
    assert re.search(r"iteration [1-3]: ", message)
    assert "images/train/" in message
    assert "a lower SOLVER.BASE_LR" in message
    saved = list(tmp_path.glob("nan_*.pth"))
    assert len(saved) == 1
    assert str(saved[0]) in message
