"""Reading metrics.json: one JSON object a line, each with its "iteration", as a training writes it."""

from __future__ import annotations

import json
import logging
import os

__all__ = ["read_metrics"]

logger = logging.getLogger(__name__)


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """The lines of a metrics.json, in the order in which they were written; none where there is no file.

    A line that is no JSON object with an "iteration" is left out with a warning: the training may have been killed
    while it wrote it, or may be writing it now.
    """
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return []
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            entry = None
        if isinstance(entry, dict) and isinstance(entry.get("iteration"), int):
            entries.append(entry)
        elif line.strip():
            logger.warning("%s, line %d is not a line of metrics; it is left out", path, number)
    return entries
