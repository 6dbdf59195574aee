"""Torn, damaged and foreign files in OUTPUT_DIR before --resume.

The run goes on from the newest checkpoint that is whole, names the file and ends as the uninterrupted run did, or it
ends with one error that names the file. It never starts over, never runs what a file holds, and touches no checkpoint
when it refuses.
"""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from tests.faults.amount import sample
from tests.faults.runs import Training, differences

pytestmark = pytest.mark.faults

LAST = "model_0000007.pth"
CHECKPOINTS = "model_0000*.pth"


class Runs:
    """A pickle that leaves a mark when it is read."""

    def __reduce__(self):
        return os.system, ("touch executed",)


def put(name: str, content: bytes):
    def damage(out: Path) -> None:
        for path in list(out.glob(name)) or [out / name]:
            path.unlink(missing_ok=True)
            path.write_bytes(content)

    return damage


def cut(name: str, share: float, but: int = 0):
    def damage(out: Path) -> None:
        for path in out.glob(name):
            content = path.read_bytes()
            path.write_bytes(content[: int(len(content) * share) - but])

    return damage


def flip(name: str, share: float):
    def damage(out: Path) -> None:
        content = bytearray((out / name).read_bytes())
        content[int(len(content) * share)] ^= 16
        (out / name).write_bytes(content)

    return damage


def remove(name: str):
    return lambda out: [path.unlink() for path in out.glob(name)]


def folder(name: str):
    def damage(out: Path) -> None:
        (out / name).unlink(missing_ok=True)
        (out / name / "inner").mkdir(parents=True)

    return damage


def link(name: str, target: str):
    def damage(out: Path) -> None:
        (out / name).unlink()
        (out / name).symlink_to(target)

    return damage


def saved(name: str, change):
    """The file with `change` applied to what it holds."""

    def damage(out: Path) -> None:
        source = out / name if (out / name).exists() else out / LAST
        content = torch.load(source, weights_only=True)
        torch.save(change(content), out / name)

    return damage


def append(name: str, content: bytes):
    def damage(out: Path) -> None:
        with open(out / name, "ab") as file:
            file.write(content)

    return damage


def _wider(content: dict) -> dict:
    return {**content, "model": {name: torch.cat([w, w]) if w.ndim else w for name, w in content["model"].items()}}


def _not_finite(content: dict) -> dict:
    return {
        **content,
        "model": {n: w * float("nan") if w.is_floating_point() else w for n, w in content["model"].items()},
    }


