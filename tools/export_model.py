#!/usr/bin/env python3
"""Write a trained model to a file that runs without this program, or to a folder for Hugging Face's hub.

python tools/export_model.py --config-file CONFIG --weights model.pth --output model.onnx
python tools/export_model.py --config-file CONFIG --weights model.pth --format torch          # torch.export: model.pt2
python tools/export_model.py --config-file CONFIG --weights model.pth --int8                  # 8 bits: model_int8.onnx
python tools/export_model.py --config-file CONFIG --weights model.pth --format hub --output street --license apache-2.0
python tools/export_model.py --config-file CONFIG --weights model.pth --format hub --push OWNER/NAME

The graph takes uint8 images of any size, (batch, height, width, 3) in RGB, and the size of the results; it returns
labels, or scores with MODEL.MASK_FORMER.TEST.SEMANTIC_OUTPUT scores, and instances, as the config switches on.
demo/onnx_demo.py uses such a file. Before the file gets its name its results are compared with the model's.
See docs/export.md, and docs/hub.md for the format hub: config.yaml, model.safetensors and a card.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

import omp_policy  # noqa: F401 (before torch)

# isort: split

import numpy as np

from fasegr import Predictor, load_cfg
from fasegr.checkpoint.hub import check_installed, check_repository
from fasegr.d2 import DatasetCatalog, setup_logger
from fasegr.engine.launch import readable_errors
from fasegr.inference.export import FORMATS, check_config, check_packages, export_model


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config-file", required=True, metavar="YAML", help="the config that the model was trained with"
    )
    parser.add_argument("--weights", metavar="FILE", help="its weights (MODEL.WEIGHTS)")
    parser.add_argument("--format", default="onnx", help=f"{', '.join(FORMATS)} or hub (onnx)")
    parser.add_argument("--output", metavar="FILE", help="(the weights' name with .onnx or .pt2); hub: a folder")
    parser.add_argument("--force", action="store_true", help="replace the output if it exists")
    parser.add_argument(
        "--license",
        default="not stated",
        metavar="TEXT",
        help="licence of the weights, for the file's metadata or card",
    )
    parser.add_argument("--push", metavar="OWNER/NAME", help="hub: upload it under this name, with or without --output")
    parser.add_argument("--private", action="store_true", help="with --push: others cannot see it")
    parser.add_argument(
        "--run",
        metavar="DIR",
        help="hub: OUTPUT_DIR of the training or of an evaluation, which the card tells of (the weights' folder)",
    )
    parser.add_argument("--int8", action="store_true", help="onnx: convolutions and linear layers in 8 bits")
    parser.add_argument(
        "--calibration-images",
        type=int,
        default=64,
        metavar="N",
        help="images of DATASETS.TRAIN on which --int8 measures ranges (64)",
    )
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config keys")
    args = parser.parse_args(argv)
    if args.format not in (*FORMATS, "hub"):
        parser.error(f"--format is {args.format}; choose from {', '.join(FORMATS)}, hub")
    if args.format == "hub" and not (args.output or args.push):
        parser.error("--format hub needs --output FOLDER, --push OWNER/NAME, or both")
    if args.format != "hub" and (args.push or args.run):
        parser.error(f"--push and --run are for the format hub; --format is {args.format}")
    if args.private and not args.push:
        parser.error("--private goes with --push")
    if args.int8 and args.format != "onnx":
        parser.error(f"--int8 is for the format onnx; --format is {args.format}")
    if args.calibration_images < 1:
        parser.error(f"--calibration-images is {args.calibration_images}; it must be at least 1")
    return args


def output_file(args: argparse.Namespace, weights: str) -> Path:
    """Where to write. Raises ValueError for a file that exists, a wrong extension, or a folder that is not there."""
    suffix = FORMATS[args.format]
    path = Path(args.output or f"{Path(weights).stem}{'_int8' if args.int8 else ''}{suffix}")
    folder = path.absolute().parent
    if path.suffix != suffix:
        raise ValueError(f"--output is {path}; the name of a file of the format {args.format} ends in {suffix}")
    if path.is_dir():
        raise ValueError(f"--output {path} is a folder; name a file in it")
    if path.exists() and not args.force:
        raise ValueError(f"{path} exists; --force replaces it, --output names another")
    if not folder.is_dir():
        raise FileNotFoundError(f"--output {path}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"--output {path}: the folder {folder} cannot be written to")
    return path


def calibration_images(cfg, count: int) -> list[str]:
    """`count` images, evenly spaced, of the first training set."""
    if not cfg.DATASETS.TRAIN:
        raise ValueError("--int8 measures ranges on training images, and DATASETS.TRAIN is empty; name a dataset")
    samples = DatasetCatalog.get(cfg.DATASETS.TRAIN[0])
    chosen = np.linspace(0, len(samples) - 1, min(count, len(samples))).round().astype(int)
    return [samples[i]["file_name"] for i in chosen]


def to_hub(args: argparse.Namespace, cfg) -> list[str]:
    """Writes the folder, uploads the model, or both; returns where they are."""
    if args.push:  # before minutes of reading
        check_repository(args.push)
        check_installed()
    cfg = cfg.clone()
    cfg.TEST.AUG.ENABLED = cfg.TEST.SLIDING_WINDOW.ENABLED = False  # of which the model itself knows nothing
    model = Predictor(cfg).model
    license = "" if args.license == "not stated" else args.license
    written = []
    if args.output:
        model.save_pretrained(args.output, license=license, run=args.run, force=args.force, name=args.push or "")
        written.append(f"{args.output}: config.yaml, model.safetensors, README.md")
    if args.push:
        written.append(model.push_to_hub(args.push, private=args.private, license=license, run=args.run))
    return written


def main(argv: Sequence[str] | None = None) -> None:
    """The program. Raises SystemExit with code 2 for errors that the user can fix."""
    args = parse_args(argv)
    with readable_errors():
        setup_logger(name="fasegr")
        weights = ["MODEL.WEIGHTS", args.weights] if args.weights else []
        cfg = load_cfg(args.config_file, [*args.opts, *weights, "MODEL.DEVICE", "cpu"])
        if not cfg.MODEL.WEIGHTS:
            raise ValueError("there are no weights; add --weights model.pth")
        if args.format == "hub":
            print(*to_hub(args, cfg), sep="\n")
            return
        path = output_file(args, cfg.MODEL.WEIGHTS)
        check_config(cfg)
        check_packages(args.format)
        images = calibration_images(cfg, args.calibration_images) if args.int8 else ()
        checks = export_model(cfg, path, args.format, license=args.license, calibration_images=images)
    print("Compared with the model, batch x height x width:", *(f"  {check}" for check in checks), sep="\n")
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
