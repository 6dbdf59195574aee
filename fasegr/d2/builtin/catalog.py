"""Datasets by name: the function that lists the records, and what is known about all of them (classes, colours)."""

from collections import UserDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

# Errors are of detectron2's types, since callers meet either.


class _Catalog(UserDict):
    def list(self) -> list[str]:
        return [*self]

    def remove(self, name: str) -> None:
        self.pop(name)


class _DatasetCatalog(_Catalog):
    """Name of a dataset -> function without arguments that returns its records (a list of dicts)."""

    def register(self, name: str, func: Callable[[], list[dict]]) -> None:
        if name in self:
            raise AssertionError(f"dataset {name!r} is already registered; choose another name or remove it first")
        self[name] = func

    def get(self, name: str) -> list[dict]:
        """The records; raises KeyError, listing the names there are."""
        if name not in self:
            raise KeyError(f"dataset {name!r} is not registered; there are: {', '.join(self) or 'none'}")
        return self[name]()


class Metadata(SimpleNamespace):
    """What is constant for a dataset; an attribute once set can be set again only to an equal value."""

    def __getattr__(self, key: str) -> Any:
        raise AttributeError(f"metadata of dataset {self.name!r} has no {key!r}; it has: {', '.join(self.__dict__)}")

    def __setattr__(self, key: str, value: Any) -> None:
        if key in self.__dict__ and self.__dict__[key] != value:
            raise AssertionError(
                f"metadata {key!r} of dataset {self.name!r} is {self.__dict__[key]!r}; it cannot become {value!r}"
            )
        super().__setattr__(key, value)

    def set(self, **kwargs: Any) -> "Metadata":
        for key, value in kwargs.items():
            setattr(self, key, value)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        return getattr(self, key, default)


class _MetadataCatalog(_Catalog):
    """Name of a dataset -> its Metadata, created empty on first request."""

    def get(self, name: str) -> Metadata:
        if name not in self:
            self[name] = Metadata(name=name)
        return self[name]


DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog()
