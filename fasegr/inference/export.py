"""Models as files that run without this program: ONNX, and torch.export's.

The graph takes uint8 images of any size and the size of the results, and holds everything between them: normalisation,
padding, the network, resizing back, the products of masks and classes. A file gets its name only after its results
have been compared with those of the model.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fasegr
from fasegr.data.datasets.scenes.painter import paint_scene
from fasegr.data.image_io import open_image
from fasegr.data.transform import height_and_width, resize_image
from fasegr.inference.predictor import Predictor
from fasegr.modeling.meta_arch.segmentor import FASeg
from fasegr.modeling.ops.graph_export import for_export
from fasegr.utils.files import replacing

__all__ = ["FORMATS", "Agreement", "SegmentationGraph", "agreement", "check_config", "export_model", "metadata"]

logger = logging.getLogger(__name__)

FORMATS = {"onnx": ".onnx", "torch": ".pt2"}
OPSET = 18
TORCH_NEEDED = (2, 11)  # whose exporter keeps height, width and batch free in these models
LEAST_EQUAL = 0.995  # share of pixels with equal labels, below which a file is refused
LARGEST_MEAN_DEVIATION = 1e-3  # of scores, which are of the order of 1

_RESULT = ("result_height", "result_width")
_DIMENSIONS = {  # names of the free ones
    "images": ("batch", "height", "width"),
    "labels": ("batch", *_RESULT),
    "scores": ("batch", "", *_RESULT),
    "instance_scores": ("batch",),
    "instance_classes": ("batch",),
    "instance_masks": ("batch", "", *_RESULT),
}

Run = Callable[[np.ndarray, tuple[int, int]], dict[str, np.ndarray]]
"""From images (B, H, W, 3) and the size of the results to these, by name."""


class SegmentationGraph(nn.Module):
    """What is exported of a segmentor: from images to results, in operations for images of any size.

    `forward` returns the results that are switched on, in the order of `outputs`:

    - `labels` (B, height, width), uint8, or int16 above 256 classes, or `scores` (B, C, height, width);
    - of instances, the N most probable pairs of query and class, and their `instance_scores` (B, N), in no order,
      `instance_classes` (B, N) and `instance_masks` (B, N, height, width). Where the model also makes panoptic
      results, classes of stuff have the score 0.
    """

    def __init__(self, model: FASeg):
        super().__init__()
        self.model = model
        num_classes = model.sem_seg_head.predictor.class_embed.out_features - 1
        self.label_dtype = torch.uint8 if num_classes <= 256 else torch.int16
        is_object = [not model.panoptic_on or c in model.things for c in range(num_classes)]
        self.register_buffer("is_object", torch.tensor(is_object, dtype=torch.float32), False)
        self.outputs: list[str] = []
        if model.semantic_on:
            self.outputs.append(model.semantic_output)
        if model.instance_on:
            self.outputs += ["instance_scores", "instance_classes", "instance_masks"]

    def forward(self, images: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        """images: uint8 (B, H, W, 3), RGB. size: int64 (2,), height and width of the results."""
        model, image_size = self.model, tuple(images.shape[1:3])
        output_size = tuple(size.tolist())
        for side in output_size:
            torch._check(side >= 1)
        x = (images.permute(0, 3, 1, 2) - model.pixel_mean) / model.pixel_std
        step = model.size_divisibility
        height, width = ((side + step - 1) // step * step for side in image_size)
        x = F.pad(x, (0, width - image_size[1], 0, height - image_size[0]))
        outputs = model.sem_seg_head(model.backbone(x))
        probabilities = outputs["pred_logits"].softmax(-1)[..., :-1]  # (B, Q, C)
        masks = _resize(outputs["pred_masks"], (height, width))[..., : image_size[0], : image_size[1]]
        if model.resize_masks:
            masks = _resize(masks, output_size)
        results: list[Tensor] = []
        if model.semantic_on:
            scores = (probabilities.transpose(1, 2) @ masks.sigmoid().flatten(2)).unflatten(2, masks.shape[-2:])
            if not model.resize_masks:
                scores = _resize(scores, output_size)
            labels = model.semantic_output == "labels"
            results.append(scores.argmax(1).to(self.label_dtype) if labels else scores)
        if model.instance_on:
            results += self._instances(probabilities, masks)
        return tuple(results)

    def _instances(self, probabilities: Tensor, masks: Tensor) -> list[Tensor]:
        """See `instance_inference.instances`. masks: logits (B, Q, height, width)."""
        num_classes = probabilities.shape[2]
        count = min(self.model.max_instances, probabilities.shape[1] * num_classes)
        scores, pairs = probabilities.flatten(1).topk(count)
        queries = torch.div(pairs, num_classes, rounding_mode="floor")
        classes = pairs - queries * num_classes
        inside = masks > 0
        mass = (masks.sigmoid() * inside).sum((2, 3)) / (inside.to(masks.dtype).sum((2, 3)) + 1e-6)
        scores = scores * mass.gather(1, queries) * self.is_object[classes]
        image = torch.arange(queries.shape[0], device=queries.device).unsqueeze(1)
        return [scores, classes, inside[image, queries]]


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def check_config(cfg) -> None:
    """Raises ValueError for what a graph cannot do, before anything is read."""
    test = cfg.MODEL.MASK_FORMER.TEST
    for key, what, enabled in (
        ("TEST.AUG.ENABLED", "multi-scale testing", cfg.TEST.AUG.ENABLED),
        ("TEST.SLIDING_WINDOW.ENABLED", "a sliding window", cfg.TEST.SLIDING_WINDOW.ENABLED),
    ):
        if enabled:
            raise ValueError(f"{key} is True, and an exported graph runs the model once, without {what}; set it False")
    if cfg.MODEL.BACKBONE.NAME == "build_timm_vit_backbone" and cfg.MODEL.VIT.WINDOW_SIZE:
        raise ValueError(
            f"MODEL.VIT.WINDOW_SIZE is {cfg.MODEL.VIT.WINDOW_SIZE}: padding to whole windows depends on the image, and "
            "no graph is right for all sizes; export a model without windows (0)"
        )
    if cfg.MODEL.FASEG.HIGH_RES.ATTENTION == "random":
        raise ValueError(
            "MODEL.FASEG.HIGH_RES.ATTENTION is random: it draws other pixels at each call, so no file could be "
            "compared with the model; export a model with hrca, vanilla, rcda or none"
        )
    if not (test.SEMANTIC_ON or test.INSTANCE_ON):
        raise ValueError(
            "an exported graph has semantic results and instances, and MODEL.MASK_FORMER.TEST has SEMANTIC_ON False "
            "and INSTANCE_ON False; set one of them True (panoptic results are made of both, and are not exported)"
        )


def check_packages(kind: str) -> None:
    """Raises ImportError if what the format needs is not installed."""
    found = tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2])
    if found < TORCH_NEEDED:
        needed = ".".join(map(str, TORCH_NEEDED))
        raise ImportError(f"export needs torch {needed} or newer; installed is {torch.__version__}")
    needed = ("onnx", "onnxscript", "onnxruntime") if kind == "onnx" else ()
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"export to ONNX needs {', '.join(missing)}: pip install 'fasegr[export]'")


def metadata(cfg, predictor: Predictor, license: str) -> dict[str, str]:
    """What a file says about itself. classes, palette and test_size are JSON; the config is YAML."""
    return {
        "classes": json.dumps(predictor.class_names),
        "palette": json.dumps(np.asarray(predictor.colors).tolist()),
        "test_size": json.dumps(_test_size(cfg)),
        "license": license,
        "config": cfg.dump(),
        "producer": f"fasegr {fasegr.__version__}, torch {torch.__version__}",
    }


def _test_size(cfg) -> dict[str, int]:
    """As `predict` of demo/onnx_demo.py takes it."""
    given = cfg.INPUT
    if given.FIXED_SIZE_TEST:
        return dict(zip(("height", "width"), given.FIXED_SIZE_TEST, strict=True))
    multiple = {"multiple": given.SIZE_MULTIPLE_TEST} if given.SIZE_MULTIPLE_TEST > 1 else {}
    return {"shortest_edge": given.MIN_SIZE_TEST, "longest_edge": given.MAX_SIZE_TEST, **multiple}


def export_model(
    cfg,
    path: str | os.PathLike,
    kind: str,
    *,
    license: str,
    calibration_images: Sequence[str | os.PathLike] = (),
) -> list[Agreement]:
    """Write cfg's model with MODEL.WEIGHTS to `path`, as `kind`, one of FORMATS. Returns how its results agree with the
    model's.

    calibration_images: if there are any, an ONNX file computes convolutions and linear layers in 8 bits, with ranges
    measured on them. Raises ValueError for a config that cannot be exported (`check_config`), and if the results of
    the file differ from the model's; then there is no file.
    """
    if kind not in FORMATS:
        raise ValueError(f"the format is {kind!r}; choose from {', '.join(FORMATS)}")
    if calibration_images and kind != "onnx":
        raise ValueError(f"8 bits are for the format onnx; the format is {kind}")
    check_config(cfg)
    check_packages(kind)
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "cpu"
    cfg.SPEED.COMPILE, cfg.SPEED.DTYPE = False, "float32"  # the graph's runtime has its own ways to be quick
    predictor = Predictor(cfg)
    graph = SegmentationGraph(predictor.model.requires_grad_(False))
    about = metadata(cfg, predictor, license)
    logger.info("Tracing the graph (minutes)")
    with _named("torch's exporter cannot trace this model"):
        program = _trace(graph)
    checks: list[Agreement] = []

    def verify(written: str) -> None:
        logger.info("Comparing the file with the model")
        run = _onnx_runner(written) if kind == "onnx" else _torch_runner(written, graph.outputs)
        with _named("the exported graph does not run"):
            checks.extend(_compare(run, predictor.model, _sizes(cfg.INPUT.MIN_SIZE_TEST)))
        if not calibration_images:
            _refuse(checks)

    with replacing(path, "wb", check=verify) as file:
        if kind == "torch":
            buffer = io.BytesIO()  # torch.export.save wants to seek
            torch.export.save(program, buffer, extra_files={"metadata.json": json.dumps(about)})
            file.write(buffer.getvalue())
        else:
            logger.info("Converting it to ONNX (minutes)")
            with _named("torch's exporter cannot convert this model to ONNX"):
                content = _as_onnx(program, graph.outputs, about)
            if calibration_images:
                with _named("ONNX Runtime cannot quantise this model"):
                    content = _quantised(content, predictor, calibration_images)
            file.write(content)
    return checks


@contextlib.contextmanager
def _named(problem: str) -> Iterator[None]:
    """Makes whatever an exporter or a runtime raises, which is of many kinds and many pages, one error."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "")[:300]
        raise ValueError(
            f"{problem}; torch is {torch.__version__}, and requirements-export.txt has the versions that are tested. "
            f"{type(error).__name__}: {reason}"
        ) from error


