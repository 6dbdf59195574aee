"""The model against outputs of the released code, in float64: same names, same shapes, same numbers.

The reference outputs are not part of the project: they are looked for in $FASEGR_GOLDEN or ../shared/golden.
"""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import fasegr
from fasegr.d2 import MetadataCatalog

ROOT = Path(__file__).parents[2]
GOLDEN = Path(os.environ.get("FASEGR_GOLDEN", ROOT.parent / "shared" / "golden"))
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no reference outputs in {GOLDEN}")

FASEG = ROOT / "configs/ade20k/semantic-segmentation/faseg_r50.yaml"
MASK2FORMER = {  # Mask2Former is one setting of the same keys
    "MODEL.FASEG.POSITIONAL_QUERY": "learnable",
    "MODEL.FASEG.KEY_POSITION": "sinusoidal",
    "MODEL.FASEG.MASK_THRESHOLD": 0.5,
    "MODEL.FASEG.HIGH_RES.ATTENTION": "none",
    "MODEL.MASK_FORMER.DEC_LAYERS": 10,
}
CASES = {
    "faseg_r50_ade20k": {},
    "faseg_swin_tiny_ade20k": {"MODEL.BACKBONE.NAME": "build_fasegr_swin_backbone"},
    "mask2former_r50_ade20k": MASK2FORMER,
    "mask2former_r50_coco_panoptic": {
        **MASK2FORMER,
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 133,
        "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": True,
        "MODEL.MASK_FORMER.TEST.INSTANCE_ON": True,
        "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.05,
        "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": 0.05,
        "DATASETS.TRAIN": ("golden_panoptic",),
        "DATASETS.TEST": (),
    },
}


MetadataCatalog.get("golden_panoptic").thing_dataset_id_to_contiguous_id = {i + 1: i for i in range(80)}


def recipe():
    spec = importlib.util.spec_from_file_location("golden_recipe", GOLDEN / "recipe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(name):
    opts = [part for key, value in CASES[name].items() for part in (key, value)]
    return fasegr.build_model(fasegr.load_cfg(FASEG, ["MODEL.DEVICE", "cpu", *opts]))


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """(model in float64 with the recipe's weights, reference arrays, the recipe)."""
    model, made = build(request.param).double().eval(), recipe()
    made.fill_(model)
    reference = np.load(GOLDEN / f"{request.param}.npz")
    return model, {key: torch.from_numpy(reference[key]) for key in reference}, made


@pytest.mark.parametrize("name", CASES)
def test_state_dict_names_shapes_and_parameter_count(name):
    model = build(name)
    reference = json.loads((GOLDEN / f"{name}.json").read_text())
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == reference["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == reference["parameters"]


@torch.no_grad()
def test_every_stage_equals_the_release(case):
    model, reference, made = case
    image = made.image(256, 320)
    batch, _ = model._batch([image])
    features = model.backbone(batch)
    for name, value in features.items():
        close(value[0, ::16, ::2, ::2], reference[f"backbone.{name}"])

    maps = model.sem_seg_head.pixel_decoder(features)
    close(maps.mask_features[0, ::32, ::2, ::2], reference["pixel_decoder.mask_features"])
    for i, level in enumerate(maps.features):
        close(level[0, ::32, ::2, ::2], reference[f"pixel_decoder.level{i}"])

    decoder = model.sem_seg_head.predictor
    decoder.train()  # it has no dropout or batch norm: this only returns all predictions
    predictions = decoder(maps)
    decoder.eval()
    logits = torch.stack([p.class_logits[0] for p in predictions])
    masks = torch.stack([p.mask_logits[0] for p in predictions])
    close(logits[:, ::5, ::10], reference["decoder.pred_logits_per_layer"])
    close(masks[:, ::10, ::4, ::4], reference["decoder.pred_masks_per_layer"])

    last = model.sem_seg_head(features)
    close(last["pred_logits"][0], reference["decoder.pred_logits"])
    close(last["pred_masks"][0, ::5, ::2, ::2], reference["decoder.pred_masks"])

    sample = {"image": image, "height": 256, "width": 320}
    result = model([sample])[0]
    close(result["sem_seg"][::10, ::8, ::8], reference["sem_seg"])
    if "panoptic.segments" in reference:
        ids, segments = result["panoptic_seg"]
        assert torch.equal(ids, reference["panoptic.segments"])
        assert [s["category_id"] for s in segments] == reference["panoptic.category"].tolist()
        found = result["instances"]
        order, theirs = found.scores.argsort(), reference["instances.scores"].argsort()
        close(found.scores[order], reference["instances.scores"][theirs])
        assert torch.equal(found.pred_classes[order].int(), reference["instances.classes"][theirs])
        assert torch.equal(found.pred_masks.sum((1, 2))[order].double(), reference["instances.mask_area"][theirs])


def close(value, reference):
    """Relative tolerance of 1e-5; the released code sets its reference points in float32."""
    torch.testing.assert_close(
        value, reference.reshape(value.shape), rtol=1e-5, atol=1e-5 * reference.abs().max().item()
    )