# What is damaged, how, and the names that the run may leave otherwise than the uninterrupted one.
DAMAGES = {
    "last: empty": (LAST, put(LAST, b""), ()),
    "last: one byte": (LAST, put(LAST, b"P"), ()),
    "last: first tenth": (LAST, cut(LAST, 0.1), ()),
    "last: first half": (LAST, cut(LAST, 0.5), ()),
    "last: without its last byte": (LAST, cut(LAST, 1, but=1), ()),
    "last: bytes behind its end": (LAST, append(LAST, b"x" * 70000), ()),
    "last: zeros": (LAST, put(LAST, bytes(100000)), ()),
    "last: a bit at 20 %": (LAST, flip(LAST, 0.2), ()),
    "last: a bit at 50 %": (LAST, flip(LAST, 0.5), ()),
    "last: a bit at 80 %": (LAST, flip(LAST, 0.8), ()),
    "last: a bit near the end": (LAST, flip(LAST, 0.999), ()),
    "last: text": (LAST, put(LAST, b"to do: copy the weights here\n"), ()),
    "last: a git-lfs pointer": (LAST, put(LAST, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), ()),
    "last: a web page": (LAST, put(LAST, b"<!DOCTYPE html><html></html>"), ()),
    "last: a pickle that runs code": (LAST, put(LAST, pickle.dumps({"model": Runs()})), ()),
    "last: a torch file that runs code": (LAST, saved(LAST, lambda content: {**content, "x": Runs()}), ()),
    "last: a folder": (LAST, folder(LAST), ()),
    "last: a link to nothing": (LAST, link(LAST, "nothing.pth"), ()),
    "last: a link to itself": (LAST, link(LAST, LAST), ()),
    "last: removed": (LAST, remove(LAST), ()),
    "last: of a wider model": (LAST, saved(LAST, _wider), ()),
    "last: without the state of a training": (LAST, saved(LAST, lambda content: {"model": content["model"]}), ()),
    "last: with an iteration that is text": (LAST, saved(LAST, lambda content: {**content, "iteration": "eleven"}), ()),
    "last: a list": (LAST, saved(LAST, lambda content: [1, 2]), ()),
    "last: weights that are NaN": (LAST, saved(LAST, _not_finite), ()),
    "two newest: first half": (LAST, lambda out: [cut(LAST, 0.5)(out), cut("model_0000005.pth", 0.5)(out)], ()),
    "all: first half": ("model_0000", cut(CHECKPOINTS, 0.5), ()),
    "all: empty": ("model_0000", put(CHECKPOINTS, b""), ()),
    "tag: removed": ("last_checkpoint", remove("last_checkpoint"), ()),
    "tag: empty": ("last_checkpoint", put("last_checkpoint", b""), ()),
    "tag: not UTF-8": ("last_checkpoint", put("last_checkpoint", b"\xff\xfe\x00\x80"), ()),
    "tag: a file that is not there": ("last_checkpoint", put("last_checkpoint", b"model_0000099.pth"), ()),
    "tag: a file outside": ("last_checkpoint", put("last_checkpoint", b"../other.pth"), ()),
    "tag: a megabyte": ("last_checkpoint", put("last_checkpoint", b"model_" * 170000), ()),
    "tag: a folder": ("last_checkpoint", folder("last_checkpoint"), ()),
    "tag: zeros": ("last_checkpoint", put("last_checkpoint", bytes(17)), ()),
    "best: first half": ("model_best.pth", cut("model_best.pth", 0.5), ("model_best",)),
    "best: empty": ("model_best.pth", put("model_best.pth", b""), ("model_best",)),
    "best: a bit": ("model_best.pth", flip("model_best.pth", 0.5), ("model_best",)),
    "best: text": ("model_best.pth", put("model_best.pth", b"\xff not weights"), ("model_best",)),
    "best: a pickle that runs code": ("model_best.pth", put("model_best.pth", pickle.dumps(Runs())), ("model_best",)),
    "best: of a wider model": ("model_best.pth", saved("model_best.pth", _wider), ("model_best",)),
    "best: removed": ("model_best.pth", remove("model_best.pth"), ("model_best",)),
    "metrics: a torn line": ("metrics.json", append("metrics.json", b'{"iteration": 11, "sem_'), ()),
    "metrics: other lines": (
        "metrics.json",
        append("metrics.json", b'[1]\n3\nnull\n{"a": 1}\n{"iteration": "x"}\n'),
        (),
    ),
    "metrics: not UTF-8": ("metrics.json", append("metrics.json", b"\xff\xfe\x80\n"), ()),
    "metrics: deep JSON": ("metrics.json", append("metrics.json", b"[" * 100000 + b"\n"), ()),
    "metrics: huge numbers": ("metrics.json", append("metrics.json", b'{"iteration": 1' + b"0" * 5000 + b"}\n"), ()),
    "metrics: another JSON file": ("metrics.json", put("metrics.json", json.dumps({"a": [1]}).encode()), ("metrics",)),
    "others: partial files": ("", put("model_0000009.pth.99999.partial", b"PK\x03\x04"), ()),
    "others: a later checkpoint of text": ("model_9999999.pth", put("model_9999999.pth", b"x"), ("model_9999999",)),
    "others: events": ("", put("events.out.tfevents.1.x.1.0", b"\xff" * 99), ()),
    "others: config.yaml": ("", put("config.yaml", b"\xff\xfe!!python/object/apply:os.system ['touch executed']"), ()),
}
ONLY_REFUSED = ("all: first half", "all: empty")  # there is nothing to go on from
NOT_SAID = ("tag: removed", "others: events", "others: config.yaml", "others: partial files", "best: removed")


@pytest.fixture(scope="module")
def killed(training: Training, tmp_path_factory) -> Path:
    """OUTPUT_DIR of a run that was killed before iteration 9."""
    out = tmp_path_factory.mktemp("killed")
    run = training.start(out, faults=[{"do": "kill", "at": "step", "iteration": 9}])
    assert run.wait() == -9, run.output
    assert (out / "last_checkpoint").read_text() == LAST
    return out


@pytest.mark.parametrize("name", sample(DAMAGES, 2))
def test_resume(training: Training, killed, expected, tmp_path, name):
    file, damage, may_differ = DAMAGES[name]
    out = tmp_path / "out"
    shutil.copytree(killed, out, symlinks=True)
    damage(out)
    before = {path.name: path.read_bytes() for path in out.glob(CHECKPOINTS) if path.is_file()}
    run = training.start(out, resume=True)
    code = run.wait()
    assert "Traceback" not in run.output
    assert "Training from iteration 0" not in run.output
    assert not list(tmp_path.rglob("executed")) and not Path("executed").exists()
    if name not in NOT_SAID:
        assert file in run.output, "the file is named"
    if name in ONLY_REFUSED:
        assert code == 2
        assert {path.name: path.read_bytes() for path in out.glob(CHECKPOINTS) if path.is_file()} == before
    else:
        assert code == 0, run.output
        left = [left for left in differences(out, expected) if not left.startswith(may_differ or ("-",))]
        assert not left, run.output
