"""Local files for weights given as a path, a URL, or a name of a model zoo, ours or detectron2's."""

import os

from iopath.common.file_io import PathManager

from .download import ResumingHandler, cached_path
from .hub import HUB, local_folder
from .zoo import PREFIX, released_url

ZOOS = {"detectron2://": "https://dl.fbaipublicfiles.com/detectron2/"}
# In a folder of Hugging Face's hub, ours or transformers', the preferred first.
HUB_WEIGHTS = tuple(
    name + index for name in ("model.safetensors", "pytorch_model.bin") for index in ("", ".index.json")
)
DOWNLOADED = ("http://", "https://")

_MANAGER = PathManager()  # a separate one, which other programs' handlers do not change
_MANAGER.register_handler(ResumingHandler())


def local_path(path: str) -> str:
    """The local file behind `path`, downloaded to iopath's cache first if it is a URL or a name of a model zoo.

    Of a folder in the form of Hugging Face's hub it is the file of weights in it. Raises FileNotFoundError for a local
    file that does not exist, ValueError for an unknown scheme or name, and ConnectionError if a download fails, which
    says where to put a file that was fetched by hand.
    """
    if path.startswith(HUB):
        return _existing(local_folder(path))
    if path.startswith(PREFIX):
        url = released_url(path)
    else:
        url = next((base + path.removeprefix(zoo) for zoo, base in ZOOS.items() if path.startswith(zoo)), path)
    if url.startswith(DOWNLOADED):
        return _downloaded(path, url)
    if "://" in url:
        schemes = ", ".join([PREFIX, HUB, *ZOOS, *DOWNLOADED])
        raise ValueError(f"weights {path!r}: unknown scheme; use a local path or one of {schemes}")
    return _existing(os.path.expanduser(path))


def _downloaded(path: str, url: str) -> str:
    try:
        return _MANAGER.get_local_path(url)
    except OSError as error:  # urllib's URLError and HTTPError, timeouts, and a full or read-only disk
        raise ConnectionError(
            f"could not download {path} from {url} ({error}). Fetch it on another machine and either put it at "
            f"{cached_path(url)} or pass its path as MODEL.WEIGHTS"
        ) from error


def _existing(path: str) -> str:
    if os.path.isfile(path):
        return path
    if os.path.isdir(path):
        if name := next((name for name in HUB_WEIGHTS if os.path.isfile(os.path.join(path, name))), None):
            return os.path.join(path, name)
        held = sorted(name for name in os.listdir(path) if name.endswith((".pth", ".pt", ".pkl", ".safetensors")))
        hint = f"name a file in it ({', '.join(held[-5:])})" if held else "there is no weights file in it"
        raise FileNotFoundError(f"weights {path!r} is a folder; {hint}")
    raise FileNotFoundError(
        f"there is no weights file {path!r} (working directory: {os.getcwd()}); pass an existing file, a URL or a name "
        "of a model zoo as MODEL.WEIGHTS, or '' to start from random weights"
    )
