#!/usr/bin/env python3
"""Show a model as a page in the browser.

python demo/serve.py --config-file CONFIG --weights model.pth
python demo/serve.py --config-file CONFIG --weights model.pth --config-file OTHER --weights other.pth --names A B

Drop or paste a picture, and the page shows its segments, how sure the model is, and, where a segment is clicked, where
the query looks that predicts it. Several models are shown side by side. The page is at http://127.0.0.1:7860, for this
machine alone unless --host says otherwise; there is no password. Ctrl-C ends it. Exit code: 0, 2 if it cannot start.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import socket
import sys
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

import omp_policy  # noqa: F401 (before torch)

# isort: split

from demo.demo import find_images
from fasegr.d2 import CfgNode, DatasetCatalog, setup_logger
from fasegr.data.image_io import BadFile, open_image
from fasegr.engine.launch import readable_errors
from fasegr.engine.process_settings import tune_process
from tools.model_arguments import add_model_arguments, load_cfgs, model_names

logger = logging.getLogger("fasegr.serve")

EXAMPLES = 6
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
EVERYWHERE = ("0.0.0.0", "::", "")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 is every one (127.0.0.1)")
    parser.add_argument("--port", type=int, default=7860, help="0 takes a free one (7860)")
    parser.add_argument(
        "--examples",
        nargs="*",
        metavar="IMAGE",
        help="pictures to try: files, folders or patterns (default: some of DATASETS.TEST, if it is on this machine)",
    )
    parser.add_argument("--max-pixels", type=int, default=16_000_000, help="of a picture, or it is refused (16000000)")
    add_model_arguments(parser)
    args = parser.parse_args(argv)
    if not 0 <= args.port <= 65535:
        parser.error(f"--port is {args.port}; it must be between 0 and 65535")
    if args.max_pixels < 1:
        parser.error(f"--max-pixels is {args.max_pixels}; it must be at least 1")
    return args


def find_examples(examples: list[str] | None, cfg: CfgNode) -> list[Path]:
    """The files of --examples, which must be there, or some of the test data, evenly spaced, if these are there."""
    if examples is not None:
        found = find_images(examples, output="") if examples else []
        for path in found:
            open_image(path)  # a broken one is an error now
        return found
    try:
        records = DatasetCatalog.get(cfg.DATASETS.TEST[0]) if cfg.DATASETS.TEST else []
        number = min(EXAMPLES, len(records))
        found = [Path(records[(2 * i + 1) * len(records) // (2 * number)]["file_name"]) for i in range(number)]
        for path in found:
            open_image(path)
    except (OSError, BadFile, ValueError) as error:
        logger.info("no examples: %s", error)
        return []
    return found


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises OSError that says how to go on."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise OSError(
            f"--host {host} --port {port}: cannot listen there ({error}); choose another port, or 0 for a free one"
        ) from error


def allowed_hosts(host: str) -> tuple[str, ...] | None:
    """What may be in the Host header of a request: any, if the server listens to others than this machine."""
    if host in (*LOOPBACK, "::1"):
        return LOOPBACK
    return None


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with readable_errors():
        missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
        if missing:
            raise ImportError(f"the page needs {' and '.join(missing)}: pip install -r requirements-serve.txt")
        import uvicorn

        from demo.page_results import PageModel
        from demo.page_server import Limits, page_app

        setup_logger(name="fasegr")
        names = model_names(args.config_file, args.names)
        cfgs = load_cfgs(args.config_file, args.weights, args.opts)
        tune_process(tuned_allocator=cfgs[0].SPEED.TUNED_ALLOCATOR, threads=cfgs[0].SPEED.THREADS)
        listening = listen(args.host, args.port)
        models = [PageModel(name, cfg) for name, cfg in zip(names, cfgs, strict=True)]
        examples = find_examples(args.examples, cfgs[0])
        app = page_app(models, examples, Limits(args.max_pixels), allowed_hosts(args.host))
        port = listening.getsockname()[1]
        if args.host not in (*LOOPBACK, "::1"):
            print(f"Anyone who can reach {args.host or 'this machine'} can use this page; there is no password.")
        shown = "127.0.0.1" if args.host in EVERYWHERE else f"[{args.host}]" if ":" in args.host else args.host
        print(f"The page is at http://{shown}:{port} (Ctrl-C ends it)", flush=True)
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=5)
        with suppress(KeyboardInterrupt):  # the way to end it
            uvicorn.Server(config).run(sockets=[listening])
    return 0


if __name__ == "__main__":
    sys.exit(main())
