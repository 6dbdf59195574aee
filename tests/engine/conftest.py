import pytest

from fasegr.engine.pictures import Pictures
from tests.engine.tiny_training import TinySegmentor, write_dataset


@pytest.fixture(scope="session")
def dataset_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    write_dataset(root)
    return root


@pytest.fixture
def no_pictures(monkeypatch):
    """Trainings that draw nothing when they end, which takes longer than the rest of them."""
    monkeypatch.setattr(Pictures, "after_train", lambda self: None)


@pytest.fixture
def deterministic_model(monkeypatch):
    monkeypatch.setattr(TinySegmentor, "deterministic", True)
