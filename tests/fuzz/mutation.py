"""Ways to spoil a file or a structure. All take a `random.Random`, so that a seed and a number name an input."""

import copy
import random
import zlib
from typing import Any

EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def spoil(data: bytes, rng: random.Random) -> bytes:
    """1 to 3 of: flipped bytes, a cut, bytes inserted, removed, doubled or zeroed, an extreme number in the header."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        if not data:
            break
        kind, at = rng.randrange(7), rng.randrange(len(data))
        length = rng.randint(1, max(1, min(64, len(data) - at)))
        if kind == 0:
            for _ in range(rng.randint(1, 8)):
                data[rng.randrange(len(data))] = rng.randrange(256)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            data[at:at] = rng.randbytes(length)
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = data[at : at + length]
        elif kind == 5:
            data[at : at + length] = bytes(length)
        else:
            number, order = rng.choice(EXTREMES), rng.choice(("big", "little"))
            at, width = rng.randrange(min(len(data), 96)), rng.choice((1, 2, 4))
            data[at : at + width] = (number & (1 << 8 * width) - 1).to_bytes(width, order)
    return bytes(data)


def with_png_checksums(data: bytes) -> bytes:
    """Whatever was changed in the chunks of a PNG, with checksums that fit."""
    out, at = bytearray(data[:8]), 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if at + 12 + length > len(data):
            break
        body = data[at + 4 : at + 8 + length]
        out += data[at : at + 4] + body + zlib.crc32(body).to_bytes(4, "big")
        at += 12 + length
    return bytes(out + data[at:])


def _deep(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


STRANGE = (
    *(None, True, False, 0, 1, -1, 2, 255, 256, 65536, 2**31, 2**32, 2**63, 10**30, -(10**30)),
    *(0.0, 0.5, 3.0, -0.0, 1e-300, 1e308, float("nan"), float("inf"), float("-inf")),
    *("", " ", "0", "1", "3.5", "nan", "abc", "~", "../../x", "/etc/passwd", "a\0b", "\ud800", "ä" * 300, "1e400"),
    *([], {}, [[]], [None], [0], [1, 2, 3], ["a"], [[1, 2]], {"a": 1}, {"id": 1}, _deep(50)),
)


def places(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value in a tree of dicts and lists."""
    found, waiting = [], [tree]
    while waiting:
        container = waiting.pop()
        keys = list(container) if isinstance(container, dict) else range(len(container))
        for key in keys:
            found.append((container, key))
            if isinstance(container[key], dict | list):
                waiting.append(container[key])
    return found


def spoil_tree(tree: Any, rng: random.Random) -> Any:
    """A copy of a tree with 1 to 3 values replaced (by a strange one, or by another value of the tree), removed,
    doubled or, numbers, moved a little."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.randint(1, 3)):
        found = places(tree)
        if not found:
            break
        container, key = rng.choice(found)
        value, kind = container[key], rng.randrange(8)
        if kind == 0:
            del container[key]
        elif kind == 1 and isinstance(container, list):
            container.insert(rng.randrange(len(container) + 1), copy.deepcopy(value))
        elif kind == 2:
            other = rng.choice(found)
            container[key] = copy.deepcopy(other[0][other[1]])
        elif kind in (3, 4) and type(value) in (int, float):
            container[key] = rng.choice((value + 1, value - 1, -value, value * 1000, value + 0.5, float(value)))
        elif kind in (3, 4) and isinstance(value, str) and value:
            at = rng.randrange(len(value))
            container[key] = rng.choice(
                (value[:at], value + value, value[:at] + chr(rng.randrange(1, 256)) + value[at:])
            )
        elif kind == 5:
            container[key] = str(value) if rng.random() < 0.5 else [value]
        else:
            container[key] = copy.deepcopy(rng.choice(STRANGE))
    return tree