@torch.no_grad()
def _trace(graph: SegmentationGraph) -> torch.export.ExportedProgram:
    """The graph for any batch, height and width."""
    from torch.fx.experimental import _config

    any_size = torch.export.Dim.DYNAMIC
    example = torch.zeros(2, 133, 165, 3, dtype=torch.uint8), torch.tensor([131, 167])
    # Oblivious: else sizes of one (a batch, a map of a small image) would be taken for a case of their own.
    with for_export(), _config.patch(backed_size_oblivious=True):
        program = torch.export.export(
            graph.eval(),
            example,
            dynamic_shapes={"images": dict.fromkeys((0, 1, 2), any_size), "size": None},
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    # The tracer turns what it guessed from the example into assertions, for instance that there is more than one image.
    # Its guesses are about the layout in memory; whether results are right at other sizes is compared afterwards.
    nodes = program.graph_module.graph
    for node in reversed(nodes.nodes):
        if node.target is torch.ops.aten._assert_scalar.default:
            nodes.erase_node(node)
    nodes.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def _as_onnx(program: torch.export.ExportedProgram, outputs: Sequence[str], about: dict[str, str]) -> bytes:
    import onnx

    with warnings.catch_warnings(), _quiet("onnxscript", "onnx_ir", "torch.onnx"):
        warnings.simplefilter("ignore")
        onnx_program = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, output_names=list(outputs), verbose=False, optimize=True
        )
    model = onnx_program.model_proto
    del model.graph.value_info[:]  # shapes in between, in the tracer's symbols; runtimes find their own
    for value in (*model.graph.input, *model.graph.output):
        for dimension, name in zip(value.type.tensor_type.shape.dim, _DIMENSIONS.get(value.name, ()), strict=False):
            if name:
                dimension.dim_param = name
    model.producer_name, model.producer_version = "fasegr", fasegr.__version__
    onnx.helper.set_model_props(model, about)
    return model.SerializeToString()


