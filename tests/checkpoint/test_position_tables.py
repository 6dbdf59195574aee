import torch
from torch.testing import assert_close

from fasegr.checkpoint.position_tables import can_be_resized, resize

NAME = "backbone.layers.0.blocks.0.attn.relative_position_bias_table"


def test_what_can_be_resized():
    assert can_be_resized(NAME, (169, 3), (529, 3))
    assert not can_be_resized(NAME, (169, 3), (529, 6)), "other heads"
    assert not can_be_resized(NAME, (170, 3), (529, 3)), "no square"
    assert not can_be_resized(NAME, (196, 3), (529, 3)), "an even number of offsets"
    assert not can_be_resized(NAME, (169,), (529, 3))
    assert not can_be_resized("backbone.norm0.weight", (169, 3), (529, 3))


def test_each_head_alone_and_the_middle_stays():
    table = torch.randn(9, 2)
    resized = resize(table, (81, 2))
    assert resized.shape == (81, 2)
    for head in range(2):
        assert_close(resized[:, head], resize(table[:, head : head + 1], (81, 1))[:, 0])
    assert_close(resized[40], table[4], msg="no offset is in the middle of both")
    assert_close(resize(table, (9, 2)), table)


def test_half_precision():
    table = torch.randn(9, 2).half()
    assert_close(resize(table, (25, 2)), resize(table.float(), (25, 2)))
