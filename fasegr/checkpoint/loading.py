"""Weights into a model: all of them, a backbone, or all but the classifier of other classes; or, only where that is
asked for, whatever fits.

Names and shapes decide what is loaded before the first entry of the model is changed.
"""

import logging
from collections import Counter
from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from . import dino, position_tables
from .names import is_derived, is_on_top, may_be_missing, to_our_names
from .paths import local_path
from .reading import read_checkpoint

CLASS_HEAD = "sem_seg_head.predictor.class_embed."  # (classes + 1, ...): all that depends on the number of classes
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
KINDS = ("full", "backbone", "fine-tune")

_logger = logging.getLogger(__name__)


class LoadReport(NamedTuple):
    """How the weights of a file fit a model. Names are the model's unless said otherwise.

    kind: "full" (every entry fits), "backbone" (the whole backbone and nothing else; what it has on top of the
    pretrained network, such as the norms of a Swin's maps, may be missing), "fine-tune" (all but the classifier, which
    is of another number of classes and stays random), "partial" (what fits of another model, where that is asked for),
    or "other" (weights of another model, which `load_checkpoint` refuses).
    renamed: the model's name -> the file's. unexpected: what else the file has, under our names where they are known.
    mismatched: (name, shape in the file, shape in the model). extras: names in the file that are known and not needed.
    resized: like mismatched, for those among matched that fit after interpolation: position tables of a backbone.
    """

    path: str
    kind: str
    matched: list[str]
    renamed: dict[str, str]
    missing: list[str]
    unexpected: list[str]
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]]
    extras: list[str]
    resized: list[tuple[str, tuple[int, ...], tuple[int, ...]]]

    def table(self) -> str:
        """Counts for every module of the model; columns without an entry are left out."""
        columns = {
            "matched": self.matched,
            "renamed": self.renamed,
            "resized": [name for name, _, _ in self.resized],
            "missing": self.missing,
            "unexpected": self.unexpected,
            "other shape": [name for name, _, _ in self.mismatched],
        }
        counts = {head: Counter(map(_module, names)) for head, names in columns.items() if names}
        modules = sorted(set().union(*counts.values()))
        width = max(map(len, ["module", *modules]))
        lines = [f"{'module':{width}}" + "".join(f"{head:>13}" for head in counts)]
        lines += [f"{m:{width}}" + "".join(f"{count[m] or '-':>13}" for count in counts.values()) for m in modules]
        if self.resized:
            resized = [f"{name} from {there} to {here}" for name, there, here in self.resized]
            lines.append(f"resized by bicubic interpolation: {_some(resized)}")
        if self.extras:
            lines.append(f"not needed and ignored: {_some(self.extras)}")
        return "\n".join(lines)

    def starts_anew(self) -> str:
        """A table of the entries that the file does not give: random weights, by part of the model."""
        here = {name: f"{there} in the file" for name, there, _ in self.mismatched}
        reasons = {**dict.fromkeys(self.missing, "not in the file"), **here}
        rows: dict[tuple[str, str], list[str]] = {}
        for name, reason in reasons.items():
            rows.setdefault((_part(name), reason), []).append(name)
        width = max((len(part) for part, _ in rows), default=0)
        return "\n".join(f"{part:{width}}  {len(names):4} entries  {reason}" for (part, reason), names in rows.items())

    def differences(self) -> str:
        """Examples of what does not fit."""
        shapes = [f"{name} {there} in the file, {here} in the model" for name, there, here in self.mismatched]
        lists = {"other shape": shapes, "missing": self.missing, "unexpected": self.unexpected}
        return "\n".join(f"{head}: {_some(names)}" for head, names in lists.items() if names)


def _module(name: str) -> str:
    """sem_seg_head.predictor.class_embed.weight -> sem_seg_head.predictor"""
    return ".".join(name.split(".")[:-1][:2]) or name


def _part(name: str) -> str:
    """sem_seg_head.predictor.query_feat.weight -> sem_seg_head.predictor.query_feat"""
    return ".".join(name.split(".")[:-1][:4]) or name


