#!/usr/bin/env python3
"""Turn the export of a labelling tool into a dataset of DATASETS.FOLDER, with its list of classes and its YAML file.

    python datasets/prepare_own.py EXPORT OUTPUT --name garden

EXPORT is a folder (or a file in it) of CVAT (CVAT for images 1.1), LabelMe, Label Studio (JSON), Pascal VOC
(segmentation), YOLO (polygons) or COCO (instances). OUTPUT gets images/, annotations/, classes.txt and garden.yaml.
EXPORT is only read. May be interrupted and run again: what is there and not older than its source is kept. Where the
export has no splits, a share is drawn for validation when the dataset is read. Exit code: 0, 1 if a file failed, 2 if
nothing was done.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from own_formats import READERS
from own_formats.export import Export, Picture
from preparation import Job, is_made

from fasegr.data.datasets.folder import read_classes
from fasegr.data.image_io import BadFile, check_image_size, check_label_size, image_size
from fasegr.utils.files import replacing

PROJECT = Path(__file__).resolve().parents[1]
IGNORED = 255
_PRINTED = 20
_SPLITS = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path, metavar="EXPORT")
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    parser.add_argument("--name", help="of the dataset (default: that of OUTPUT)")
    parser.add_argument("--format", choices=sorted(READERS), help="of the export (default: found out)")
    parser.add_argument("--images", type=Path, help="folder of the images, if they are not with the annotations")
    parser.add_argument("--background", default="background", help="class of pixels of no object; '' ignores them")
    parser.add_argument("--link", action="store_true", help="link to the images instead of copying them")
    parser.add_argument(
        "--base", type=Path, default=PROJECT / "configs/camvid/faseg_r50.yaml", help="recipe of the YAML"
    )
    args = parser.parse_args(argv)
    args.name = args.name or args.output.resolve().name
    return args


def read_export(args: argparse.Namespace) -> tuple[str, Export]:
    """The format and what it holds. Raises FileNotFoundError or BadFile where there is nothing to read."""
    if not args.export.exists():
        raise FileNotFoundError(f"there is no {args.export} (working directory: {Path.cwd()})")
    inside = args.output.resolve()
    if args.export.is_dir() and (inside == args.export.resolve() or inside in args.export.resolve().parents):
        raise BadFile(f"OUTPUT {args.output} is EXPORT or a folder above it; choose another one: EXPORT is only read")
    names = [args.format] if args.format else list(READERS)
    found = {name: READERS[name].find(args.export) for name in names}
    if args.export.is_dir():  # an OUTPUT within it is no part of it
        found = {n: [f for f in files if inside not in f.resolve().parents] for n, files in found.items()}
    found = {name: files for name, files in found.items() if files}
    if len(found) != 1:
        state = f"looks like {' and '.join(found)}" if found else f"has nothing of {', '.join(names)}"
        raise BadFile(f"{args.export} {state}; --format says what it is")
    (name, files), *_ = found.items()
    folders = [folder for folder in (args.images, args.export) if folder is not None and folder.is_dir()]
    return name, READERS[name].read(files, folders)


def class_list(export: Export, background: str) -> tuple[list[str], int]:
    """The classes in the order of their numbers, and the number of pixels of no object."""
    used = {shape.label for picture in export.pictures for shape in picture.shapes}
    names = [*export.classes, *sorted(used - set(export.classes))]
    whole = any(picture.labels is not None for picture in export.pictures)  # label maps have a class everywhere
    if whole or not background:
        return names, IGNORED
    if background in names:
        return names, names.index(background)
    return [background, *names], 0


def write_picture(picture: Picture, args: argparse.Namespace, classes: list[str], nothing: int) -> bool:
    """Writes an image and its label map; whether they were not there. Raises BadFile."""
    image = args.output / "images" / picture.split / f"{picture.name}{picture.image.suffix.lower()}"
    label = args.output / "annotations" / picture.split / f"{picture.name}.png"
    size = image_size(picture.image)
    if picture.size is not None:
        check_image_size(picture.image, size, picture.size)
    # the list of classes is written anew only if it changes, and with it all numbers
    newest = max(path.stat().st_mtime for path in (picture.image, picture.source, args.output / "classes.txt"))
    if (
        is_made(Job(picture.source, picture.image, label))
        and label.stat().st_mtime >= newest
        and image.is_file()
        and image.stat().st_size == picture.image.stat().st_size
    ):
        return False
    labels = picture.label_map(classes, nothing, size)
    check_label_size(picture.source, labels.shape, picture.image, size)
    for path in (image, label):
        path.parent.mkdir(parents=True, exist_ok=True)
    if args.link:
        image.unlink(missing_ok=True)
        image.symlink_to(picture.image.resolve())
    else:
        with replacing(image, "wb") as target, open(picture.image, "rb") as source:
            shutil.copyfileobj(source, target)
    with replacing(label, "wb") as file:
        Image.fromarray(np.ascontiguousarray(labels)).save(file, format="PNG")
    return True


def write_yaml(args: argparse.Namespace, classes: list[str], splits: list[str]) -> Path:
    folder = {"NAME": args.name, "ROOT": str(args.output.resolve()), "CLASSES": "classes.txt"}
    if splits:
        folder["SPLITS"] = splits
    else:
        folder |= {"IMAGES": "images", "LABELS": "annotations", "VAL_SHARE": 0.2}
    names = splits or ["train", "val"]
    tested = next((split for split in ("val", "test") if split in names), names[-1])
    trained = "train" if "train" in names else names[0]
    content = {
        "_BASE_": str(args.base.resolve()),
        "DATASETS": {"FOLDER": folder, "TRAIN": [f"{args.name}_{trained}"], "TEST": [f"{args.name}_{tested}"]},
        "MODEL": {"SEM_SEG_HEAD": {"NUM_CLASSES": len(classes)}},
        "OUTPUT_DIR": f"output/{args.name}",
    }
    path = args.output / f"{args.name}.yaml"
    with replacing(path) as file:
        yaml.safe_dump(content, file, sort_keys=False, allow_unicode=True)
    return path


def write_classes(output: Path, classes: list[str], nothing: int) -> None:
    """Raises BadFile for a name that the list cannot hold."""
    text = "".join(f"{line}\n" for line in (f"# pixels of no object: {nothing}", *classes))
    path = output / "classes.txt"
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return

    def check(partial: str) -> None:
        if not all(classes) or read_classes(partial).names != classes:
            raise BadFile("read back as other names")

    output.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path, check=check) as file:
            file.write(text)
    except BadFile as error:
        raise BadFile(
            f"the classes {classes} cannot be a list of one name a line without commas, tabs, # in front and spaces "
            f"around ({error}); rename them in the labelling tool"
        ) from error


def check_pictures(export: Export) -> None:
    """Two images of one name would overwrite each other: an error for the second."""
    seen: dict[tuple[str, str], Path] = {}
    kept = []
    for picture in export.pictures:
        picture.split = _SPLITS.get(picture.split, picture.split)
        key = picture.split, picture.name
        if any(
            part in ("", ".", "..") or "\\" in part or "\0" in part for part in "/".join(key).lstrip("/").split("/")
        ):
            export.problems.append(f"{picture.source}: image {picture.name[:100]!r}: is no name below a folder")
            continue
        if key in seen:
            export.problems.append(f"{picture.image}: has the name of {seen[key]}; rename one")
            continue
        seen[key] = picture.image
        kept.append(picture)
    if any(picture.split for picture in kept):
        export.left_out["images in no split"] += sum(not picture.split for picture in kept)
        kept = [picture for picture in kept if picture.split]
    export.pictures = kept


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        name, export = read_export(args)
        check_pictures(export)
        if not export.pictures:
            raise BadFile("; ".join([f"no image of {args.export} can be used", *export.problems[:3]]))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    classes, nothing = class_list(export, args.background)
    made = kept = 0
    try:
        write_classes(args.output, classes, nothing)
        for picture in tqdm(export.pictures, name, unit="image", mininterval=0.5):
            try:
                new = write_picture(picture, args, classes, nothing)
                made, kept = made + new, kept + (not new)
            except (BadFile, FileNotFoundError) as error:
                message = str(error)
                export.problems.append(message if str(picture.source) in message else f"{picture.source}: {message}")
    except KeyboardInterrupt:
        sys.exit("interrupted; run the same command again to continue")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    splits = sorted({picture.split for picture in export.pictures} - {""}, key=lambda s: (s != "train", s != "val", s))
    path = write_yaml(args, classes, splits)
    print(f"{name}: {made} images made, {kept} were there already; {len(classes)} classes: {', '.join(classes)[:200]}")
    for reason, count in export.left_out.items():
        if count:
            print(f"left out: {count} of {reason}")
    for problem in export.problems[:_PRINTED]:
        print(f"failed: {problem}", file=sys.stderr)
    if len(export.problems) > _PRINTED:
        print(f"and {len(export.problems) - _PRINTED} more failed", file=sys.stderr)
    print(f"To train: python train_net.py --config-file {os.path.relpath(path)}")
    return int(bool(export.problems))


if __name__ == "__main__":
    sys.exit(main())
