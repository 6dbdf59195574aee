"""COCO's JSON of instances; DATASETS.COCO reads it too, without this program."""

from __future__ import annotations

import re
from pathlib import Path

from fasegr.data.datasets.coco_file import read_instances
from fasegr.data.datasets.coco_json import read_categories
from fasegr.data.image_io import BadFile
from own_formats.export import Export, Picture, Shape, find_image

__all__ = ["find", "read"]


def find(export: Path) -> list[Path]:
    files = [export] if export.is_file() else sorted(export.rglob("*.json"))
    marks = (b'"images"', b'"annotations"', b'"categories"')
    return [path for path in files if path.suffix == ".json" and all(m in path.read_bytes() for m in marks)]


def read(files: list[Path], folders: list[Path]) -> Export:
    export = Export()
    for file in files:
        split = re.sub(r"^(instances|annotations)?_?|(19|20)\d\d$|_?annotations(\.coco)?$", "", file.stem.lower())
        split = split or (file.parent.name if file.stem.startswith("_annotations") else "")
        try:
            categories = {category.id: category.name for category in read_categories(file)}
            content = read_instances("own", file, categories)
        except BadFile as error:
            export.problems.append(str(error))
            continue
        if export.classes and set(categories.values()) != set(export.classes):
            export.problems.append(
                f"{file}: has other categories than {files[0]}: "
                f"{', '.join(sorted(set(categories.values()) ^ set(export.classes))[:5])}; all files must have the same"
            )
            continue
        export.classes = export.classes or list(dict.fromkeys(categories.values()))
        shapes: dict = {number: [] for number in content.images}
        for annotation in content.annotations or ():
            if annotation["segmentation"] is None:
                export.left_out["object without outline"] += 1
                continue
            shapes[annotation["image_id"]].append(
                Shape(
                    categories[annotation["category_id"]],
                    annotation["segmentation"],
                    f"annotation {annotation.get('id')}",
                    -1 if annotation["iscrowd"] else 0,
                )
            )
        near = [file.parent, file.parent / "images", file.parent.parent, file.parent.parent / "images"]
        near += [folder / split for folder in near if split]
        for number, image in content.images.items():
            try:
                path = find_image([*near, *folders], image["file_name"])
            except BadFile as error:
                export.problems.append(f"{file}: {error}")
                continue
            stem = Path(image["file_name"]).with_suffix("").as_posix()
            size = image["height"], image["width"]
            one = len(files) == 1
            export.pictures.append(Picture(path, file, stem, shapes[number], size, "" if one else split))
    return export
