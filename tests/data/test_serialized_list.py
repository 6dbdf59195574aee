import pytest

from fasegr.data.serialized_list import PackedList


def test_items_come_out_as_they_went_in():
    items = [{"a": [1, 2.5, "x"]}, [], {"b": {3: b"y"}}, None, list(range(300))]
    packed = PackedList(items)
    assert len(packed) == 5 and list(packed) == items
    packed[0]["a"].append("changed")
    assert packed[0] == {"a": [1, 2.5, "x"]}
    assert list(PackedList([])) == []


@pytest.mark.parametrize("index", [-1, 2, 5])
def test_places_that_are_not_there(index):
    with pytest.raises(IndexError, match=f"item {index} of 2"):
        PackedList([1, 2])[index]
