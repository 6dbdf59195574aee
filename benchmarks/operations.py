"""Benchmarks of single operations: deformable attention, and whether a forward pass waits for the GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.case import OURS, PEER, Case
from benchmarks.load import timed
from benchmarks.measure import Boundary, Clock, PeakMemory, read, without_rest
from benchmarks.sides import AMP, BACKWARD, Ours, autocast, images, labelled_images
from fasegr.modeling.ops import deformable_attention, switches

FORWARD = "forward"
_BACKWARD = Boundary(BACKWARD, torch.Tensor, "backward")
STRIDES, HEADS, POINTS = (32, 16, 8), 8, 4  # of the paper's pixel decoder


def times(case: dict[str, Any]) -> dict[str, Any]:
    """For deformable attention, seconds forward and backward by side, where the peer is the plain form. For
    synchronisation, what waits, as text under "notes"."""
    case = Case.of(case).prepare()
    if case.kind == "synchronisation":
        return {"notes": _waits(case)}
    steps = _steps(case)
    runs = {name: lambda step=step: _timed(case, step) for name, step in steps.items()}
    names = {OURS: "deformable attention", PEER: case.peer}
    result: dict[str, Any] = {}
    if case.place.type == "cuda":
        result["memory"] = {name: _peaks(case, step) for name, step in steps.items()}
    return result | timed(case, runs, {name: names[name] for name in runs})


def memory(case: dict[str, Any], side: str) -> dict[str, int]:
    """Peak bytes above the inputs in a step of one side. Call it in a fresh process."""
    case = Case.of(case).prepare()
    if case.kind == "synchronisation":
        return {}
    return _peaks(case, _steps(case)[side])


def _peaks(case: Case, step: Callable[[], Any]) -> dict[str, int]:
    return without_rest(read(step, [_BACKWARD], PeakMemory(case.place)), FORWARD)


def _timed(case: Case, step: Callable[[], Any]) -> dict[str, float]:
    return without_rest(read(step, [_BACKWARD], Clock(case.place)), FORWARD)


def agreement(case: dict[str, Any]) -> dict[str, float]:
    """Deviations of the faster form from the plain one, on the case's device and in its dtype: result and gradients."""
    case = Case.of(case).prepare()
    if case.kind == "synchronisation":
        return {}
    results = {name: step() for name, step in _steps(case).items()}
    pairs = list(zip(results[PEER], results[OURS], strict=True))
    found = [float((theirs - ours).abs().max() / theirs.abs().max()) for theirs, ours in pairs]
    return {"result": found[0], "gradients": max(found[1:])}


def _steps(case: Case) -> dict[str, Callable[[], list[Tensor]]]:
    """A step of each side, forward and backward, that returns result and gradients."""
    shapes = [tuple(-(-side // stride) for side in case.size) for stride in STRIDES]
    tokens = sum(h * w for h, w in shapes)
    dtype = getattr(torch, case.dtype)
    generator = torch.Generator().manual_seed(3)
    value = torch.randn(case.batch, tokens, HEADS, 32, generator=generator).to(case.place, dtype)
    grid = (case.batch, tokens, HEADS, len(shapes), POINTS)
    position = torch.float32 if case.dtype in AMP else dtype
    sides = torch.tensor(shapes).to(position)
    x, y = (torch.rand(grid, generator=generator).to(position) * sides[:, i, None] for i in (1, 0))
    weight = torch.rand(grid, generator=generator).to(position)
    inputs = [value, *(t.to(case.place) for t in (x, y, weight / weight.sum((-2, -1), keepdim=True)))]
    for tensor in inputs:
        tensor.requires_grad_()

    def step() -> list[Tensor]:
        for tensor in inputs:
            tensor.grad = None
        result = deformable_attention(inputs[0], shapes, *inputs[1:])
        result.square().sum().backward()
        return [result.detach(), *(tensor.grad for tensor in inputs)]

    def plain() -> list[Tensor]:
        with switches.off(*peers.plain_names(case.peer)):
            return step()

    return {OURS: step} | ({PEER: plain} if case.peer and peers.is_plain(case.peer) else {})


def _waits(case: Case) -> dict[str, str]:
    """For inference and for the network in training: "nothing waits", or the line that does."""
    if case.place.type != "cuda":
        raise ValueError(f"synchronisation can only be measured on a GPU; the device is {case.device}")
    ours = Ours(case.config, case.opts, case.device, case.dtype)
    samples = images(case.size, case.batch, case.place)
    targets = labelled_images(case.size, case.batch, case.place, ours.num_classes, 10)

    def infer() -> None:
        ours.model.eval()
        with torch.no_grad():
            ours.infer(samples, labels=False)

    def network() -> None:
        ours.model.train()
        pixels = torch.stack([sample["image"] for sample in targets]).float()
        ours.model.sem_seg_head(ours.model.backbone(pixels))

    return {"inference": _first_wait(case, infer), "network in training": _first_wait(case, network)}


def _first_wait(case: Case, run: Callable[[], Any]) -> str:
    with autocast(case.place, case.dtype):
        run()  # so that kernels are chosen and compiled
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            run()
        except RuntimeError as error:
            if "synchroniz" not in str(error):
                raise
            trace = error.__traceback__
            while trace.tb_next and "fasegr" in trace.tb_next.tb_frame.f_code.co_filename:
                trace = trace.tb_next
            return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}: {str(error).splitlines()[0]}"
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return "nothing waits"
