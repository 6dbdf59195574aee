"""The config files that come with the package: those of the checkout, which a wheel holds as `fasegr/configs`."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

__all__ = ["find_config", "packaged_configs", "similar_configs"]


def packaged_configs() -> Path:
    """The folder that they are in; in a checkout it is beside the package."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def find_config(path: str, folder: str = "") -> str:
    """`path`, relative to `folder`, if it exists; else that of the packaged config of this name, if there is one.

    A packaged config is named as in the folder configs, with or without that folder: quickstart/faseg_scenes.yaml.
    """
    on_disk = os.path.join(folder, os.path.expanduser(path))
    if os.path.lexists(on_disk) or os.path.isabs(path):
        return on_disk
    packaged = _packaged().get(_name(path))
    return on_disk if packaged is None else str(packaged)


def similar_configs(path: str) -> list[str]:
    """Names of up to three packaged configs that someone who wrote `path` may have meant, the likeliest first."""
    names = list(_packaged())
    same_file = [name for name in names if os.path.basename(name) == os.path.basename(path)]
    close = difflib.get_close_matches(_name(path), names, n=3)
    return list(dict.fromkeys([*same_file, *close]))[:3]


def _name(path: str) -> str:
    return os.path.normpath(path).removeprefix(f"configs{os.sep}").replace(os.sep, "/")


def _packaged() -> dict[str, Path]:
    """{name: file}"""
    folder = packaged_configs()
    return {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*.yaml"))}
