"""Strict YAML: a file says each thing once, in plain values, and is small; no code is run.

Files are taken to be from strangers. The one Python expression in the released files is parsed and not evaluated.
"""

from __future__ import annotations

import os
import re
from typing import Any, ClassVar

import yaml
from yaml.constructor import ConstructorError

__all__ = ["load_mapping"]

MAX_BYTES, MAX_DEPTH, MAX_VALUES = 2**20, 20, 20000

EVAL = "tag:yaml.org,2002:python/object/apply:eval"
SIZES = re.compile(r"\[int\(x \* 0\.1 \* (\d{1,4})\) for x in range\((\d{1,3}), (\d{1,3})\)\]", re.ASCII)


def load_mapping(path: str | os.PathLike) -> dict[str, Any]:
    """The nested keys and values of a YAML file. Raises ValueError that names the file and, where it can, the line."""
    with open(path, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"{path} has more than {MAX_BYTES} bytes; a config file has a few thousand")
    try:
        content = yaml.load(data, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        line = (error.problem_mark or error.context_mark).line + 1
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise ValueError(f"{path} is not YAML that can be read safely: line {line}: {what[:300]}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML that can be read safely: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        kind = "nothing" if content is None else f"a {type(content).__name__}"
        raise ValueError(f"{path} holds {kind}; a config file is a mapping of keys to values")
    return content


class Loader(yaml.SafeLoader):
    """Refuses what YAML reads silently as something else or expands without bounds: keys stated twice or with a dot,
    keys that are no text, deep nesting, nested aliases ("billion laughs"), tags."""

    # A date is a text.
    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, form) for tag, form in pairs if tag != "tag:yaml.org,2002:timestamp"]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, stream):
        super().__init__(stream)
        self.depth = self.values = 0
        self.values_of: dict[str, int] = {}  # of each anchor, as if its own aliases were written out

    def compose_node(self, parent, index):
        event = self.peek_event()
        before = self.values
        self.values += 1
        self.depth += 1
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in self.anchors and event.anchor not in self.values_of:
                raise _refused(event, f"the alias *{event.anchor} stands within its own value")
            self.values += self.values_of.get(event.anchor, 0)
        elif event.tag not in (None, "!", EVAL):
            raise _refused(event, f"the tag {event.tag} is not understood; write a plain value")
        if self.depth > MAX_DEPTH or self.values > MAX_VALUES:
            raise _refused(event, f"more than {MAX_DEPTH} levels or {MAX_VALUES} values; a config is much smaller")
        node = super().compose_node(parent, index)
        self.depth -= 1
        if event.anchor is not None:
            self.values_of[event.anchor] = self.values - before
        return node

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                raise _refused(key, "a key that is no text")
            if key.value in seen:
                raise _refused(key, f"the key {key.value[:100]!r} is stated twice in one section")
            if "." in key.value:
                raise _refused(key, f"the key {key.value[:100]!r} has a dot; write it as a section with keys")
            seen.add(key.value)
        return node


def _refused(at: yaml.Event | yaml.Node, problem: str) -> ConstructorError:
    return ConstructorError(problem=problem, problem_mark=at.start_mark)


def _int(loader: Loader, node: yaml.ScalarNode) -> int:
    try:
        value = loader.construct_yaml_int(node)
        repr(value)
        return value
    except ValueError as error:  # "0x_", or thousands of digits
        raise _refused(node, f"not an int: {error}") from error


def _sizes(loader: Loader, node: yaml.Node) -> list[int]:
    argument = loader.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else [None]
    match = SIZES.fullmatch(str(argument[0])) if len(argument) == 1 else None
    if match is None:
        raise _refused(
            node,
            f"the expression {str(argument)[:100]} is not run: the only Python understood is "
            "'[int(x * 0.1 * N) for x in range(A, B)]' with small numbers; write the values out",
        )
    size, start, stop = map(int, match.groups())
    return [int(x * 0.1 * size) for x in range(start, stop)]


Loader.add_constructor("tag:yaml.org,2002:int", _int)
Loader.add_constructor(EVAL, _sizes)
