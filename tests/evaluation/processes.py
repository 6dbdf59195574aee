"""Evaluators in two processes, each of which evaluates a share of a `TinyCoco`."""

import json
import multiprocessing
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fasegr.evaluation import InstanceEvaluator, PanopticEvaluator, SemSegEvaluator
from tests.evaluation.tiny_coco import TinyCoco

# kind: evaluator, dataset, outputs, images of each process
KINDS = {
    "instance": (InstanceEvaluator, "instances", TinyCoco.instance_outputs, ([0], [1, 2, 3])),
    "panoptic": (PanopticEvaluator, "panoptic", TinyCoco.panoptic_outputs, ([0], [1, 2, 3])),
    "semantic": (SemSegEvaluator, "panoptic", TinyCoco.semantic_outputs, ([0, 2], [1, 3])),
    "report": (SemSegEvaluator, "panoptic", TinyCoco.semantic_outputs, ([0, 1], [2, 3])),
    "semantic, one process without images": (
        *(SemSegEvaluator, "panoptic", TinyCoco.semantic_outputs),
        ([0, 1, 2, 3], []),
    ),
}


class TwoProcesses:
    """folder: where the evaluators wrote their files."""

    def __init__(self, root: Path):
        self.root, self.folder = root, root / "out"
        # As other tests of several processes, so that one process imports it for all.
        multiprocessing.set_forkserver_preload(["fasegr.engine", "tests.engine.tiny_training"])
        mp.start_processes(_evaluate_share, (root,), nprocs=2, start_method="forkserver")

    def results(self, kind: str) -> list[dict | None]:
        """Of both processes. kind: a key of KINDS."""
        return [json.loads((self.root / f"{kind} {rank}.json").read_text()) for rank in range(2)]


def _evaluate_share(rank: int, root: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{root}/rendezvous", rank=rank, world_size=2)
    for kind, (evaluator, dataset, outputs_of, shares) in KINDS.items():
        case = TinyCoco(root / f"{kind} {rank}")
        options = {"report": {"weights": "model.pth"}} if kind == "report" else {"save_json": True}
        evaluator = evaluator(getattr(case, dataset), output_dir=root / "out", **options)
        outputs = outputs_of(case)
        for i in shares[rank]:
            evaluator.process(case.inputs(slice(i, i + 1)), outputs[i : i + 1])
        (root / f"{kind} {rank}.json").write_text(json.dumps(evaluator.evaluate()))
    dist.barrier()
    dist.destroy_process_group()
