"""Hugging Face's hub: models by the name hf://OWNER/NAME, through the package huggingface_hub.

Only data is downloaded: configs in YAML and JSON, and weights, which are read without running code.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from typing import Any

__all__ = ["HUB", "check_installed", "check_repository", "local_folder", "upload"]

HUB = "hf://"
_REPOSITORY = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}")
_ALWAYS = ("config.yaml", "config.json", "preprocessor_config.json", "processor_config.json")
# The preferred first; the others are not downloaded.
_WEIGHTS = (
    ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"),
)

logger = logging.getLogger(__name__)


def check_repository(name: str) -> None:
    """Raises ValueError for what is no OWNER/NAME."""
    if not _REPOSITORY.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a model on the hub; expected OWNER/NAME, as facebook/mask2former")


def local_folder(path: str) -> str:
    """The folder of the model hf://OWNER/NAME, downloaded if it is not in the hub's cache; any other path as it is.

    hf://OWNER/NAME@REVISION is a branch, a tag or a commit. Raises ValueError for a name that cannot be one,
    ImportError without huggingface_hub, ConnectionError if the model cannot be downloaded and is not in the cache.
    """
    if not path.startswith(HUB):
        return path
    name, _, revision = path.removeprefix(HUB).partition("@")
    check_repository(name)
    api = _api()
    try:
        for weights in _WEIGHTS:
            patterns = [*_ALWAYS, *weights]
            folder = api.snapshot_download(name, revision=revision or None, allow_patterns=patterns)
            if any(os.path.isfile(os.path.join(folder, file)) for file in weights[:2]):
                break
    except Exception as error:  # of many kinds, of the connection, the server and the disk
        raise ConnectionError(f"could not get {path}: {_reason(error)}") from error
    if not any(os.path.isfile(os.path.join(folder, file)) for file in ("config.yaml", "config.json")):
        raise FileNotFoundError(
            f"{path} is no model that can be loaded: it has neither a config.yaml, as fasegr writes it, nor a "
            "config.json, as transformers does"
        )
    return folder


def upload(folder: str, name: str, *, private: bool, message: str) -> str:
    """Make `folder` the content of the model OWNER/NAME on the hub, which is created if it does not exist.

    Files of other names that it has stay. Returns its address. Raises ConnectionError.
    """
    check_repository(name)
    api = _api()
    try:
        address = api.create_repo(name, private=private, exist_ok=True)
        logger.info("Uploading to %s", address)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    except Exception as error:
        raise ConnectionError(f"could not upload to {name}: {_reason(error, writes=True)}") from error
    return str(address)


def check_installed() -> None:
    """Raises ImportError without huggingface_hub."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ImportError("Hugging Face's hub needs the package huggingface_hub: pip install 'fasegr[hub]'")


def _api() -> Any:
    check_installed()
    from huggingface_hub import HfApi

    # Which by itself only knows the variable as it was when the package was imported.
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"))


def _reason(error: Exception, writes: bool = False) -> str:
    """One sentence on an error of huggingface_hub. writes: of an upload."""
    from huggingface_hub import errors

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    status = getattr(getattr(error, "response", None), "status_code", None)
    login = "log in with `hf auth login`, or set HF_TOKEN"
    if isinstance(error, errors.GatedRepoError):
        return f"its owner asks for a consent; give it at {endpoint}, then {login}"
    if isinstance(error, errors.LocalTokenNotFoundError) or (status == 401 and writes):
        return f"{endpoint} does not know who you are; {login}"
    if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        return f"there is no such model at {endpoint}, or it is private; correct the name, or {login}"
    if isinstance(error, errors.RevisionNotFoundError):
        return "it has no such revision; name a branch, a tag or a commit after the @, or none"
    if status == 403:
        return f"this account may not do that; {login}, with a token that may write"
    text = " ".join(str(error).split())[:300]
    advice = ""
    if isinstance(error, errors.LocalEntryNotFoundError) or type(error).__module__.startswith("httpx"):
        advice = f". {endpoint} cannot be reached; a folder that was fetched by hand can be named instead"
    return f"{type(error).__name__}: {text.rstrip('.')}{advice}"
