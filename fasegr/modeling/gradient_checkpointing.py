"""Gradient checkpointing: of a block, only the inputs are kept for the backward pass, which computes the rest again.

Source: Chen et al., "Training deep nets with sublinear memory cost", 2016. A training keeps the maps between blocks and
the inside of one block at a time; a step takes about a third longer. Gradients are the same, and so are random numbers
(dropout, drop path) and the statistics of batch norms, which are updated once.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

__all__ = ["blocks", "checkpoint_blocks"]

STACKS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
BATCH_NORM = nn.modules.batchnorm._BatchNorm


def checkpoint_blocks(network: nn.Module) -> None:
    """From now on, each of the `blocks` of `network` keeps only its inputs where gradients are computed.

    Names of parameters stay the same, and nothing changes where there are no gradients.
    """
    for block in blocks(network):
        norms = [module for module in block.modules() if isinstance(module, BATCH_NORM)]
        block.forward = functools.partial(_forward, block, norms)


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """Disjoint parts of `network` that are called as modules: the items of its innermost lists of modules that have
    parts themselves (residual blocks, transformer layers), and what stands beside such lists (a stem).

    A single convolution, norm or activation is none: its input is all that it keeps.
    """
    for child in network.children():
        if any(_is_stack(module) for module in child.modules()):
            yield from blocks(child)
        elif next(child.children(), None) is not None:
            yield child


def _is_stack(module: nn.Module) -> bool:
    return isinstance(module, STACKS) and any(next(item.children(), None) is not None for item in module.children())


def _forward(block: nn.Module, norms: Sequence[nn.Module], *args, **kwargs):
    forward = functools.partial(type(block).forward, block)
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    contexts = {"context_fn": lambda: (nullcontext(), _keeping_statistics(norms))} if norms else {}
    return checkpoint(forward, *args, use_reentrant=False, **contexts, **kwargs)


@contextmanager
def _keeping_statistics(norms: Sequence[nn.Module]) -> Iterator[None]:
    """A context that ends with the running statistics of batch norms with which it began."""
    # On copies: without statistics, a norm would save fewer tensors than in the forward pass.
    kept = [(norm, name, value) for norm in norms for name, value in norm.named_buffers()]
    for norm, name, value in kept:
        setattr(norm, name, value.clone())
    try:
        yield
    finally:
        for norm, name, value in kept:
            setattr(norm, name, value)
