#!/usr/bin/env python3
"""Draw the predictions of a trained model over images and videos.

python demo/demo.py --config-file CONFIG --input street.jpg holiday/ 'shots/*.png' --output out \\
    --opts MODEL.WEIGHTS model.pth
python demo/demo.py --config-file CONFIG --video-input drive.mp4 --output seen.mp4 --opts MODEL.WEIGHTS model.pth
python demo/demo.py --config-file CONFIG --webcam --opts MODEL.WEIGHTS model.pth

For each image, OUTPUT gets NAME_overlay.png and, with --labels, NAME_labels.png, whose values are class indices.
--save coco cvat labelme png confidence writes the predictions for labelling tools, to coco.json, cvat.xml, labelme/,
png/ and confidence/ in OUTPUT.

A video input is a file or a folder of frames of one size, in the order of their names. OUTPUT is then a video
(.webm plays in browsers, .mp4 in most players), beside which --labels writes NAME_labels/FRAME.png; without --output,
a window shows it, as with --webcam.

--confidence leaves out what the model is less sure of: instances of a lower score, and pixels whose class has a smaller
share of their scores. --min-area leaves out what is smaller: instances, panoptic segments, and connected parts of one
class. Pixels left out are not painted, and are 255 in label files.

Files and frames that fail are listed at the end; the others are done. Exit code: 0, 1 if one failed, 2 if nothing was
done.
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

from demo.drawing import Drawing
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
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", help="images, folders (searched recursively), glob patterns")
    source.add_argument("--video-input", metavar="FILE", help="a video file, or a folder of frames")
    source.add_argument("--webcam", action="store_true", help="the first camera, shown in a window; Esc ends")
    parser.add_argument("--output", metavar="PATH", help="folder for the results; with --video-input, a video file")
    parser.add_argument("--labels", action="store_true", help="also write class indices, as grey PNGs")
    parser.add_argument(
        "--save", nargs="+", default=[], choices=FORMATS, metavar="FORMAT", help=f"also write {', '.join(FORMATS)}"
    )
    parser.add_argument(
        *("--confidence", "--min-score"),
        type=float,
        metavar="SHARE",
        help="leave out what is less sure, 0 to 1 (default: 0.5 for instances, 0 for pixels)",
    )
    parser.add_argument(
        "--min-area", type=int, default=0, metavar="PIXELS", help="leave out what has fewer pixels (default: 0)"
    )
    parser.add_argument("--alpha", type=float, default=0.5, help="0 shows the image, 1 the colours (default: 0.5)")
    parser.add_argument(
        "--batch-size", type=int, default=1, metavar="N", help="frames at a time, more is faster on a GPU (default: 1)"
    )
    parser.add_argument("--fps", type=float, help="frames a second of the video (default: the input's; of a folder 25)")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config keys, at least MODEL.WEIGHTS"
    )
    args = parser.parse_args(argv)
    if args.input and not args.output:
        parser.error("--input needs --output, the folder for the results")
    if args.webcam and args.output:
        parser.error("--webcam shows its result in a window and writes nothing; leave --output out")
    if args.save and not args.input:
        parser.error("--save goes with --input; of a video, --labels writes the classes of each frame")
    if args.labels and not args.output:
        parser.error("--labels needs --output")
    if args.confidence is not None and not 0 <= args.confidence <= 1:
        parser.error(f"--confidence is {args.confidence}; it must be between 0 (leave nothing out) and 1")
    if args.min_area < 0:
        parser.error(f"--min-area is {args.min_area}; it must be at least 0 pixels")
    if args.batch_size < 1:
        parser.error(f"--batch-size is {args.batch_size}; it must be at least 1")
    if args.fps is not None and not 0 < args.fps <= 1000:
        parser.error(f"--fps is {args.fps}; it must be above 0 and at most 1000 frames a second")
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
    drawing: Drawing,
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
                result = drawing.chosen(predictor(image))
                overlay.parent.mkdir(parents=True, exist_ok=True)
                drawing.draw(predictor, image, result, legend=True).save(overlay)
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


def saved_files(args: argparse.Namespace, cfg, predictor: Predictor, min_score: float) -> PredictionFiles | None:
    """What --save writes. The ids in COCO's files are those of the first test dataset, or count from 1."""
    if not args.save:
        return None
    metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0]) if cfg.DATASETS.TEST else {}
    if class_list(metadata)[0] is None:
        metadata = {"stuff_classes": predictor.class_names}
    return PredictionFiles(args.output, args.save, categories_of(metadata, lambda number: predictor.colors), min_score)


def drawing_of(args: argparse.Namespace, cfg) -> Drawing:
    """What the arguments say of drawing. Raises ValueError for what the model has no numbers for."""
    test = cfg.MODEL.MASK_FORMER.TEST
    if args.labels and not test.SEMANTIC_ON:
        raise ValueError(
            "--labels writes a class for each pixel, which this config does not predict "
            "(MODEL.MASK_FORMER.TEST.SEMANTIC_ON is False); set it True or leave --labels out"
        )
    if args.confidence is None:
        return Drawing(args.alpha, min_area=args.min_area)
    if test.PANOPTIC_ON and not cfg.TEST.AUG.ENABLED:
        raise ValueError(
            f"--confidence is {args.confidence}, and panoptic segments have no score of their own; "
            "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD says from which class probability on they are made"
        )
    if test.SEMANTIC_ON and test.SEMANTIC_OUTPUT == "labels" and args.confidence > 0:
        raise ValueError(
            f"--confidence is {args.confidence}, which needs scores, and this config predicts only labels; set "
            "MODEL.MASK_FORMER.TEST.SEMANTIC_OUTPUT scores"
        )
    return Drawing(args.alpha, args.confidence, args.confidence, args.min_area)


def run_video(args: argparse.Namespace, cfg, drawing: Drawing) -> int:
    """--video-input and --webcam. Returns the exit code."""
    from demo import video  # imports OpenCV, which images do without

    if not args.output:
        video.check_window("--webcam" if args.webcam else "--video-input without --output")
    frames = video.Camera() if args.webcam else video.open_frames(args.video_input, args.fps)
    if not args.output:
        print(f"{video.show_frames(Predictor(cfg), frames, drawing)} frames shown")
        return 0
    output = video.video_name(args.output, args.video_input)
    labels = output.with_name(f"{output.stem}_labels") if args.labels else None
    done, failed = video.segment_frames(Predictor(cfg), frames, output, drawing, args.batch_size, labels)
    print(f"{done} frames done; the result is {output}" + (f", and labels are in {labels}" if labels else ""))
    if failed:
        print("Failed:", *(f"  {message}" for message in failed), sep="\n", file=sys.stderr)
    return 1 if failed else 0


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with readable_errors():
        setup_logger(name="fasegr")
        if args.input:
            targets = output_files(find_images(args.input, args.output), args.output, args.labels)
        save = ["TEST.SAVE_PREDICTIONS", str(args.save)] if args.save else []
        cfg = load_cfg(args.config_file, [*args.opts, *save])
        tune_process(tuned_allocator=cfg.SPEED.TUNED_ALLOCATOR, threads=cfg.SPEED.THREADS)
        drawing = drawing_of(args, cfg)
        if not args.input:
            return run_video(args, cfg, drawing)
        predictor = Predictor(cfg)
        saved = saved_files(args, cfg, predictor, drawing.min_score)
    failed = run(predictor, targets, args.labels, drawing, saved)
    print(f"{len(targets) - len(failed)} of {len(targets)} images done; the results are in {args.output}")
    if failed:
        print("Failed:", *(f"  {message}" for message in failed.values()), sep="\n", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
