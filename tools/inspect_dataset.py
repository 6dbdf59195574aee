#!/usr/bin/env python3
"""Look at a dataset before training: what is in it, what is wrong with it, and which config keys it asks for.

python tools/inspect_dataset.py --config-file configs/camvid/faseg_r18_cpu.yaml
python tools/inspect_dataset.py --config-file my.yaml --output inspection DATASETS.TEST "('mine_test',)"

Reads every image and annotation of DATASETS.TRAIN and DATASETS.TEST as training does, and writes inspection.html, one
page that opens without a network, and inspection.json to OUTPUT_DIR/inspection. Exit code: 0; 1 if files cannot be read
or labels are wrong, which the page lists; 2 if the config or an option is wrong.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

import omp_policy  # noqa: F401 (before torch)

# isort: split

from tqdm import tqdm

from fasegr import load_cfg
from fasegr.analysis.dataset_advice import RARE_IMAGES, findings
from fasegr.analysis.dataset_inspection import Split, classes_of, exact_copies, inspect_split, near_copies_of, reader
from fasegr.d2 import CfgNode, DatasetCatalog, setup_logger
from fasegr.engine.launch import readable_errors
from fasegr.utils.files import write_json
from fasegr.visualization.html_page import write_page
from fasegr.visualization.inspection_page import Inspection, as_json, inspection_page


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="YAML", help="the config that will be trained")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="for the page (OUTPUT_DIR/inspection)")
    parser.add_argument("--samples", type=int, default=4, metavar="N", help="pictures of each class (4); 0: none")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that read (one for each core)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys")
    args = parser.parse_args(arguments)
    if not 0 <= args.samples <= 50:
        parser.error(f"--samples is {args.samples}; it must be between 0 and 50")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    args.workers = cores if args.workers is None else args.workers
    if not 0 <= args.workers <= 256:
        parser.error(f"--workers is {args.workers}; it must be between 0, for this process alone, and 256")
    return args


def inspect(cfg: CfgNode, workers: int, title: str, command: str) -> Inspection:
    """Everything but the page. Raises ValueError for a dataset that is not registered."""
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    unknown = [name for name in names if name not in DatasetCatalog.list()]
    if unknown or not names:
        raise ValueError(
            f"no dataset is registered as {', '.join(unknown)}; there are {', '.join(sorted(DatasetCatalog.list()))}"
            if unknown
            else "DATASETS.TRAIN and DATASETS.TEST are empty; name a dataset"
        )
    head, mapper = cfg.MODEL.SEM_SEG_HEAD, reader(cfg)

    def read(name: str) -> Split:
        with tqdm(desc=name, unit="image", dynamic_ncols=True, disable=None) as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            return inspect_split(name, mapper, head.NUM_CLASSES, head.IGNORE_VALUE, workers, progress)

    splits = {name: read(name) for name in dict.fromkeys(names)}
    train = [splits[name] for name in cfg.DATASETS.TRAIN]
    test = [splits[name] for name in cfg.DATASETS.TEST if name not in cfg.DATASETS.TRAIN]
    classes, colours = classes_of(cfg)
    copies = [(mine, other, near_copies_of(mine, other)) for mine in train for other in test]
    same_files = exact_copies([*train, *test])
    threshold = cfg.DATALOADER.REPEAT_THRESHOLD or RARE_IMAGES
    found = findings(cfg, train, test, classes, colours, copies, same_files)
    return Inspection(title, train, test, classes, colours, found, copies, same_files, threshold, command)


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    with readable_errors():
        start = time.perf_counter()
        setup_logger(name="fasegr")
        cfg = load_cfg(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu"])
        output = args.output or Path(cfg.OUTPUT_DIR, "inspection")
        output.mkdir(parents=True, exist_ok=True)
        words = sys.argv[1:] if arguments is None else list(arguments)
        title = cfg.DATASETS.FOLDER.NAME or cfg.DATASETS.COCO.NAME or ", ".join(cfg.DATASETS.TRAIN)
        command = shlex.join(["python", "tools/inspect_dataset.py", *words])
        found = inspect(cfg, args.workers, f"Dataset {title}", command)
        images = sum(len(split.records) for split in found.splits)
        seconds = time.perf_counter() - start
        with tqdm(total=len(found.names), desc="samples", unit="class", dynamic_ncols=True, disable=None) as bar:
            text = inspection_page(found, reader(cfg), args.samples, bar.update)
        write_page(output / "inspection.html", text)
        write_json(as_json(found), output / "inspection.json", indent=1)
    for finding in found.findings:
        print(f"{finding.kind}: {finding.title}")
    for problem in [problem for split in found.splits for problem in split.problems][:20]:
        print(f"  {problem.reason}", file=sys.stderr)
    print(f"{images} images in {seconds:.1f} s ({images / seconds:.0f} a second): {output / 'inspection.html'}")
    return int(any(finding.kind == "error" for finding in found.findings))


if __name__ == "__main__":
    sys.exit(main())
