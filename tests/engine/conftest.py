import pytest

from tests.engine.tiny_training import TinySegmentor, write_dataset


@pytest.fixture(scope="session")
def dataset_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    write_dataset(root)
    return root


@pytest.fixture
def deterministic_model(monkeypatch):
    monkeypatch.setattr(TinySegmentor, "deterministic", True)
