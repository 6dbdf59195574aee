"""A kernel is used on a machine after it has computed there what its plain form computes.

`passes` compares both on small inputs, forward and gradients, before a kernel is first used with given settings. What
has passed is remembered in a folder of caches, by kernel source, device and versions. What has not is not, so that it
is compared again in the next process, when its cause may be gone.

Processes of one training may decide differently, though the same inputs on the same hardware make that unlikely: their
results differ by rounding only, and no process waits for another.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

from fasegr.utils.files import write_json

__all__ = ["Deviation", "cache_folder", "deviations", "passes"]

logger = logging.getLogger(__name__)

_passed: dict[tuple, bool] = {}


class Deviation(NamedTuple):
    """The greatest difference of two results, relative to the greatest value, and what is allowed."""

    what: str
    found: float
    limit: float

    @property
    def too_large(self) -> bool:
        return not self.found <= self.limit  # NaN is


def passes(
    name: str,
    device: torch.device,
    settings: Mapping[str, Any],
    sources: Sequence[str | Path],
    compare: Callable[[], list[Deviation]],
) -> bool:
    """Whether the kernel `name` agrees with its plain form on `device`; logs a warning the first time that it does not.

    settings: what the kernel is compiled for. sources: the files of its code. compare: computes both.
    """
    key = (name, device, tuple(settings.items()))
    if key in _passed:
        return _passed[key]
    if isinstance(torch.empty(0), FakeTensor):
        return True  # only shapes are computed, as for counting
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return False  # a graph is recorded without a step before it: a comparison would be part of the graph
    with unset_fake_temporarily():  # torch.compile may ask while it traces
        _passed[key] = _check(name, device, settings, sources, compare)
    return _passed[key]


def _check(name, device, settings, sources, compare) -> bool:
    identity = {"kernel": name, "source": _digest(sources), **_machine(device)}
    identity |= {option: str(value) for option, value in settings.items()}
    path = _path(identity)
    if path is not None and _is_remembered(path, identity):
        return True
    try:
        wrong = [f"{d.what} is off by {d.found:.2g}, at most {d.limit:.2g} expected" for d in compare() if d.too_large]
    except Exception as error:  # whatever a compiler or a driver may say; the plain form needs neither
        lines = str(error).strip().splitlines() or [""]
        wrong = [f"{type(error).__name__}: {lines[0]}"]
    if not wrong:
        if path is not None:
            _remember(path, identity)
        return True
    if not any(kernel == name and not passed for (kernel, *_), passed in _passed.items()):
        logger.warning(
            "The kernel %s fails its check on this machine (%s; %s): %s. Its plain form is used, which is slower; "
            "python tools/check_machine.py shows more",
            *(name, identity["device"], ", ".join(f"{k} {v}" for k, v in settings.items()), "; ".join(wrong)),
        )
    return False


def _machine(device: torch.device) -> dict[str, str]:
    model = str(device.type)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        model = f"{properties.name}, compute capability {properties.major}.{properties.minor}"
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:  # built from source, under another name
        triton = "?"
    return {"device": model, "torch": torch.__version__, "triton": triton}


def _digest(sources: Sequence[str | Path]) -> str:
    digest = hashlib.sha256()
    for source in sources:
        digest.update(Path(source).read_bytes())
    return digest.hexdigest()


def cache_folder() -> Path | None:
    """Where fasegr keeps what it can make again: XDG_CACHE_HOME/fasegr, by default ~/.cache/fasegr; None without."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "fasegr")
    except RuntimeError:  # a user without a home
        return None


def _path(identity: Mapping[str, str]) -> Path | None:
    folder = cache_folder()
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return folder and folder / "kernels" / f"{identity['kernel']}-{digest[:16]}.json"


def _is_remembered(path: Path, identity: Mapping[str, str]) -> bool:
    try:
        return json.loads(path.read_bytes()) == identity
    except (OSError, ValueError):  # none, or not one that was written here
        return False


def _remember(path: Path, identity: Mapping[str, str]) -> None:
    try:
        write_json(identity, path)
    except OSError as error:
        logger.debug("What the kernel's check found is not kept: %s", error)


def deviations(
    form: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: Sequence[Tensor], names: Sequence[str]
) -> list[Deviation]:
    """How far the result of `form` and its gradients are from those of `plain` in float64, on the CPU.

    inputs: floating point, of any types; names: of them. A result in half precision may be off by four roundings, one
    in float32 by 1e-5, as sums in another order are.
    """
    found = _with_gradients(form, inputs)
    exact = _with_gradients(plain, [t.detach().cpu().double() for t in inputs])  # some GPUs have no float64
    out = []
    for what, value, truth in zip(["the result", *(f"the gradient of {n}" for n in names)], found, exact, strict=True):
        off = ((value.detach().cpu().double() - truth).abs().max() / truth.abs().max().clamp(min=1e-30)).item()
        half = value.dtype in (torch.float16, torch.bfloat16)
        out.append(Deviation(what, off, 4 * torch.finfo(value.dtype).eps if half else 1e-5))
    return out


def _with_gradients(form: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """The result and its gradients, whatever modes the caller is in."""
    device = inputs[0].device.type
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device, enabled=False):
        inputs = [t.detach().clone().requires_grad_() for t in inputs]
        out = form(*inputs)
        weights = (torch.arange(out.numel()) % 129 - 64) / 64  # which no type rounds
        return [out, *torch.autograd.grad(out, inputs, weights.view(out.shape).to(out))]
