import os
import subprocess
import sys

import pytest

from fasegr import d2


@pytest.mark.parametrize(
    ("forced", "installed", "chosen"),
    [
        ("", True, "detectron2"),
        ("", False, "builtin"),
        ("builtin", True, "builtin"),
        ("builtin", False, "builtin"),
        ("detectron2", True, "detectron2"),
    ],
)
def test_choice(forced, installed, chosen):
    assert d2.choose_runtime(forced, installed) == chosen


def test_unknown_runtime():
    with pytest.raises(ValueError, match=r"FASEGR_RUNTIME is 'jax'.*detectron2, builtin"):
        d2.choose_runtime("jax", installed=True)


def test_forced_but_absent():
    with pytest.raises(ImportError, match=r"not installed.*unset FASEGR_RUNTIME"):
        d2.choose_runtime("detectron2", installed=False)


def test_a_broken_detectron2_stops_the_program(tmp_path):
    """It is chosen because it is there, and nothing else is run in its place."""
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").write_text("raise OSError('undefined symbol: _ZN2at')")
    env = {name: value for name, value in os.environ.items() if name != "FASEGR_RUNTIME"}
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), *sys.path])
    run = subprocess.run(
        [sys.executable, "-c", "import fasegr.d2"], env=env, capture_output=True, text=True, timeout=120
    )
    assert run.returncode != 0
    assert "detectron2 is installed but cannot be imported (OSError: undefined symbol: _ZN2at)" in run.stderr
    assert "FASEGR_RUNTIME=builtin" in run.stderr
