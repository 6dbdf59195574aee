import pytest

from fasegr.modeling.ops import switches


def test_every_form_is_on_until_it_is_named(monkeypatch):
    monkeypatch.delenv("FASEGR_PLAIN", raising=False)
    assert all(switches.enabled(name) for name in switches.FASTER_FORMS)
    monkeypatch.setenv("FASEGR_PLAIN", "embedding_bag")
    assert not switches.enabled("embedding_bag")
    monkeypatch.setenv("FASEGR_PLAIN", "all")
    assert not any(switches.enabled(name) for name in switches.FASTER_FORMS)


def test_off_lasts_as_long_as_its_block(monkeypatch):
    monkeypatch.delenv("FASEGR_PLAIN", raising=False)
    with switches.off():
        assert not any(switches.enabled(name) for name in switches.FASTER_FORMS)
        with switches.off("embedding_bag"):
            pass
        assert not switches.enabled("embedding_bag")  # the inner block restores only what it changed
    assert switches.enabled("embedding_bag")


def test_a_misspelt_name_is_refused(monkeypatch):
    with pytest.raises(KeyError, match="embeding_bag"):
        switches.enabled("embeding_bag")
    with pytest.raises(KeyError, match="embeding_bag"), switches.off("embeding_bag"):
        pass
    monkeypatch.setenv("FASEGR_PLAIN", "embeding_bag")
    with pytest.raises(ValueError, match="embeding_bag"):
        switches.enabled("embedding_bag")
