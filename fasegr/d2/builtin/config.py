"""Configuration: a tree of defaults, YAML files that override it, and the bridge from a config to keyword arguments."""

import functools
import inspect
from collections.abc import Callable

from fvcore.common.config import CfgNode as _CfgNode

from .defaults import DEFAULTS


class CfgNode(_CfgNode):
    """fvcore's config node (attribute access, `_BASE_`, `freeze`, `merge_from_list`, `clone`, `dump`), read as data.

    detectron2 lets a YAML file run Python by default; here that is refused, in the base files too.
    """

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict:
        if allow_unsafe:
            raise ValueError(
                f"{filename}: allow_unsafe=True would run code from a config file; only plain YAML is read"
            )
        return super().load_yaml_with_base(filename)

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = False) -> None:
        """Override values by those of a YAML file and its `_BASE_`; raises KeyError for a key that does not exist."""
        loaded = type(self)(self.load_yaml_with_base(cfg_filename, allow_unsafe=allow_unsafe))
        if loaded.get("VERSION", self.VERSION) != self.VERSION:
            raise ValueError(
                f"{cfg_filename} has VERSION {loaded.VERSION}; only version {self.VERSION} is read. "
                "Renew the file's keys (detectron2 converts older ones) and set VERSION to match"
            )
        self.merge_from_other_cfg(loaded)


def get_cfg() -> CfgNode:
    """A fresh copy of the defaults."""
    return CfgNode(DEFAULTS).clone()


def configurable(init_func: Callable | None = None, *, from_config: Callable | None = None) -> Callable:
    """Let a callable with plain keyword arguments also be called with a config.

    On an ``__init__`` (``@configurable``) the class has a classmethod ``from_config(cls, cfg, ...)`` that returns the
    arguments; on a function it is given, ``@configurable(from_config=function)``. A call whose first argument, or
    argument ``cfg``, is a CfgNode goes through it; keyword arguments that `from_config` does not take override what it
    returns. Any other call goes straight to the callable.
    """
    if init_func is not None:
        if from_config is not None or not inspect.isfunction(init_func) or init_func.__name__ != "__init__":
            raise TypeError("@configurable goes on __init__; a function needs @configurable(from_config=...)")

        @functools.wraps(init_func)
        def init(self, *args, **kwargs):
            translate = getattr(type(self), "from_config", None)
            if translate is None:
                raise AttributeError(
                    f"{type(self).__name__} has a @configurable __init__ but no classmethod from_config"
                )
            if not inspect.ismethod(translate):
                raise TypeError(f"{type(self).__name__}.from_config must be a classmethod")
            if _has_config(args, kwargs):
                init_func(self, **_explicit_arguments(translate, args, kwargs))
            else:
                init_func(self, *args, **kwargs)

        return init

    if from_config is None:
        return configurable  # `@configurable()` means `@configurable`

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def call(*args, **kwargs):
            if _has_config(args, kwargs):
                return function(**_explicit_arguments(from_config, args, kwargs))
            return function(*args, **kwargs)

        call.from_config = from_config
        return call

    return decorate


def _has_config(args: tuple, kwargs: dict) -> bool:
    return isinstance(args[0] if args else kwargs.get("cfg"), _CfgNode)


def _explicit_arguments(translate: Callable, args: tuple, kwargs: dict) -> dict:
    """Keyword arguments for the callable: what `translate` makes of the config, and the rest of `kwargs` over it."""
    parameters = inspect.signature(translate).parameters
    if next(iter(parameters), None) != "cfg":
        raise TypeError(f"{getattr(translate, '__qualname__', translate)} must take 'cfg' as its first argument")
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values()):
        return translate(*args, **kwargs)
    known = {name: value for name, value in kwargs.items() if name in parameters}
    overrides = {name: value for name, value in kwargs.items() if name not in parameters}
    return {**translate(*args, **known), **overrides}
