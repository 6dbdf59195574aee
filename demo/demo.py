#!/usr/bin/env python3
"""Draw the predictions of a trained model over images.

python demo/demo.py --config-file CONFIG --input street.jpg holiday/ 'shots/*.png' --output out \\
    --opts MODEL.WEIGHTS model.pth

For each image, OUTPUT gets NAME_overlay.png and, with --labels, NAME_labels.png, whose values are class indices.
--save coco cvat labelme png confidence writes the predictions for labelling tools, to coco.json, cvat.xml, labelme/,
png/ and confidence/ in OUTPUT.
Files that fail are listed at the end; the others are done. Exit code: 0, 1 if a file failed, 2 if nothing was done.
"""

from __future__ import annotations

import argparse
import glob
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

import omp_policy  # noqa: F401 (before torch)

# isort: split

import torch
from tqdm import tqdm

from fasegr import Predictor, load_cfg
from fasegr.d2 import MetadataCatalog, setup_logger
from fasegr.data.datasets.image_files import IMAGE_SUFFIXES, find_files
from fasegr.data.image_io import open_image
from fasegr.engine.launch import readable_errors
from fasegr.engine.process_settings import tune_process
from fasegr.evaluation.labels import predicted_labels
from fasegr.evaluation.prediction_files import label_file_names, write_label_png
from fasegr.evaluation.prediction_writer import FORMATS, PredictionFiles, categories_of
from fasegr.visualization.objects import class_list

# Errors of a single file: damaged, missing, not an image, too large.
FILE_ERRORS = (OSError, ValueError, MemoryError, torch.OutOfMemoryError)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config-file", required=True, metavar="YAML", help="the config that the model was trained with"
    )
    parser.add_argument(
        "--input", required=True, nargs="+", help="images, folders (searched recursively), glob patterns"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--labels", action="store_true", help="also write class indices, as grey PNGs")
    parser.add_argument(
        "--save", nargs="+", default=[], choices=FORMATS, metavar="FORMAT", help=f"also write {', '.join(FORMATS)}"
    )
    parser.add_argument(
        "--min-score", type=float, default=0.5, help="draw instances of at least this score (0 to 1, default: 0.5)"
    )
    parser.add_argument("--alpha", type=float, default=0.5, help="0 shows the image, 1 the colours (default: 0.5)")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config keys, at least MODEL.WEIGHTS"
    )
    args = parser.parse_args(argv)
    if not 0 <= args.min_score <= 1:
        parser.error(f"--min-score is {args.min_score}; it must be between 0 (all instances) and 1")
    if not 0 <= args.alpha <= 1:
        parser.error(f"--alpha is {args.alpha}; it must be between 0 (image only) and 1 (colours only)")
    return args


def find_images(inputs: list[str], output: str) -> list[Path]:
    """The image files of all inputs, each once, in the order of the inputs and by name within each.

    In folders, the output folder is left out, so that a second run does not take the results of the first as input.
    Raises FileNotFoundError for an input without files.
    """
    out = Path(output).resolve()
    files: dict[Path, None] = {}
    for item in inputs:
        path = Path(item).expanduser()
        if path.is_file():
            found = [path]
        elif path.is_dir():
            listed = find_files(path, but=None if out == path.resolve() else out)
            listed.say_what_is_left_out(path)
            found = listed.files
            if not found:
                raise FileNotFoundError(f"--input {item}: no image in this folder ({', '.join(IMAGE_SUFFIXES)})")
        else:
            found = [Path(f) for f in sorted(glob.glob(str(path), recursive=True)) if os.path.isfile(f)]
            if not found:
                raise FileNotFoundError(f"--input {item}: no such file or folder, and no file matches it as a pattern")
        files.update((f.absolute(), None) for f in found)
    return list(files)


def output_files(images: list[Path], output: str, labels: bool) -> dict[Path, tuple[Path, Path]]:
    """{image: (overlay, labels)}; images with the same name in different folders keep their folders.

    Raises ValueError if an input would be overwritten.
    """
    names = label_file_names(map(str, images))
    stems = {image: Path(output).absolute() / Path(names[str(image)]).with_suffix("") for image in images}
    targets = {
        i: (stem.with_name(f"{stem.name}_overlay.png"), stem.with_name(f"{stem.name}_labels.png"))
        for i, stem in stems.items()
    }
    inputs = {image.resolve() for image in images}
    for image, (overlay, label_map) in targets.items():
        for target in (overlay, label_map) if labels else (overlay,):
            if target.resolve() in inputs:
                raise ValueError(
                    f"--output {output}: the result for {image} would overwrite {target}, which is also an input; "
                    "choose another folder, or leave earlier results out of --input"
                )
    return targets


def run(
    predictor: Predictor,
    targets: dict[Path, tuple[Path, Path]],
    labels: bool,
    alpha: float,
    min_score: float,
    saved: PredictionFiles | None = None,
) -> dict[Path, str]:
    """Process all images. saved: other files to write. Returns the error messages of those that failed."""
    failed, entries = {}, []
    names = label_file_names(map(str, targets))
    with tqdm(targets.items(), unit="image", dynamic_ncols=True) as progress:
        for file, (overlay, label_map) in progress:
            progress.set_postfix_str(file.name)
            try:
                image = open_image(file)
                result = predictor(image)
                overlay.parent.mkdir(parents=True, exist_ok=True)
                predictor.draw(image, result, alpha, min_score).save(overlay)
                if labels:
                    write_label_png(predicted_labels(result).cpu().numpy(), label_map, len(predictor.class_names))
                if saved is not None:
                    entries.append(saved.add(str(file), names[str(file)], result))
            except FILE_ERRORS as error:
                failed[file] = str(error) if str(file) in str(error) else f"{file}: {error}"
                progress.write(f"failed: {file}", file=sys.stderr)
    if saved is not None:
        saved.finish(entries)
    return failed


def saved_files(args: argparse.Namespace, cfg, predictor: Predictor) -> PredictionFiles | None:
    """What --save writes. The ids in COCO's files are those of the first test dataset, or count from 1."""
    if not args.save:
        return None
    metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0]) if cfg.DATASETS.TEST else {}
    if class_list(metadata)[0] is None:
        metadata = {"stuff_classes": predictor.class_names}
    return PredictionFiles(args.output, args.save, categories_of(metadata, lambda number: predictor.colors))


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with readable_errors():
        setup_logger(name="fasegr")
        targets = output_files(find_images(args.input, args.output), args.output, args.labels)
        save = ["TEST.SAVE_PREDICTIONS", str(args.save)] if args.save else []
        cfg = load_cfg(args.config_file, [*args.opts, *save])
        tune_process(tuned_allocator=cfg.SPEED.TUNED_ALLOCATOR, threads=cfg.SPEED.THREADS)
        if args.labels and not cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_ON:
            raise ValueError(
                "--labels writes a class for each pixel, which this config does not predict "
                "(MODEL.MASK_FORMER.TEST.SEMANTIC_ON is False); set it True or leave --labels out"
            )
        predictor = Predictor(cfg)
        saved = saved_files(args, cfg, predictor)
    failed = run(predictor, targets, args.labels, args.alpha, args.min_score, saved)
    print(f"{len(targets) - len(failed)} of {len(targets)} images done; the results are in {args.output}")
    if failed:
        print("Failed:", *(f"  {message}" for message in failed.values()), sep="\n", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
