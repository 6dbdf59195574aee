"""A list that many processes share without copying it."""

import pickle
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

__all__ = ["SerializedList"]


class SerializedList(Sequence):
    """A list whose items are kept as bytes in one array, and unpickled when they are asked for.

    Forked workers share the array with their parent. Of Python objects each would make a copy, by counting references
    to them; COCO's outlines are many.
    """

    def __init__(self, items: Iterable):
        serialized = [np.frombuffer(pickle.dumps(item, pickle.HIGHEST_PROTOCOL), np.uint8) for item in items]
        self._ends = np.cumsum([len(item) for item in serialized], dtype=np.int64)
        self._bytes = np.concatenate(serialized) if serialized else np.empty(0, np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        start = self._ends[index - 1] if index else 0
        return pickle.loads(self._bytes[start : self._ends[index]].data)
