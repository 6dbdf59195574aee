"""Whether operations take the form that an exported graph can hold.

Inside `with for_export():` an operation uses only what torch.export can trace for any size and other runtimes compute
alike: no kernel of ours, no `grid_sample`, no branch that depends on a size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_exporting = False  # a plain variable, which torch.compile can read


def exporting() -> bool:
    """Whether this is inside `for_export`."""
    return _exporting


@contextmanager
def for_export() -> Iterator[None]:
    """Use the forms for an exported graph within the block."""
    global _exporting
    before, _exporting = _exporting, True
    try:
        yield
    finally:
        _exporting = before
