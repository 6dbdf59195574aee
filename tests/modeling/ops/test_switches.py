import pytest

from fasegr.modeling.ops import switches as fast_paths


def test_every_path_is_on_until_it_is_named(monkeypatch):
    monkeypatch.delenv("FASEGR_PLAIN", raising=False)
    assert all(fast_paths.enabled(name) for name in fast_paths.FAST_PATHS)
    monkeypatch.setenv("FASEGR_PLAIN", "embedding_bag")
    assert not fast_paths.enabled("embedding_bag")
    monkeypatch.setenv("FASEGR_PLAIN", "all")
    assert not any(fast_paths.enabled(name) for name in fast_paths.FAST_PATHS)


def test_off_lasts_as_long_as_its_block(monkeypatch):
    monkeypatch.delenv("FASEGR_PLAIN", raising=False)
    with fast_paths.off():
        assert not any(fast_paths.enabled(name) for name in fast_paths.FAST_PATHS)
        with fast_paths.off("embedding_bag"):
            pass
        assert not fast_paths.enabled("embedding_bag")  # the inner block gave back only what it took
    assert fast_paths.enabled("embedding_bag")


def test_a_misspelt_name_is_refused(monkeypatch):
    with pytest.raises(KeyError, match="embeding_bag"):
        fast_paths.enabled("embeding_bag")
    with pytest.raises(KeyError, match="embeding_bag"), fast_paths.off("embeding_bag"):
        pass
    monkeypatch.setenv("FASEGR_PLAIN", "embeding_bag")
    with pytest.raises(ValueError, match="embeding_bag"):
        fast_paths.enabled("embedding_bag")
