#!/usr/bin/env python3
"""Convert a checkpoint to the format that the extension of OUTPUT names.

python tools/convert_weights.py output/model_final.pth faseg_r50.pth           # as FASeg and Mask2Former release them
python tools/convert_weights.py output/model_final.pth faseg_r50.pkl           # numpy arrays, as in detectron2's zoo
python tools/convert_weights.py output/model_final.pth faseg_r50.safetensors

INPUT may be anything that MODEL.WEIGHTS accepts, including a URL or a name like fasegr://ade20k/faseg_r50. Only the
weights are written, without the optimizer's state, and keep their names. Released checkpoints also have the criterion's
class weights, which are added if they are missing.
"""

from __future__ import annotations

import argparse
import os
import pickle
import sys
from collections import Counter
from pathlib import Path
from typing import IO

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

import omp_policy  # noqa: F401 (before torch)

# isort: split

import safetensors.torch
import torch
from torch import Tensor

from fasegr.checkpoint import local_path, read_checkpoint
from fasegr.d2 import setup_logger
from fasegr.engine.launch import readable_errors
from fasegr.utils.files import replacing

CLASSIFIER = "sem_seg_head.predictor.class_embed.weight"  # (classes + 1, C)
CLASS_WEIGHTS = "criterion.empty_weight"  # (classes + 1,)


def released(weights: dict[str, Tensor], no_object_weight: float = 0.1) -> dict[str, Tensor]:
    """`weights` with everything that a released checkpoint has, which includes the criterion's class weights.

    no_object_weight: MODEL.MASK_FORMER.NO_OBJECT_WEIGHT. Weights of a backbone, which has no classes, are unchanged.
    """
    if CLASSIFIER not in weights or CLASS_WEIGHTS in weights:
        return dict(weights)
    class_weights = torch.ones(len(weights[CLASSIFIER]))
    class_weights[-1] = no_object_weight
    return {**weights, CLASS_WEIGHTS: class_weights}


def write(weights: dict[str, Tensor], path: str) -> None:
    """Write `weights` to `path` in the format of its extension, one of FORMATS."""
    weights = {name: value.contiguous() for name, value in weights.items()}
    with replacing(path, "wb") as file:
        FORMATS[os.path.splitext(path)[1]](weights, file)


def _write_pth(weights: dict[str, Tensor], file: IO[bytes]) -> None:
    torch.save({"model": weights}, file)


def _write_pkl(weights: dict[str, Tensor], file: IO[bytes]) -> None:
    # without an author detectron2 would take the names for Caffe2's
    content = {"model": {name: value.numpy() for name, value in weights.items()}, "__author__": "fasegr"}
    pickle.dump(content, file, protocol=2)


def _write_safetensors(weights: dict[str, Tensor], file: IO[bytes]) -> None:
    # cloned, because the format does not allow tensors that share memory
    file.write(safetensors.torch.save({name: value.clone() for name, value in weights.items()}, {"format": "pt"}))


FORMATS = {".pth": _write_pth, ".pkl": _write_pkl, ".safetensors": _write_safetensors}


def table(weights: dict[str, Tensor]) -> str:
    """Numbers of tensors and of their elements in each part of the model."""
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
    """The program. Raises SystemExit with code 2 for errors that the user can fix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", metavar="INPUT", help="file, URL or model zoo name")
    parser.add_argument("output", metavar="OUTPUT", help=f"file ending in {', '.join(FORMATS)}")
    parser.add_argument("--force", action="store_true", help="replace OUTPUT if it exists")
    parser.add_argument(
        "--no-object-weight", type=float, default=0.1, help="MODEL.MASK_FORMER.NO_OBJECT_WEIGHT of the training (0.1)"
    )
    args = parser.parse_args(arguments)
    if os.path.splitext(args.output)[1] not in FORMATS:  # before minutes of reading
        parser.error(f"{args.output} must end in {', '.join(FORMATS)}")
    if os.path.exists(args.output) and not args.force:
        parser.error(f"{args.output} exists; --force replaces it")
    with readable_errors():
        setup_logger(name="fasegr")
        weights = released(read_checkpoint(local_path(args.input)).weights, args.no_object_weight)
        write(weights, args.output)
    print(f"{table(weights)}\n{args.output}: {os.path.getsize(args.output) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
