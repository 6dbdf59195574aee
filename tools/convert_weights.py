#!/usr/bin/env python3
"""Write a checkpoint in another form: the end of OUTPUT says which.

python tools/convert_weights.py output/model_final.pth faseg_r50.pth           # as FASeg and Mask2Former release them
python tools/convert_weights.py output/model_final.pth faseg_r50.pkl           # the same in numpy, as detectron2's
python tools/convert_weights.py output/model_final.pth faseg_r50.safetensors   # and back

INPUT may be any file that MODEL.WEIGHTS takes, also a URL or a name like fasegr://ade20k/faseg_r50. The weights alone
are written, without the state of the optimizer, under the names that they have. Released checkpoints also hold the
loss's weight of each class, which is made where it is missing.
"""

from __future__ import annotations

import argparse
import os
import pickle
import sys
from collections import Counter
from pathlib import Path
from typing import IO

import safetensors.torch
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from fasegr.checkpoint import local_path, read_checkpoint
from fasegr.checkpoint.checkpointer import replacing
from fasegr.d2 import setup_logger
from fasegr.engine.launch import readable_errors

CLASSIFIER = "sem_seg_head.predictor.class_embed.weight"  # (classes + 1, C)
CLASS_WEIGHTS = "criterion.empty_weight"  # (classes + 1,)


def released(weights: dict[str, Tensor], no_object_weight: float = 0.1) -> dict[str, Tensor]:
    """`weights` with all that a released checkpoint holds: the loss's class weights are a part of it there.

    no_object_weight: MODEL.MASK_FORMER.NO_OBJECT_WEIGHT. A file of a backbone, which has no classes, stays as it is.
    """
    if CLASSIFIER not in weights or CLASS_WEIGHTS in weights:
        return dict(weights)
    class_weights = torch.ones(len(weights[CLASSIFIER]))
    class_weights[-1] = no_object_weight
    return {**weights, CLASS_WEIGHTS: class_weights}


def write(weights: dict[str, Tensor], path: str) -> None:
    """Write `weights` to `path`, whole or not at all. Raises ValueError for an ending other than of `FORMS`."""
    form = os.path.splitext(path)[1]
    if form not in FORMS:
        raise ValueError(f"{path} ends in {form!r}; it must end in {', '.join(FORMS)}")
    weights = {name: value.contiguous() for name, value in weights.items()}
    with replacing(path, "wb") as file:
        FORMS[form](weights, file)


def _write_pth(weights: dict[str, Tensor], file: IO[bytes]) -> None:
    torch.save({"model": weights}, file)


def _write_pkl(weights: dict[str, Tensor], file: IO[bytes]) -> None:
    # detectron2 takes a file with an author as one that has its own names, and any other as Caffe2's
    content = {"model": {name: value.numpy() for name, value in weights.items()}, "__author__": "fasegr"}
    pickle.dump(content, file, protocol=2)


def _write_safetensors(weights: dict[str, Tensor], file: IO[bytes]) -> None:
    # clones, since the format refuses tensors that share memory
    file.write(safetensors.torch.save({name: value.clone() for name, value in weights.items()}, {"format": "pt"}))


FORMS = {".pth": _write_pth, ".pkl": _write_pkl, ".safetensors": _write_safetensors}


def table(weights: dict[str, Tensor]) -> str:
    """Entries and numbers of each part of the model."""
    parts = {name: ".".join(name.split(".")[: 2 if name.startswith("sem_seg_head.") else 1]) for name in weights}
    entries = Counter(parts.values())
    numbers = Counter()
    for name, part in parts.items():
        numbers[part] += weights[name].numel()
    width = max(map(len, [*entries, "total"]))
    lines = [f"{part:{width}}{entries[part]:>8} entries{numbers[part] / 1e6:>10.2f} M" for part in entries]
    lines.append(f"{'total':{width}}{len(weights):>8} entries{sum(numbers.values()) / 1e6:>10.2f} M")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """The program. Raises SystemExit with 2 for what the user can put right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", metavar="INPUT", help="file, URL or name of a model zoo")
    parser.add_argument("output", metavar="OUTPUT", help=f"file that ends in {', '.join(FORMS)}")
    parser.add_argument("--force", action="store_true", help="replace OUTPUT if it exists")
    parser.add_argument(
        "--no-object-weight", type=float, default=0.1, help="MODEL.MASK_FORMER.NO_OBJECT_WEIGHT of the training (0.1)"
    )
    args = parser.parse_args(arguments)
    if os.path.splitext(args.output)[1] not in FORMS:  # before minutes of reading
        parser.error(f"{args.output} must end in {', '.join(FORMS)}")
    if os.path.exists(args.output) and not args.force:
        parser.error(f"{args.output} exists; --force replaces it")
    with readable_errors():
        setup_logger(name="fasegr")
        weights = released(read_checkpoint(local_path(args.input)).weights, args.no_object_weight)
        write(weights, args.output)
    print(f"{table(weights)}\n{args.output}: {os.path.getsize(args.output) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
