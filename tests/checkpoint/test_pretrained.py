"""A model as a folder, with its card, and on a hub: what is written is read back as the same model."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from torch.testing import assert_close

import fasegr
from fasegr.checkpoint import model_card, pretrained
from fasegr.d2 import DatasetCatalog, MetadataCatalog
from fasegr.utils.files import write_json
from tests.checkpoint.hub_server import Hub

pytestmark = pytest.mark.slow

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 61, 3)).astype(np.uint8)
TINY = [
    *("MODEL.DEVICE", "cpu", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 5, "MODEL.RESNETS.RES2_OUT_CHANNELS", 8),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", 32, "MODEL.MASK_FORMER.HIDDEN_DIM", 32, "MODEL.SEM_SEG_HEAD.MASK_DIM", 16),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.MASK_FORMER.DIM_FEEDFORWARD", 32, "INPUT.MIN_SIZE_TEST", 64),
    *("MODEL.MASK_FORMER.DEC_LAYERS", 5, "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 1),
]


def build(config, *opts):
    torch.manual_seed(0)
    cfg = fasegr.load_cfg(config, [*TINY, *opts])
    return fasegr.build_model(cfg).eval(), cfg


def garden(tmp_path):
    """A config whose dataset is two folders and a list of classes."""
    (tmp_path / "classes.txt").write_text("path, 1 2 3\nrose | tulip, 4 5 6\n")
    content = {
        "_BASE_": "quickstart/faseg_scenes.yaml",
        "DATASETS": {
            "FOLDER": {"NAME": "garden", "ROOT": str(tmp_path / "garden"), "CLASSES": "classes.txt"},
            "TRAIN": ["garden_train"],
            "TEST": ["garden_val"],
        },
        "MODEL": {"SEM_SEG_HEAD": {"NUM_CLASSES": 2}},
        "OUTPUT_DIR": str(tmp_path / "run"),
    }
    (tmp_path / "garden.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "garden.yaml"


def forget(name):
    """As on a machine where nobody has registered the dataset."""
    for split in ("train", "val"):
        if f"{name}_{split}" in DatasetCatalog.list():
            DatasetCatalog.remove(f"{name}_{split}")
            MetadataCatalog.remove(f"{name}_{split}")


def assert_same_model(predictor, model):
    assert_close(predictor.model.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_a_folder_needs_nothing_of_the_machine_that_wrote_it(tmp_path):
    model, _ = build(garden(tmp_path))
    model.save_pretrained(tmp_path / "out", license="apache-2.0")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"config.yaml", "model.safetensors", "README.md"}
    assert str(tmp_path) not in (tmp_path / "out/config.yaml").read_text() + (tmp_path / "out/README.md").read_text()
    assert (tmp_path / "out/model.safetensors").stat().st_mode == (tmp_path / "out/config.yaml").stat().st_mode
    (tmp_path / "classes.txt").unlink()
    forget("garden")
    predictor = fasegr.from_pretrained(tmp_path / "out", ["MODEL.DEVICE", "cpu"])
    assert predictor.class_names == ["path", "rose | tulip"]
    assert predictor.colors.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert_same_model(predictor, model)
    assert predictor(IMAGE)["sem_seg"].shape == (2, 40, 61)


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_datasets_that_come_with_fasegr_keep_their_names(task, tmp_path):
    model, cfg = build(f"quickstart/faseg_scenes_{task}.yaml")
    model.save_pretrained(tmp_path / "out")
    loaded = fasegr.load_cfg(tmp_path / "out", ["MODEL.DEVICE", "cpu"])
    assert loaded.DATASETS.TEST == cfg.DATASETS.TEST
    for key in ("MASK_FORMER", "FASEG", "RESNETS", "SEM_SEG_HEAD"):
        assert loaded.MODEL[key] == cfg.MODEL[key]
    assert fasegr.from_pretrained(tmp_path / "out", ["MODEL.DEVICE", "cpu"]).model.things == model.things


@pytest.mark.parametrize("task", ["semantic", "panoptic"])
def test_datasets_of_a_program_leave_their_classes(task, tmp_path):
    name = "faseg_scenes" if task == "semantic" else "faseg_scenes_panoptic"
    _, cfg = build(f"quickstart/{name}.yaml")
    MetadataCatalog.get("mine_val").set(
        **{key: MetadataCatalog.get(cfg.DATASETS.TEST[0]).get(key) for key in ("stuff_classes", "stuff_colors")},
        thing_dataset_id_to_contiguous_id={7: 2, 9: 3},
        stuff_dataset_id_to_contiguous_id={5: 0, 6: 1, 7: 2, 9: 3} | {i + 10: i for i in range(4, 12)},
    )
    try:
        cfg.DATASETS.TEST = cfg.DATASETS.TRAIN = ("mine_val",)
        model = fasegr.build_model(cfg).eval()
        model.save_pretrained(tmp_path / "out")
        expected = MetadataCatalog.get("mine_val")
        predictor = fasegr.from_pretrained(tmp_path / "out", ["MODEL.DEVICE", "cpu"])
        assert predictor.class_names == expected.stuff_classes
        assert predictor.colors.tolist() == [list(colour) for colour in expected.stuff_colors]
        assert predictor.model.things == ({2, 3} if task == "panoptic" else set())
    finally:
        MetadataCatalog.remove("mine_val")


def test_classes_that_nobody_knows_are_an_error(tmp_path):
    _, cfg = build("quickstart/faseg_scenes.yaml")
    cfg.DATASETS.TEST = ("nobody_knows",)
    with pytest.raises(ValueError, match="nobody_knows has no list of classes"):
        fasegr.build_model(cfg).save_pretrained(tmp_path / "other")
    assert not list(tmp_path.iterdir())


def test_every_dataset_that_is_registered_at_start_is_known_as_such():
    """In a process of its own: other tests register more."""
    program = "import fasegr; from fasegr.d2 import DatasetCatalog; print(*DatasetCatalog.list())"
    names = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert [name for name in names if name.startswith(("scenes", "coco_2017", "ade20k"))]
    for name in names:
        assert name.startswith(pretrained.BUILT_IN)


def test_whole_or_not_at_all(tmp_path, monkeypatch):
    model, _ = build("quickstart/faseg_scenes.yaml")
    folder = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(pretrained, "model_card", lambda **facts: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model.save_pretrained(folder)
        assert not list(tmp_path.iterdir())
    model.save_pretrained(folder)
    (folder / "notes.txt").write_text("mine")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(FileExistsError, match="is not empty"):
        model.save_pretrained(folder)
    with monkeypatch.context() as patch:
        patch.setattr(pretrained, "model_card", lambda **facts: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model.save_pretrained(folder, force=True)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    model.sem_seg_head.predictor.query_feat.weight.data += 1
    model.save_pretrained(folder, force=True, license="mit")
    assert_same_model(fasegr.from_pretrained(folder, ["MODEL.DEVICE", "cpu"]), model)
    assert (folder / "notes.txt").read_text() == "mine"
    with pytest.raises(FileExistsError, match="is a file"):
        model.save_pretrained(folder / "notes.txt")


def run_of(tmp_path, report_of="model_best.pth"):
    """An OUTPUT_DIR with all that a card reads: the best weights, of iteration 3, an evaluation there and later."""
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save({"model": {"a": torch.ones(1)}, "iteration": 3}, folder / "model_best.pth")
    rows = [{"iteration": 3, "total_loss": 1.0}]
    rows += [{"iteration": i, "sem_seg/mIoU": 40.0 + i, "sem_seg/IoU-path": 30.0 + i} for i in (3, 5)]
    rows[-2]["sem_seg/IoU-rose"] = float("nan")
    (folder / "metrics.json").write_text("\n".join(map(json.dumps, rows)))
    command = (
        "[11/28 16:21:56 fasegr] INFO: Command line: Namespace(config_file='/home/me/garden.yaml', resume=False, "
        "eval_only={}, num_gpus=2, opts=['SOLVER.MAX_ITER', '6', 'OUTPUT_DIR', '/home/me/run', 'A', \"it's\"])"
    )
    (folder / "log.txt").write_text(command.format(True) + "\n" + command.format(False) + "\nmore")
    report = {"weights": str(folder / report_of), "dataset": "garden_val", "num_images": 9}
    report["scores"] = {"mIoU": [50.0, 45.5, 55.25], "BoundaryIoU": [None, None, None]}
    report["classes"] = [{"name": "path", "IoU": [60.0, 50.0, 70.0]}, {"name": "rose", "IoU": [None, None, None]}]
    write_json(report, folder / "inference/report/report.json")
    return folder


def card_of(model, cfg, run):
    facts = model_card.read_run(str(run / "model_best.pth"), None)
    values = pretrained.portable_values(cfg)
    return pretrained._card(model, cfg, values, facts, "mit", "me/garden")


def test_card_is_filled_from_the_run(tmp_path):
    model, cfg = build(garden(tmp_path))
    card = card_of(model, cfg, run_of(tmp_path))
    head = yaml.safe_load(card.split("---")[1])
    assert (head["license"], head["library_name"], head["pipeline_tag"]) == ("mit", "fasegr", "image-segmentation")
    result = head["model-index"][0]["results"][0]
    assert result["dataset"]["name"] == "garden_val"
    assert result["metrics"] == [{"type": "mean_iou", "name": "mIoU", "value": 50.0}]
    assert "| mIoU | 50.00 | 45.50 to 55.25 |" in card
    assert "| path | 60.00 | 50.00 to 70.00 |" in card
    assert "| rose" not in card
    assert "path, rose \\| tulip" in card
    expected = "fasegr train --config-file garden.yaml --num-gpus 2 SOLVER.MAX_ITER 6 OUTPUT_DIR run A 'it'\"'\"'s'"
    assert expected in card
    assert "after iteration 4" in card
    assert 'from_pretrained("me/garden")' in card
    assert "--config-file hf://me/garden" in card


def test_card_takes_no_scores_of_other_weights(tmp_path):
    model, cfg = build(garden(tmp_path))
    run = run_of(tmp_path, report_of="model_final.pth")
    card = card_of(model, cfg, run)
    assert "| mIoU | 43.00 | none |" in card  # of iteration 3, not of the last one
    assert "| path | 33.00 | none |" in card
    assert "50.00" not in card
    assert "| rose" not in card
    (run / "metrics.json").unlink()
    assert "## Scores\n\nNot recorded." in card_of(model, cfg, run)
    with pytest.raises(FileNotFoundError, match="no folder"):
        model_card.read_run("", tmp_path / "nowhere")


# --- the hub

NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub.constants")
    hub = Hub()
    # What HF_HUB_CACHE and HF_HUB_DISABLE_XET set where huggingface_hub is imported first.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    yield hub
    hub.close()


def test_to_the_hub_and_back(hub, tmp_path, monkeypatch):
    model, _ = build(garden(tmp_path))
    address = model.push_to_hub("me/garden", private=True, license="mit")
    assert address == f"{hub.address}/me/garden"
    assert hub.private == {"me/garden"}
    assert set(hub.models["me/garden"]) == {"config.yaml", "model.safetensors", "README.md"}
    hub.models["me/garden"] |= {"pytorch_model.bin": b"not asked for", "run.py": b"not asked for"}
    forget("garden")
    predictor = fasegr.from_pretrained("me/garden", ["MODEL.DEVICE", "cpu"])
    assert predictor.class_names == ["path", "rose | tulip"]
    assert_same_model(predictor, model)
    assert fasegr.load_cfg("hf://me/garden@main", TINY[:2]).DATASETS.FOLDER.NAME == "garden"
    downloads = [line for line in hub.asked if line.startswith("GET") and "/resolve/" in line]
    assert len(downloads) == 2  # once
    assert not [line for line in downloads if not line.endswith(("config.yaml", "model.safetensors"))]
    monkeypatch.setenv("HF_ENDPOINT", NOBODY)
    assert fasegr.load_cfg("hf://me/garden", TINY[:2]).DATASETS.FOLDER.NAME == "garden"  # from the cache
    assert fasegr.load_checkpoint(model, "hf://me/garden").kind == "full"  # as MODEL.WEIGHTS of another config


def test_a_second_push_replaces_the_files(hub):
    model, _ = build("quickstart/faseg_scenes.yaml")
    model.push_to_hub("me/scenes")
    first = hub.models["me/scenes"]["model.safetensors"]
    model.sem_seg_head.predictor.query_feat.weight.data += 1
    model.push_to_hub("hf://me/scenes", license="mit")
    assert hub.models["me/scenes"]["model.safetensors"] != first
    assert b"license: mit" in hub.models["me/scenes"]["README.md"]


def test_what_the_hub_refuses_is_one_sentence(hub, monkeypatch):
    model, _ = build("quickstart/faseg_scenes.yaml")
    with pytest.raises(ConnectionError, match=r"could not get hf://me/other: there is no such model at http.*private"):
        fasegr.from_pretrained("me/other")
    hub.models["me/empty"] = {"README.md": b"nothing"}
    with pytest.raises(FileNotFoundError, match=r"neither a config\.yaml"):
        fasegr.from_pretrained("me/empty")
    with pytest.raises(ConnectionError, match="no such revision"):
        fasegr.from_pretrained("me/empty@v3")
    for name in ("a/b/c", "./garden", "garden"):
        with pytest.raises(ValueError, match=f"there is no folder {name} .*'{name}' is no name of a model on the hub"):
            fasegr.from_pretrained(name)
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(ConnectionError, match=r"could not upload to me/new: .*hf auth login"):
        model.push_to_hub("me/new")
    monkeypatch.setenv("HF_ENDPOINT", NOBODY)
    with pytest.raises(ConnectionError, match="cannot be reached"):
        fasegr.from_pretrained("me/other")
