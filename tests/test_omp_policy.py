"""How threads wait is settled before torch, which reads it, is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = [
    ROOT / "train_net.py",
    *(
        file
        for folder in ("demo", "tools", "benchmarks")
        for file in sorted((ROOT / folder).glob("*.py"))
        if '__name__ == "__main__"' in file.read_text()
        # which reads files; which a program starts; which uses numpy and ONNX Runtime alone
        and file.name not in ("compare.py", "worker.py", "onnx_demo.py")
    ),
]


@pytest.fixture
def policy(tmp_path):
    """A function that starts a program and returns the policy that is set when it first imports torch."""
    (tmp_path / "torch.py").write_text(
        "import os\nraise SystemExit(' '.join(os.environ.get(n, '-') for n in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')))"
    )

    def run(program: Path, **variables: str) -> str:
        env = {n: v for n, v in os.environ.items() if not n.startswith(("OMP_", "GOMP_", "KMP_"))} | variables
        env["PYTHONPATH"] = str(tmp_path)
        done = subprocess.run([sys.executable, program], env=env, cwd=tmp_path, capture_output=True, text=True)
        return done.stderr.strip()

    return run


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_every_program_lets_threads_sleep(policy, program):
    assert policy(program) == "passive -"


@pytest.mark.parametrize("variable", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_what_the_user_has_set_stays(policy, variable):
    value = {"OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": "1000"}[variable]
    expected = f"{value} -" if variable == "OMP_WAIT_POLICY" else f"- {value}"
    assert policy(PROGRAMS[0], **{variable: value}) == expected
