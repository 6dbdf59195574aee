"""Scalars of a run, by name and iteration, for hooks that write or plot them."""

_storages: list["EventStorage"] = []


def get_event_storage() -> "EventStorage":
    """The innermost open storage."""
    if not _storages:
        raise AssertionError("get_event_storage() works only inside `with EventStorage(...)`, as during training")
    return _storages[-1]


class EventStorage:
    """The latest scalars of a run. Open it with ``with``; code below finds it by `get_event_storage`."""

    def __init__(self, start_iter: int = 0):
        self.iter = start_iter
        self._latest: dict[str, tuple[float, int]] = {}

    def put_scalar(self, name: str, value: float, smoothing_hint: bool = True, cur_iter: int | None = None) -> None:
        """Note `value` at the current iteration, or `cur_iter`. smoothing_hint is for detectron2's writers."""
        self._latest[name] = (float(value), self.iter if cur_iter is None else cur_iter)

    def put_scalars(self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **scalars: float) -> None:
        for name, value in scalars.items():
            self.put_scalar(name, value, smoothing_hint, cur_iter)

    def latest(self) -> dict[str, tuple[float, int]]:
        """Name -> (last value, its iteration)."""
        return self._latest

    def __enter__(self) -> "EventStorage":
        _storages.append(self)
        return self

    def __exit__(self, *exception) -> None:
        _storages.pop()
