"""Values in nested mappings by dotted name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["flatten", "lookup", "nest"]


def lookup(tree: Mapping, key: str) -> Any:
    """The value of `tree`, a config for instance, under the dotted `key`: "MODEL.FASEG.HIGH_RES.OMEGA"."""
    for part in key.split("."):
        tree = tree[part]
    return tree


def nest(key: str, value: Any) -> dict:
    """The mapping that has only `value` under the dotted `key`: ("A.B", 1) gives {"A": {"B": 1}}."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def flatten(tree: Mapping, separator: str = ".") -> dict[str, Any]:
    """{"sem_seg": {"mIoU": 50.0}} to {"sem_seg.mIoU": 50.0}, in the same order; empty mappings vanish."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}{separator}{below}": leaf for below, leaf in flatten(value, separator).items()}
        else:
            flat[str(name)] = value
    return flat
