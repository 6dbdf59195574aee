"""The whole model, small: losses and gradients, precisions, sizes, compilation, what it refuses."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import fasegr
from fasegr.analysis.flops import count_cost
from fasegr.d2 import MetadataCatalog

CONFIG = Path(__file__).parents[3] / "configs/quickstart/faseg_scenes.yaml"
SMALL = [
    "MODEL.DEVICE", "cpu", "MODEL.RESNETS.STEM_OUT_CHANNELS", 16, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM", 64, "MODEL.SEM_SEG_HEAD.MASK_DIM", 32, "MODEL.MASK_FORMER.HIDDEN_DIM", 64,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 6, "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 64,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 1,
]  # fmt: skip


def build(*opts):
    torch.manual_seed(0)
    return fasegr.build_model(fasegr.load_cfg(CONFIG, [*SMALL, *opts]))


def samples(sizes=((64, 96), (40, 50)), classes=(2, 0)):
    generator = torch.Generator().manual_seed(0)
    result = []
    for (h, w), count in zip(sizes, classes, strict=True):
        image = torch.randint(0, 256, (3, h, w), generator=generator, dtype=torch.uint8)
        segments = torch.randint(0, max(count, 1), (h, w), generator=generator)
        labels = torch.arange(count)
        result.append({"image": image, "labels": labels, "masks": segments == labels[:, None, None]})
    return result


def test_losses_and_gradients_with_and_without_objects():
    model = build()
    losses = model(samples())
    assert set(losses) == {f"loss_{k}{i}" for k in ("ce", "mask", "dice") for i in ("", *(f"_{j}" for j in range(5)))}
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_weights_of_the_losses():
    model, batch = build(), samples()
    torch.manual_seed(1)
    before = model(batch)
    model.loss_weights = {"loss_ce": 4.0, "loss_mask": 0.0, "loss_dice": 5.0}
    torch.manual_seed(1)
    after = model(batch)
    torch.testing.assert_close(after["loss_ce_3"], 2 * before["loss_ce_3"])
    assert after["loss_mask_3"] == 0
    torch.testing.assert_close(after["loss_dice"], before["loss_dice"])


def test_without_deep_supervision_only_the_last_prediction_is_trained():
    assert set(build("MODEL.MASK_FORMER.DEEP_SUPERVISION", False)(samples())) == {"loss_ce", "loss_mask", "loss_dice"}


def test_label_maps_serve_as_targets_too():
    model, batch = build(), samples(classes=(2, 2))
    torch.manual_seed(1)
    expected = model(batch)
    maps = []
    for sample in batch:
        segments = torch.full(sample["masks"].shape[1:], 255)
        for label, mask in zip(sample["labels"], sample["masks"], strict=True):
            segments[mask] = label
        maps.append({"image": sample["image"], "sem_seg": segments})
    torch.manual_seed(1)
    for name, loss in model(maps).items():
        torch.testing.assert_close(loss, expected[name])


@pytest.mark.parametrize("output", ["scores", "labels"])
def test_results_have_the_size_asked_for(output):
    model = build("MODEL.MASK_FORMER.TEST.SEMANTIC_OUTPUT", output).eval()
    batch = samples(sizes=((64, 96), (33, 50)))
    batch[0] |= {"height": 31, "width": 200}
    with torch.no_grad():
        first, second = model(batch)
    if output == "scores":
        assert first["sem_seg"].shape == (12, 31, 200)
        assert second["sem_seg"].shape == (12, 33, 50)
    else:
        assert first["sem_seg_labels"].shape == (31, 200)
        assert second["sem_seg_labels"].dtype == torch.uint8


def test_segments_and_instances():
    names = ("PANOPTIC_ON", "INSTANCE_ON")
    options = [part for name in names for part in (f"MODEL.MASK_FORMER.TEST.{name}", True)]
    MetadataCatalog.get("four_things").thing_dataset_id_to_contiguous_id = {1: 0, 2: 1, 3: 2, 5: 4}
    options += ["DATASETS.TRAIN", ("four_things",), "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", 0.0]
    model = build(*options, "TEST.DETECTIONS_PER_IMAGE", 40).eval()
    with torch.no_grad():
        (result,) = model([samples()[0] | {"height": 31, "width": 200}])
        (plain,) = model.score_tiles([samples()[0] | {"height": 31, "width": 200}])
    assert set(result) == {"sem_seg", "panoptic_seg", "instances"}
    assert torch.equal(result["sem_seg"], torch.cat([tile for _, tile in plain], 1))
    ids, segments = result["panoptic_seg"]
    assert ids.shape == (31, 200) and set(ids.unique().tolist()) - {0} == {s["id"] for s in segments}
    assert all(s["isthing"] == (s["category_id"] in (0, 1, 2, 4)) for s in segments)
    found = result["instances"]
    assert found.pred_masks.shape == (len(found), 31, 200)
    assert 0 < len(found) < 40 and set(found.pred_classes.tolist()) <= {0, 1, 2, 4}

    model.semantic_on, model.panoptic_on = False, False
    with torch.no_grad():
        (result,) = model([samples()[0]])
    assert set(result) == {"instances"}
    assert len(result["instances"]) == 40  # without panoptic segments, instances are of all classes


@pytest.mark.parametrize("masks_first", [False, True])
def test_masks_are_resized_before_the_product_if_asked(masks_first):
    key = "MODEL.MASK_FORMER.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE"
    model = build(key, masks_first).double().eval()
    with torch.no_grad():
        (result,) = model([samples()[1] | {"height": 71, "width": 60}])
        logits, masks, padded, (h, w), output = model._predictions([samples()[1] | {"height": 71, "width": 60}])[0]
        resize = lambda x, size: F.interpolate(x[None], size, mode="bilinear", align_corners=False)[0]  # noqa: E731
        masks = resize(masks, padded)[:, :h, :w]
        masks = (resize(masks, output) if masks_first else masks).sigmoid()
        expected = torch.einsum("qc,qhw->chw", logits.softmax(-1)[:, :-1], masks)
    torch.testing.assert_close(result["sem_seg"], expected if masks_first else resize(expected, output))


def test_a_batch_equals_its_images_one_by_one():
    model, batch = build().double().eval(), samples(sizes=((64, 96), (64, 96)), classes=(1, 1))
    with torch.no_grad():
        together = model(batch)
        for sample, result in zip(batch, together, strict=True):
            torch.testing.assert_close(model([sample])[0]["sem_seg"], result["sem_seg"])


@pytest.mark.parametrize("size", [(1, 1), (32, 32), (7, 200)])
def test_tiny_images(size):
    with torch.no_grad():
        (result,) = build().eval()([{"image": torch.zeros(3, *size, dtype=torch.uint8)}])
    assert result["sem_seg"].shape == (12, *size)
    assert result["sem_seg"].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_trains_and_predicts(dtype):
    model, batch = build(), samples()
    torch.manual_seed(1)
    exact = model(batch)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype):
        losses = model(batch)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    for name, loss in losses.items():
        torch.testing.assert_close(loss, exact[name], rtol=0.1, atol=0.1)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad(), torch.autocast("cpu", dtype):
        assert model.eval()(batch)[0]["sem_seg"].dtype == torch.float32


@pytest.mark.parametrize(
    "variant",
    [
        {"KEY_POSITION": "learnable", "POSITIONAL_QUERY": "grid_anchor", "HIGH_RES.ATTENTION": "rcda"},
        {"KEY_POSITION": "sinusoidal", "POSITIONAL_QUERY": "dynamic_anchor", "HIGH_RES.LEVELS": [8]},
        {"POSITIONAL_QUERY": "dynamic_foreground", "HIGH_RES.LEVELS": [4, 8], "HIGH_RES.SELECTION": "pixel"},
        {"KEY_POSITION": "learnable", "POSITIONAL_QUERY": "grid_anchor", "HIGH_RES.ATTENTION": "none"},
    ],
)
def test_variants_train_and_are_counted(variant):
    model = build(*(part for key, value in variant.items() for part in (f"MODEL.FASEG.{key}", value)))
    for sizes in (((64, 96), (40, 50)), ((32, 32), (20, 30))):  # the second ones have one cell at 1/32
        model.zero_grad()
        sum(model(samples(sizes)).values()).backward()
        assert [n for n, p in model.named_parameters() if p.grad is None] == []
        assert all(p.grad.isfinite().all() for p in model.parameters())
    levels = 3 if variant.get("HIGH_RES.ATTENTION") == "none" or variant.get("HIGH_RES.LEVELS") == [8] else 4
    assert (
        len(model.sem_seg_head.pixel_decoder.levels)
        == model.sem_seg_head.predictor.level_embed.num_embeddings
        == levels
    )
    cost = count_cost(model, (64, 96))
    parts = {name: work for name, work in cost.multiply_adds.items() if name.startswith("sem_seg_head.predictor.")}
    assert parts["sem_seg_head.predictor.transformer_cross_attention_layers.2"] > 0


def test_compiles():
    model, batch = build().eval(), samples(sizes=((64, 64), (64, 64)), classes=(1, 1))
    images, _ = model._batch([s["image"] for s in batch])
    network = lambda x: model.sem_seg_head(model.backbone(x))  # noqa: E731
    with torch.no_grad():
        expected = network(images)
        compiled = torch.compile(network, backend="aot_eager", fullgraph=True)(images)
    torch.testing.assert_close(compiled, expected)


def test_training_compiles():
    model, batch = build("MODEL.MASK_FORMER.DEC_LAYERS", 5), samples()
    torch.manual_seed(1)
    expected = model(batch)
    torch._dynamo.reset()
    torch.manual_seed(1)
    for part in (model.backbone, model.sem_seg_head):  # what SPEED.COMPILE compiles
        part.compile(backend="aot_eager")
    losses = model(batch)
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-3, atol=1e-3)


def test_the_key_compiles_backbone_and_head_and_changes_no_name():
    plain, compiled = build(), build("SPEED.COMPILE", True)
    for part in ("backbone", "sem_seg_head"):
        assert getattr(plain, part)._compiled_call_impl is None
        assert getattr(compiled, part)._compiled_call_impl is not None  # compiled at the first call
    assert list(compiled.state_dict()) == list(plain.state_dict())


def test_channels_last_changes_the_order_in_memory_and_no_result():
    plain, cfg = build().eval(), fasegr.load_cfg(CONFIG, SMALL)
    arguments = type(plain).from_config(cfg)
    assert not arguments["channels_last"]  # only for GPUs
    model = type(plain)(**arguments | {"channels_last": True}).eval()
    model.load_state_dict(plain.state_dict())
    maps = []
    model.backbone.register_forward_hook(lambda module, inputs, outputs: maps.extend(outputs.values()))
    with torch.no_grad():
        (one, _), (other, _) = model(samples()), plain(samples())
    assert maps
    assert all(m.is_contiguous(memory_format=torch.channels_last) for m in maps)
    torch.testing.assert_close(one["sem_seg"], other["sem_seg"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"image": torch.zeros(3, 8, 8)}, "it needs 'labels' and 'masks', or 'sem_seg'"),
        ({"image": torch.zeros(8, 8)}, r"shape \(8, 8\); expected \(3, height, width\)"),
    ],
)
def test_samples_that_cannot_be_used(sample, message):
    with pytest.raises(ValueError, match=message):
        build()([sample])


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match=r"PANOPTIC_ON is True .* does not define thing classes"):
        build("MODEL.MASK_FORMER.TEST.PANOPTIC_ON", True)
    with pytest.raises(ValueError, match="SEMANTIC_ON is False"):
        build("MODEL.MASK_FORMER.TEST.SEMANTIC_ON", False)
    with pytest.raises(ValueError, match=r"IN_FEATURES \['res9'\]"):
        build("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res9"])
    with pytest.raises(ValueError, match=r"RES5_DILATION is 2"):
        build("MODEL.RESNETS.RES5_DILATION", 2)
