"""Results that are computed once and remembered: on a GPU each operation costs the host a launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fasegr.modeling.ops.autocast import KINDS, enabled_for, for_products


class Kept:
    """Remembers the latest result of one function, whose arguments seldom change: buffers, sizes and, in inference,
    weights.

    It is computed again when an argument is another one, when a tensor was changed, or under another autocast. Only
    changes in place through `.data` are not noticed: torch does not record them. A result that gradients flow through
    is never kept.
    """

    def __init__(self):
        self._arguments: tuple[Any, ...] = ()
        self._state: tuple[Any, ...] | None = None
        self._result: Any = None

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """function(*arguments), remembered or computed."""
        tensors = [x for x in arguments if isinstance(x, Tensor)]
        if torch.compiler.is_compiling() or (torch.is_grad_enabled() and any(x.requires_grad for x in tensors)):
            self.forget()
            return function(*arguments)
        state = (*map(_state, tensors), *map(torch.is_autocast_enabled, KINDS), *map(torch.get_autocast_dtype, KINDS))
        if state != self._state or not all(map(_same, arguments, self._arguments)):
            with torch.inference_mode(False), torch.no_grad():  # training may use the result next
                self._result = function(*arguments)
            self._arguments, self._state = arguments, state
        return self._result

    def forget(self) -> None:
        if self._state is not None:
            self.__init__()

    def __reduce__(self) -> tuple:
        return type(self), ()  # a copy or a file of a module starts without


class KeptWeights(Kept):
    """Weights, or what a function makes of them, as products under autocast take them: in inference they are changed to
    its type once.

    In training autocast does that, once a step. Outside autocast nothing is kept: a second copy of all weights would
    cost more memory than it saves time.
    """

    def __call__(self, function: Callable[..., tuple[Tensor, ...]], *weights: Tensor) -> tuple[Tensor, ...]:
        if torch.is_grad_enabled() or not enabled_for(weights[0]):
            self.forget()
            return function(*weights)
        return super().__call__(lambda *args: tuple(map(for_products, function(*args))), *weights)


def _state(x: Tensor) -> tuple[Any, ...]:
    version = 0 if x.is_inference() else x._version
    return version, x.dtype, x.device, x.untyped_storage()._cdata


def _same(a: Any, b: Any) -> bool:
    return a is b if isinstance(a, Tensor) else a == b
