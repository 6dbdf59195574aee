"""Mask-piloted training against slow readings: the noise query by query, the decoder by explicit loops over keys, the
losses of explicit targets; and what it must not do, tell the other queries anything."""

import pytest
import torch

import fasegr
from fasegr.checkpoint.loading import load_weights
from fasegr.modeling.mask_piloting import MaskPilot
from fasegr.modeling.matcher import Match
from fasegr.modeling.pixel_decoder import PixelDecoderOutput
from fasegr.modeling.transformer_decoder.decoder import MultiScaleMaskedTransformerDecoder
from fasegr.modeling.transformer_decoder.feature_levels import masked_strides
from tests.engine.tiny_training import even_points
from tools.ablation.tables import CONFIGS

C, Q, SIZE = 3, 4, 64
KINDS = [
    *(
        {"positional_query": name}
        for name in ("dfpq", "learnable", "grid_anchor", "dynamic_anchor", "dynamic_foreground")
    ),
    *({"high_res_attention": name} for name in ("vanilla", "rcda", "none")),
    {"high_res_selection": "pixel", "high_res_query": "dynamic"},
    {"high_res_levels": (4, 8), "first_query_region": "foreground"},
]


def decoder(**changes):
    arguments = {
        "num_classes": C,
        "dim": 16,
        "num_queries": Q,
        "num_heads": 2,
        "ffn_dim": 16,
        "num_layers": 5,
        "mask_dim": 8,
        "enforce_input_project": False,
        "positional_query": "dfpq",
        "first_query_region": "background",
        "mask_threshold": 0.15,
        "high_res_attention": "hrca",
        "high_res_levels": (4,),
        "omega": 2,
        "high_res_selection": "window",
        "high_res_query": "static",
        "mask_pilot": True,
        **changes,
    }
    torch.manual_seed(0)
    return MultiScaleMaskedTransformerDecoder(16, **arguments).double().train(), arguments


