import pytest

from fasegr.ablation import execution
from tests.ablation.study import TRAINER


@pytest.fixture
def fake_trainer(tmp_path, monkeypatch):
    path = tmp_path / "trainer.py"
    path.write_text(TRAINER)
    monkeypatch.setattr(execution, "TRAINER", path)
    return path
