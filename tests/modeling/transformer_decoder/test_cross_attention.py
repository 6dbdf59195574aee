import pytest

from fasegr.modeling.transformer_decoder.attention import CrossAttentionLayer
from fasegr.modeling.transformer_decoder.cross_attention import MaskedRead, RowColumnRead, SparseRead, build_reads
from fasegr.modeling.transformer_decoder.rcda import RowColumnAttentionLayer

DEFAULTS = {"mask_threshold": 0.15, "omega": 32, "selection": "window", "query": "static"}


@pytest.mark.parametrize(
    ("attention", "levels", "kinds"),
    [
        ("hrca", [4], [MaskedRead, MaskedRead, MaskedRead, SparseRead]),
        ("vanilla", [8], [MaskedRead, MaskedRead, SparseRead]),
        ("random", [4, 8], [MaskedRead, MaskedRead, SparseRead, SparseRead]),
        ("rcda", [4, 8], [MaskedRead, MaskedRead, RowColumnRead, RowColumnRead]),
        ("none", [4], [MaskedRead, MaskedRead, MaskedRead]),
    ],
)
def test_reads_of_a_round(attention, levels, kinds):
    reads = build_reads(attention=attention, levels=levels, **DEFAULTS)
    assert [type(read) for read in reads] == kinds
    assert [read.uses_mask for read in reads] == [kind is MaskedRead for kind in kinds]


def test_each_read_makes_the_layer_that_it_calls():
    masked, *_, sparse = build_reads(attention="hrca", levels=[4], **DEFAULTS)
    assert masked.make_layer(8, 2, keeps_attention=True).keeps_attention
    assert type(sparse.make_layer(8, 2, keeps_attention=False)) is CrossAttentionLayer
    crossing = RowColumnRead(dynamic_query=False)
    assert type(crossing.make_layer(8, 2, keeps_attention=False)) is RowColumnAttentionLayer
    with pytest.raises(ValueError, match="hands out no weights"):
        crossing.make_layer(8, 2, keeps_attention=True)
