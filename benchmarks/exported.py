#!/usr/bin/env python3
"""Time and memory of a model in PyTorch and of its exported files in other runtimes, side by side; or their scores.

python benchmarks/exported.py --config-file CONFIG --weights model.pth --files model.onnx model_int8.onnx
python benchmarks/exported.py --config-file CONFIG --weights model.pth --files model.onnx model_int8.onnx --score

Each side is a process of its own, and they take turns: one image from uint8 to its results in each round. OpenVINO and
transformers (Hugging Face's Mask2Former, of the same Swin and with random weights) are measured if they are installed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

import omp_policy  # noqa: F401 (before torch)

# isort: split

import numpy as np
import torch
from tqdm import tqdm

from benchmarks import machine
from fasegr import Predictor, load_cfg
from fasegr.data.datasets.scenes.painter import paint_scene
from fasegr.engine.launch import readable_errors
from fasegr.engine.process_settings import tune_process
from fasegr.engine.trainer import Trainer

Step = Callable[[np.ndarray], Any]
"""From an image, uint8 (H, W, 3), to results of its size."""


def pytorch(cfg, dtype: str, threads: int) -> Step:
    tune_process(tuned_allocator=cfg.SPEED.TUNED_ALLOCATOR, threads=threads)
    model = Predictor(cfg).model

    def step(image: np.ndarray) -> Any:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            return model([{"image": torch.from_numpy(image).permute(2, 0, 1)}])

    return step


def onnx_runtime(file: str, threads: int) -> Step:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"images": image[None], "size": np.array(image.shape[:2], np.int64)})


def openvino(file: str, dtype: str, threads: int) -> Step:
    import openvino as ov

    settings = {"INFERENCE_PRECISION_HINT": dtype, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    model = ov.Core().compile_model(file, "CPU", settings)
    return lambda image: model({"images": image[None], "size": np.array(image.shape[:2], np.int64)})


def hugging_face(cfg, threads: int) -> Step:
    """Mask2Former of transformers with cfg's Swin, queries and classes, to labels."""
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    torch.set_num_threads(threads)
    swin, former = cfg.MODEL.SWIN, cfg.MODEL.MASK_FORMER
    backbone = SwinConfig(
        embed_dim=swin.EMBED_DIM,
        depths=list(swin.DEPTHS),
        num_heads=list(swin.NUM_HEADS),
        window_size=swin.WINDOW_SIZE,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        num_labels=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        num_queries=former.NUM_OBJECT_QUERIES,
        decoder_layers=former.DEC_LAYERS,
    )
    model = Mask2FormerForUniversalSegmentation(config).eval()
    processor = Mask2FormerImageProcessor(do_resize=False, size_divisor=32)

    def step(image: np.ndarray) -> Any:
        with torch.inference_mode():
            inputs = processor(image, return_tensors="pt")
            outputs = model(pixel_values=inputs["pixel_values"])
            return processor.post_process_semantic_segmentation(outputs, target_sizes=[image.shape[:2]])

    return step


def sides(cfg, files: list[str], threads: int) -> dict[str, tuple[Callable[..., Step], tuple]]:
    """{name: (function, arguments)} of what can run here."""
    found: dict[str, tuple[Callable[..., Step], tuple]] = {
        "PyTorch, float32": (pytorch, (cfg, "float32", threads)),
        "PyTorch, bfloat16": (pytorch, (cfg, "bfloat16", threads)),
    }
    for file in files:
        found[f"ONNX Runtime, {Path(file).name}"] = (onnx_runtime, (file, threads))
        if find_spec("openvino"):
            found[f"OpenVINO, {Path(file).name}"] = (openvino, (file, "f32", threads))
            found[f"OpenVINO, bfloat16, {Path(file).name}"] = (openvino, (file, "bf16", threads))
    if find_spec("transformers") and cfg.MODEL.BACKBONE.NAME == "build_fasegr_swin_backbone":
        found["Hugging Face's Mask2Former"] = (hugging_face, (cfg, threads))
    return found


