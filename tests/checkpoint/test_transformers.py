"""Mask2Former of Hugging Face's transformers: its files load, and the model computes what transformers computes."""

import json
import logging

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch.testing import assert_close

import fasegr
from fasegr.checkpoint import read_checkpoint
from fasegr.data.dataset_mappers.build import test_resize as resize_for_tests
from fasegr.data.transform import resize_image

transformers = pytest.importorskip("transformers")

CLASSES = ["road", "rider", "Traffic light", "sky"]
SIZES = [(75, 101), (33, 47)]  # (height, width)
PROCESSOR = {
    "image_processor_type": "Mask2FormerImageProcessor",
    "size": {"shortest_edge": 64, "longest_edge": 100},
    "size_divisor": 32,
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.25, 0.3],
}


def make(**changes):
    """A small Swin and Mask2Former, of which no weight is zero."""
    torch.manual_seed(0)
    swin = {"embed_dim": 32, "depths": [2, 1, 1, 1], "num_heads": [1, 2, 4, 8], "window_size": 7}
    swin |= changes.pop("swin", {})
    swin = transformers.SwinConfig(**swin, out_features=["stage1", "stage2", "stage3", "stage4"])
    sizes = {"feature_size": 32, "mask_feature_size": 48, "hidden_dim": 32, "encoder_layers": 2, "decoder_layers": 5}
    sizes |= {"encoder_feedforward_dim": 40, "dim_feedforward": 56, "num_attention_heads": 4, "num_queries": 9}
    labels = {"id2label": dict(enumerate(CLASSES))}
    config = transformers.Mask2FormerConfig(backbone_config=swin, **(sizes | labels | changes))
    model = transformers.Mask2FormerForUniversalSegmentation(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.fixture(scope="module")
def theirs():
    return make()


@pytest.fixture(scope="module")
def saved(theirs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    """Copies the model to a folder, with changes of config.json."""

    def copy(name="some-model", processor=(), **changes):
        folder = tmp_path / name
        folder.mkdir()
        for file in saved.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        for file, update in (("config.json", changes), ("preprocessor_config.json", dict(processor))):
            content = json.loads((folder / file).read_text()) | update
            (folder / file).write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
        return folder

    return copy


def load(folder, *opts):
    return fasegr.load_cfg(folder, ["MODEL.DEVICE", "cpu", *opts])


def build(folder):
    model = fasegr.build_model(load(folder)).double().eval()
    report = fasegr.load_checkpoint(model, str(folder))
    assert report.kind == "full"
    return model


def assert_same_outputs(model, theirs, sizes=SIZES):
    theirs.double()
    try:
        for size in sizes:
            images = torch.rand(2, 3, *size, dtype=torch.float64) * 4 - 2
            with torch.no_grad():
                ours, reference = model.sem_seg_head(model.backbone(images)), theirs(pixel_values=images)
            assert reference.class_queries_logits.std() > 0.01
            assert_close(ours["pred_logits"], reference.class_queries_logits, atol=1e-5, rtol=1e-5)
            assert_close(ours["pred_masks"], reference.masks_queries_logits, atol=1e-5, rtol=1e-5)
    finally:
        theirs.float()


def test_same_outputs_at_any_size(saved, theirs):
    assert_same_outputs(build(saved), theirs)


def test_without_bias_with_another_window_and_projections(tmp_path):
    swin = {"qkv_bias": False, "window_size": 4, "mlp_ratio": 2.0}
    theirs = make(swin=swin, enforce_input_projection=True, encoder_layers=1, decoder_layers=4)
    theirs.save_pretrained(tmp_path)
    assert_same_outputs(build(tmp_path), theirs, [(64, 96)])


@pytest.mark.parametrize("kind", ["shards", "bin", "state_dict"])
def test_other_files_of_the_same_weights(kind, copied, saved, theirs):
    folder = copied()
    whole = read_checkpoint(str(folder / "model.safetensors")).weights
    (folder / "model.safetensors").unlink()
    if kind == "shards":
        theirs.save_pretrained(folder, max_shard_size="300KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 2
    elif kind == "bin":  # transformers 4
        torch.save(safetensors.torch.load_file(saved / "model.safetensors"), folder / "pytorch_model.bin")
    else:  # as a training by Lightning keeps it, in the names of the modules
        state = {f"model.{name}": value for name, value in theirs.state_dict().items()}
        torch.save({"state_dict": state, "epoch": 3}, folder / "pytorch_model.bin")
    weights = read_checkpoint(fasegr.checkpoint.local_path(str(folder))).weights
    derived = ("criterion.empty_weight", "index")
    assert {n for n in weights if not n.endswith(derived)} == {n for n in whole if not n.endswith(derived)}
    for name in weights.keys() & whole.keys():
        assert torch.equal(weights[name], whole[name]), name


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_results_of_the_task_in_the_name(task, copied):
    predictor = fasegr.Predictor(load(copied(f"mask2former-swin-tiny-{task}")))
    assert predictor.class_names == CLASSES
    result = predictor(np.zeros((50, 77, 3), np.uint8))
    if task == "semantic":
        assert result.keys() == {"sem_seg"}
        assert result["sem_seg"].shape == (4, 50, 77)
    elif task == "instance":
        assert result.keys() == {"instances"}
        assert result["instances"].pred_masks.shape[1:] == (50, 77)
    else:
        assert result.keys() == {"sem_seg", "instances", "panoptic_seg"}
        assert result["panoptic_seg"].segment_ids.shape == (50, 77)


def test_task_of_the_model_before_fine_tuning_and_of_options(copied):
    folder = copied(_name_or_path="facebook/mask2former-swin-tiny-coco-instance")
    assert load(folder).MODEL.MASK_FORMER.TEST.INSTANCE_ON
    assert load(folder, "MODEL.MASK_FORMER.TEST.PANOPTIC_ON", "True").MODEL.MASK_FORMER.TEST.PANOPTIC_ON
    assert not load(copied("b")).MODEL.MASK_FORMER.TEST.INSTANCE_ON


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"size": {"height": 70, "width": 96}},
        {"size": {"shortest_edge": 90, "longest_edge": 2000}, "size_divisor": 16},
        {"do_resize": False, "do_normalize": False},
        {"rescale_factor": 1 / 127.5},
    ],
)
def test_images_are_prepared_as_in_transformers(changes, tmp_path):
    tmp_path.joinpath("preprocessor_config.json").write_text(json.dumps(PROCESSOR | changes))
    tmp_path.joinpath("config.json").write_text('{"model_type": "mask2former"}')
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    cfg = load(tmp_path)
    mean, std = torch.tensor(cfg.MODEL.PIXEL_MEAN), torch.tensor(cfg.MODEL.PIXEL_STD)
    # without a resize, images are padded to a multiple of 32 here
    for size in [(64, 64)] if "do_resize" in changes else [(50, 77), (300, 90), (64, 64), (31, 200)]:
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8))
        expected = processor(images=image, return_tensors="pt")["pixel_values"][0]
        pixels = resize_image(image, resize_for_tests(cfg).output_size(size))
        ours = (torch.tensor(np.asarray(pixels)) - mean) / std
        assert_close(ours.permute(2, 0, 1), expected, atol=1e-5, rtol=1e-5)


