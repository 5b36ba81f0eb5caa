"""Relative position representations against the definition with [T, S, H] arrays, and their
limits.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.methods import shaw as module
from tests.golden_files import golden_suite
from tests.refusals import refused

B, N, K, H, L = 2, 4, 2, 8, 33


def make(arguments='max_distance=3, std=1.0', causal=True):
    encoding = pj.make(f'shaw({arguments})', head_dim=H, causal=causal)
    return encoding, encoding.parts[0]


def inputs(length=L):
    keys = jax.random.split(jax.random.key(1), 3)
    return tuple(jax.random.normal(key, (B, length, n, H)) for key, n in zip(keys, (N, K, K)))


def run(encoding, q, k, v, tok, **how):
    q, k, v, tq, tk = encoding.project(q, k, v, tok, tok)
    return pj.attend(encoding, q, k, v, tq, tk, **how, applied=pj.TOKEN_STAGE)


def reference(shaw, q, k, v, pos, causal=True):
    """The definition, with every vector written out per pair of tokens."""
    distance = pos[:, None, :] - pos[:, :, None]
    index = np.clip(distance, -shaw.max_distance, shaw.max_distance) + shaw.max_distance
    repeat = lambda a: jnp.repeat(a, N // K, axis=2)
    keys = repeat(k)[:, None] + shaw.keys[...][index][:, :, :, None]
    s = jnp.einsum('bthd,btshd->bhts', q, keys) / H**0.5
    if causal:
        s = jnp.where(np.tril(np.ones(s.shape[-2:], bool)), s, -jnp.inf)
    values = repeat(v)[:, None]
    if shaw.values is not None:
        values = values + shaw.values[...][index][:, :, :, None]
    values = jnp.broadcast_to(values, (B, *index.shape[1:], N, H))
    return jnp.einsum('bhts,btshd->bthd', jax.nn.softmax(s), values)


def index(values):
    pos = jnp.arange(5)[None]
    return module.shaw_index(pos, pos, values['max_distance'])[0]


test_golden = golden_suite('shaw', {'index': index})


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
    out = pj.functional.weighted_sum(w, heads_first(v))
    out += pj.functional.shaw_values(w, shaw.values[...], pos, pos)
    expected = reference(shaw, q, k, v, pos, causal=False)
    np.testing.assert_allclose(heads_first(out), expected, atol=2e-5)


# Each takes another way: one index for a whole tile; indices that count up with the keys, from any
# place; and neither.
STARTS = jnp.array([[-20, -9, -8, -4, 0, 3], [1, 4, 5, 20, -3, -1]])[..., None]
RUN = jnp.clip(jnp.arange(9) - jnp.arange(6)[:, None], 0, 4)[None].repeat(B, 0)
INDICES = {
    'one': jnp.full((B, 6, 9), 4),
    'runs': jnp.clip(jnp.arange(9) + STARTS, 0, 4),
    'any': jax.random.randint(jax.random.key(7), (B, 6, 9), 0, 5),
    'nearly a run': RUN.at[:, 2, 7].set(1),
}


@pytest.mark.full_but_one
@pytest.mark.parametrize('rows', [1, B])
@pytest.mark.parametrize('which', INDICES)
def test_taking_and_summing_are_transposes(rows, which):
    keys = jax.random.split(jax.random.key(2), 3)
    index = INDICES[which][:rows]
    t, w = jax.random.normal(keys[1], (B, N, 6, 5)), jax.random.normal(keys[2], (B, N, 6, 9))
    binned = module.sum_by_index(w, index, 5)
    one_hot = jnp.broadcast_to(jax.nn.one_hot(index, 5), (B, 6, 9, 5))
    expected = jnp.einsum('bnts,btsc->bntc', w, one_hot)
    np.testing.assert_allclose(binned, expected, atol=1e-5)
    assert (module.take_by_index(t, index) * w).sum() == pytest.approx(
        float((t * binned).sum()), abs=1e-3
    )
    slope = jax.grad(lambda t: (module.take_by_index(t, index) * w).sum())(t)
    np.testing.assert_allclose(slope, expected, atol=1e-5)
    slope = jax.grad(lambda w: (module.sum_by_index(w, index, 5) * t).sum())(w)
    np.testing.assert_allclose(slope, module.take_by_index(t, index))


def test_without_its_value_term_another_encoding_may_collect():
    assert not make('value_term=False')[1].opens('collect')
    pj.make('shaw(value_term=False) | shaw()', head_dim=H)


Q, POS = jnp.ones((1, 1, 3, 4)), jnp.arange(3)[None]
test_wrong_vectors = refused() | {
    r'relative keys are 2 K \+ 1 vectors, .* got 4': (
        lambda: module.shaw_logits(Q, Q, jnp.ones((4, 4)), POS, POS)
    ),
    r'relative values are 2 K \+ 1 vectors, .* got 2': (
        lambda: module.shaw_values(jnp.ones((1, 1, 3, 3)), jnp.ones((2, 4)), POS, POS)
    ),
    'shaw needs integer positions, got float32': (
        lambda: module.shaw_logits(Q, Q, jnp.ones((3, 4)), POS / 2, POS)
    ),
}
