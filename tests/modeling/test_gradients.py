"""Every trainable parameter gets a gradient in every step: DistributedDataParallel waits for each of them."""

import pytest
import torch

from fasegr.config import add_fasegr_config
from fasegr.d2 import ShapeSpec, build_sem_seg_head, get_cfg

STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
HIGH_RES = [
    *((attention, levels) for attention in ("hrca", "vanilla", "random", "rcda") for levels in ([4], [8], [4, 8])),
    ("none", [4]),
]
QUERIES = ("learnable", "grid_anchor", "dynamic_anchor", "dynamic_foreground")
VARIANTS = [
    *({"HIGH_RES.ATTENTION": attention, "HIGH_RES.LEVELS": levels} for attention, levels in HIGH_RES),
    *({"POSITIONAL_QUERY": query} for query in QUERIES),
    *({"KEY_POSITION": position} for position in ("sinusoidal", "learnable")),
    {"KEY_POSITION": "sinusoidal", "HIGH_RES.ATTENTION": "none"},
]


def small_head(dec_layers, variant, **changes):
    cfg = get_cfg()
    add_fasegr_config(cfg)
    values = {f"MODEL.FASEG.{key}": value for key, value in variant.items()} | {
        "MODEL.MASK_FORMER.DEC_LAYERS": dec_layers,
        "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
        "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 16,
        "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 3,
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 2,
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
        "MODEL.SEM_SEG_HEAD.MASK_DIM": 8,
        "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
        "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD": 16,
        **changes,
    }
    cfg.merge_from_list([word for pair in values.items() for word in pair])
    return build_sem_seg_head(cfg, {name: ShapeSpec(channels=4, stride=stride) for name, stride in STRIDES.items()})


def without_gradient(head):
    torch.manual_seed(0)
    result = head({name: torch.randn(1, 4, 64 // stride, 64 // stride) for name, stride in STRIDES.items()})
    predictions = [result, *result["aux_outputs"]]
    sum(p["pred_logits"].sum() + p["pred_masks"].sum() for p in predictions).backward()
    return [name for name, parameter in head.named_parameters() if parameter.requires_grad and parameter.grad is None]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: " ".join(map(str, variant.values())))
def test_whatever_the_depth(variant):
    for depth in (2, 3, 4, 5, 6, 8, 9, 13):  # predictions: a round ends after 4, or 3 without HRCA
        assert without_gradient(small_head(depth, variant)) == [], depth


@pytest.mark.parametrize("dec_layers", [2, 3, 4, 5])
@pytest.mark.parametrize("encoder", [["res5"], ["res4", "res5"]])
def test_with_projections_of_their_own_and_few_maps_in_the_encoder(dec_layers, encoder):
    changes = {
        "MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ": True,
        "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": encoder,
    }
    head = small_head(dec_layers, {}, **changes)
    assert without_gradient(head) == []
    assert len(head.predictor.input_proj) == min(dec_layers - 1, 4)


def test_four_layers_have_all_levels_and_the_parameters_of_the_release():
    names = {name for name, _ in small_head(5, {}).named_parameters()}
    assert {"pixel_decoder.input_proj.3.0.weight", "pixel_decoder.pos_linear.3.weight"} <= names
    assert small_head(5, {}).predictor.level_embed.weight.shape == (4, 32)