def test_classes_of_a_known_dataset_bring_its_colours(copied):
    names = fasegr.d2.MetadataCatalog.get("scenes_val").stuff_classes
    theirs = {str(i): f" {name.upper()}_" for i, name in enumerate(names)}
    cfg = load(copied("a-panoptic", id2label=theirs))
    assert cfg.DATASETS.TEST == ("scenes_panoptic_val",)
    assert cfg.DATASETS.TRAIN == ("scenes_panoptic_train",)
    theirs["0"], theirs["1"] = theirs["1"], theirs["0"]
    assert load(copied("b-semantic", id2label=theirs)).DATASETS.TEST == ("transformers_val",)


def test_two_classes_of_one_name_are_told_apart(copied):
    cfg = load(copied(id2label={"0": "a", "1": "a", "2": "b\n", "3": ""}))
    assert cfg.DATASETS.FOLDER.CLASSES == ["a", "a (1)", "b", "class 3"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "maskformer"}, r"config\.json: model_type is 'maskformer'; .* only mask2former"),
        ({"backbone_config": {"model_type": "resnet"}}, r"the backbone is 'resnet'; .* only swin"),
        ({"backbone": "resnet50", "use_timm_backbone": True}, r"the backbone is 'resnet50'"),
        ({"pre_norm": True}, "pre_norm is True; a model can be loaded if it is False"),
        ({"backbone_config": {"patch_size": 2}}, r"backbone_config\.patch_size is 2"),
        ({"num_queries": "many"}, "num_queries is 'many'; it must be an int"),
        ({"id2label": {"1": "a"}}, "id2label is .* from 0 on"),
        ({"hidden_dim": 64}, "the configuration cannot work"),
    ],
)
def test_what_cannot_be_loaded_is_named(changes, message, copied):
    with pytest.raises(ValueError, match=message):
        load(copied(**changes))


def test_damaged_files_are_named(copied):
    folder = copied()
    (folder / "preprocessor_config.json").write_text('{"size": {"width": 3}}')
    with pytest.raises(ValueError, match=r"preprocessor_config\.json: size is \{'width': 3\}"):
        load(folder)
    (folder / "config.json").write_text("[1")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither a config\.yaml.* nor a config\.json"):
        load(folder)


def test_other_weights_than_the_config_says_are_refused(copied):
    folder = copied(id2label={"0": "a", "1": "b"})
    with pytest.raises(ValueError, match="fits only a part of the model"):
        fasegr.Predictor(load(folder))
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    del weights["class_predictor.bias"]
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing: sem_seg_head\.predictor\.class_embed\.bias"):
        fasegr.load_checkpoint(fasegr.build_model(load(folder)), str(folder))


def test_fine_tuning_starts_from_such_weights(copied, caplog):
    """MODEL.WEIGHTS of another config: other classes."""
    folder = copied()
    cfg = load(copied("b", id2label={"0": "a", "1": "b"}))
    model = fasegr.build_model(cfg)
    with caplog.at_level(logging.INFO, "fasegr"):
        assert fasegr.load_checkpoint(model, str(folder)).kind == "fine-tune"
