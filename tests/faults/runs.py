"""Runs of the smallest training, their ends, and what they leave."""

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from fasegr.checkpoint import read_checkpoint
from fasegr.utils.metrics_file import read_metrics

ROOT = Path(__file__).parents[2]
SMALL = {
    "_BASE_": str(ROOT / "configs" / "quickstart" / "faseg_scenes.yaml"),
    "MODEL": {
        "DEVICE": "cpu",
        "RESNETS": {"STEM_OUT_CHANNELS": 8, "RES2_OUT_CHANNELS": 8},
        "SEM_SEG_HEAD": {
            "CONVS_DIM": 32,
            "MASK_DIM": 32,
            "TRANSFORMER_ENC_LAYERS": 1,
            "DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD": 32,
        },
        "MASK_FORMER": {
            "HIDDEN_DIM": 32,
            "DIM_FEEDFORWARD": 32,
            "DEC_LAYERS": 5,
            "NUM_OBJECT_QUERIES": 6,
            "TRAIN_NUM_POINTS": 32,
        },
    },
    "INPUT": {"MIN_SIZE_TRAIN": [64], "MIN_SIZE_TEST": 64, "CROP": {"SIZE": [64, 64]}, "SIZE_DIVISIBILITY": 64},
    "SOLVER": {"IMS_PER_BATCH": 2, "MAX_ITER": 12, "CHECKPOINT_PERIOD": 2, "BASE_LR": 0.001, "WARMUP_ITERS": 0},
    "TEST": {"EVAL_PERIOD": 3, "BOUNDARY_IOU": False},
    "DATALOADER": {"NUM_WORKERS": 0},
    "SEED": 1,  # its second evaluation is better than the first, and follows a checkpoint of the same iteration
}
CLOCKS = ("time", "data_time", "eta_seconds", "memory")
ENV = {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}


def wait_until(condition, seconds: float = 60, step: float = 0.002):
    """What `condition` returns once it is true."""
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(step)
    return value


class Run(NamedTuple):
    """A started program."""

    pid: int
    log: Path
    server: "ForkServer"

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, seconds: float = 120) -> int:
        """The exit code. Ends the run and fails if it takes longer."""
        code = self.server.ask({"wait": self.pid, "seconds": seconds})
        if code is None:
            self.kill_group()
            raise AssertionError(f"it had not ended after {seconds} s. Its output:\n{self.output}")
        return code

    def kill(self, signum: int = signal.SIGKILL) -> None:
        os.kill(self.pid, signum)

    def kill_group(self, signum: int = signal.SIGKILL) -> None:
        os.killpg(self.pid, signum)

    def children(self) -> list[int]:
        """Processes that it started: its data workers."""
        return children(self.pid)


