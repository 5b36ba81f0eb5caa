"""Cross-modal conditioning: alignment by hand, the zero start, shifts in time, what cross attention
cannot do.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posenc_jax.mixers.cmc_pe import CrossModalConditioning, aligned, conditioned, normalized
from tests.golden_files import golden
from tests.mixers.small import normal as stream

GOLDEN = golden('cmc_pe')['values']


def trained(*sizes, **options):
    layer = CrossModalConditioning(*sizes, **options)
    layer.w_ba[...], layer.w_ab[...] = stream(8, *sizes[::-1]), stream(9, *sizes)
    return layer


@pytest.mark.parametrize('align', ['linear', 'nearest'])
def test_golden_alignment(align):
    values = 10.0 * jnp.arange(GOLDEN['tokens'])[:, None]
    for length, expected in GOLDEN[align].items():
        np.testing.assert_allclose(aligned(values, int(length), align)[:, 0], expected, atol=1e-5)


def test_it_starts_without_a_condition():
    a, b = stream(0, 2, 6, 4), stream(1, 2, 3, 5)
    layer = CrossModalConditioning(4, 5)
    for found, before in zip(layer(a, b), (a, b)):
        np.testing.assert_array_equal(found, before)
    loss = lambda m: sum((out**2).sum() for out in m(a, b))
    for leaf in jax.tree.leaves(nnx.state(jax.grad(loss)(layer))):
        assert np.abs(leaf).max() > 1e-3  # and can be trained from there


def test_each_stream_reads_the_other_as_it_was():
    a, b = stream(0, 1, 4, 2), stream(1, 1, 2, 3)
    layer = trained(2, 3)
    c, d = layer(a, b)
    np.testing.assert_allclose(c, conditioned(a, b, layer.w_ba[...]), atol=1e-6)
    norm = lambda x: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    by_hand = b + (norm(a)[:, 0::2] + norm(a)[:, 1::2]) / 2 @ np.asarray(layer.w_ab[...])
    np.testing.assert_allclose(d, by_hand, atol=1e-5)
    loud = layer(jnp.asarray(a, jnp.float32), jnp.asarray(100 * b + 7, jnp.float32))[0]
    np.testing.assert_allclose(loud, c, rtol=1e-3)  # b is normalised first


@pytest.mark.parametrize('align', ['linear', 'nearest'])
def test_a_shift_of_both_streams_shifts_the_result(align):
    layer = trained(4, 5, align=align)
    a, b = stream(0, 1, 16, 4), stream(1, 1, 8, 5)
    out = layer(a, b)[0]
    moved = layer(jnp.roll(a, 4, 1), jnp.roll(b, 2, 1))[0]
    np.testing.assert_allclose(moved[:, 5:-1], out[:, 1:-5], atol=1e-5)


def test_events_are_found_where_cross_attention_without_positions_sees_none():
    """The claim of the paper: the form of the condition aligns the streams in time."""
    times = np.array([1, 4, 6])
    b = np.full((1, 8, 2), [1.0, -1.0], np.float32)
    b[:, times] *= -1
    a = jnp.zeros((1, 16, 2))
    layer = CrossModalConditioning(2, 2, align='nearest')
    layer.w_ba[...] = -jnp.eye(2)
    found = np.asarray(layer(a, jnp.asarray(b))[0])[0, :, 0] > 0
    assert np.flatnonzero(found).tolist() == sorted([*(2 * times), *(2 * times + 1)])
    heads = lambda x: jnp.asarray(x)[:, :, None]
    crossed = jax.nn.dot_product_attention(heads(a), heads(b), heads(b))
    assert np.ptp(np.asarray(crossed), axis=1).max() == 0


def test_low_precision_is_kept():
    a, b = stream(0, 1, 4, 2).astype(jnp.bfloat16), stream(1, 1, 2, 3).astype(jnp.bfloat16)
    assert [out.dtype for out in trained(2, 3)(a, b)] == [jnp.bfloat16] * 2
    assert normalized(a).dtype == jnp.float32
