"""Several models on one command line: --config-file A --weights a.pth --config-file B --weights b.pth --names A B."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from fasegr import Predictor, load_cfg
from fasegr.d2 import CfgNode

__all__ = ["add_model_arguments", "build_predictors", "check_picture_name", "load_cfgs", "model_names"]


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that `build_predictors` and `model_names` read."""
    parser.add_argument(
        "--config-file", action="append", required=True, metavar="YAML", help="the config of a model; repeat for each"
    )
    parser.add_argument(
        "--weights", action="append", default=[], metavar="FILE", help="its weights; repeat in the order of the configs"
    )
    parser.add_argument("--names", nargs="+", metavar="NAME", help="names of the models (default: of the config files)")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config keys for all models"
    )


def model_names(config_files: Sequence[str], names: Sequence[str] | None) -> list[str]:
    """`names`, or those of the config files without folder and extension."""
    if names is None:
        return [Path(file).stem for file in config_files]
    if len(names) != len(config_files):
        raise ValueError(
            f"--names has {len(names)} ({', '.join(names)}) for {len(config_files)} --config-file; give one each"
        )
    return list(names)


def load_cfgs(config_files: Sequence[str], weights: Sequence[str], options: Sequence[str]) -> list[CfgNode]:
    """The configs; weights: one file for each, or none if the configs or `options` name them. Raises ValueError if the
    numbers differ."""
    if weights and len(weights) != len(config_files):
        raise ValueError(
            f"there are {len(weights)} --weights for {len(config_files)} --config-file; "
            "give one for each, in their order"
        )
    return [
        load_cfg(file, [*options, *(["MODEL.WEIGHTS", weights[i]] if weights else [])])
        for i, file in enumerate(config_files)
    ]


def build_predictors(config_files: Sequence[str], weights: Sequence[str], options: Sequence[str]) -> list[Predictor]:
    """A predictor for each config; weights and errors as of `load_cfgs`. Raises ValueError if the models have different
    classes."""
    predictors: list[Predictor] = []
    for i, (file, cfg) in enumerate(zip(config_files, load_cfgs(config_files, weights, options), strict=True)):
        predictors.append(Predictor(cfg))
        if predictors[i].class_names != predictors[0].class_names:
            raise ValueError(
                f"{file} has the classes {_some(predictors[i].class_names)}, {config_files[0]} has "
                f"{_some(predictors[0].class_names)}; only models with the same classes can be compared"
            )
    return predictors


def check_picture_name(path: str) -> None:
    """Raises ValueError for a file that no PNG can be written to, before minutes of work are spent."""
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"--output is {path}; the picture is a PNG, so expected a name that ends in .png")
    if Path(path).is_dir():
        raise ValueError(f"--output {path} is a folder; name a file in it")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f", ... ({len(names)})" if len(names) > 4 else "")
