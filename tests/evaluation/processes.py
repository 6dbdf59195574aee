"""Evaluators of objects in two processes, each of which sees a share of a `TinyCoco`."""

import json
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fasegr.evaluation import InstanceEvaluator, PanopticEvaluator
from tests.evaluation.tiny_coco import TinyCoco

SHARES = ([0], [1, 2, 3])


class TwoProcesses:
    """folder: where the files went that the evaluators wrote."""

    def __init__(self, root: Path):
        self.root, self.folder = root, root / "out"
        mp.spawn(_evaluate_share, (root,), nprocs=2)

    def results(self, kind: str) -> list[dict | None]:
        """Of both processes. kind: "instance" or "panoptic"."""
        return [json.loads((self.root / f"{kind} {rank}.json").read_text()) for rank in range(2)]


def _evaluate_share(rank: int, root: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{root}/rendezvous", rank=rank, world_size=2)
    for kind in ("instance", "panoptic"):
        case = TinyCoco(root / f"{kind} {rank}")
        if kind == "instance":
            evaluator = InstanceEvaluator(case.instances, output_dir=root / "out", save_json=True)
            outputs = case.instance_outputs()
        else:
            evaluator = PanopticEvaluator(case.panoptic, output_dir=root / "out", save_json=True)
            outputs = case.panoptic_outputs()
        for i in SHARES[rank]:
            evaluator.process(case.inputs(slice(i, i + 1)), outputs[i : i + 1])
        (root / f"{kind} {rank}.json").write_text(json.dumps(evaluator.evaluate()))
    dist.barrier()
    dist.destroy_process_group()
