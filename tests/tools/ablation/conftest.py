import pytest

from tests.tools.ablation.study import TRAINER
from tools.ablation import execution


@pytest.fixture
def fake_trainer(tmp_path, monkeypatch):
    path = tmp_path / "trainer.py"
    path.write_text(TRAINER)
    monkeypatch.setattr(execution, "TRAINER", path)
    return path