def maps(batch=2):
    generator = torch.Generator().manual_seed(1)
    features, positions = (
        [torch.randn(batch, 16, SIZE // s, SIZE // s, generator=generator, dtype=torch.float64) for s in (32, 16, 8, 4)]
        for _ in range(2)
    )
    mask_features = torch.randn(batch, 8, SIZE // 4, SIZE // 4, generator=generator, dtype=torch.float64)
    return PixelDecoderOutput(mask_features, features, positions)


def targets(*labels, seed=2):
    """An image for each list of labels; the first target of each is a single pixel."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for of_image in labels:
        masks = (
            torch.rand(len(of_image), 4, 4, generator=generator).repeat_interleave(16, 1).repeat_interleave(16, 2) > 0.6
        )
        masks[:1] = False
        masks[:1, 5, 9] = True
        found.append({"labels": torch.tensor(of_image, dtype=torch.int64), "masks": masks})
    return found


def pilot_of(arguments, found, count=7, label_noise=0.2, mask_noise=0.2, seed=3):
    strides = masked_strides(arguments["high_res_attention"], arguments["high_res_levels"])
    strides = [strides[i % len(strides)] for i in range(arguments["num_layers"])]
    make = MaskPilot(num_classes=C, num_queries=count, label_noise=label_noise, mask_noise=mask_noise, strides=strides)
    torch.manual_seed(seed)
    return make(found)


def test_queries_take_targets_in_turns():
    """Without noise: class and mask of query j are those of target j mod K, in the cells that hold a pixel of it."""
    found = targets([2, 0], [1, 1, 0], [])
    _, arguments = decoder()
    pilot = pilot_of(arguments, found, label_noise=0, mask_noise=0)
    assert pilot.labels.tolist() == [[2, 0] * 3 + [2], [1, 1, 0] * 2 + [1], [C] * 7]
    assert pilot.groups[:2].tolist() == [[0, 0, 1, 1, 2, 2, 3], [0, 0, 0, 1, 1, 1, 2]]
    assert [match.targets.tolist() for match in pilot.matches] == [[[0, 1] * 3 + [0]], [[0, 1, 2] * 2 + [0]], [[]]]
    assert pilot.matches[2].queries.shape == (1, 0)
    assert [mask if mask is None else mask.shape[2] for mask in pilot.attn_masks] == [4, 16, 64, None, 4]
    for mask, stride in zip(pilot.attn_masks, (32, 16, 8, None, 32), strict=True):
        for image, target in enumerate(found if stride else []):
            for query in range(7):
                for cell in range((SIZE // stride) ** 2):
                    y, x = cell // (SIZE // stride) * stride, cell % (SIZE // stride) * stride
                    k = len(target["labels"])
                    inside = k > 0 and target["masks"][query % k, y : y + stride, x : x + stride].any()
                    assert mask[image, query, cell] == inside


def test_of_too_many_targets_some_are_drawn():
    pilot = pilot_of(decoder()[1], targets(list(range(C)) * 4, [0]), label_noise=0)
    assert pilot.groups[0].tolist() == [0] * 7
    chosen = pilot.matches[0].targets[0]
    assert len(set(chosen.tolist())) == 7
    assert pilot.labels[0].tolist() == [int(i) % C for i in chosen]
    assert chosen.tolist() != sorted(chosen.tolist())


def test_noise_is_as_much_as_asked_for():
    found = targets([0, 1], [])
    exact, noised = (
        pilot_of(decoder()[1], found, count=4000, label_noise=noise, mask_noise=noise / 2) for noise in (0, 0.6)
    )
    other = (noised.labels != exact.labels).float().mean(1)
    assert other[0].item() == pytest.approx(0.6 * (C - 1) / C, abs=0.03)  # a random class may be the same
    assert other[1] == 0  # no-object stays
    assert noised.labels.max() == C
    for layer in (0, 1, 2):
        inside, flipped = exact.attn_masks[layer][0], (exact.attn_masks[layer] ^ noised.attn_masks[layer])[0]
        for k in range(2):
            expected = 0.3 * inside[k].sum()
            assert flipped[k::2].sum(1).float().mean().item() == pytest.approx(expected.item(), rel=0.1)
    assert (noised.attn_masks[0] != noised.attn_masks[4]).any()  # each layer has its own


@pytest.mark.parametrize("changes", KINDS, ids=lambda changes: "-".join(map(str, changes.values())))
def test_the_other_queries_see_nothing_of_it(changes):
    """Their predictions are those without piloted queries, whose gradients stay within their groups."""
    model, arguments = decoder(**changes)
    inputs = maps()
    plain = model(inputs)
    pilot = pilot_of(arguments, targets([2, 0], [1]))
    own, piloted = model.forward_piloted(inputs, pilot)
    assert len(own) == len(piloted) == 6
    for prediction, expected in zip(own, plain, strict=True):
        torch.testing.assert_close(prediction, expected, rtol=1e-10, atol=1e-10)
    assert piloted[-1].mask_logits.shape == (2, 7, SIZE // 4, SIZE // 4)
    changed = pilot._replace(labels=torch.where(pilot.groups == 1, (pilot.labels + 1) % C, pilot.labels))
    _, others = model.forward_piloted(inputs, changed)
    differs = (others[-1].class_logits - piloted[-1].class_logits).abs().amax(2) > 1e-9
    assert torch.equal(differs, pilot.groups == 1)


def test_a_layer_loop_written_out():
    """Mask2Former's layers over each piloted query by itself, keys chosen by index."""
    model, arguments = decoder(positional_query="learnable", high_res_attention="none", num_layers=3)
    inputs = maps(batch=1)
    pilot = pilot_of(arguments, targets([2, 0]))
    _, piloted = model.forward_piloted(inputs, pilot)

    def attend(layer, query, key, value):
        return layer(query[None, None], key[None], value[None])[0, 0]

    content = [*model.query_feat.weight, *(model.label_enc.weight[label] for label in pilot.labels[0])]
    position = [*model.query_embed.weight, *(torch.zeros(16, dtype=torch.float64) for _ in range(7))]
    group = [None] * Q + pilot.groups[0].tolist()
    sees = [[j for j in range(Q + 7) if group[j] in (None, group[i])] for i in range(Q + 7)]

    def predict(i):
        embedding = model.mask_embed(model.decoder_norm(content[i]))
        return torch.einsum("c,chw->hw", embedding, inputs.mask_features[0])

    for number in range(3):
        memory = inputs.features[number][0].flatten(1).t() + model.level_embed.weight[number]
        key = memory + inputs.key_positions[number][0].flatten(1).t()
        crossed = []
        for i in range(Q + 7):
            if i < Q:
                size = inputs.features[number].shape[-2:]
                resized = torch.nn.functional.interpolate(predict(i)[None, None], size=size, mode="bilinear")
                inside = resized.flatten().sigmoid() >= 0.15
            else:
                inside = pilot.attn_masks[number][0, i - Q]
            cells = inside.nonzero()[:, 0] if inside.any() else torch.arange(len(memory))
            cross = model.transformer_cross_attention_layers[number]
            update = attend(cross.multihead_attn, content[i] + position[i], key[cells], memory[cells])
            crossed.append(cross.norm(content[i] + update))
        with_pos = torch.stack([a + b for a, b in zip(crossed, position, strict=True)])
        layer = model.transformer_self_attention_layers[number]
        content = [
            layer.norm(
                crossed[i] + attend(layer.self_attn, with_pos[i], with_pos[sees[i]], torch.stack(crossed)[sees[i]])
            )
            for i in range(Q + 7)
        ]
        content = [model.transformer_ffn_layers[number](each) for each in content]
        expected = torch.stack([predict(i) for i in range(Q, Q + 7)])
        torch.testing.assert_close(piloted[number + 1].mask_logits[0], expected)


def small(*opts):
    options = ["MODEL.DEVICE", "cpu", "MODEL.MASK_FORMER.MASK_PILOT.NUM_QUERIES", 5, *opts]
    torch.manual_seed(0)
    return fasegr.build_model(fasegr.load_cfg(CONFIGS / "quickstart/faseg_scenes.yaml", options))


OTHER_CLASSES = ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 20, "DATASETS.TRAIN", (), "DATASETS.TEST", ())
ON = ("MODEL.MASK_FORMER.MASK_PILOT.ENABLED", True)


def test_losses_of_their_own():
    """They are the criterion's for targets that are written down once for each query, in order."""
    model = small(*ON)
    found = targets([2, 0], [1])
    images = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    samples = [{"image": image, **target} for image, target in zip(images, found, strict=True)]
    model.criterion.draw = even_points
    kept = {}
    forward = model.sem_seg_head.forward

    def keep(features, pilot):
        kept["outputs"] = forward(features, pilot)
        return dict(kept["outputs"])

    model.sem_seg_head.forward = keep
    torch.manual_seed(4)
    losses = model(samples)
    names = {
        f"loss_{kind}{part}{suffix}"
        for kind in ("ce", "mask", "dice")
        for part in ("", "_mp")
        for suffix in ("", *(f"_{i}" for i in range(5)))
    }
    assert set(losses) == names

    repeated = []
    for target in found:
        turns = [i % len(target["labels"]) for i in range(5)]
        repeated.append({"labels": target["labels"][turns], "masks": target["masks"][turns]})
    one_to_one = [torch.arange(5).expand(6, -1)] * 2
    model.criterion.matcher = type("Fixed", (), {"num_points": 1, "__call__": lambda *_: _matches(one_to_one)})()
    expected = model.criterion(kept["outputs"]["piloted"], repeated)
    for name, value in expected.items():
        kind, _, layer = name.removeprefix("loss_").partition("_")
        weight = {"ce": 2.0, "mask": 5.0, "dice": 5.0}[kind]
        torch.testing.assert_close(losses[f"loss_{kind}_mp" + (f"_{layer}" if layer else "")], weight * value)
    sum(losses.values()).backward()
    assert model.sem_seg_head.predictor.label_enc.weight.grad.abs().sum() > 0


def _matches(indices):
    return [Match(each, each) for each in indices]


def test_images_without_targets():
    model = small(*ON)
    images = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    for found in (targets([], [1]), targets([], [])):
        losses = model([{"image": image, **target} for image, target in zip(images, found, strict=True)])
        assert all(loss.isfinite() for loss in losses.values())
        sum(losses.values()).backward()


def test_weights_load_with_and_without_it():
    with_pilot, without, of_others = small(*ON), small(), small(*ON, *OTHER_CLASSES)
    extra = set(with_pilot.state_dict()) - set(without.state_dict())
    assert extra == {"sem_seg_head.predictor.label_enc.weight"}
    assert load_weights(without, with_pilot.state_dict(), "mp.pth").kind == "full"
    assert load_weights(with_pilot, without.state_dict(), "plain.pth").kind == "full"
    assert load_weights(of_others, with_pilot.state_dict(), "mp.pth").kind == "fine-tune"
    for model in (with_pilot, without):
        model.eval()
    image = [{"image": torch.randint(0, 256, (3, SIZE, SIZE), dtype=torch.uint8)}]
    with torch.no_grad():
        torch.testing.assert_close(with_pilot(image)[0]["sem_seg"], without(image)[0]["sem_seg"], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"num_queries": 0}, "num_queries is 0"), ({"mask_noise": 1.5}, r"mask_noise 1\.5 must be shares")],
)
def test_bad_values(changes, message):
    arguments = {"num_classes": C, "num_queries": 5, "label_noise": 0.2, "mask_noise": 0.2, "strides": [32]}
    with pytest.raises(ValueError, match=message):
        MaskPilot(**arguments | changes)


def test_masks_that_are_not_made_of_cells():
    make = MaskPilot(num_classes=C, num_queries=2, label_noise=0, mask_noise=0, strides=[32])
    with pytest.raises(ValueError, match="masks of 48 x 64 are not made of cells of 32 x 32; pad the images"):
        make([{"labels": torch.tensor([0]), "masks": torch.zeros(1, 48, 64, dtype=torch.bool)}])
