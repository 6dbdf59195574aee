"""Exported graphs against the model that they were made of."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import fasegr
from fasegr.data.datasets.scenes.painter import paint_scene
from fasegr.inference import export
from fasegr.inference.export import Agreement, SegmentationGraph, agreement, export_model
from fasegr.modeling.ops.graph_export import for_export
from tools import export_model as tool

ROOT = Path(__file__).parents[2]
FORMER, FASEG = "MODEL.MASK_FORMER", "MODEL.FASEG"
TINY = [
    *("MODEL.DEVICE", "cpu", "MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 8),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", 64, "MODEL.SEM_SEG_HEAD.MASK_DIM", 16, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 12),
    *("MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD", 32, f"{FORMER}.HIDDEN_DIM", 64),
    *(
        f"{FORMER}.NUM_OBJECT_QUERIES",
        6,
        f"{FORMER}.DIM_FEEDFORWARD",
        32,
        f"{FORMER}.NHEADS",
        4,
        f"{FORMER}.DEC_LAYERS",
        6,
    ),
]
SWIN = [
    *(
        "MODEL.BACKBONE.NAME",
        "build_fasegr_swin_backbone",
        "MODEL.SWIN.EMBED_DIM",
        8,
        "MODEL.SWIN.DEPTHS",
        [2, 2, 1, 1],
    ),
    *("MODEL.SWIN.NUM_HEADS", [1, 1, 1, 1], "MODEL.SWIN.WINDOW_SIZE", 3, "MODEL.SWIN.APE", True),
]
SHORT = [f"{FORMER}.DEC_LAYERS", 5]  # one round, whose last layer is HRCA
RESULTS = [f"{FORMER}.TEST.{name}" for name in ("SEMANTIC_ON", "INSTANCE_ON", "PANOPTIC_ON")]


def _torch_is_old():
    return tuple(map(int, torch.__version__.split(".")[:2])) < export.TORCH_NEEDED


def config(*options):
    return fasegr.load_cfg("quickstart/faseg_scenes.yaml", [*TINY, *options])


def built(cfg):
    torch.manual_seed(0)
    return fasegr.build_model(cfg).eval().requires_grad_(False)


def pictures(batch, height, width):
    return np.stack([paint_scene(1, 0, i, height, width).image for i in range(batch)])


def of_graph(graph, images, size):
    with torch.no_grad(), for_export():
        values = graph(torch.from_numpy(images), torch.tensor(size))
    return {name: value.numpy() for name, value in zip(graph.outputs, values, strict=True)}


VIT = ["MODEL.BACKBONE.NAME", "build_timm_vit_backbone", "MODEL.VIT.NAME", "test_vit"]
KINDS = {
    "faseg": [],
    "labels": [f"{FORMER}.TEST.SEMANTIC_OUTPUT", "labels"],
    "resized masks": [f"{FORMER}.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE", True],
    "instances": [RESULTS[0], False, RESULTS[1], True, "TEST.DETECTIONS_PER_IMAGE", 10],
    "pixels": [f"{FASEG}.HIGH_RES.SELECTION", "pixel", f"{FASEG}.FIRST_QUERY_REGION", "foreground"],
    "rcda": [f"{FASEG}.HIGH_RES.ATTENTION", "rcda", f"{FASEG}.POSITIONAL_QUERY", "dynamic_anchor"],
    "vanilla": [
        f"{FASEG}.HIGH_RES.ATTENTION",
        "vanilla",
        f"{FASEG}.HIGH_RES.LEVELS",
        [4, 8],
        f"{FORMER}.DEC_LAYERS",
        4,
    ],
    "mask2former": [
        *(f"{FASEG}.HIGH_RES.ATTENTION", "none", f"{FASEG}.POSITIONAL_QUERY", "learnable"),
        *(f"{FASEG}.KEY_POSITION", "sinusoidal", f"{FORMER}.DEC_LAYERS", 2),
    ],
    "swin": [*SWIN, f"{FASEG}.KEY_POSITION", "learnable"],
    "swin mask2former": [*SWIN, f"{FASEG}.KEY_POSITION", "sinusoidal", f"{FASEG}.POSITIONAL_QUERY", "grid_anchor"],
    "timm": [
        *("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "convnext_atto"),
        *("MODEL.TIMM.PRETRAINED", False),
    ],
    "vit": VIT,
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_computes_what_the_model_does(kind):
    if kind in ("timm", "vit"):
        pytest.importorskip("timm")
    model = built(config(*KINDS[kind]))
    graph = SegmentationGraph(model)
    for shape, size in [((2, 70, 33), (45, 81)), ((1, 1, 1), (3, 2))]:
        images = pictures(*shape)
        check = agreement(export._model_results(model, images, size), of_graph(graph, images, size), shape, size)
        assert check.equal > 0.999, check
        assert not check.deviation > 1e-4, check


@pytest.mark.skipif("EXPORTS" not in os.environ or _torch_is_old(), reason="a minute each: make exports")
@pytest.mark.parametrize(("kind", "form"), [*((kind, "onnx") for kind in KINDS), ("faseg", "torch"), ("swin", "torch")])
def test_every_kind_of_model_is_exported(kind, form, tmp_path):
    cfg = config(*KINDS[kind], "MODEL.WEIGHTS", str(tmp_path / "model.pth"))
    torch.save({"model": built(cfg).state_dict()}, cfg.MODEL.WEIGHTS)
    checks = export_model(cfg, tmp_path / "model", form, license="CC0")
    assert all(check.equal > 0.999 for check in checks), checks


def test_stuff_is_no_instance():
    """Where panoptic results are on, the graph gives classes of stuff the score 0."""
    model = built(config(RESULTS[1], True))
    model.panoptic_on, model.things = True, frozenset([1, 5])
    images = pictures(1, 64, 64)
    results = of_graph(SegmentationGraph(model), images, (64, 64))
    classes, scores = results["instance_classes"], results["instance_scores"]
    assert set(classes[scores > 0]) == {1, 5}
    assert (scores == 0).any()
    check = agreement(export._model_results(model, images, (64, 64)), results, (1, 64, 64), (64, 64))
    assert check.equal > 0.999, check


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": built(config(*SHORT)).state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def both_results(weights):
    return config(RESULTS[1], True, "MODEL.WEIGHTS", str(weights), "TEST.DETECTIONS_PER_IMAGE", 10, *SHORT)


@pytest.fixture(scope="module")
def onnx_file(both_results, tmp_path_factory):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    if _torch_is_old():
        pytest.skip("torch is too old to export")
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    checks = export_model(both_results, path, "onnx", license="CC0")
    assert len(checks) == 3
    assert all(check.equal > 0.999 for check in checks)
    return path


@pytest.mark.slow
def test_onnx_at_any_size(onnx_file, both_results):
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    model = fasegr.Predictor(both_results).model
    for shape, size in [((1, 1, 1), (1, 1)), ((3, 37, 201), (19, 250)), ((1, 64, 32), (64, 32))]:
        images = pictures(*shape)
        values = session.run(None, {"images": images, "size": np.array(size)})
        results = dict(zip(names, values, strict=True))
        check = agreement(export._model_results(model, images, size), results, shape, size)
        assert check.equal > 0.995, check
        assert check.deviation < 1e-3, check


@pytest.mark.slow
def test_onnx_says_what_it_is(onnx_file, both_results):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(onnx_file)
    about = {entry.key: entry.value for entry in model.metadata_props}
    predictor = fasegr.Predictor(both_results)
    assert json.loads(about["classes"]) == predictor.class_names
    assert json.loads(about["palette"]) == predictor.colors.tolist()
    assert json.loads(about["test_size"]) == {"shortest_edge": 128, "longest_edge": both_results.INPUT.MAX_SIZE_TEST}
    assert about["license"] == "CC0"
    assert yaml.safe_load(about["config"])["MODEL"]["SEM_SEG_HEAD"]["NUM_CLASSES"] == 12
    # some runtimes have no GridSample, others one that differs
    assert "GridSample" not in {node.op_type for node in model.graph.node}
    names = [dimension.dim_param for dimension in model.graph.input[0].type.tensor_type.shape.dim]
    assert names == ["batch", "height", "width", ""]


@pytest.mark.slow
def test_the_demo_needs_nothing_of_ours(onnx_file, tmp_path):
    Image.fromarray(pictures(1, 40, 70)[0]).save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    spy = (
        "import runpy, sys; sys.modules['fasegr'] = sys.modules['torch'] = None; "  # importing them is an error
        "del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    demo = [str(ROOT / "demo/onnx_demo.py"), str(onnx_file), "a.png", "broken.png", "--output", "seen"]
    command = [sys.executable, "-c", spy, *demo]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done
    assert "broken.png" in done.stderr
    with Image.open(tmp_path / "seen/a_overlay.png") as overlay:
        assert overlay.size == (70, 40)


@pytest.mark.skipif("EXPORTS" not in os.environ or _torch_is_old(), reason="a minute: make exports")
def test_torch_export(weights, tmp_path):
    path = tmp_path / "model.pt2"
    cfg = config(*SHORT, "MODEL.WEIGHTS", str(weights), f"{FORMER}.TEST.SEMANTIC_OUTPUT", "labels")
    assert all(check.equal > 0.999 for check in export_model(cfg, path, "torch", license="CC0"))
    about = {"metadata.json": ""}
    program = torch.export.load(path, extra_files=about)
    labels = program.module()(torch.from_numpy(pictures(3, 1, 90)), torch.tensor([2, 180]))[0]
    assert labels.shape == (3, 2, 180)
    assert labels.dtype == torch.uint8
    assert json.loads(about["metadata.json"])["license"] == "CC0"


def test_old_torch_is_refused(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.7.1+cu126")
    with pytest.raises(ImportError, match=r"export needs torch 2\.11 or newer; installed is 2\.7\.1\+cu126"):
        export.check_packages("onnx")


def test_an_exporter_that_fails_is_one_error(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "TORCH_NEEDED", (2, 0))
    monkeypatch.setattr(export, "_trace", lambda graph: 1 / 0)
    with pytest.raises(
        ValueError, match=r"torch's exporter cannot trace this model; torch is .* ZeroDivisionError: div"
    ):
        export_model(config(*SHORT, "MODEL.WEIGHTS", str(weights)), tmp_path / "model.pt2", "torch", license="")
    assert not list(tmp_path.iterdir())


def test_a_graph_that_differs_gets_no_file(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "TORCH_NEEDED", (2, 0))
    monkeypatch.setattr(
        export, "_torch_runner", lambda path, names: lambda images, size: {"labels": np.zeros((1, *size))}
    )
    monkeypatch.setattr(export, "_trace", lambda graph: torch.export.export(torch.nn.Identity(), (torch.zeros(1),)))
    cfg = config(*SHORT, "MODEL.WEIGHTS", str(weights), f"{FORMER}.TEST.SEMANTIC_OUTPUT", "labels")
    with pytest.raises(ValueError, match=r"does not compute what the model does"):
        export_model(cfg, tmp_path / "model.pt2", "torch", license="")
    assert not list(tmp_path.iterdir())


def test_agreement_sees_what_differs():
    rng = np.random.default_rng(0)
    ours = {"scores": rng.random((1, 3, 4, 5), np.float32)}
    theirs = {"scores": ours["scores"].copy()}
    assert agreement(ours, theirs, (1, 4, 5), (4, 5)) == Agreement((1, 4, 5), (4, 5), 0.0, 0.0, 1.0)
    theirs["scores"][0, :, 0, 0] = [0, 0, 9] if ours["scores"][0, :, 0, 0].argmax() != 2 else [9, 0, 0]
    assert agreement(ours, theirs, (1, 4, 5), (4, 5)).equal == pytest.approx(19 / 20)
    theirs["scores"][0, 0, 0, 0] = np.nan
    assert agreement(ours, theirs, (1, 4, 5), (4, 5)).deviation == np.inf
    assert agreement(ours, {"scores": theirs["scores"][..., 1:]}, (1, 4, 5), (4, 5)).equal == 0
    masks = rng.random((1, 3, 4, 5)) > 0.5
    objects = {
        "instance_scores": np.array([[0.9, 0.8, 0.0]]),
        "instance_classes": np.array([[1, 1, 2]]),
        "instance_masks": masks,
    }
    swapped = {name: value[:, [1, 0, 2]] for name, value in objects.items()}
    assert agreement(objects, swapped, (1, 4, 5), (4, 5)).equal == 1
    other = {**objects, "instance_classes": np.array([[1, 2, 2]])}
    assert agreement(objects, other, (1, 4, 5), (4, 5)).equal < 0.7
    nothing = {**objects, "instance_scores": np.zeros((1, 3))}
    assert agreement(nothing, nothing, (1, 4, 5), (4, 5)).equal == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "tflite"], "--format is tflite; choose from onnx, torch"),
        (["--output", "model.pt"], "--output is model.pt; the name of a file of the format onnx ends in .onnx"),
        (["--output", "nowhere/model.onnx"], "there is no folder"),
        (["--output", "folder.onnx"], "folder.onnx is a folder"),
        (["--output", "there.onnx"], "there.onnx exists; --force replaces it"),
        (["--format", "torch", "--int8"], "--int8 is for the format onnx"),
        (["--weights", "nowhere.pth"], "nowhere.pth"),
        (["--weights", "other.pth"], "other.pth holds weights of another model"),
        (["--opts", "TEST.AUG.ENABLED", "True"], "TEST.AUG.ENABLED is True"),
        (["--opts", "TEST.SLIDING_WINDOW.ENABLED", "True"], "without a sliding window; set it False"),
        (["--opts", "MODEL.FASEG.HIGH_RES.ATTENTION", "random"], "ATTENTION is random: it draws"),
        (
            ["--opts", *VIT, "MODEL.VIT.WINDOW_SIZE", "4"],
            "WINDOW_SIZE is 4: padding to whole windows",
        ),
        (["--opts", RESULTS[0], "False", RESULTS[2], "True"], "SEMANTIC_ON False and INSTANCE_ON False"),
    ],
)
def test_what_cannot_be_exported_is_one_message(arguments, message, weights, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export, "_trace", None)  # nothing gets this far
    monkeypatch.setattr(export, "TORCH_NEEDED", (2, 0))
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "there.onnx").touch()
    state = torch.load(weights, weights_only=True)["model"]
    torch.save({"model": {k: v for k, v in state.items() if "predictor" not in k}}, tmp_path / "other.pth")
    (tmp_path / "small.yaml").write_text(
        yaml.safe_dump(
            {"_BASE_": "quickstart/faseg_scenes.yaml"}
            | _nested(dict(zip(TINY[::2], TINY[1::2], strict=True)) | {SHORT[0]: SHORT[1]})
        )
    )
    default = ["--config-file", "small.yaml", *([] if "--weights" in arguments else ["--weights", str(weights)])]
    with pytest.raises(SystemExit) as stopped:
        tool.main([*default, *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".onnx", ".onnx", ".pth", ".yaml"]


def _nested(values):
    tree = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    return tree
