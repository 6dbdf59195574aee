"""Checkpoints: found (`paths`), read without running code (`reading`), renamed to our names (`names`), loaded
completely or not at all (`loading`), written and resumed from (`checkpointer`)."""

from .checkpointer import Checkpointer
from .loading import LoadReport, load_checkpoint
from .paths import local_path
from .reading import Contents, read_checkpoint

__all__ = ["Checkpointer", "Contents", "LoadReport", "load_checkpoint", "local_path", "read_checkpoint"]
