"""Checkpoints: spoilt files of torch.save (both forms), safetensors and pickles, and pickles that run code."""

import io
import os
import pickle
import random
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from fasegr.checkpoint.reading import read_checkpoint
from tests.fuzz.mutation import spoil

ZIP = "checkpoint/data.pkl"


class Program:
    """Unpickled by a reader that trusts the file, it leaves a file called executed."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def _torch(content, **options) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, **options)
    return out.getvalue()


def prepare(folder: Path) -> list[tuple[str, str, bytes]]:
    """(name, suffix, bytes) of good files and of programs."""
    generator = torch.Generator().manual_seed(0)
    weights = {f"layer{i}.weight": torch.randn(40, 30, generator=generator) for i in range(5)}
    weights |= {"half": torch.ones(3, dtype=torch.bfloat16), "count": torch.tensor(3)}
    state = {
        "model": OrderedDict(weights),
        "iteration": 7,
        "optimizer": {"lr": np.float64(0.1), "steps": [1, 2.5, None]},
    }
    arrays = {name: value.float().numpy() for name, value in weights.items()}
    mark = str(folder / "executed")
    programs = [
        Program(os.system, f"touch {mark}1"),
        Program(eval, f"open({mark!r} + '2', 'w')"),
        Program(exec, f"open({mark!r} + '3', 'w')"),
        Program(open, f"{mark}4", "w"),
        Program(Path.touch, Path(f"{mark}5")),
        Program(os.mkdir, f"{mark}6"),
    ]
    files = [
        ("torch", ".pth", _torch(state)),
        ("torch, weights alone", ".pth", _torch(weights)),
        ("torch, old form", ".pth", _torch(state, _use_new_zipfile_serialization=False)),
        ("safetensors", ".safetensors", safetensors.torch.save(weights)),
        *((f"pickle {p}", ".pkl", pickle.dumps({"model": arrays, "author": "me"}, protocol=p)) for p in (2, 4, 5)),
        ("pickle of tensors", ".pkl", pickle.dumps(weights)),
    ] * 3
    for program in programs:
        spoilt = {**arrays, "bad": program}
        files.append(("pickled program", ".pkl", pickle.dumps(spoilt)))
        files.append(("torch program", ".pth", _torch({**state, "bad": program})))
        files.append(("old torch program", ".pth", _torch({"bad": program}, _use_new_zipfile_serialization=False)))
        storage = Program(torch.storage._load_from_bytes, _torch(program))
        files.append(("program in a tensor", ".pkl", pickle.dumps({"a": storage})))
    return files


def _spoil_inside(data: bytes, rng: random.Random) -> bytes:
    """With one file of the archive spoilt, and checksums that fit."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        entries = [(name, old.read(name)) for name in old.namelist()]
        pickles = [i for i, (name, _) in enumerate(entries) if name.endswith("data.pkl")]
        chosen = rng.choice(pickles if rng.random() < 0.7 else range(len(entries)))
        for i, (name, content) in enumerate(entries):
            new.writestr(name, spoil(content, rng) if i == chosen else content)
    return out.getvalue()


def make(shared: list, rng: random.Random, folder: Path) -> tuple[str, list[str]]:
    what, suffix, data = rng.choice(shared)
    if "program" not in what and rng.random() < 0.05:
        what += ", good"
    elif data[:2] == b"PK" and rng.random() < 0.6:
        data = _spoil_inside(data, rng)
    elif rng.random() < 0.9 or "program" not in what:
        data = spoil(data, rng)
    suffix = rng.choice((".pth", ".safetensors", ".pkl")) if rng.random() < 0.1 else suffix
    path = folder / f"weights{suffix}"
    path.write_bytes(data)
    return what, [str(path)]


def read(shared: list, folder: Path) -> str:
    (path,) = folder.iterdir()
    contents = read_checkpoint(str(path))
    assert contents.weights and all(isinstance(value, torch.Tensor) for value in contents.weights.values())
    return "weights"
