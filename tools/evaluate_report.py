#!/usr/bin/env python3
"""Evaluate a model and write a page on how good it is, or compare two such evaluations image by image.

python tools/evaluate_report.py --config-file CONFIG --weights model.pth [KEY VALUE ...]
python tools/evaluate_report.py --compare A/report.json B/report.json --names R18 R50 --output comparison

The first writes OUTPUT_DIR/inference/report/ (report.html, report.json, images.csv), as
`train_net.py --eval-only TEST.REPORT True` does; --output writes OUTPUT_DIR elsewhere. The second reads the reports of
two evaluations of the same images, and writes comparison.html, comparison.json and comparison.csv. Exit code: 0, or 2
if nothing could be written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

import omp_policy  # noqa: F401 (before torch)

# isort: split

import train_net
from fasegr.engine.launch import readable_errors
from fasegr.evaluation.report import compare_reports, read_report, write_comparison
from fasegr.visualization.report_page import write_comparison_page


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config-file", metavar="YAML", help="the config that the model was trained with")
    source.add_argument("--compare", nargs=2, metavar=("A", "B"), help="two report.json, or the folders they are in")
    parser.add_argument("--weights", metavar="FILE", help="MODEL.WEIGHTS")
    parser.add_argument("--num-gpus", type=int, default=1, help="evaluate on several GPUs (1)")
    parser.add_argument(
        "--names", nargs=2, metavar=("A", "B"), help="names of the two models (default: of their weights)"
    )
    parser.add_argument(
        "--output", metavar="DIR", help="folder for the results (comparison, or the config's OUTPUT_DIR)"
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys")
    args = parser.parse_args(argv)
    if args.compare and (args.weights or args.opts):
        parser.error("--compare reads two reports and runs no model: leave --weights and keys of the config out")
    if args.names and not args.compare:
        parser.error("--names goes with --compare")
    return args


def evaluate(args: argparse.Namespace) -> None:
    keys = ["TEST.REPORT", "True"]
    if args.weights:
        keys += ["MODEL.WEIGHTS", args.weights]
    if args.output:
        keys += ["OUTPUT_DIR", args.output]
    train_net.run(
        ["--config-file", args.config_file, "--eval-only", "--num-gpus", str(args.num_gpus), *args.opts, *keys]
    )


def compare(args: argparse.Namespace) -> Path:
    reports = [read_report(path) for path in args.compare]
    names = args.names or _names([str(report["weights"]) for report in reports])
    comparison = compare_reports(*reports, names)
    folder = args.output or "comparison"
    write_comparison(comparison, folder)
    return write_comparison_page(comparison, folder)


def _names(weights: list[str]) -> list[str]:
    """Names that tell the models apart: of their files, or else with the folders."""
    files = [Path(path).stem or "model" for path in weights]
    if files[0] != files[1]:
        return files
    return ["first", "second"] if weights[0] == weights[1] else weights


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.config_file:
        evaluate(args)
        return 0
    with readable_errors():
        page = compare(args)
    print(f"{page}: {args.compare[1]} against {args.compare[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