@contextlib.contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """The exporter's notes on what it did not optimise are not for the user."""
    loggers = [logging.getLogger(name) for name in names]
    before = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for each, level in zip(loggers, before, strict=True):
            each.setLevel(level)


class _Calibration:
    """Images as ONNX Runtime's quantisation reads them, with a bar."""

    def __init__(self, images: Sequence[str | os.PathLike], predictor: Predictor):
        from tqdm import tqdm

        self.images = iter(tqdm(images, desc="calibration", unit="image", dynamic_ncols=True))
        self.predictor = predictor

    def get_next(self) -> dict[str, np.ndarray] | None:
        path = next(self.images, None)
        if path is None:
            return None
        image = open_image(path)
        pixels = np.asarray(resize_image(image, self.predictor.resize.output_size(height_and_width(image))))
        return {"images": pixels[None], "size": np.array(pixels.shape[:2], np.int64)}


def _quantised(content: bytes, predictor: Predictor, images: Sequence[str | os.PathLike]) -> bytes:
    """The ONNX model with convolutions and linear layers in 8 bits, by ONNX Runtime's static quantisation."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory() as folder:
        whole, small = Path(folder, "float32.onnx"), Path(folder, "int8.onnx")
        whole.write_bytes(content)
        with _quiet(""):  # its advice to optimise first, which the exporter has done
            quantize_static(
                whole,
                small,
                _Calibration(images, predictor),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "MatMul", "Gemm"],
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                extra_options={"MatMulConstBOnly": True},  # products of activations (attention, masks) stay as they are
            )
        return small.read_bytes()


# --- comparing a file with the model


class Agreement(NamedTuple):
    """How the results of a file agree with the model's on images of one size.

    images, size: batch, height and width of the images, and size of the results. deviation: of scores, the largest and
    the mean; NaN if only labels are compared. equal: share of pixels with equal labels, of instances with equal masks.
    """

    images: tuple[int, int, int]
    size: tuple[int, int]
    deviation: float
    mean_deviation: float
    equal: float

    def __str__(self) -> str:
        scores = "" if np.isnan(self.deviation) else f"largest deviation of a score {self.deviation:.1e}, "
        batch, height, width = self.images
        return f"{batch} x {height} x {width}: {scores}{100 * self.equal:.3f} % equal labels"


def agreement(
    ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], images: tuple[int, int, int], size: tuple[int, int]
) -> Agreement:
    """ours: results of the model, theirs: of the file; see `SegmentationGraph`. Different shapes agree in nothing."""
    if {name: value.shape for name, value in ours.items()} != {name: value.shape for name, value in theirs.items()}:
        return Agreement(images, size, float("nan"), float("nan"), 0.0)
    deviations, shares = [], []
    if "scores" in ours:
        deviations.append(np.abs(ours["scores"] - theirs["scores"]))
        shares.append((ours["scores"].argmax(1) == theirs["scores"].argmax(1)).mean())
    if "labels" in ours:
        shares.append((ours["labels"] == theirs["labels"]).mean())
    if "instance_scores" in ours:
        for i in range(images[0]):
            deviation, share = _matched({n: v[i] for n, v in ours.items()}, {n: v[i] for n, v in theirs.items()})
            deviations.append(deviation)
            shares.append(share)
    flat = np.concatenate([d.ravel() for d in deviations]) if deviations else np.array([np.nan])
    flat = np.where(np.isnan(flat), np.inf, flat) if deviations else flat  # a NaN score is no agreement
    return Agreement(images, size, float(flat.max()), float(flat.mean()), float(min(shares)))


def _matched(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> tuple[np.ndarray, float]:
    """Deviations of the sorted scores, and the mean share of equal pixels of each object and the most similar one of
    its class: objects of nearly equal scores may change places. Those of score 0 are none."""
    scores = [np.sort(result["instance_scores"]) for result in (ours, theirs)]
    left = [j for j, score in enumerate(theirs["instance_scores"]) if score > 0]
    shares = []
    for i in np.flatnonzero(ours["instance_scores"] > 0):
        number, mask = ours["instance_classes"][i], ours["instance_masks"][i]
        same = {
            j: (theirs["instance_masks"][j] == mask).mean() for j in left if theirs["instance_classes"][j] == number
        }
        best = max(same, key=same.__getitem__, default=None)
        shares.append(0.0 if best is None else same[best])
        if best is not None:
            left.remove(best)
    return np.abs(scores[0] - scores[1]), float(np.mean([*shares, *[0.0] * len(left)] or [1.0]))


def _refuse(checks: Sequence[Agreement]) -> None:
    for check in checks:
        if check.equal < LEAST_EQUAL or check.mean_deviation > LARGEST_MEAN_DEVIATION:
            raise ValueError(
                f"the exported graph does not compute what the model does, so no file is written; {check} (at least "
                f"{100 * LEAST_EQUAL} % is expected). Another version of torch or onnxruntime may do better; "
                "requirements-dev.txt has the ones that are tested"
            )


def _sizes(test_size: int) -> list[tuple[tuple[int, int, int], tuple[int, int]]]:
    """Three kinds of images and results: of the size for testing, a batch at its own size, and a small odd one."""
    side = min(max(test_size, 64), 512)
    batch = (2, side // 2 + 5, side // 3 + 3)
    return [((1, side, side * 4 // 3), (side + 7, side)), (batch, batch[1:]), ((1, 37, 61), (50, 41))]


def _compare(run: Run, model: FASeg, sizes) -> list[Agreement]:
    checks = []
    for i, (images, size) in enumerate(sizes):
        scenes = [paint_scene(7, i, j, *images[1:]).image for j in range(images[0])]
        pixels = np.stack(scenes)
        checks.append(agreement(_model_results(model, pixels, size), run(pixels, size), images, size))
        logger.info("%s", checks[-1])
    return checks


@torch.inference_mode()
def _model_results(model: FASeg, images: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """What `SegmentationGraph` returns, made of what the model itself returns."""
    samples = [
        {"image": torch.from_numpy(image).permute(2, 0, 1), "height": size[0], "width": size[1]} for image in images
    ]
    predictor = model.sem_seg_head.predictor
    pairs = predictor.query_feat.num_embeddings * (predictor.class_embed.out_features - 1)
    count = min(model.max_instances, pairs)
    results: dict[str, list[Tensor]] = {}
    for result in model(samples):
        named = {}
        if model.semantic_on:
            labels = model.semantic_output == "labels"
            named[model.semantic_output] = result["sem_seg_labels" if labels else "sem_seg"]
        if model.instance_on:
            found = result["instances"]
            absent = count - len(found)  # classes of stuff, which have the score 0 in the graph
            named |= {
                "instance_scores": F.pad(found.scores, (0, absent)),
                "instance_classes": F.pad(found.pred_classes, (0, absent)),
                "instance_masks": F.pad(found.pred_masks, (0, 0, 0, 0, 0, absent)),
            }
        for name, value in named.items():
            results.setdefault(name, []).append(value)
    return {name: torch.stack(values).numpy() for name, values in results.items()}


def _onnx_runner(path: str) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(images: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(None, {"images": images, "size": np.array(size, np.int64)}), strict=True))

    return run


def _torch_runner(path: str, names: Sequence[str]) -> Run:
    with open(path, "rb") as file:
        module = torch.export.load(io.BytesIO(file.read())).module()

    @torch.no_grad()
    def run(images: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
        values = module(torch.from_numpy(images), torch.tensor(size))
        return {name: value.numpy() for name, value in zip(names, values, strict=True)}

    return run
