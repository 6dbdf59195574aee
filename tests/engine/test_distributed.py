"""Two processes over gloo: one start of them for all tests, since that is what takes the time."""

import json
import os
import signal
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from fasegr.checkpoint import read_checkpoint
from fasegr.d2 import HookBase, comm
from fasegr.engine import Trainer
from fasegr.engine.interruption import Interrupted
from fasegr.engine.train_step import NonFiniteLoss
from fasegr.utils.metrics_file import read_metrics
from tests.engine.tiny_training import TinySegmentor, even_points, faseg_cfg, tiny_cfg


class SignalToProcessOne(HookBase):
    def before_step(self):
        if comm.get_rank() == 1 and self.trainer.iter == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def run(cfg, hooks=()):
    trainer = Trainer(cfg)
    trainer.register_hooks(hooks)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return trainer


def run_faseg(cfg):
    """With points that do not depend on how many images a process has."""
    trainer = Trainer(cfg)
    trainer.unwrapped_model.criterion.draw = even_points
    trainer.train()


def fail(self, batch):
    raise FloatingPointError("the matching cost is not finite")


def work(rank: int, root: str, out: str, port: int) -> None:
    """The work of one of the two processes for all tests; it writes what it saw to OUT/RANK.json."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    root, out, seen = Path(root), Path(out), {}

    TinySegmentor.deterministic = True
    for accumulate in (1, 2):
        run(tiny_cfg(root, out / f"two_{accumulate}", "SOLVER.ACCUMULATE", accumulate))
    TinySegmentor.deterministic = False
    run_faseg(faseg_cfg(root, out / "two_faseg"))

    try:
        run(tiny_cfg(root, out / "stopped", "DATASETS.TEST", ()), hooks=[SignalToProcessOne()])
    except Interrupted as interrupted:
        seen["stopped"] = str(interrupted)

    TinySegmentor.break_at = ("3.png",)
    try:
        run(tiny_cfg(root, out / "broken", "SOLVER.IMS_PER_BATCH", 2))
    except NonFiniteLoss as error:
        seen["broken"] = str(error)

    TinySegmentor.break_at = ()
    TinySegmentor.forward, forward = fail, TinySegmentor.forward
    try:
        run(tiny_cfg(root, out / "matching"))
    except NonFiniteLoss as error:
        seen["matching"] = str(error)
    TinySegmentor.forward = forward

    (out / f"{rank}.json").write_text(json.dumps(seen))
    comm.synchronize()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(dataset_root, tmp_path_factory):
    """The directory that the processes wrote to, and what each of them saw."""
    out = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, nprocs=2, args=(str(dataset_root), str(out), port))
    return out, [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


def metrics(output_dir):
    kept = ("iteration", "loss", "total_loss", "sem_seg", "grad_norm")
    lines = read_metrics(output_dir / "metrics.json")
    return [{name: value for name, value in line.items() if name.startswith(kept)} for line in lines]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_losses_scores_and_weights_are_those_of_one_process(
    two_processes, dataset_root, tmp_path, accumulate, deterministic_model
):
    run(tiny_cfg(dataset_root, tmp_path))
    two = two_processes[0] / f"two_{accumulate}"
    for one_line, two_line in zip(metrics(tmp_path), metrics(two), strict=True):
        assert two_line == pytest.approx(one_line, rel=1e-5)
    weights = [read_checkpoint(str(path / "model_final.pth")).weights for path in (two, tmp_path)]
    torch.testing.assert_close(*weights, rtol=0, atol=1e-6)


def test_losses_of_faseg_are_those_of_one_process(two_processes, dataset_root, tmp_path):
    """The matching and the divisors of the losses reach over processes; images have different numbers of masks."""
    run_faseg(faseg_cfg(dataset_root, tmp_path))
    (one_line,), (two_line,) = metrics(tmp_path), metrics(two_processes[0] / "two_faseg")
    assert {"loss_ce", "loss_mask_0", "loss_dice_3"} <= one_line.keys()
    assert two_line == pytest.approx(one_line, rel=1e-3)


def test_a_signal_to_one_process_stops_both_after_the_same_iteration(two_processes):
    out, seen = two_processes
    assert [part["stopped"] for part in seen] == ["stopped by SIGTERM"] * 2
    last = (out / "stopped" / "last_checkpoint").read_text()
    assert last in ("model_0000002.pth", "model_0000003.pth")
    assert read_checkpoint(str(out / "stopped" / last)).rest["iteration"] == int(last[6:13])


def test_both_processes_name_the_image_that_broke_the_loss_of_one(two_processes):
    out, seen = two_processes
    assert seen[0]["broken"] == seen[1]["broken"]
    assert "loss_ce is nan" in seen[0]["broken"]
    assert "3.png. " in seen[0]["broken"]
    assert len(list((out / "broken").glob("nan_*.pth"))) == 1


def test_processes_that_find_nan_by_themselves_each_save_what_they_saw(two_processes):
    out, seen = two_processes
    for rank, name in enumerate(("nan_0000000.pth", "nan_0000000_rank1.pth")):
        assert "the matching cost is not finite" in seen[rank]["matching"]
        assert str(out / "matching" / name) in seen[rank]["matching"]
        assert len(read_checkpoint(str(out / "matching" / name)).rest["files"]) == 2
