"""ALiBi: slopes, the distance form, and what the paper leaves open without a causal mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.methods.alibi import VARIANTS, alibi_bias, alibi_slopes
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden, golden_suite
from tests.methods.pairs import attend, qkv
from tests.refusals import refused

GOLDEN = golden('alibi')['values']


def row_that_sees_both_ways(case, variant):
    encoding = pj.make(f'alibi(variant={variant!r})', heads=case['heads'])
    pos, tok = jnp.arange(case['length'])[None], pj.Tokens.of(length=case['length'])
    bias = encoding.bias(pos[:, case['query'] : case['query'] + 1], pos)[0, :, 0]
    seen = encoding.mask(tok.slice(case['query'], 1), tok)
    return bias if seen is None else jnp.where(seen[0, :, 0], bias, -jnp.inf)


def probabilities_of_the_last_row(row):
    pos = jnp.arange(row['length'])[None]
    bias = alibi_bias(jnp.array([row['slope']]), pos[:, -1:], pos)
    return jax.nn.softmax(bias[0, 0, 0])


test_golden = golden_suite('alibi') | {
    'slopes.*': (lambda _, heads: alibi_slopes(int(heads)), {'atol': 5e-6}),
    'row.probabilities': (probabilities_of_the_last_row, {'atol': 1e-6}),
    'both_ways.bias.*': lambda _, variant: row_that_sees_both_ways(GOLDEN['both_ways'], variant),
}


def test_slopes_of_sixteen_heads_are_powers_of_the_root():
    np.testing.assert_allclose(alibi_slopes(16), 2.0 ** (-np.arange(1, 17) / 2), rtol=1e-15)


def test_key_position_form_is_equal_under_a_causal_mask_only():
    pos = jnp.arange(9)[None]
    slopes = jnp.asarray(alibi_slopes(4), jnp.float32)
    distance_form = alibi_bias(slopes, pos, pos)[0]
    key_form = jnp.broadcast_to(
        slopes[:, None, None] * pos[0].astype(jnp.float32), distance_form.shape
    )
    causal = jnp.tril(jnp.ones((9, 9), bool))
    softmax = lambda s: jax.nn.softmax(jnp.where(causal, s, -jnp.inf))
    np.testing.assert_allclose(softmax(distance_form), softmax(key_form), atol=1e-6)
    assert np.abs(jax.nn.softmax(distance_form) - jax.nn.softmax(key_form)).max() > 0.05


def test_far_positions_keep_their_distance():
    bias = alibi_bias(jnp.array([0.5]), jnp.array([[2**30 + 3]]), jnp.array([[2**30, 2**30 + 3]]))
    assert bias.tolist() == [[[[-1.5, 0.0]]]]


def test_slopes_by_hand():
    given = pj.make('alibi(slopes=(1.0, 0.25))', heads=2)
    np.testing.assert_array_equal(given.slopes[...], [1.0, 0.25])


def probabilities(variant, length=5):
    """Weights [N, T, S] of an encoder whose queries and keys are zero and whose values are unit
    vectors.
    """
    zero = jnp.zeros((1, length, 4, length))
    v = jnp.broadcast_to(jnp.eye(length)[None, :, None], zero.shape)
    encoding = pj.make(f'alibi(variant={variant!r})', causal=False, heads=4)
    return np.asarray(attend(encoding, zero, zero, v))[0].swapaxes(0, 1)


def test_half_of_the_heads_look_back_and_half_ahead():
    weights = probabilities('half')
    assert (np.triu(weights[:2], 1) == 0).all() and (np.tril(weights[2:], -1) == 0).all()
    # The same two slopes, mirrored.
    np.testing.assert_allclose(weights[:2], weights[2:, ::-1, ::-1], atol=1e-7)


def test_offset_and_half_tell_left_from_right():
    for variant in VARIANTS:
        weights = probabilities(variant)
        mirrored = np.abs(weights - weights[:, ::-1, ::-1]).max()
        assert (mirrored < 1e-6) == (variant in ('symmetric', 'asymmetric')), (variant, mirrored)


def test_half_is_refused_where_later_keys_are_hidden():
    with pytest.raises(SpecError, match='later keys only, which causal hides'):
        pj.make("causal() | alibi(variant='half')", heads=4)
    pj.make("alibi(variant='half') | prefix(length=3)", heads=4, causal=True)


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.full
def test_variants_in_tiles(variant):
    real = np.arange(21)[None] >= np.array([[0], [4]])
    tok = pj.Tokens.of(valid=real)
    encoding = pj.make(f'alibi(variant={variant!r})', heads=4, causal=False)
    run = lambda **how: attend(encoding, *qkv(21, rows=2), tok, **how)[real]
    np.testing.assert_allclose(run(block=(8, 5)), run(implementation='dense'), atol=1e-6)


@pytest.mark.full
def test_trained_slopes_start_at_those_of_the_paper_and_get_gradients():
    target, pos = jax.random.normal(jax.random.key(0), (1, 4, 9, 9)), jnp.arange(9)[None]
    plain = pj.make('alibi()', heads=4)
    for spec, shape in (
        ('alibi(learn_slopes=True)', (4,)),
        ("alibi(variant='asymmetric')", (2, 4)),
    ):
        encoding = pj.make(spec, heads=4)
        np.testing.assert_allclose(encoding.bias(pos, pos), plain.bias(pos, pos), rtol=1e-6)
        loss = lambda e: (e.bias(pos, pos) * target).sum()
        (gradient,) = jax.tree.leaves(jax.grad(loss)(nnx.clone(encoding)))
        assert gradient.shape == shape and (np.asarray(gradient) != 0).all()
    left, right = pj.make("alibi(variant='asymmetric')", heads=4), 0.25
    left.log_slopes[...] = left.log_slopes[...].at[1].set(jnp.log(right))
    bias, distance = left.bias(pos[:, 4:5], pos)[0, :, 0], np.abs(np.arange(9) - 4)
    np.testing.assert_allclose(bias[:, 5:], np.tile(-right * distance[5:], (4, 1)), rtol=1e-6)
    np.testing.assert_allclose(bias[:, :5], -alibi_slopes(4)[:, None] * distance[:5], rtol=1e-6)


test_wrong_calls = refused() | {
    'at least one head, got 0': lambda: alibi_slopes(0),
    'positive integer, got 0': lambda: pj.make('alibi()', heads=0),
}
