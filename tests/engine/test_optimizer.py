from copy import deepcopy

import pytest
import torch
from torch import nn

from fasegr.config import add_fasegr_config
from fasegr.d2 import get_cfg
from fasegr.engine.optimizer import build_gradient_clipper, build_optimizer, load_optimizer_state, parameter_groups


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.backbone.relative_position_bias_table = nn.Parameter(torch.zeros(5))
        self.absolute_pos_embed = nn.Parameter(torch.zeros(6))
        self.proj = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.group_norm = nn.GroupNorm(2, 4)
        self.queries = nn.Embedding(7, 4)
        self.tied = self.proj
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def make_cfg(*opts):
    cfg = get_cfg()
    add_fasegr_config(cfg)
    cfg.merge_from_list(["SOLVER.BASE_LR", 1e-4, "SOLVER.WEIGHT_DECAY", 0.05, *opts])
    return cfg


def test_every_parameter_has_the_papers_settings():
    model = Model()
    groups = parameter_groups(
        model, lr=1.0, weight_decay=0.5, backbone_multiplier=0.1, weight_decay_norm=0.0, weight_decay_embed=0.25
    )
    names = {parameter: name for name, parameter in model.named_parameters()}
    settings = {names[p]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert settings == {
        "backbone.0.weight": (0.1, 0.5),
        "backbone.0.bias": (0.1, 0.5),
        "backbone.1.weight": (0.1, 0.0),
        "backbone.1.bias": (0.1, 0.0),
        "backbone.relative_position_bias_table": (0.1, 0.0),
        "absolute_pos_embed": (1.0, 0.0),
        "proj.weight": (1.0, 0.5),
        "proj.bias": (1.0, 0.5),
        "norm.weight": (1.0, 0.0),
        "norm.bias": (1.0, 0.0),
        "group_norm.weight": (1.0, 0.0),
        "group_norm.bias": (1.0, 0.0),
        "queries.weight": (1.0, 0.25),
    }
    assert len(groups) == 5, "equal settings share a group"
    assert sum(len(group["params"]) for group in groups) == len(settings), "each parameter once"


@pytest.mark.parametrize(("name", "kind"), [("ADAMW", torch.optim.AdamW), ("SGD", torch.optim.SGD)])
def test_optimizers_from_config(name, kind):
    optimizer = build_optimizer(make_cfg("SOLVER.OPTIMIZER", name), Model())
    assert type(optimizer) is kind
    assert {group["lr"] for group in optimizer.param_groups} == {1e-4, 1e-4 * 0.1}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.05, 0.0}


def test_nothing_to_train():
    with pytest.raises(ValueError, match="no trainable parameter"):
        build_optimizer(make_cfg(), Model().requires_grad_(False))


def step(convolution, optimizer, at):
    gradient = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(at))
    convolution.weight.grad = torch.empty_like(convolution.weight).copy_(gradient)
    optimizer.step()


@pytest.mark.parametrize("name", ["ADAMW", "SGD"])
@pytest.mark.parametrize("here", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("there", [torch.contiguous_format, torch.channels_last])
def test_moments_go_to_weights_of_another_layout(name, here, there):
    """A GPU's weights are channels-last, a CPU's are not, and fused optimizers go by addresses."""
    source, target = (nn.Conv2d(4, 8, 3, bias=False).to(memory_format=layout) for layout in (there, here))
    optimizers = [
        build_optimizer(make_cfg("SOLVER.OPTIMIZER", name, "SOLVER.BASE_LR", 0.1), m) for m in (source, target)
    ]
    for at in range(3):
        step(source, optimizers[0], at)
    target.load_state_dict(source.state_dict())
    load_optimizer_state(optimizers[1], deepcopy(optimizers[0].state_dict()))
    step(source, optimizers[0], 3)
    step(target, optimizers[1], 3)
    torch.testing.assert_close(target.weight, source.weight)


def test_moments_of_another_shape_are_refused():
    models = [nn.Linear(2, 3), nn.Linear(3, 2)]
    optimizers = [build_optimizer(make_cfg(), model) for model in models]
    models[0](torch.ones(2)).sum().backward()
    optimizers[0].step()
    with pytest.raises(ValueError, match=r"exp_avg must be a tensor of the parameter's shape, \(2, 3\)"):
        load_optimizer_state(optimizers[1], optimizers[0].state_dict())


def parameters_with_gradients(*values):
    parameters = []
    for value in values:
        parameter = nn.Parameter(torch.zeros(len(value)))
        parameter.grad = torch.tensor(value)
        parameters.append(parameter)
    return parameters


@pytest.mark.parametrize(
    ("clip_type", "expected"),
    [
        ("full_model", [[3 / 13, 4 / 13], [12 / 13]]),
        ("norm", [[3 / 5, 4 / 5], [1.0]]),
        ("value", [[1.0, 1.0], [1.0]]),
    ],
)
def test_clipping(clip_type, expected):
    prefix = "SOLVER.CLIP_GRADIENTS."
    cfg = make_cfg(prefix + "ENABLED", True, prefix + "CLIP_TYPE", clip_type, prefix + "CLIP_VALUE", 1.0)
    parameters = parameters_with_gradients([3.0, 4.0], [12.0])
    norm = build_gradient_clipper(cfg)(parameters)
    assert norm.item() == pytest.approx(13.0)
    for parameter, value in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, torch.tensor(value), atol=1e-5, rtol=0)


def test_without_clipping_the_norm_is_measured():
    parameters = parameters_with_gradients([3.0, 4.0], [12.0])
    assert build_gradient_clipper(make_cfg("SOLVER.CLIP_GRADIENTS.ENABLED", False))(parameters).item() == pytest.approx(
        13.0
    )
    assert parameters[1].grad.item() == 12.0
