#!/usr/bin/env python3
"""Draw the predictions of an exported model over pictures: needs numpy, pillow and onnxruntime, and nothing of fasegr.

python demo/onnx_demo.py model.onnx street.jpg holiday/*.png --output seen

For each picture, OUTPUT gets NAME_overlay.png. A picture that fails is named and the others are done (exit code 1).
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def seen_size(picture, shortest_edge=0, longest_edge=0, multiple=1, height=0, width=0):
    """Width and height that the model sees a picture at, by `test_size` of the file's metadata."""
    if height:
        return [width, height]
    scale = min(shortest_edge / min(picture.size), longest_edge / max(picture.size)) if shortest_edge else 1
    if multiple == 1:
        return [max(1, int(side * scale + 0.5)) for side in picture.size]
    if shortest_edge:  # as transformers rounds: the shorter side to the nearest pixel, the longer one down
        short, long = min(picture.size), max(picture.size)
        exact = min(shortest_edge, longest_edge * short / long)
        sides = {short: round(exact), long: int(exact * long / short)}
    else:
        sides = {side: side for side in picture.size}
    return [-(-max(1, sides[side]) // multiple) * multiple for side in picture.size]


def predict(session, picture, **test_size):
    """The results of a picture, by name, at its size. The model sees it at the size it was tested at."""
    seen = picture.resize(seen_size(picture, **test_size), Image.Resampling.BILINEAR)
    size = np.array([picture.height, picture.width], np.int64)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": np.asarray(seen)[None], "size": size}), strict=True))


def draw(picture, results, palette, min_score):
    """The picture with the colours of its classes, or of its objects, half over it."""
    colored = np.array(picture)
    if "instance_scores" in results:
        for i in np.argsort(results["instance_scores"][0]):
            if results["instance_scores"][0, i] >= min_score:
                colored[results["instance_masks"][0, i]] = palette[results["instance_classes"][0, i]]
    else:
        labels = results["labels"][0] if "labels" in results else results["scores"][0].argmax(0)
        colored = palette[labels]
    return Image.blend(picture, Image.fromarray(colored), 0.5)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="file of `fasegr export`")
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--output", default=".", help="folder (this one)")
    parser.add_argument("--min-score", type=float, default=0.5, help="of objects that are drawn (0.5)")
    args = parser.parse_args()
    providers = [
        p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in onnxruntime.get_available_providers()
    ]
    session = onnxruntime.InferenceSession(args.model, providers=providers)
    about = session.get_modelmeta().custom_metadata_map
    if "classes" not in about:
        sys.exit(f"{args.model} has no classes in its metadata; this demo is for files of `fasegr export`")
    classes, palette = json.loads(about["classes"]), np.array(json.loads(about["palette"]), np.uint8)
    Path(args.output).mkdir(parents=True, exist_ok=True)
    failed = False
    for file in args.pictures:
        try:
            picture = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
            results = predict(session, picture, **json.loads(about["test_size"]))
        except OSError as error:
            print(f"{file}: {error}", file=sys.stderr)
            failed = True
            continue
        overlay = Path(args.output, f"{Path(file).stem}_overlay.png")
        draw(picture, results, palette, args.min_score).save(overlay)
        labels = results.get("labels", results["scores"].argmax(1) if "scores" in results else None)
        found = results["instance_classes"][results["instance_scores"] >= args.min_score] if labels is None else labels
        numbers = np.bincount(np.ravel(found), minlength=len(classes))
        print(overlay, ", ".join(classes[c] for c in numbers.argsort()[::-1] if numbers[c]), sep=": ")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
