"""The same gradients, statistics and random numbers as without checkpointing, and less that is kept."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

import fasegr
from fasegr.modeling.gradient_checkpointing import blocks, checkpoint_blocks
from tools.ablation.tables import CONFIGS

TIMM = ("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME")
SWIN = {"EMBED_DIM": 16, "NUM_HEADS": [2, 2, 2, 2], "DEPTHS": [2, 2, 2, 2]}
BACKBONES = {
    "resnet": ("MODEL.RESNETS.NORM", "SyncBN"),
    "swin": (
        *("MODEL.BACKBONE.NAME", "build_fasegr_swin_backbone", "MODEL.SWIN.DROP_RATE", 0.1),
        *(word for key, value in SWIN.items() for word in (f"MODEL.SWIN.{key}", value)),
    ),
    "timm": (*TIMM, "efficientnet_lite0"),
}


def build(*opts, checkpointing):
    options = ["MODEL.DEVICE", "cpu", "SOLVER.GRADIENT_CHECKPOINTING", checkpointing, *opts]
    torch.manual_seed(0)
    return fasegr.build_model(fasegr.load_cfg(CONFIGS / "quickstart/faseg_scenes.yaml", options))


def keep(saved, tensor):
    if not isinstance(tensor, nn.Parameter):
        saved[tensor.data_ptr()] = tensor
    return tensor


@pytest.mark.parametrize("name", BACKBONES)
def test_a_step_is_the_same(name):
    if name == "timm":
        pytest.importorskip("timm")
    models = [build("MODEL.MASK_FORMER.DROPOUT", 0.1, *BACKBONES[name], checkpointing=each) for each in (False, True)]
    kept, after = [], []
    for model in models:
        torch.manual_seed(1)
        saved = {}
        with torch.autograd.graph.saved_tensors_hooks(partial(keep, saved), lambda tensor: tensor):
            maps = model.sem_seg_head.pixel_decoder(model.backbone(torch.randn(2, 3, 64, 64)))
        kept.append(sum(tensor.numel() for key, tensor in saved.items()))
        sum(each.square().mean() for each in (maps.mask_features, *maps.features, *maps.key_positions)).backward()
        after.append(torch.rand(1))
    plain, frugal = models
    torch.testing.assert_close(frugal.state_dict(), plain.state_dict(), rtol=0, atol=0)  # statistics of norms too
    gradients = [{n: p.grad for n, p in model.named_parameters() if p.grad is not None} for model in models]
    assert len(gradients[0]) > 50
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)
    assert after[0] == after[1]
    assert kept[1] < 0.6 * kept[0]


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.shortcut = nn.Conv2d(4, 4, 1), nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x):
        return (self.conv1(x) + self.shortcut(x)).sigmoid()


def test_blocks_are_the_smallest_that_save_something():
    network = nn.Module()
    network.stem, network.head = Residual(), nn.Conv2d(4, 4, 1)
    network.stages = nn.ModuleList(nn.Sequential(Residual(), Residual()) for _ in range(2))
    expected = [network.stem, *network.stages[0], *network.stages[1]]
    assert list(blocks(network)) == expected


def test_a_copy_computes_with_its_own_parameters():
    network = nn.Sequential(Residual(), Residual())
    checkpoint_blocks(network)
    other = copy.deepcopy(network)
    nn.init.zeros_(other[1].conv1.weight)
    x = torch.randn(1, 4, 2, 2, requires_grad=True)
    assert not torch.equal(network(x), other(x))
    other(x).sum().backward()
    assert network[0].conv1.weight.grad is None
    assert other[0].conv1.weight.grad is not None
