"""A list that many processes share without copying it."""

import pickle
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

__all__ = ["PackedList"]


class PackedList(Sequence):
    """A list whose items are kept as bytes in one array, and made anew when asked for.

    Workers share the array with the process that they are forks of. Python's own objects each of them would come to
    copy, by counting references to them; of COCO's outlines there are many.
    """

    def __init__(self, items: Iterable):
        packed = [np.frombuffer(pickle.dumps(item, pickle.HIGHEST_PROTOCOL), np.uint8) for item in items]
        self._ends = np.cumsum([len(item) for item in packed], dtype=np.int64)
        self._bytes = np.concatenate(packed) if packed else np.empty(0, np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        start = self._ends[index - 1] if index else 0
        return pickle.loads(self._bytes[start : self._ends[index]].data)
