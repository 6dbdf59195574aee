"""The borders of the parts: imports in one order, detectron2 behind one seam, files from strangers never run."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "fasegr"
SEAM = PACKAGE / "d2"

PROGRAM = sorted(
    [
        *PACKAGE.rglob("*.py"),
        *(
            file
            for folder in ("fasegr_programs", "tools", "demo", "datasets", "benchmarks")
            for file in (ROOT / folder).rglob("*.py")
        ),
        *ROOT.glob("*.py"),
    ]
)
# A part imports only those before it. `d2` stands apart: the built-in runtime imports nothing of ours.
ORDER = (
    *("utils", "d2", "config", "checkpoint", "modeling", "data", "evaluation"),
    *("analysis", "visualization", "inference", "engine"),
)
MODELING = PACKAGE / "modeling"
# The modules that register classes and build them from a config; the rest of modeling is maths.
BUILDERS = {MODELING / f"backbone/{name}.py" for name in ("resnet", "swin", "timm", "vit")}
BUILDERS |= {MODELING / f"meta_arch/{name}.py" for name in ("head", "segmentor")}
MATHS = sorted({*MODELING.rglob("*.py")} - BUILDERS)


def _name(file: Path) -> str:
    return str(file.relative_to(ROOT))


def _imports(source: str, package: str) -> set[str]:
    """Dotted names of the modules that `source`, a module in `package`, imports anywhere but for type checkers."""
    found = set()
    tree = ast.parse(source)
    for node in [*ast.walk(tree)]:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            found.add(module)
            found.update(f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found.update(arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant))
    return found


def _package(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).parent.parts)


def _below(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize(
    ("line", "imported"),
    [
        ("import detectron2.utils.comm as comm", "detectron2.utils.comm"),
        ("def f():\n    from detectron2 import config", "detectron2"),
        ("importlib.import_module('detectron2.layers')", "detectron2.layers"),
        ("from ..d2 import comm", "fasegr.d2"),
        ("from .. import d2", "fasegr.d2"),
        ("from . import matcher", "fasegr.modeling.matcher"),
        ("from fasegr import d2", "fasegr.d2"),
    ],
)
def test_imports_are_seen(line, imported):
    assert imported in _imports(line, "fasegr.modeling")
    assert not _imports(f"if TYPE_CHECKING:\n    import {imported}", "fasegr.modeling")


@pytest.mark.parametrize("file", PROGRAM, ids=_name)
def test_nothing_decodes_with_torchvision(file):
    """Which has announced that it will stop to."""
    assert not [name for name in _imports(file.read_text(), _package(file)) if _below(name, "torchvision.io")]


@pytest.mark.parametrize("file", [file for file in PROGRAM if SEAM not in file.parents], ids=_name)
def test_only_the_seam_imports_detectron2(file):
    names = _imports(file.read_text(), _package(file))
    assert not sorted(name for name in names if _below(name, "detectron2"))


def test_every_part_has_its_place():
    """Nothing lies loose in the package, and no part is missing from the order."""
    assert {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"} == {"__init__.py", *ORDER}


@pytest.mark.parametrize("file", sorted(PACKAGE.glob("*/**/*.py")), ids=_name)
def test_imports_follow_the_order(file):
    allowed = ORDER[: ORDER.index(file.relative_to(PACKAGE).parts[0]) + 1]
    parts = {name.split(".")[1] for name in _imports(file.read_text(), _package(file)) if name.startswith("fasegr.")}
    assert not sorted(parts - set(allowed))


@pytest.mark.parametrize("file", MATHS, ids=_name)
def test_maths_knows_neither_config_nor_seam(file):
    """It could be lifted into another program as it is."""
    names = _imports(file.read_text(), _package(file))
    assert not sorted(name for name in names if _below(name, "fasegr.d2") or _below(name, "fasegr.config"))


@pytest.mark.parametrize("file", sorted((SEAM / "builtin").rglob("*.py")), ids=_name)
def test_builtin_is_independent(file):
    names = {name for name in _imports(file.read_text(), _package(file)) if _below(name, "fasegr")}
    assert not sorted(name for name in names if not _below(name, "fasegr.d2.builtin"))


RUNS_CODE = re.compile(
    r"""yaml\.(unsafe_load|full_load)\b | UnsafeLoader | FullLoader
    | weights_only\s*=\s*False
    | \b(pickle|dill|joblib|cloudpickle)\.loads?\( | \bpickle\.Unpickler\(
    | (?<![\w.])(eval|exec)\(
    | allow_pickle\s*=\s*True | allow_unsafe\s*=\s*True
    | shell\s*=\s*True | \bos\.system\(""",
    re.VERBOSE,
)


def _code(source: str) -> str:
    """`source` without comments, docstrings and messages, which may name what the code must not do."""

    class Blank(ast.NodeTransformer):
        def visit_Constant(self, node):
            return ast.Constant("") if isinstance(node.value, str) else node

        def visit_JoinedStr(self, node):
            return ast.Constant("")

    return ast.unparse(Blank().visit(ast.parse(source)))


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(f, weights_only=False)",
        "pickle.load(f, encoding='latin1')",
        "yaml.load(f, Loader=yaml.FullLoader)",
        "eval(text)",
        "cfg.merge_from_file(f, allow_unsafe=True)",
    ],
)
def test_unsafe_reading_is_seen(line):
    assert RUNS_CODE.search(_code(line))


@pytest.mark.parametrize("line", ["model.eval()", "'eval(x)'", "yaml.safe_load(f)", "torch.load(f, weights_only=True)"])
def test_safe_reading_is_let_through(line):
    assert not RUNS_CODE.search(_code(line))


OWN_BYTES = PACKAGE / "data/serialized_list.py"  # unpickles what the same program has just pickled, and no file


@pytest.mark.parametrize("file", [file for file in PROGRAM if file != OWN_BYTES], ids=_name)
def test_files_from_strangers_are_not_run(file):
    assert not RUNS_CODE.findall(_code(file.read_text()))


@pytest.mark.parametrize("file", PROGRAM, ids=_name)
def test_torch_load_says_that_it_reads_weights_only(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            assert "weights_only" in {keyword.arg for keyword in node.keywords}, f"line {node.lineno}"


SAFE_LOADERS = {"yaml.SafeLoader", "yaml.CSafeLoader"} | {
    node.name
    for file in PROGRAM
    for node in ast.walk(ast.parse(file.read_text()))
    if isinstance(node, ast.ClassDef) and "yaml.SafeLoader" in {ast.unparse(base) for base in node.bases}
}


@pytest.mark.parametrize("file", PROGRAM, ids=_name)
def test_yaml_is_read_by_safe_loaders(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "yaml.load":
            loaders = {ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "Loader"}
            assert loaders, f"line {node.lineno}"
            assert loaders <= SAFE_LOADERS, f"line {node.lineno}"
