"""Cross-attention without stored weights against the plain form: on a GPU if there is one, else interpreted."""

import pytest
import torch

from fasegr.modeling.ops import switches as fast_paths
from fasegr.modeling.transformer_decoder import attention as plain
from fasegr.modeling.transformer_decoder import triton_cross_attention
from fasegr.modeling.transformer_decoder.attention import AttentionWeights, CrossAttentionLayer
from fasegr.modeling.transformer_decoder.triton_cross_attention import FusedAttention, attend_by_triton, supports
from tests.modeling.transformer_decoder.test_decoder import CASES, decoder, maps_for

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Of keys that are not seen, and of parts where none is: the interpreter speaks of what the kernels know how to drop.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|divide by zero) encountered:RuntimeWarning")
BFLOAT16 = pytest.param(
    torch.bfloat16,
    marks=pytest.mark.skipif(DEVICE == "cpu", reason="Triton's interpreter takes products of the bits of bfloat16"),
)


def case(batch, heads, queries, keys, dim, dtype=torch.float64, masked=True):
    """q, k, v, hidden and K_p. Of the masks one query sees a single key, and one sees none of the first half."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(batch, heads, n, dim, dtype=torch.float64) for n in (queries, keys, keys))
    hidden = torch.rand(batch, 1, queries, keys) < 0.6
    hidden[0, 0, 0] = True
    hidden[0, 0, -1, : keys // 2] = True
    hidden[..., -1] = False
    key_pos = torch.randn(batch, heads * dim, keys, dtype=torch.float64).transpose(1, 2)  # as the decoder's levels lie
    q, k, v, key_pos = (t.to(DEVICE, dtype) for t in (3 * q, k, v, key_pos))
    return q, k, v, hidden.to(DEVICE) if masked else None, key_pos


def reference(q, k, v, hidden, key_pos):
    """Output, A K_p, sum of A over queries, in float64."""
    q, k, v, key_pos = (t.double() for t in (q, k, v, key_pos))
    scores = torch.einsum("bmqd,bmnd->bmqn", q, k) / q.shape[3] ** 0.5
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    weights = scores.softmax(-1)
    return weights @ v, weights.mean(1) @ key_pos, weights.mean(1).sum(1)


def by_triton(q, k, v, hidden, key_pos):
    out, attention = attend_by_triton(q, k, v, hidden)
    return out, attention.pool(key_pos), attention.sum_over_queries()


SHAPES = [(2, 2, 5, 7, 16), (1, 3, 33, 70, 24), (2, 1, 1, 1, 32), (1, 2, 3, 17, 100)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("masked", [True, False])
def test_equals_stored_weights(shape, masked):
    arguments = case(*shape, masked=masked)
    torch.testing.assert_close(by_triton(*arguments), reference(*arguments))


def test_parts_of_the_keys_are_put_together(monkeypatch):
    arguments = case(1, 2, 3, 150, 16)
    arguments[3][0, 0, 1, :64] = True  # nothing of the first part is seen
    whole = by_triton(*arguments)
    monkeypatch.setattr(triton_cross_attention, "PART", 64)
    assert triton_cross_attention._parts(150) == (3, 64)
    torch.testing.assert_close(by_triton(*arguments), whole)
    torch.testing.assert_close(whole, reference(*arguments))


def test_many_channels_of_positions(monkeypatch):
    monkeypatch.setattr(triton_cross_attention, "MAX_BLOCK_CHANNELS", 16)
    arguments = case(2, 2, 3, 5, 20)
    torch.testing.assert_close(by_triton(*arguments), reference(*arguments))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, BFLOAT16])
@pytest.mark.parametrize("positions", [None, torch.float32])
def test_precision_is_that_of_the_arguments(dtype, positions):
    *arguments, key_pos = case(1, 2, 5, 40, 16, dtype)
    key_pos = key_pos.to(positions or dtype)
    out, pooled, total = by_triton(*arguments, key_pos)
    assert (out.dtype, pooled.dtype, total.dtype) == (dtype, key_pos.dtype, torch.float32)
    expected = reference(*arguments, key_pos)
    torch.testing.assert_close(total.double(), expected[2], atol=1e-5, rtol=1e-5)  # half only in its arguments
    tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
    for got, want in ((out, expected[0]), (pooled, expected[1])):
        torch.testing.assert_close(got.double(), want, atol=tolerance[got.dtype], rtol=tolerance[got.dtype])


def test_scores_that_overflow_their_exponential():
    q, k, v, hidden, key_pos = case(1, 2, 4, 9, 16)
    arguments = q * 1000, k, v, hidden, key_pos
    torch.testing.assert_close(by_triton(*arguments), reference(*arguments))


def test_whatever_the_strides():
    """Queries and positions that are the same for all images, values that are for all channels."""
    q, k, v, hidden, key_pos = case(2, 2, 4, 9, 16)
    arguments = q[:1].expand_as(q), k, v[..., :1].expand_as(v), hidden, key_pos[:1].expand_as(key_pos)
    torch.testing.assert_close(by_triton(*arguments), reference(*arguments))


def test_operators_for_torch_compile():
    q, k, v, hidden, key_pos = case(1, 2, 3, 5, 16)
    q, k, v = (t.transpose(1, 2).contiguous() for t in (q, k, v))
    for mask in (hidden.squeeze(1), None):
        checked = {"test_utils": ("test_schema", "test_faketensor")}
        torch.library.opcheck(triton_cross_attention._attend, (q, k, v, mask), **checked)
        read = q, k, mask, triton_cross_attention._attend(q, k, v, mask)[1]
        torch.library.opcheck(triton_cross_attention._pool, (*read, key_pos), **checked)
        torch.library.opcheck(triton_cross_attention._sum_over_queries, read, **checked)


def test_what_is_supported(monkeypatch):
    monkeypatch.setattr(triton_cross_attention, "has_triton", lambda index, dtype: True)
    x = torch.empty(1, 2, 4, 32)
    assert not supports(x, x, x)
    with torch._subclasses.FakeTensorMode(), torch.device("cuda"):
        x = torch.empty(1, 2, 4, 32)
        assert supports(x, x, x)
        assert supports(*[x.bfloat16()] * 3)
        assert not supports(*[x.double()] * 3)
        assert not supports(x, x, x.half())
        assert not supports(*[x[..., :8]] * 3)
        wanted = x.clone().requires_grad_()
        assert not supports(x, x, wanted)
        with torch.no_grad():
            assert supports(x, x, wanted)
        many = torch.empty(1, 1, 2**25, 64)
        assert not supports(many[:, :, :2], many, many)


@pytest.fixture
def supported(monkeypatch):
    """The kernels taken wherever no gradient is wanted. Yields how often attention was made by them."""
    monkeypatch.setattr(plain, "supports", lambda *tensors: not any(t.requires_grad for t in tensors))
    made = []
    monkeypatch.setattr(plain, "attend_by_triton", lambda *arguments: made.append(1) or attend_by_triton(*arguments))
    return made


def test_chosen_where_it_is_supported_and_not_turned_off(supported):
    layer = CrossAttentionLayer(32, 2, keeps_attention=True).to(DEVICE)
    arguments = [torch.randn(1, n, 32, device=DEVICE) for n in (3, 3, 6, 6)]
    assert isinstance(layer(*arguments, None).attention, AttentionWeights)  # it is trained
    with torch.no_grad():
        assert isinstance(layer(*arguments, None).attention, FusedAttention)
        assert layer.weights(*arguments, None).shape == (1, 3, 6)
        with fast_paths.off("triton_cross_attention"):
            assert isinstance(layer(*arguments, None).attention, AttentionWeights)
    assert len(supported) == 1


@pytest.mark.parametrize("case", ["release", "HRCA on both"])  # pixels tie at the borders, where rounding decides
def test_the_decoder_is_the_same(supported, case):
    net = decoder(**CASES[case][0], num_layers=5).eval().to(DEVICE)
    inputs = maps_for(net)
    inputs = type(inputs)(inputs[0].to(DEVICE), *([x.to(DEVICE) for x in xs] for xs in inputs[1:]))
    with torch.no_grad():
        (fused,) = net(inputs)
        kept = sum(layer.keeps_attention for layer in net.transformer_cross_attention_layers)
        assert len(supported) == kept > 1
        with fast_paths.off("triton_cross_attention"):
            (expected,) = net(inputs)
    torch.testing.assert_close(fused, expected)
