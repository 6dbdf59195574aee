"""Several models on one command line: --config-file A --weights a.pth --config-file B --weights b.pth --names A B."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from fasegr.config import load_cfg
from fasegr.inference.predictor import Predictor

__all__ = ["add_model_arguments", "build_predictors", "check_picture_name", "model_names"]


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that `build_predictors` and `model_names` read."""
    parser.add_argument(
        "--config-file", action="append", required=True, metavar="YAML", help="of each model, once for each"
    )
    parser.add_argument(
        "--weights", action="append", default=[], metavar="FILE", help="of each model, in the order of the configs"
    )
    parser.add_argument("--names", nargs="+", metavar="NAME", help="of the models (those of the config files)")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config keys, for all models"
    )


def model_names(config_files: Sequence[str], names: Sequence[str] | None) -> list[str]:
    """What the models are called: `names`, or the config files without folder and ending."""
    if names is None:
        return [Path(file).stem for file in config_files]
    if len(names) != len(config_files):
        raise ValueError(
            f"--names has {len(names)} ({', '.join(names)}) for {len(config_files)} --config-file; name each model once"
        )
    return list(names)


def build_predictors(config_files: Sequence[str], weights: Sequence[str], options: Sequence[str]) -> list[Predictor]:
    """A predictor for each config; weights: none, where the configs or `options` name them, or one for each.

    Raises ValueError where they are not as many, or where the models have different classes.
    """
    if weights and len(weights) != len(config_files):
        raise ValueError(
            f"there are {len(weights)} --weights for {len(config_files)} --config-file; "
            "give one for each, in their order"
        )
    predictors: list[Predictor] = []
    for i, file in enumerate(config_files):
        cfg = load_cfg(file, [*options, *(["MODEL.WEIGHTS", weights[i]] if weights else [])])
        predictors.append(Predictor(cfg))
        if predictors[i].class_names != predictors[0].class_names:
            raise ValueError(
                f"{file} has the classes {_some(predictors[i].class_names)}, {config_files[0]} has "
                f"{_some(predictors[0].class_names)}; models are compared on the same ones"
            )
    return predictors


def check_picture_name(path: str) -> None:
    """Raises ValueError for a file that no PNG can be written to: before minutes of work, not after."""
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"--output is {path}; the picture is a PNG, so name a file that ends in .png")
    if Path(path).is_dir():
        raise ValueError(f"--output {path}: is a folder; name a file in it")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f", ... ({len(names)})" if len(names) > 4 else "")