def _megabytes(field: str) -> float:
    """VmRSS or VmHWM (the peak) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def _serve(connection, build: Callable[..., Step], arguments: tuple) -> None:
    """Answers each image with (seconds, peak MB so far, less what the process had before the model); None ends it."""
    before = _megabytes("VmRSS")
    step = build(*arguments)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew, without that of reading the weights
    connection.send("ready")
    while (image := connection.recv()) is not None:
        start = time.perf_counter()
        step(image)
        seconds = time.perf_counter() - start
        connection.send((seconds, _megabytes("VmHWM") - before))


def measure(cfg, files: list[str], size: tuple[int, int], rounds: int, threads: int) -> dict[str, dict[str, Any]]:
    """{name: seconds of each round, peak megabytes of the model and its work}."""
    context = multiprocessing.get_context("spawn")
    image = paint_scene(3, 0, 0, *size).image
    results: dict[str, dict[str, Any]] = {}
    running = {}
    try:
        for name, (build, arguments) in sides(cfg, files, threads).items():
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, build, arguments), daemon=True)
            process.start()
            theirs.close()
            running[name] = (process, ours)
            results[name] = {"seconds": []}
            ours.recv()
        for i in tqdm(range(rounds + 1), desc="rounds", unit="round"):
            for name, (_, connection) in running.items():
                connection.send(image)
                seconds, peak = connection.recv()
                if i:  # the first one warms up
                    results[name]["seconds"].append(seconds)
                results[name]["peak"] = peak
    except EOFError:
        raise RuntimeError(
            f"the process of one side ended; see its message above. Measured so far: {list(results)}"
        ) from None
    finally:
        for process, connection in running.values():
            if process.is_alive():
                connection.send(None)
            process.join(10)
    return results


def table(results: dict[str, dict[str, Any]]) -> str:
    first = statistics.median(next(iter(results.values()))["seconds"])
    lines = ["| side | ms (least..most) | times as fast as the first | peak MB |", "|---|---:|---:|---:|"]
    for name, result in results.items():
        seconds = result["seconds"]
        middle = statistics.median(seconds)
        times = f"{1000 * middle:.0f} ({1000 * min(seconds):.0f}..{1000 * max(seconds):.0f})"
        lines.append(f"| {name} | {times} | {first / middle:.2f} | {result['peak']:.0f} |")
    return "\n".join(lines)


class ExportedModel(torch.nn.Module):
    """An ONNX file of `fasegr export` as the segmentor that evaluation calls."""

    def __init__(self, file: str, threads: int):
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]
        semantic = {"scores": "sem_seg", "labels": "sem_seg_labels"}
        self.key = next((semantic[name] for name in self.names if name in semantic), None)
        if self.key is None:
            raise ValueError(f"{file} has the outputs {self.names}; --score needs scores or labels")

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        results = []
        for sample in batched_inputs:
            image = sample["image"].permute(1, 2, 0).contiguous().numpy()
            size = np.array([sample.get("height", image.shape[0]), sample.get("width", image.shape[1])], np.int64)
            values = dict(zip(self.names, self.session.run(None, {"images": image[None], "size": size}), strict=True))
            value = values["labels" if self.key == "sem_seg_labels" else "scores"][0]
            results.append({self.key: torch.from_numpy(value)})
        return results


def scores(cfg, files: list[str], threads: int) -> dict[str, dict]:
    """{name: what the evaluation of DATASETS.TEST returns}."""
    models = {"PyTorch, float32": lambda: Predictor(cfg).model}
    models |= {Path(file).name: lambda file=file: ExportedModel(file, threads) for file in files}
    return {name: Trainer.test(cfg, build()) for name, build in models.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="YAML")
    parser.add_argument("--weights", required=True, metavar="FILE")
    parser.add_argument("--files", nargs="*", default=[], metavar="ONNX", help="exported from these weights")
    parser.add_argument("--size", nargs=2, type=int, default=[512, 512], metavar=("H", "W"), help="(512 512)")
    parser.add_argument("--rounds", type=int, default=7, help="(7)")
    parser.add_argument("--threads", type=int, default=2, help="(2)")
    parser.add_argument("--score", action="store_true", help="scores on DATASETS.TEST instead of time and memory")
    parser.add_argument("--json", metavar="FILE", help="write the readings")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE")
    args = parser.parse_args()
    with readable_errors():
        cfg = load_cfg(args.config_file, [*args.opts, "MODEL.WEIGHTS", args.weights, "MODEL.DEVICE", "cpu"])
        if args.score:
            results = scores(cfg, args.files, args.threads)
            print("\n".join(f"{name}: mIoU {result['sem_seg']['mIoU']:.2f}" for name, result in results.items()))
        else:
            results = measure(cfg, args.files, tuple(args.size), args.rounds, args.threads)
            print(table(results))
        if args.json:
            content = {"machine": machine.describe("cpu"), "arguments": vars(args), "results": results}
            Path(args.json).write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
