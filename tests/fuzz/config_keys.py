"""YAML by key: every key of a config, one or two at a time, with values that it should not have."""

import random
from pathlib import Path

import yaml

from fasegr.config import add_fasegr_config, load_cfg
from fasegr.d2 import get_cfg
from fasegr.utils.nested import flatten
from tests.fuzz.mutation import STRANGE, spoil_tree


def prepare(folder: Path) -> dict:
    """The keys and their defaults."""
    cfg = get_cfg()
    add_fasegr_config(cfg)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in flatten(cfg).items()}


def make(defaults: dict, rng: random.Random, folder: Path) -> tuple[str, list[str]]:
    chosen = rng.sample(list(defaults), rng.randint(1, 2))
    content: dict = {}
    for key in chosen:
        near = rng.random() < 0.4
        value = spoil_tree([defaults[key]], rng) if near else rng.choice(STRANGE)
        *sections, last = key.split(".")
        inner = content
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value[0] if near and value else value
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(content))
    return path.read_text(), [str(path), *chosen]


def read(defaults: dict, folder: Path) -> str:
    load_cfg(folder / "own.yaml")
    return "a config"
