"""Which faster forms are in use.

An operation in this folder has a plain form, which is the readable reference, and faster forms with equal results for
machines where measurements show that they pay off (docs/benchmarks.md). To find out whether a faster form is at fault,
turn it off: `FASEGR_PLAIN=embedding_bag python train_net.py ...`, several names with commas, `FASEGR_PLAIN=all` for
every one, or in code `with switches.off("embedding_bag"): ...`. Tests compare both in float64.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

# name -> what it computes, and where
FASTER_FORMS = {
    "embedding_bag": "deformable attention as one weighted embedding bag, on a CPU (deformable_attention.py)",
    "triton_deformable_attention": "deformable attention as one kernel, on a GPU (triton_deformable_attention.py)",
    "patch_products": "gradients of convolution weights as matrix products, on a CPU with AVX2 only (convolution.py)",
    "class_argmax": "the most likely class of each pixel, plane by plane, on a CPU (class_argmax.py)",
    "point_table": "masks sampled at points as a table lookup (point_sample.py)",
}

_off: set[str] = set()


def enabled(name: str) -> bool:
    """Whether the faster form `name` is used where it applies. Raises KeyError for an unknown name."""
    if name not in FASTER_FORMS:
        raise KeyError(f"there is no faster form {name!r}; choose from {', '.join(FASTER_FORMS)}")
    return name not in _off and name not in _off_by_environment()


@contextmanager
def off(*names: str) -> Iterator[None]:
    """Use the plain forms of `names` within the block; without names, of all operations."""
    unknown = sorted(set(names) - set(FASTER_FORMS))
    if unknown:
        raise KeyError(f"there are no faster forms {unknown}; choose from {', '.join(FASTER_FORMS)}")
    added = set(names or FASTER_FORMS) - _off
    _off.update(added)
    try:
        yield
    finally:
        _off.difference_update(added)


def _off_by_environment() -> set[str]:
    names = {name.strip() for name in os.environ.get("FASEGR_PLAIN", "").split(",") if name.strip()}
    if names == {"all"}:
        return set(FASTER_FORMS)
    unknown = sorted(names - set(FASTER_FORMS))
    if unknown:
        raise ValueError(f"FASEGR_PLAIN names {unknown}; choose all, or from {', '.join(FASTER_FORMS)}")
    return names
