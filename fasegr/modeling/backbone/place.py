"""Where the parameters of a backbone stand, and what goes by it: freezing, and learning rates that decay by layer.

A backbone that has an order says so with `num_stages`, `num_layers` and `place(name)`; all of ours do.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

__all__ = ["NORMS", "Place", "freeze", "learning_rates"]

# _NormBase: BatchNorm, SyncBatchNorm and InstanceNorm
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


class Place(NamedTuple):
    """Of a pretrained parameter. stage: 0 (stem or embedding) to num_stages - 1. layer: 0 (the same), then the blocks
    in the order in which they run, to num_layers - 1; what comes after the last block has num_layers."""

    stage: int
    layer: int


def freeze(backbone: nn.Module, what: int | str) -> list[nn.Module]:
    """Make pretrained parameters of `backbone` untrainable.

    what: the number of stages from the first on, "all", or "all but norms". Parts that no pretrained weights have, as
    the pyramid on a plain ViT, are trained in any case. Returns the modules that are frozen as a whole, which should
    stay in evaluation mode: without it, drop path and running statistics would still change what they compute. Raises
    ValueError for more stages than there are, and for a number where the backbone has no order.
    """
    if what == 0:
        return []
    if isinstance(what, int):
        stages = getattr(backbone, "num_stages", 0)
        if what > stages:
            has = f"{stages} stages" if stages else "no order of stages"
            raise ValueError(f"freeze is {what}, but {_named(backbone)} has {has}; 'all' freezes all of it")
    places = _places(backbone)
    norms = {p for module in backbone.modules() if isinstance(module, NORMS) for p in module.parameters(recurse=False)}
    for name, parameter in backbone.named_parameters():
        place = places[name]
        if place is None or (isinstance(what, int) and place.stage >= what):
            continue
        if what != "all but norms" or parameter not in norms:
            parameter.requires_grad_(False)
    frozen = []
    for module in backbone.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            frozen.append(module.eval())
    return frozen


def learning_rates(backbone: nn.Module, multiplier: float, layer_decay: float) -> dict[nn.Parameter, float]:
    """The share of the learning rate that each parameter of `backbone` has: `multiplier`, times `layer_decay` once for
    each layer from its own to the last block, that one included; 1 for parts that no pretrained weights have.

    Source: Bao et al., "BEiT: BERT pre-training of image transformers", ICLR 2022; the count is that of ViTDet. Raises
    ValueError if the backbone has no order and layer_decay is not 1.
    """
    layers = getattr(backbone, "num_layers", 0)
    if layer_decay != 1 and not layers:
        raise ValueError(f"layer_decay is {layer_decay}, but {_named(backbone)} has no order of layers; it must be 1")
    rates = {}
    places = _places(backbone)
    for name, parameter in backbone.named_parameters():
        place = places[name]
        rates[parameter] = 1.0 if place is None else multiplier * layer_decay ** (layers - place.layer)
    return rates


def _places(backbone: nn.Module) -> dict[str, Place | None]:
    """The place of each parameter; None for one that no pretrained weights have."""
    place = backbone.place if getattr(backbone, "num_stages", 0) else lambda name: Place(0, 0)
    return {name: place(name) for name, _ in backbone.named_parameters()}


def _named(backbone: nn.Module) -> str:
    name = getattr(backbone, "network_name", "")
    return f"{type(backbone).__name__} {name}".strip()
