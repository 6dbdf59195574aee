"""Numbers that a run produces, by name and iteration, for whoever writes or draws them."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from fvcore.common.history_buffer import HistoryBuffer

_storages: list["EventStorage"] = []


def get_event_storage() -> "EventStorage":
    """The innermost open storage."""
    if not _storages:
        raise AssertionError("get_event_storage() works only inside `with EventStorage(...)`, as during training")
    return _storages[-1]


class EventStorage:
    """Scalars of a run with their history. Open it with ``with``; code below finds it by `get_event_storage`."""

    def __init__(self, start_iter: int = 0):
        self.iter = start_iter
        self._history: dict[str, HistoryBuffer] = defaultdict(HistoryBuffer)
        self._latest: dict[str, tuple[float, int]] = {}
        self._smoothing_hints: dict[str, bool] = {}
        self._prefix = ""

    def put_scalar(self, name: str, value: float, smoothing_hint: bool = True, cur_iter: int | None = None) -> None:
        """Note `value` at the current iteration, or `cur_iter`. smoothing_hint: it is noisy, a median reads better."""
        name = self._prefix + name
        if self._smoothing_hints.setdefault(name, smoothing_hint) != smoothing_hint:
            raise AssertionError(
                f"scalar {name!r} was put with smoothing_hint={not smoothing_hint} before; keep to one"
            )
        iteration = self.iter if cur_iter is None else cur_iter
        self._history[name].update(float(value), iteration)
        self._latest[name] = (float(value), iteration)

    def put_scalars(self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **scalars: float) -> None:
        for name, value in scalars.items():
            self.put_scalar(name, value, smoothing_hint, cur_iter)

    def history(self, name: str) -> HistoryBuffer:
        if name not in self._history:
            raise KeyError(f"no scalar {name!r} was put; there are: {', '.join(self._history) or 'none'}")
        return self._history[name]

    def histories(self) -> dict[str, HistoryBuffer]:
        return self._history

    def latest(self) -> dict[str, tuple[float, int]]:
        """Name -> (last value, its iteration)."""
        return self._latest

    def smoothing_hints(self) -> dict[str, bool]:
        return self._smoothing_hints

    def step(self) -> None:
        """Advance to the next iteration; a trainer sets `iter` instead."""
        self.iter += 1

    @contextmanager
    def name_scope(self, name: str) -> Iterator[None]:
        """Scalars put inside are named ``name/...``."""
        outer, self._prefix = self._prefix, name.rstrip("/") + "/"
        try:
            yield
        finally:
            self._prefix = outer

    def __enter__(self) -> "EventStorage":
        _storages.append(self)
        return self

    def __exit__(self, *exception) -> None:
        _storages.pop()
