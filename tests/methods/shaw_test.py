"""Relative position representations against the definition with [T, S, H] arrays, and their
limits.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.methods.shaw import (
    shaw_index,
    shaw_logits,
    shaw_values,
    sum_by_index,
    take_by_index,
)
from tests.golden_files import golden

GOLDEN = golden('shaw')['values']
B, N, K, H, L = 2, 4, 2, 8, 33


def make(arguments='max_distance=3, std=1.0', causal=True):
    encoding = pj.make(f'shaw({arguments})', head_dim=H, causal=causal, rngs=nnx.Rngs(0))
    return encoding, encoding.parts[0]


def inputs(length=L):
    keys = jax.random.split(jax.random.key(1), 3)
    return tuple(jax.random.normal(key, (B, length, n, H)) for key, n in zip(keys, (N, K, K)))


def run(encoding, q, k, v, tok, **how):
    q, k, v, tq, tk = encoding.project(q, k, v, tok, tok)
    return pj.attend(encoding, q, k, v, tq, tk, **how, applied=pj.TOKEN_STAGE)


def reference(shaw, q, k, v, pos, causal=True):
    """The definition, with every vector written out per pair of tokens."""
    index = (
        np.clip(pos[:, None, :] - pos[:, :, None], -shaw.max_distance, shaw.max_distance)
        + shaw.max_distance
    )
    repeat = lambda a: jnp.repeat(a, N // K, axis=2)
    keys = repeat(k)[:, None] + shaw.keys[...][index][:, :, :, None]
    s = jnp.einsum('bthd,btshd->bhts', q, keys) / H**0.5
    if causal:
        s = jnp.where(np.tril(np.ones(s.shape[-2:], bool)), s, -jnp.inf)
    values = repeat(v)[:, None]
    if shaw.values is not None:
        values = values + shaw.values[...][index][:, :, :, None]
    return jnp.einsum(
        'bhts,btshd->bthd', jax.nn.softmax(s), jnp.broadcast_to(values, (B, *index.shape[1:], N, H))
    )


def test_index():
    pos = jnp.arange(5)[None]
    np.testing.assert_array_equal(shaw_index(pos, pos, GOLDEN['max_distance'])[0], GOLDEN['index'])


@pytest.mark.full_but_one
@pytest.mark.parametrize('causal', [True, False])
@pytest.mark.parametrize(
    'arguments', ['max_distance=3, std=1.0', 'max_distance=3, std=1.0, value_term=False']
)
def test_equals_the_definition(arguments, causal):
    encoding, shaw = make(arguments, causal)
    q, k, v = inputs()
    tok = pj.Tokens.of(length=L)
    out = run(encoding, q, k, v, tok, block=(5, 7))
    np.testing.assert_allclose(out, reference(shaw, q, k, v, np.arange(L)[None], causal), atol=2e-5)


def test_the_pure_functions_are_the_definition():
    """Logits and values of `posenc_jax.functional`, joined by hand, against arrays of every
    pair.
    """
    _, shaw = make(causal=False)
    q, k, v = inputs(12)
    pos = np.arange(12)[None]
    heads_first = lambda a: jnp.swapaxes(a, 1, 2)
    s = pj.functional.shaw_logits(heads_first(q), heads_first(k), shaw.keys[...], pos, pos)
    w = jax.nn.softmax(s)
    out = pj.functional.weighted_sum(w, heads_first(v)) + pj.functional.shaw_values(
        w, shaw.values[...], pos, pos
    )
    np.testing.assert_allclose(
        heads_first(out), reference(shaw, q, k, v, pos, causal=False), atol=2e-5
    )


@pytest.mark.full
@pytest.mark.parametrize('rows', [1, B], ids=['shared positions', 'positions per row'])
def test_gradients_equal_those_of_the_definition(rows):
    encoding, shaw = make()
    graphdef, state = nnx.split(encoding)
    q, k, v = inputs(12)
    pos = np.array([np.arange(12), np.arange(12) * 2])[:rows]
    tok = pj.Tokens.of(positions=jnp.asarray(pos))
    target = jax.random.normal(jax.random.key(5), q.shape)

    def ours(state, *qkv):
        return (run(nnx.merge(graphdef, state), *qkv, tok, block=(5, 4)) * target).sum()

    def theirs(state, *qkv):
        return (reference(nnx.merge(graphdef, state).parts[0], *qkv, pos) * target).sum()

    found, expected = (jax.jit(jax.grad(f, (0, 1, 2, 3)))(state, q, k, v) for f in (ours, theirs))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-5, rtol=1e-4)


# Each takes another way: one index for a whole tile; indices that count up with the keys, from any
# place; and neither.
INDICES = {
    'one': jnp.full((B, 6, 9), 4),
    'runs': jnp.clip(
        jnp.arange(9) + jnp.array([[-20, -9, -8, -4, 0, 3], [1, 4, 5, 20, -3, -1]])[..., None], 0, 4
    ),
    'any': jax.random.randint(jax.random.key(7), (B, 6, 9), 0, 5),
    'nearly a run': jnp.clip(jnp.arange(9) - jnp.arange(6)[:, None], 0, 4)[None]
    .repeat(B, 0)
    .at[:, 2, 7]
    .set(1),
}


@pytest.mark.full_but_one
@pytest.mark.parametrize('rows', [1, B])
@pytest.mark.parametrize('which', INDICES)
def test_taking_and_summing_are_transposes(rows, which):
    keys = jax.random.split(jax.random.key(2), 3)
    index = INDICES[which][:rows]
    t, w = jax.random.normal(keys[1], (B, N, 6, 5)), jax.random.normal(keys[2], (B, N, 6, 9))
    binned = sum_by_index(w, index, 5)
    expected = jnp.einsum(
        'bnts,btsc->bntc', w, jnp.broadcast_to(jax.nn.one_hot(index, 5), (B, 6, 9, 5))
    )
    np.testing.assert_allclose(binned, expected, atol=1e-5)
    assert (take_by_index(t, index) * w).sum() == pytest.approx(float((t * binned).sum()), abs=1e-3)
    np.testing.assert_allclose(
        jax.grad(lambda t: (take_by_index(t, index) * w).sum())(t), expected, atol=1e-5
    )
    np.testing.assert_allclose(
        jax.grad(lambda w: (sum_by_index(w, index, 5) * t).sum())(w), take_by_index(t, index)
    )


def test_zero_vectors_are_nope():
    encoding, _ = make('std=0.0')
    tok = pj.Tokens.of(length=L)
    np.testing.assert_allclose(
        run(encoding, *inputs(), tok),
        run(pj.make('nope()', causal=True), *inputs(), tok),
        atol=1e-6,
    )


def test_distance_zero_adds_its_value_to_every_output():
    encoding, shaw = make('max_distance=0, std=1.0')
    tok = pj.Tokens.of(length=L)
    expected = run(pj.make('nope()', causal=True), *inputs(), tok) + shaw.values[0]
    np.testing.assert_allclose(run(encoding, *inputs(), tok), expected, atol=1e-5)


def test_causal_rows_use_the_first_half_of_the_vectors_only():
    encoding, shaw = make()
    tok = pj.Tokens.of(length=L)
    before = run(encoding, *inputs(), tok)
    for vectors in (shaw.keys, shaw.values):
        vectors[...] = vectors[...].at[4:].set(1e3)
    np.testing.assert_array_equal(run(encoding, *inputs(), tok), before)


def test_without_its_value_term_another_encoding_may_collect():
    assert not make('value_term=False')[1].opens('collect')
    pj.make('shaw(value_term=False) | shaw()', head_dim=H)
    with pytest.raises(ValueError, match="shaw and shaw both need the exclusive door 'collect'"):
        pj.make('shaw() | shaw()', head_dim=H)


def test_wrong_input_says_what_is_wrong():
    with pytest.raises(ValueError, match='max_distance must be at least 0, got -1'):
        make('max_distance=-1')
    with pytest.raises(ValueError, match='std must be at least 0, got -0.5'):
        make('std=-0.5')
    q, w, pos = jnp.ones((1, 1, 3, 4)), jnp.ones((1, 1, 3, 3)), jnp.arange(3)[None]
    for call, message in (
        (
            lambda: shaw_logits(q, q, jnp.ones((4, 4)), pos, pos),
            r'relative keys are 2 K \+ 1 vectors, .* got 4',
        ),
        (
            lambda: shaw_values(w, jnp.ones((2, 4)), pos, pos),
            r'relative values are 2 K \+ 1 vectors, .* got 2',
        ),
        (
            lambda: shaw_logits(q, q, jnp.ones((3, 4)), pos / 2, pos),
            'shaw needs integer positions, got float32',
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
