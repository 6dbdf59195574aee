"""Reading metrics.json: one JSON object a line, each with its "iteration", as a training writes it."""

from __future__ import annotations

import json
import logging
import os

__all__ = ["read_metrics", "split_lines"]

logger = logging.getLogger(__name__)


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """The lines of a metrics.json, in the order in which they were written; none where there is no file.

    What is no JSON object with an "iteration" is left out with a warning: the training may have been killed while it
    wrote that line, or may be writing it now.
    """
    entries, strange = split_lines(path)
    if strange:
        numbers = ", ".join(map(str, strange[:5])) + (f" and {len(strange) - 5} more" if len(strange) > 5 else "")
        logger.warning("%s: not a line of metrics, and left out: line %s", path, numbers)
    return entries


def split_lines(path: str | os.PathLike) -> tuple[list[dict], list[int]]:
    """The lines of metrics in `path`, and the numbers, from 1, of those that are none and not empty."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read().split("\n")
    except FileNotFoundError:
        return [], []
    entries, strange = [], []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):  # no JSON, a number of 5,000 digits, brackets without end
            entry = None
        if isinstance(entry, dict) and type(entry.get("iteration")) is int:
            entries.append(entry)
        elif line.strip():
            strange.append(number)
    return entries, strange
