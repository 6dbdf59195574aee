#!/usr/bin/env python3
"""How a recipe fits into a memory: images at once, SOLVER.ACCUMULATE, gradient checkpointing, or a smaller crop.

python tools/fit_memory.py --config-file configs/ade20k/semantic-segmentation/faseg_r50.yaml --memory 16
python tools/fit_memory.py --config-file CONFIG --memory 32 --processes 8 SOLVER.EMA.ENABLED True

The peak of a step is counted on tensors without values (docs/training.md), so no GPU is needed and nothing is computed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

import omp_policy  # noqa: F401 (before torch)

# isort: split

from tqdm import tqdm

from fasegr import load_cfg
from fasegr.analysis.fit_memory import STEP, Fit, Recipe, counter, fit, training_size
from fasegr.engine.launch import readable_errors

GIB = 2**30


def options(cfg, recipe: Recipe, checkpointing: bool, way: Fit) -> dict[str, object]:
    """Keys that differ from `cfg`, and their values."""
    new: dict[str, object] = {}
    if way.accumulate != cfg.SOLVER.ACCUMULATE:
        new["SOLVER.ACCUMULATE"] = way.accumulate
    if checkpointing != cfg.SOLVER.GRADIENT_CHECKPOINTING:
        new["SOLVER.GRADIENT_CHECKPOINTING"] = checkpointing
    if way.size != recipe.size:
        if cfg.INPUT.DATASET_MAPPER_NAME.startswith("coco_"):
            new["INPUT.IMAGE_SIZE"] = min(way.size)
        else:
            new |= {"INPUT.CROP.ENABLED": True, "INPUT.CROP.TYPE": "absolute", "INPUT.CROP.SIZE": way.size}
        if cfg.INPUT.SIZE_DIVISIBILITY > 0:
            new["INPUT.SIZE_DIVISIBILITY"] = way.size[0] if way.size[0] == way.size[1] else STEP
    return new


def report(cfg, recipe: Recipe, ways: Sequence[tuple[bool, Fit | None]]) -> str:
    lines = ["checkpointing  images at once  ACCUMULATE  size         memory     room for"]
    for checkpointing, way in ways:
        start = f"{'on' if checkpointing else 'off':<13}  "
        if way is None:
            lines.append(f"{start}no image of {STEP} x {STEP} fits")
            continue
        size = f"{way.size[0]} x {way.size[1]}"
        lines.append(
            f"{start}{way.images:<14}  {way.accumulate:<10}  {size:<11}  {way.memory / GIB:5.2f} GiB  {way.most} images"
        )
    kept = [(c, way) for c, way in ways if way is not None and way.size == recipe.size]
    found = kept or sorted(
        ((c, way) for c, way in ways if way is not None), key=lambda pair: pair[1].size, reverse=True
    )
    if not found:
        return "\n".join([*lines, "\nThe model does not fit: take a smaller one, or more memory"])
    new = options(cfg, recipe, *found[0])
    words = " ".join(f'{key} "{value}"' if isinstance(value, tuple) else f"{key} {value}" for key, value in new.items())
    if not kept:
        lines.append("\nThe recipe does not fit; with a smaller crop, which changes results:")
    elif new:
        lines.append("\nThe recipe, in this memory:")
    lines.append(f"  {words}" if words else "\nThe recipe fits as it is")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The program. Raises SystemExit with code 2 for errors that the user can fix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="YAML")
    parser.add_argument("--memory", type=float, required=True, metavar="GIB", help="of one GPU, in GiB (2^30 bytes)")
    parser.add_argument("--processes", type=int, default=1, help="GPUs that share IMS_PER_BATCH (1)")
    parser.add_argument("--segments", type=int, help="of an image (30, or all classes where there are fewer)")
    parser.add_argument(
        "--reserve",
        type=float,
        default=1.5,
        metavar="GIB",
        help="left for what is not counted: the CUDA context, workspaces, gaps of the allocator (1.5, an assumption)",
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys")
    args = parser.parse_args(arguments)
    if not args.memory > args.reserve >= 0:
        parser.error(f"--memory is {args.memory:g} and --reserve {args.reserve:g}; expected memory > reserve >= 0, GiB")
    if args.processes < 1 or (args.segments is not None and args.segments < 1):
        parser.error(f"--processes is {args.processes} and --segments {args.segments}; they must be at least 1")
    with readable_errors():
        cfg = load_cfg(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu"])
        batch = cfg.SOLVER.IMS_PER_BATCH
        if batch % args.processes:
            raise ValueError(f"--processes is {args.processes}; it must divide SOLVER.IMS_PER_BATCH, which is {batch}")
        segments = args.segments or min(30, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
        recipe = Recipe(batch // args.processes, training_size(cfg), args.processes)
        precision = f"{cfg.SOLVER.AMP.DTYPE} autocast" if cfg.SOLVER.AMP.ENABLED else "float32"
        print(
            f"{args.config_file}: {batch} images a step on {args.processes} GPU(s), of {recipe.size[0]} x "
            f"{recipe.size[1]} with {segments} segments, {precision}; {args.memory:g} GiB, {args.reserve:g} of them "
            "reserved\n"
        )
        cannot = cfg.SPEED.COMPILE or cfg.MODEL.SWIN.USE_CHECKPOINT
        ways = []
        with tqdm(unit="count", disable=None) as bar:
            for checkpointing in [cfg.SOLVER.GRADIENT_CHECKPOINTING] if cannot else [False, True]:
                count = counter(cfg, segments, checkpointing)

                def counted(*asked, count=count):
                    bar.update()
                    return count(*asked)

                ways.append((checkpointing, fit(recipe, int((args.memory - args.reserve) * GIB), counted)))
        print(report(cfg, recipe, ways))
        norms = {cfg.MODEL.SEM_SEG_HEAD.NORM, cfg.MODEL.RESNETS.NORM if "resnet" in cfg.MODEL.BACKBONE.NAME else ""}
        if norms & {"BN", "SyncBN"} and any(way and way.accumulate > 1 for _, way in ways):
            print("\nThis model has batch norms, which take the statistics of the images that are computed at once.")


if __name__ == "__main__":
    main()