def _some(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return "; ".join(names[:most]) + more


def load_checkpoint(model: nn.Module, path: str) -> LoadReport:
    """Load the weights in `path` (file, URL or name of a model zoo) into `model`, log a table, return what fit.

    Raises what `local_path` and `read_checkpoint` raise, and ValueError for weights of another model, before anything
    is loaded.
    """
    return load_weights(model, read_checkpoint(local_path(path)).weights, path)


def load_weights(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    path: str,
    *,
    kinds: Collection[str] = KINDS,
    partial: bool = False,
) -> LoadReport:
    """Load `weights` (name -> tensor) of the file `path` if they fit `model` in one of `kinds`; ValueError if not.

    partial: of weights of another model, load the entries of the same name and shape, as long as there are any.
    """
    model = unwrap(model)
    weights = dino.as_timm(weights, model.state_dict(), path)
    report = compare(model, weights, path)
    if partial and report.kind == "other" and report.matched:
        report = report._replace(kind="partial")
        kinds = (*kinds, "partial")
    if report.kind not in kinds:
        raise ValueError(_refusal(report))
    state = {name: weights[report.renamed.get(name, name)] for name in report.matched}
    _check_numbers(model.state_dict(), state, path)
    state.update({name: position_tables.resize(state[name], shape) for name, _, shape in report.resized})
    model.load_state_dict(state, strict=False)
    _log(report)
    return report


def compare(model: nn.Module, weights: Mapping[str, Tensor], path: str) -> LoadReport:
    """How `weights` fit `model`; loads nothing."""
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    to_file, extras = to_our_names(weights, expected)
    found = {name: tuple(weights[in_file].shape) for name, in_file in to_file.items()}
    common = [name for name in expected if name in found]
    matched = [name for name in common if found[name] == expected[name]]
    differing = [(name, found[name], expected[name]) for name in common if found[name] != expected[name]]
    extras += [to_file[name] for name, _, _ in differing if is_derived(name)]
    mismatched = [entry for entry in differing if not is_derived(entry[0])]
    missing = [name for name in expected if name not in found and not may_be_missing(name)]
    unexpected = [name for name in found if name not in expected]
    kind = _kind(matched, missing, unexpected, mismatched)
    resized = [entry for entry in mismatched if position_tables.can_be_resized(*entry)]
    left = [entry for entry in mismatched if entry not in resized]
    fitted = matched + [name for name, _, _ in resized]
    if resized and _kind(fitted, missing, unexpected, left) == "backbone":  # a segmentor is of one window size
        kind, matched, mismatched = "backbone", fitted, left
    else:
        resized = []
    renamed = {name: to_file[name] for name in matched if to_file[name] != name}
    return LoadReport(path, kind, matched, renamed, missing, unexpected, mismatched, extras, resized)


def _kind(matched: list[str], missing: list[str], unexpected: list[str], mismatched: list[tuple]) -> str:
    if unexpected or not matched:
        return "other"
    if mismatched:
        # Only the number of rows may differ: another width of the head is another model.
        classes = all(name.startswith(CLASS_HEAD) and there[1:] == here[1:] for name, there, here in mismatched)
        return "fine-tune" if classes and not missing else "other"
    if not missing:
        return "full"
    prefix = "backbone." if any(name.startswith("backbone.") for name in [*matched, *missing]) else ""
    needed = [name for name in missing if name.startswith(prefix)]
    if not any(map(is_on_top, matched)):
        needed = [name for name in needed if not is_on_top(name)]
    return "backbone" if all(name.startswith(prefix) for name in matched) and not needed else "other"


def _check_numbers(model: Mapping[str, Tensor], state: Mapping[str, Tensor], path: str) -> None:
    """ValueError if entries of `state` are of a type that those of `model` cannot be, NaN, or infinite."""
    wrong = []
    for name, value in state.items():
        dtype = model[name].dtype
        if not (value.dtype in FLOATS if dtype.is_floating_point else value.dtype in INTEGERS):
            wrong.append(f"{name} is {value.dtype}, in the model {dtype}")
        elif dtype.is_floating_point and not value.to(dtype).isfinite().all():
            wrong.append(f"{name} has NaN or infinite numbers")
    if wrong:
        raise ValueError(
            f"{path} cannot be used: {_some(wrong)}. Nothing was loaded. Use an earlier checkpoint, or other weights"
        )


def _refusal(report: LoadReport) -> str:
    total = len(report.matched) + len(report.mismatched) + len(report.missing)
    if report.kind == "other":
        found = "weights of another model"
        way_out = "Use the config (MODEL keys) that they were trained with, or other weights as MODEL.WEIGHTS."
        if report.matched:
            way_out += (
                " To train on from what fits (another number of queries, Mask2Former's weights, ...), set "
                "MODEL.WEIGHTS_PARTIAL True; the rest then starts anew."
            )
    else:
        found = "the state of a training of another model"
        way_out = (
            "To resume, keep the MODEL keys of that run; to start from its weights, train without --resume, with them "
            "as MODEL.WEIGHTS and another OUTPUT_DIR."
        )
    return (
        f"{report.path} holds {found}: {len(report.matched)} of {total} entries fit. Nothing was loaded. {way_out}\n"
        f"{report.table()}\n{report.differences()}"
    )


def _log(report: LoadReport) -> None:
    if report.kind == "partial":
        what = f"what fits (MODEL.WEIGHTS_PARTIAL). These start from random weights:\n{report.starts_anew()}"
        if report.unexpected:
            what += f"\nThe model has no place for {len(report.unexpected)} entries: {_some(report.unexpected)}"
    elif report.kind == "fine-tune":
        _, there, here = report.mismatched[0]
        what = f"all but its {there[0] - 1} classes; our {here[0] - 1} classes start from random weights (fine-tuning)"
    else:
        what = {"full": "the whole model", "backbone": "the backbone; the rest starts from random weights"}[report.kind]
    _logger.info("Loaded %d entries of %s: %s\n%s", len(report.matched), report.path, what, report.table())


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside (Distributed)DataParallel and torch.compile, which put a prefix before every name."""
    if isinstance(model, DistributedDataParallel | DataParallel):
        model = model.module
    return getattr(model, "_orig_mod", model)
