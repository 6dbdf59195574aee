"""The switches of the fast paths: each faster form of a computation has a name here and a plain form that equals it.

To find out whether a fast path is at fault, turn it off: `FASEGR_PLAIN=embedding_bag python train_net.py ...`, several
names with commas, `FASEGR_PLAIN=all` for every one, or in code `with fast_paths.off("embedding_bag"): ...`. The plain
forms are the readable reference; the tests hold the two together in float64.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

# name -> what is computed in another way, and where
FAST_PATHS = {
    "embedding_bag": "deformable sampling as one weighted bag, on the CPU (pixel_decoder/ops/ms_deform_attn.py)",
}

_off: set[str] = set()


def enabled(name: str) -> bool:
    """Whether the fast path `name` is to be used where it applies. Unknown names are a KeyError: they are typos."""
    if name not in FAST_PATHS:
        raise KeyError(f"fast path {name!r} is not known; there are {', '.join(FAST_PATHS)}")
    return name not in _off and name not in _named_by_environment()


@contextmanager
def off(*names: str) -> Iterator[None]:
    """The plain forms of `names` (of all fast paths without any) within the block."""
    unknown = sorted(set(names) - set(FAST_PATHS))
    if unknown:
        raise KeyError(f"fast paths {unknown} are not known; there are {', '.join(FAST_PATHS)}")
    added = set(names or FAST_PATHS) - _off
    _off.update(added)
    try:
        yield
    finally:
        _off.difference_update(added)


def _named_by_environment() -> set[str]:
    names = {name.strip() for name in os.environ.get("FASEGR_PLAIN", "").split(",") if name.strip()}
    if names == {"all"}:
        return set(FAST_PATHS)
    unknown = sorted(names - set(FAST_PATHS))
    if unknown:
        raise ValueError(f"FASEGR_PLAIN names {unknown}; choose all, or from {', '.join(FAST_PATHS)}")
    return names
