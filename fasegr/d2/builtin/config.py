"""Configuration: a tree of defaults, and the bridge from a config to keyword arguments."""

import functools
import inspect
from collections.abc import Callable

from fvcore.common.config import CfgNode

from .defaults import DEFAULTS

__all__ = ["CfgNode", "configurable", "get_cfg"]


def get_cfg() -> CfgNode:
    """A fresh copy of the defaults."""
    return CfgNode(DEFAULTS).clone()


def configurable(init: Callable) -> Callable:
    """Let a class whose ``__init__`` takes plain arguments also be called with a config.

    The class has a classmethod ``from_config(cls, cfg, ...)`` that returns the keyword arguments. A call whose first
    argument, or argument ``cfg``, is a CfgNode goes through it; keyword arguments that `from_config` does not take
    override what it returns. Any other call goes straight to ``__init__``.
    """

    @functools.wraps(init)
    def wrapped(self, *args, **kwargs):
        if not isinstance(args[0] if args else kwargs.get("cfg"), CfgNode):
            return init(self, *args, **kwargs)
        from_config = type(self).from_config
        taken = inspect.signature(from_config).parameters
        overrides = {name: kwargs.pop(name) for name in kwargs.keys() - taken.keys()}
        return init(self, **{**from_config(*args, **kwargs), **overrides})

    return wrapped
