"""Two and four processes over gloo: one start of them for all tests, since that is what takes the time. They are forked
from a process that has imported what they need."""

import json
import multiprocessing
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
from tests.engine.tiny_training import AsOnGPU, TinySegmentor, even_points, faseg_cfg, tiny_cfg


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


def work(rank: int, size: int, root: str, out: str, port: int) -> None:
    """The work of one of `size` processes for all tests; it writes what it saw to OUT/RANK.json."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    comm.create_local_process_group(size)
    root, out = Path(root), Path(out)
    TinySegmentor.deterministic = True
    run(tiny_cfg(root, out / f"{size}_1"))
    run(tiny_cfg(root, out / f"{size}_compressed", "SOLVER.COMPRESS_GRADIENTS", True))
    if size == 2:
        work_of_two(rank, root, out)
    comm.synchronize()
    dist.destroy_process_group()


def work_of_two(rank: int, root: Path, out: Path) -> None:
    seen = {}
    run(tiny_cfg(root, out / "2_2", "SOLVER.ACCUMULATE", 2))
    run(tiny_cfg(root, out / "2_deferred"), hooks=[AsOnGPU()])
    run(tiny_cfg(root, out / "2_gathered", "SPEED.GATHER_METRICS_PERIOD", 3), hooks=[AsOnGPU()])
    TinySegmentor.deterministic = False
    run_faseg(faseg_cfg(root, out / "2_faseg"))

    try:
        run(tiny_cfg(root, out / "stopped", "DATASETS.TEST", ()), hooks=[SignalToProcessOne()])
    except Interrupted as interrupted:
        seen["stopped"] = str(interrupted)

    TinySegmentor.break_at = ("3.png",)
    for name, hooks in (("broken", []), ("broken_on_gpu", [AsOnGPU()])):
        try:
            run(tiny_cfg(root, out / name, "SOLVER.IMS_PER_BATCH", 2), hooks)
        except NonFiniteLoss as error:
            seen[name] = str(error)

    TinySegmentor.break_at = ()
    TinySegmentor.forward, forward = fail, TinySegmentor.forward
    try:
        run(tiny_cfg(root, out / "matching"))
    except NonFiniteLoss as error:
        seen["matching"] = str(error)
    TinySegmentor.forward = forward

    (out / f"{rank}.json").write_text(json.dumps(seen))


def start(size: int, root: Path, out: Path) -> Path:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.set_forkserver_preload(["fasegr.engine", "tests.engine.tiny_training"])
    arguments = (size, str(root), str(out), port)
    torch.multiprocessing.start_processes(work, nprocs=size, args=arguments, start_method="forkserver")
    return out


@pytest.fixture(scope="module")
def two_processes(dataset_root, tmp_path_factory):
    """The directory that the processes wrote to, and what each of them saw."""
    out = start(2, dataset_root, tmp_path_factory.mktemp("two"))
    return out, [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def outputs(two_processes, dataset_root, tmp_path_factory):
    """The directory of each training, by processes and kind."""
    four = start(4, dataset_root, tmp_path_factory.mktemp("four"))
    return {path.name: path for out in (two_processes[0], four) for path in out.iterdir()}


def metrics(output_dir):
    kept = ("iteration", "loss", "total_loss", "sem_seg", "grad_norm")
    lines = read_metrics(output_dir / "metrics.json")
    return [{name: value for name, value in line.items() if name.startswith(kept)} for line in lines]


@pytest.mark.parametrize("name", ["2_1", "2_2", "2_deferred", "4_1"])
def test_losses_scores_and_weights_are_those_of_one_process(outputs, dataset_root, tmp_path, name, deterministic_model):
    """name: processes, and micro-batches a step."""
    run(tiny_cfg(dataset_root, tmp_path))
    for one_line, line in zip(metrics(tmp_path), metrics(outputs[name]), strict=True):
        assert line == pytest.approx(one_line, rel=1e-5)
    weights = [read_checkpoint(str(path / "model_final.pth")).weights for path in (outputs[name], tmp_path)]
    torch.testing.assert_close(*weights, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [2, 4])
def test_compressed_gradients_are_near(outputs, size):
    """bfloat16 has 8 bits."""
    plain, compressed = (metrics(outputs[f"{size}_{kind}"]) for kind in ("1", "compressed"))
    norms = [next(line["grad_norm"] for line in lines if "grad_norm" in line) for lines in (plain, compressed)]
    assert norms[0] != norms[1] == pytest.approx(norms[0], rel=1e-2)


def test_losses_of_faseg_are_those_of_one_process(two_processes, dataset_root, tmp_path):
    """The matching and the divisors of the losses reach over processes; images have different numbers of masks."""
    run_faseg(faseg_cfg(dataset_root, tmp_path))
    (one_line,), (two_line,) = metrics(tmp_path), metrics(two_processes[0] / "2_faseg")
    assert {"loss_ce", "loss_mask_0", "loss_dice_3"} <= one_line.keys()
    assert two_line == pytest.approx(one_line, rel=1e-3)


def test_a_signal_to_one_process_stops_both_after_the_same_iteration(two_processes):
    out, seen = two_processes
    assert [part["stopped"] for part in seen] == ["stopped by SIGTERM"] * 2
    last = (out / "stopped" / "last_checkpoint").read_text()
    assert last in ("model_0000002.pth", "model_0000003.pth")
    assert read_checkpoint(str(out / "stopped" / last)).rest["iteration"] == int(last[6:13])


def test_metrics_may_be_gathered_in_some_steps_only(two_processes):
    out, _ = two_processes
    whole, some = metrics(out / "2_1"), metrics(out / "2_gathered")
    steps = len(whole) - 1  # the last line has the scores
    assert steps == 1
    assert some[0]["grad_norm"] == pytest.approx(whole[0]["grad_norm"])
    assert some[0]["total_loss"] != pytest.approx(whole[0]["total_loss"]), "means over other steps"
    assert some[-1] == pytest.approx(whole[-1])


@pytest.mark.parametrize("name", ["broken", "broken_on_gpu"])
def test_both_processes_name_the_image_that_broke_the_loss_of_one(two_processes, name):
    out, seen = two_processes
    assert seen[0][name] == seen[1][name]
    assert "loss_ce is nan" in seen[0][name]
    assert "3.png. " in seen[0][name]
    assert seen[0][name].partition("Images")[0] == seen[0]["broken"].partition("Images")[0], "the same iteration"
    assert len(list((out / name).glob("nan_*.pth"))) == 1


def test_processes_that_find_nan_by_themselves_each_save_what_they_saw(two_processes):
    out, seen = two_processes
    for rank, name in enumerate(("nan_0000000.pth", "nan_0000000_rank1.pth")):
        assert "the matching cost is not finite" in seen[rank]["matching"]
        assert str(out / "matching" / name) in seen[rank]["matching"]
        assert len(read_checkpoint(str(out / "matching" / name)).rest["files"]) == 2
