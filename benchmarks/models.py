"""Benchmarks of a model: inference, a training step, only the loss; and whether the peer gives the same results."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import peers
from benchmarks.case import OURS, PEER, Case
from benchmarks.load import timed
from benchmarks.measure import (
    REST,
    WHOLE,
    Boundary,
    Clock,
    Meter,
    PeakMemory,
    Work,
    parameter_bytes,
    read,
    tensor_bytes,
    without_rest,
)
from benchmarks.sides import (
    BACKWARD,
    CRITERION,
    DECODER,
    HEAD,
    OPTIMIZER,
    Ours,
    Side,
    autocast,
    images,
    labelled_images,
)
from fasegr.analysis.flops import FORMULAS
from fasegr.modeling.ops import switches

SEMANTIC_OUTPUT, OTHER = "semantic output", "other"
NUM_MASKS = 10  # per training image; those of ADE20K have about nine classes


def times(case: dict[str, Any]) -> dict[str, Any]:
    """Seconds of each part in each round, by side, and the work of our parts. On a GPU, where
    memory is that of tensors and not of the process, also the result of `memory` for each side."""
    case = Case.of(case).prepare()
    ours, peer = _sides(case)
    runs = {OURS: _runner(case, ours)}
    if peer:
        runs[PEER] = _runner(case, peer)
    result: dict[str, Any] = {}
    if case.place.type == "cuda":  # before other steps: the first one allocates the optimizer's moments, which stay
        result["memory"] = {name: _peaks(case, run) for name, run in runs.items()}
    result["work"] = _named(case, _work(case, ours))
    clocked = {name: lambda run=run: _named(case, run(Clock(case.place))) for name, run in runs.items()}
    result |= timed(case, clocked, {OURS: ours.name} | ({PEER: peer.name} if peer else {}))
    result["peer_commit"] = peer.commit if peer else None
    return result


def memory(case: dict[str, Any], side: str) -> dict[str, int]:
    """Peak bytes above the loaded model in two steps of one side, by part. Call it in a fresh process."""
    case = Case.of(case).prepare()
    model = _ours(case) if side == OURS else _peer(case)
    if case.device == "cpu":
        _touch_libraries()
    return _peaks(case, _runner(case, model))


def _peaks(case: Case, run: Callable[[Meter], dict[str, float]]) -> dict[str, int]:
    meter = PeakMemory(case.place)
    both = [run(meter) for _ in range(2)]
    return _named(case, {part: max(reading[part] for reading in both) for part in both[0]})


def agreement(case: dict[str, Any]) -> dict[str, float]:
    """How far the peer's results are from ours with the same weights, in float64: the largest deviations of the scores
    and, for training, of the losses and their gradients, relative to the largest value of each.

    In float32 the two may differ visibly although both are right: where a mask has a single value near the threshold,
    rounding decides whether the query attends to one key or to all.
    """
    case = Case.of(case).prepare()
    # Fewer points are enough for a comparison; drop path would drop different samples on each side.
    opts = (*case.opts, "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "1024", "MODEL.SWIN.DROP_PATH_RATE", "0.0")
    case = dataclasses.replace(case, dtype="float64", opts=opts)
    ours, peer = _sides(case)
    samples = labelled_images(case.size, 1, case.place, ours.num_classes, NUM_MASKS)
    with _in_float64():
        with torch.no_grad():
            scores = [side.infer(samples, False)[0] for side in (peer, ours) if side.model.eval()]
        found = {"scores": _deviation(*scores)}
        if case.kind in ("training", "criterion"):
            results = [_losses_and_gradients(side, samples) for side in (peer, ours)]
            losses, gradients = zip(*results, strict=True)
            found["losses"] = max(_deviation(*(table[name] for table in losses)) for name in losses[1])
            # Some gradients are zero up to rounding: a key's bias shifts all logits of a softmax alike.
            noise = 1e-9 * max(gradient.abs().max() for gradient in gradients[1].values())
            found["gradients"] = max(_deviation(*(table[name] for table in gradients), noise) for name in gradients[1])
    return found


def _losses_and_gradients(side: Side, samples: list[dict]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    side.model.train()
    losses = side.loss(samples)
    sum(losses.values()).backward()
    return losses, {name: p.grad for name, p in side.model.named_parameters() if p.grad is not None}


@contextmanager
def _in_float64() -> Iterator[None]:
    """Peers cast to float32 where half precision is not enough, which would lose precision here; and they draw random
    points, which must be the same on both sides."""
    originals = torch.Tensor.float, torch.rand
    torch.Tensor.float, torch.rand = torch.Tensor.double, _even
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.Tensor.float, torch.rand = originals
        torch.set_default_dtype(torch.float32)


def _even(*shape: int, device=None, dtype=None, **_) -> Tensor:
    """Replaces `torch.rand`: the same points on both sides, (..., n, 2), evenly spread (a golden-ratio lattice); a
    shorter draw is a prefix of a longer one."""
    i = torch.arange(shape[-2], dtype=torch.float64)
    points = torch.stack([(0.754877666 * i) % 1, (0.569840291 * i) % 1], -1)
    return points.to(device=device, dtype=dtype or points.dtype).expand(shape).clone()


def _deviation(value: Tensor, reference: Tensor, least: float | Tensor = 1e-30) -> float:
    """Largest difference, relative to the largest value of the reference, or to `least` if that is larger."""
    value, reference = value.detach().to(reference), reference.detach()
    return float((value - reference).abs().max() / reference.abs().max().clamp(min=least))


def _ours(case: Case) -> Ours:
    return Ours(case.config, case.opts, case.device, case.dtype)


def _peer(case: Case) -> Side | None:
    if not case.peer:
        return None
    return peers.build(case.peer, case.config, case.peer_config, case.opts, case.device, case.dtype)


def _sides(case: Case) -> tuple[Ours, Side | None]:
    ours, peer = _ours(case), _peer(case)
    if peer and hasattr(peer, "load"):
        peer.load(ours.model.state_dict())
    return ours, peer


def _runner(case: Case, side: Side) -> Callable[[Meter], dict[str, float]]:
    """A function that takes one step under a meter."""
    step, boundaries = _step(case, side)
    return lambda meter: read(step, boundaries, meter, side.methods)


def _step(case: Case, side: Side) -> tuple[Callable[[], Any], list[Boundary]]:
    backward = Boundary(BACKWARD, torch.Tensor, "backward")
    if case.kind in ("inference", "labels"):
        samples = images(case.size, case.batch, case.place)
        side.model.eval()

        def infer():
            with torch.no_grad(), autocast(case.place, case.dtype):
                return side.infer(samples, case.kind == "labels")

        return infer, side.network()
    samples = labelled_images(case.size, case.batch, case.place, side.cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, NUM_MASKS)
    side.model.train()
    if case.kind == "training":
        step, optimizer = side.trainer(samples, case.dtype)
        return step, [*side.network(), *side.losses(), backward, *optimizer]
    if case.kind == "criterion":
        outputs, targets = _predictions(case, side, samples)

        def loss():
            with autocast(case.place, case.dtype):
                losses = side.model.criterion(outputs, targets)
            sum(losses.values()).backward()

        return loss, [*side.losses(), backward]
    raise ValueError(f"the kind of a case is {case.kind!r}; choose inference, labels, training or criterion")


def _predictions(case: Case, side: Side, samples: list[dict]) -> tuple[dict, list[dict]]:
    """Random outputs of a head for the criterion: leaf tensors, so that the backward pass ends there."""
    generator = torch.Generator().manual_seed(2)
    former, head = side.cfg.MODEL.MASK_FORMER, side.cfg.MODEL.SEM_SEG_HEAD
    height, width = (-(-length // 32) * 8 for length in case.size)

    def prediction() -> dict[str, Tensor]:
        shapes = {
            "pred_logits": (case.batch, former.NUM_OBJECT_QUERIES, head.NUM_CLASSES + 1),
            "pred_masks": (case.batch, former.NUM_OBJECT_QUERIES, height, width),
        }
        return {
            name: torch.randn(shape, generator=generator).to(case.place).requires_grad_()
            for name, shape in shapes.items()
        }

    *earlier, last = (prediction() for _ in range(former.DEC_LAYERS))
    targets = [{"labels": sample["labels"], "masks": sample["masks"]} for sample in samples]
    return {**last, "aux_outputs": earlier}, targets


def _work(case: Case, side: Ours) -> dict[str, int]:
    """The work of our parts, counted on their plain forms: what the result needs, whatever the faster ones call."""
    step, boundaries = _step(case, side)
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS | _MORE_FORMULAS)
    trained = [p for p in side.model.parameters() if p.requires_grad and case.kind in ("inference", "labels")]
    for parameter in trained:  # else the counter adds backward hooks
        parameter.requires_grad_(False)
    with switches.off(), torch.compiler.set_stance("force_eager"), counter:  # it cannot see into compiled code
        work = read(step, boundaries, Work(counter.get_total_flops), side.methods)
    for parameter in trained:
        parameter.requires_grad_(True)
    return {name: amount for name, amount in _complete(case, side, work).items() if not name.endswith("/out")}


def _complete(case: Case, side: Ours, work: dict[str, int]) -> dict[str, int]:
    """`work` with the bytes of the parts that are not calls of a module."""
    weights = parameter_bytes(side.model)
    pictures = tensor_bytes(images(case.size, case.batch, case.place))
    results = work[f"{WHOLE}/out"]
    if case.kind in ("inference", "labels"):
        predictions = work[f"{HEAD if f'{HEAD}/out' in work else DECODER}/out"]
        return work | {f"{REST}/bytes": predictions + results, f"{WHOLE}/bytes": weights + pictures + results}
    if case.kind == "criterion":
        return work | {f"{WHOLE}/bytes": work[f"{CRITERION}/bytes"], f"{BACKWARD}/bytes": work[f"{CRITERION}/bytes"]}
    # Backward reads each weight and writes its gradient. AdamW reads a weight, its gradient and two moments, and
    # writes all but the gradient.
    backward, optimizer = 2 * weights, 7 * weights
    return work | {
        f"{BACKWARD}/bytes": backward,
        f"{OPTIMIZER}/bytes": optimizer,
        f"{WHOLE}/bytes": weights + backward + optimizer + pictures,
    }


def _samples(input_shape, grid_shape, *args, out_shape=None, **kwargs) -> int:
    batch, height, width, _ = grid_shape
    return 2 * 4 * batch * input_shape[1] * height * width


def _samples_backward(grad_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * 2 * 4 * math.prod(grad_shape)


def _attention_backward(grad_shape, query_shape, key_shape, *args, out_shape=None, **kwargs) -> int:
    batch, heads, queries, dim = query_shape
    return 2 * 5 * batch * heads * queries * key_shape[2] * dim  # the weights again, and four gradients


# Further operations, called in training and by the plain forms.
_MORE_FORMULAS = {
    torch.ops.aten.grid_sampler_2d: _samples,
    torch.ops.aten.grid_sampler_2d_backward: _samples_backward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def _named(case: Case, readings: dict[str, float]) -> dict[str, float]:
    """Names the rest of a step: the semantic output in inference, "other" in training."""
    return without_rest(readings, SEMANTIC_OUTPUT if case.kind in ("inference", "labels") else OTHER)


def _touch_libraries() -> None:
    """Load torch's libraries: their code is read from disk at first use, and would count as memory of the model."""
    x = torch.rand(1, 32, 32, 32, requires_grad=True)
    y = torch.nn.functional.conv2d(x, torch.rand(32, 32, 3, 3))
    y = torch.nn.functional.group_norm(y, 4).flatten(2).transpose(1, 2)
    y = torch.nn.functional.linear(torch.nn.functional.layer_norm(y, (32,)), torch.rand(64, 32)).softmax(-1)
    (y @ y.transpose(1, 2)).sum().backward()