class ForkServer:
    """The other side of fork_server.py."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.number = 0
        self.started: list[int] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.fork_server"],
            env={**os.environ, **ENV, "PYTHONHASHSEED": "random"},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def ask(self, request: dict):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self):
        ready, _, _ = select.select([self.process.stdout], [], [], 600)
        assert ready, "the fork server is silent"
        return json.loads(self.process.stdout.readline())

    def start(
        self,
        arguments: Sequence[str],
        faults: Sequence[dict] = (),
        env: dict | None = None,
        target: str = "train_net:run",
        pictures: bool = False,
    ) -> Run:
        """pictures: draw those at the end of a training, too."""
        self.number += 1
        log = self.folder / f"{self.number}.log"
        request = {"target": target, "arguments": list(arguments), "faults": list(faults), "env": env or {}}
        pid = self.ask({**request, "pictures": pictures, "log": str(log)})
        self.started.append(pid)
        return Run(pid, log, self)

    def close(self) -> None:
        for pid in set(self.started) & set(children(self.process.pid)):  # left by a test that failed, frozen perhaps
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        self.process.stdin.close()
        self.process.wait(60)


class Training:
    """How the smallest training is started, whatever its OUTPUT_DIR."""

    def __init__(self, server: ForkServer, config: Path):
        self.server = server
        self.config = config

    def arguments(self, out: Path, *options: str, resume: bool = False) -> list[str]:
        return ["--config-file", str(self.config), *(["--resume"] if resume else []), "OUTPUT_DIR", str(out), *options]

    def start(
        self,
        out: Path,
        *options: str,
        resume: bool = False,
        faults: Sequence[dict] = (),
        env: dict | None = None,
        pictures: bool = False,
    ) -> Run:
        return self.server.start(self.arguments(out, *options, resume=resume), faults, env, pictures=pictures)

    def start_two(
        self, out: Path, *options: str, resume: bool = False, faults: Sequence[dict] = (), **env
    ) -> list[Run]:
        """Two processes, with the environment that torchrun gives its own."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", **env}
        return [
            self.start(
                out, *options, resume=resume, faults=faults, env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            )
            for rank in range(2)
        ]

    def finish(self, out: Path, *options: str) -> str:
        """Resume until the end. Returns the output."""
        run = self.start(out, *options, resume=True)
        code = run.wait()
        assert code == 0, run.output
        return run.output

    def alone(self, out: Path, launcher: Sequence[str] = ()) -> subprocess.Popen:
        """The training as a user starts it, without the fork server."""
        return subprocess.Popen(
            [sys.executable, *launcher, "train_net.py", *self.arguments(out)],
            env={**os.environ, **ENV},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def torchrun(self, out: Path, *options: str) -> subprocess.Popen:
        """Two processes under torchrun."""
        return self.alone(out, ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options])


def write_config(folder: Path) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


def bytes_of(tree, name: str = "") -> dict[str, object]:
    """Every leaf of nested states by name; tensors as their bytes, type and shape."""
    if hasattr(tree, "items"):
        pairs = tree.items()
    elif isinstance(tree, list | tuple):
        pairs = enumerate(tree)
    elif hasattr(tree, "detach"):
        tensor = tree.detach().cpu().contiguous()
        return {name: (str(tensor.dtype), tuple(tensor.shape), tensor.numpy().tobytes())}
    else:
        return {name: repr(tree)}
    return {leaf: value for key, branch in pairs for leaf, value in bytes_of(branch, f"{name}/{key}").items()}


def left_by(out: Path) -> dict[str, object]:
    """All that a finished training leaves and that does not depend on the clock, by name."""
    left = {}
    for name in ("model_final.pth", "model_best.pth"):
        contents = read_checkpoint(str(out / name))
        left |= bytes_of({"weights": contents.weights, **contents.rest}, name)
    for i, line in enumerate(read_metrics(out / "metrics.json")):
        left |= bytes_of({key: value for key, value in line.items() if key not in CLOCKS}, f"metrics.json/{i}")
    for path in out.glob("model_0*[13579].pth"):  # those of the period; a stopped run has one more
        left |= bytes_of(read_checkpoint(str(path)).weights, path.name)
    left["last_checkpoint"] = (out / "last_checkpoint").read_text()
    config = (out / "config.yaml").read_text().replace(str(out), "OUTPUT_DIR")
    left["config.yaml"] = re.sub(r"(NUM_WORKERS|TIMEOUT): \d+", r"\1: any", config)
    return left


def differences(out: Path, expected: dict[str, object]) -> list[str]:
    """Names of what `out` holds otherwise than the uninterrupted run did."""
    left = left_by(out)
    names = [name for name in {**left, **expected} if left.get(name) != expected.get(name)]
    partial = [path.name for path in out.iterdir() if "partial" in path.name]
    return names + partial


def newest_checkpoint(out: Path) -> int:
    """Iteration of the newest checkpoint of a training that has not ended; -1 if there is none."""
    return max((int(path.stem.rpartition("_")[2]) for path in out.glob("model_0*.pth")), default=-1)


def children(pid: int) -> list[int]:
    """Processes that the process `pid` started."""
    return [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]


def gone(pid: int) -> bool:
    """Whether no process of the session that `pid` led is left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, 0)
        return False
    return True
