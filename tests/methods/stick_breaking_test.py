"""Stick-breaking attention: weights by hand, a loop over pairs, rests, and refused uses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.methods.stick_breaking import stick_breaking_logits
from tests.golden_files import golden_suite
from tests.methods.from_input import check_values_and_gradients, draw_inputs, run

B, N, K, H, D = SIZES = 2, 4, 2, 8, 12
L = 13
INPUTS = draw_inputs(SIZES, L)


def build(arguments=''):
    return pj.make(f'stick_breaking({arguments})', causal=True)


def shares(case):
    z = jnp.asarray(case['z'])[None, None, None]
    log, left = stick_breaking_logits(z, jnp.ones(z.shape, bool), jnp.zeros((1, 1, 1)))
    return jnp.exp(log[0, 0, 0]), jnp.exp(-left[0, 0, 0])


test_golden = golden_suite(
    'stick_breaking',
    {
        '*.weights': (lambda case: shares(case)[0], {'atol': 1e-7}),
        '*.rest': (lambda case: shares(case)[1], {'atol': 1e-7}),
    },
)


def by_loop(q, k, v, current, remainder):
    """One stick for each query and head, in float64."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    out = np.zeros_like(q)
    for b, i, n in np.ndindex(B, L, N):
        rest, own = 1.0, n * K // N
        for j in range(i if current else i - 1, -1, -1):
            share = 1 / (1 + np.exp(-q[b, i, n] @ k[b, j, own] / np.sqrt(H)))
            out[b, i, n] += rest * share * v[b, j, own]
            rest *= 1 - share
        if remainder == 'self':
            out[b, i, n] += rest * v[b, i, own]
    return out


@pytest.mark.parametrize('current', [False, True])
@pytest.mark.parametrize('remainder', ['self', 'drop'])
def test_against_a_loop_over_pairs(current, remainder):
    encoding = build(f'attend_current={current}, remainder={remainder!r}')
    out = run(encoding, *INPUTS, pj.Tokens.of(length=L), block=5)
    np.testing.assert_allclose(out, by_loop(*INPUTS[:3], current, remainder), atol=2e-6)


def test_the_first_token_of_a_document_has_its_own_value():
    tok = pj.Tokens.of(segment=[[0] * 4 + [1] * 9])
    encoding = pj.make('stick_breaking() | document()', causal=True)
    out = run(encoding, *INPUTS, tok)
    for first in (0, 4):
        np.testing.assert_allclose(out[:, first], np.repeat(INPUTS[2][:, first], 2, 1), atol=1e-6)
    dropped = pj.make("stick_breaking(remainder='drop') | document()", causal=True)
    assert not run(dropped, *INPUTS, tok)[:, [0, 4]].any()


def test_rejected_keys_leave_everything_to_the_token_itself():
    q, k, v, x = INPUTS
    out = run(build(), 0 * q - 40.0, 0 * k + 40.0, v, x, pj.Tokens.of(length=L))
    np.testing.assert_allclose(out, np.repeat(v, 2, axis=2), atol=1e-6)


def weighted(encoding, q, k, v, x):
    """The weights as products, whose gradient JAX finds."""
    repeat = lambda a: jnp.repeat(a, N // K, axis=2)
    z = jnp.einsum('bihd,bjhd->bhij', q, repeat(k)) * H**-0.5
    earlier = jnp.tril(jnp.ones((L, L)), -1)
    keep = jnp.where(earlier > 0, jax.nn.log_sigmoid(-z), 0.0)
    after = jnp.cumsum(keep[..., ::-1], -1)[..., ::-1] - keep
    a = jnp.where(earlier > 0, jax.nn.sigmoid(z) * jnp.exp(after), 0.0)
    out = jnp.einsum('bhij,bjhd->bihd', a, repeat(v))
    return out + (1 - a.sum(-1)).swapaxes(1, 2)[..., None] * repeat(v)


def test_values_and_gradients():
    check_values_and_gradients(build(), INPUTS, weighted, 1e-5)


def test_pruned_tiles_had_no_weight():
    """The near keys take nearly all of each stick, so a farther tile changes nothing."""
    q, k, v, x = INPUTS
    full = run(build(), 0 * q + 1.06, 0 * k + 1, v, x, pj.Tokens.of(length=L), block=3)
    part = run(build('prune=-8.0'), 0 * q + 1.06, 0 * k + 1, v, x, pj.Tokens.of(length=L), block=3)
    assert 0 < float(jnp.abs(part - full).max()) < 2 * np.exp(-8.0) * float(jnp.abs(v).max())


def test_refused():
    q, k, v, x = INPUTS
    tok = pj.Tokens.of(length=L)
    with pytest.raises(ValueError, match="1 queries, 13 values; remainder='drop' needs none"):
        build().project(q[:, :1], k, v, tok.slice(0, 1), tok)
    with pytest.raises(ValueError, match='stick_breaking leaves out keys by a bound of its own'):
        pj.make('stick_breaking(prune=-8.0) | soft_cap(2.0)', causal=True)
    with pytest.raises(ValueError, match='write soft_cap before stick_breaking'):
        pj.make('stick_breaking() | soft_cap(2.0)', causal=True)
    with pytest.raises(ValueError, match="both need the exclusive door 'rescale'"):
        pj.make('stick_breaking() | attention_sink()', causal=True, heads=N)
    pj.make('soft_cap(2.0) | stick_breaking()', causal=True)
