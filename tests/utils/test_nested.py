import pytest

from fasegr.utils.nested import flatten, lookup, nest


def test_lookup_and_nest_are_inverse():
    assert nest("A.B.C", 1) == {"A": {"B": {"C": 1}}}
    assert lookup(nest("A.B.C", 1), "A.B.C") == 1
    with pytest.raises(KeyError):
        lookup({"A": {}}, "A.B")


def test_flatten():
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": 3, "f": {}}) == {"a.b": 1, "a.c.d": 2, "e": 3}
    assert flatten({"sem_seg": {"mIoU": 50.0}}, "/") == {"sem_seg/mIoU": 50.0}
