"""YAML by structure: trees and texts that Hypothesis makes, files that name one another, tags that would run code."""

import random
from pathlib import Path

import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from fasegr.config import load_cfg
from tests.fuzz.running import COUNT, SEED

NAMES = ("_BASE_", "VERSION", "MODEL", "MASK_FORMER", "DATASETS", "FOLDER", "COCO", "SOLVER", "INPUT", "CROP", "TEST")
FILES = ("own.yaml", "other.yaml", "missing.yaml", ".", "..", "/", "/dev/null", "~", "../input/own.yaml")
NUMBERS = st.one_of(st.booleans(), st.integers(), st.floats())
SCALARS = st.one_of(st.none(), NUMBERS, st.text(max_size=8), st.sampled_from(FILES), st.binary(max_size=4))
KEYS = st.one_of(st.sampled_from(NAMES), st.text(max_size=6), st.integers(), st.none(), st.booleans())
TREES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4))
CODE = (
    "!!python/object/apply:os.system ['touch {mark}']",
    "!!python/object/apply:eval [\"open('{mark}', 'w')\"]",
    "!!python/object/apply:eval [\"[int(x * 0.1 * 1024) for x in open('{mark}', 'w')]\"]",
    "!!python/object/apply:eval ['[int(x * 0.1 * 640) for x in range(0, 300000000)]']",
    "!!python/object/apply:eval ['[int(x * 0.1 * 640) for x in range(5, 21)]']",
    "!!python/object/new:os.mkdir ['{mark}']",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!map [1]",
    "!!int abc",
    "!!timestamp 2020-99-99",
    "!own 3",
)
TEXTS = (
    *("", "{}", "MODEL:\n  WEIGHTS: a.pth\nSOLVER: {BASE_LR: 0.1}\n", "_BASE_: [other.yaml, other.yaml]\n"),
    "a: &a [*a]\n",
    "&a MODEL: *a\n",
    "MODEL: &a\n  MODEL: *a\n",
    "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 30)),
    "MODEL:\n  <<: {WEIGHTS: 3}\n  <<: [{}, 3]\n",
    "MODEL: " + "[" * 3000,
    "MODEL: " + "{a: " * 3000,
    "- " * 3000 + "1\n",
    "? [1, 2]\n: 3\n",
    "? {a: 1}\n: 3\n",
    "--- 1\n--- 2\n",
    "MODEL: 1\nMODEL: {WEIGHTS: x}\n",
    "%YAML 9.9\n---\n",
    "\tMODEL: 1\n",
)


def _documents() -> list[str]:
    found: list[str] = []

    @seed(int(SEED))
    @settings(max_examples=COUNT, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(st.one_of(TREES, st.dictionaries(st.sampled_from(NAMES), TREES, max_size=4)))
    def collect(tree):
        found.append(yaml.safe_dump(tree))

    collect()
    return found


def prepare(folder: Path) -> list[str]:
    return _documents()


def _text(documents: list[str], rng: random.Random, mark: Path) -> str:
    kind = rng.random()
    if kind < 0.6:
        text = rng.choice(documents)
    elif kind < 0.7:
        text = rng.choice(TEXTS)
    elif kind < 0.85:
        key = rng.choice(("MODEL.WEIGHTS", "INPUT.MIN_SIZE_TRAIN", "_BASE_", "DATASETS.FOLDER.CLASSES", "a")).split(".")
        text = "".join(f"{'  ' * depth}{name}:\n" for depth, name in enumerate(key)).rstrip("\n")
        text += " " + rng.choice(CODE).replace("{mark}", str(mark)) + "\n"
    else:
        text = "".join(rng.choice("abM:-?[]{},&*#|>!%@`\"' \n\t\u20ac\x07\\0") for _ in range(rng.randint(1, 40)))
    if rng.random() < 0.2:
        at = rng.randrange(len(text) + 1)
        text = text[:at] + chr(rng.choice((0, 9, 58, 91, 123, 0x85, 0xFEFF, 0x1F600))) + text[at + rng.randrange(3) :]
    return text


def make(documents: list[str], rng: random.Random, folder: Path) -> tuple[str, list[str]]:
    for name in ("own.yaml", "other.yaml"):
        text = _text(documents, rng, folder.parent / "executed")
        if rng.random() < 0.2:
            text = f"_BASE_: {rng.choice(FILES)}\n" + text
        data = text.encode(rng.choice(("utf-8", "utf-8", "utf-8", "utf-16", "latin1")), errors="replace")
        (folder / name).write_bytes(data)
    # a value that is wrong is named by its key, which the command line may have set
    return repr((folder / "own.yaml").read_bytes()[:200]), [str(folder), *(f"{name}." for name in NAMES)]


def read(documents: list[str], folder: Path) -> str:
    load_cfg(folder / "own.yaml")
    return "a config"
