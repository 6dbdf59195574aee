"""The optimizer with the paper's parameter groups, and gradient clipping."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from fasegr.modeling.backbone.place import NORMS, learning_rates

__all__ = [
    "GradientClipper",
    "build_gradient_clipper",
    "build_optimizer",
    "load_optimizer_state",
    "parameter_groups",
]

MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")  # what AdamW and SGD keep for each parameter
# Position tables; class and register tokens and layer scales of timm's networks.
NOT_DECAYED = ("relative_position_bias_table", "pos_embed", "rel_pos", "cls_token", "reg_token", "dist_token", "gamma")

GradientClipper = Callable[[Sequence[Tensor]], Tensor]


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    backbone_multiplier: float = 1.0,
    layer_decay: float = 1.0,
    weight_decay_norm: float = 0.0,
    weight_decay_embed: float = 0.0,
) -> list[dict]:
    """Trainable parameters by learning rate and weight decay, each parameter once.

    Parameters in a module named `backbone` learn at lr x backbone_multiplier, less by layer_decay for each layer before
    the last, except what no pretrained weights have (`place.learning_rates`). Norms and nn.Embedding have their own
    weight decay, tables of positions, tokens and layer scales none. Parameters with equal settings share a group: fewer
    groups are fewer kernels.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    rates: dict[nn.Parameter, float] = {}
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "backbone":
            rates |= learning_rates(module, backbone_multiplier, layer_decay)
    seen = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            decay = weight_decay
            if isinstance(module, NORMS):
                decay = weight_decay_norm
            elif isinstance(module, nn.Embedding):
                decay = weight_decay_embed
            elif any(table in name for table in NOT_DECAYED):
                decay = 0.0
            groups[lr * rates.get(parameter, 1.0), decay].append(parameter)
    return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]


def build_optimizer(cfg, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW or SGD over `parameter_groups`. Raises ValueError if no parameter can be trained."""
    solver = cfg.SOLVER
    groups = parameter_groups(
        model,
        lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        backbone_multiplier=solver.BACKBONE_MULTIPLIER,
        layer_decay=solver.LAYER_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        weight_decay_embed=solver.WEIGHT_DECAY_EMBED,
    )
    if not groups:
        raise ValueError("the model has no trainable parameter; check what was frozen")
    # One fused kernel a group: on two CPU cores a quarter of the time of torch's default loop over the parameters.
    if solver.OPTIMIZER == "SGD":
        return torch.optim.SGD(groups, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV, fused=True)
    return torch.optim.AdamW(groups, fused=True)


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """`optimizer.load_state_dict`, with each moment laid out in memory as its parameter is.

    Fused optimizers walk through both by address. torch keeps the strides of the file, which differ where a weight is
    channels-last on the one device only. Raises ValueError for moments of another shape.
    """
    optimizer.load_state_dict(state)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if not isinstance(value, Tensor) or value.shape != parameter.shape:
                if name in MOMENTS and value is not None:
                    raise ValueError(f"{name} must be a tensor of the parameter's shape, {tuple(parameter.shape)}")
                continue
            values[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def build_gradient_clipper(cfg) -> GradientClipper:
    """A function that clips the gradients of parameters in place and returns their total norm before that, a scalar.

    SOLVER.CLIP_GRADIENTS.CLIP_TYPE: "full_model" bounds the norm of all gradients together, "norm" that of each
    parameter, "value" each number.
    """
    settings = cfg.SOLVER.CLIP_GRADIENTS
    limit, norm_type = settings.CLIP_VALUE, settings.NORM_TYPE
    if not settings.ENABLED:
        return lambda parameters: clip_grad_norm_(parameters, float("inf"), norm_type)
    if settings.CLIP_TYPE == "full_model":
        return lambda parameters: clip_grad_norm_(parameters, limit, norm_type)

    def clip_each(parameters: Sequence[Tensor]) -> Tensor:
        total = clip_grad_norm_(parameters, float("inf"), norm_type)  # only measures
        if settings.CLIP_TYPE == "value":
            clip_grad_value_(parameters, limit)
        else:
            for parameter in parameters:
                clip_grad_norm_(parameter, limit, norm_type)
        return total

    return clip_each
