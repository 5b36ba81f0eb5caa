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


test_golden = golden_suite(
    'alibi',
    {
        'slopes.*': (lambda _, heads: alibi_slopes(int(heads)), {'atol': 5e-6}),
        'row.probabilities': (probabilities_of_the_last_row, {'atol': 1e-6}),
        'both_ways.bias.*': lambda _, variant: row_that_sees_both_ways(
            GOLDEN['both_ways'], variant
        ),
    },
)


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


def probabilities(variant, length=5, **sizes):
    """Weights [N, T, S] of an encoder whose queries and keys are zero and whose values are unit
    vectors.
    """
    sizes = {'heads': 4, **sizes}
    zero = jnp.zeros((1, length, sizes['heads'], length))
    v, tok = (
        jnp.broadcast_to(jnp.eye(length)[None, :, None], zero.shape),
        pj.Tokens.of(length=length),
    )
    encoding = pj.make(f'alibi(variant={variant!r})', causal=False, **sizes)
    return np.asarray(pj.attend(encoding, zero, zero, v, tok, tok))[0].swapaxes(0, 1)


def test_half_of_the_heads_look_back_and_half_ahead():
    weights = probabilities('half')
    assert (np.triu(weights[:2], 1) == 0).all() and (np.tril(weights[2:], -1) == 0).all()
    np.testing.assert_allclose(
        weights[:2], weights[2:, ::-1, ::-1], atol=1e-7
    )  # the same two slopes, mirrored


def test_offset_and_half_tell_left_from_right():
    for variant in VARIANTS:
        weights = probabilities(variant)
        mirrored = np.abs(weights - weights[:, ::-1, ::-1]).max()
        assert (mirrored < 1e-6) == (variant in ('symmetric', 'asymmetric')), (variant, mirrored)


def test_of_the_variants_a_causal_model_sees_only_the_paper():
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 7, 4, 8)) for i in range(3))
    tok = pj.Tokens.of(length=7)
    run = lambda variant: pj.attend(
        pj.make(f'alibi(variant={variant!r})', heads=4, causal=True), q, k, v, tok, tok
    )
    for variant in ('offset', 'asymmetric'):
        np.testing.assert_allclose(run(variant), run('symmetric'), atol=1e-6)


@pytest.mark.parametrize('causal', ['causal() | ', None])
def test_half_is_refused_where_later_keys_are_hidden(causal):
    with pytest.raises(
        SpecError, match='alibi has heads that look at later keys only, which causal hides'
    ):
        pj.make((causal or '') + "alibi(variant='half')", heads=4, causal=causal is None or None)
    pj.make("alibi(variant='half') | prefix(length=3)", heads=4, causal=True)


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.full
def test_variants_in_tiles(variant):
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 21, 4, 8)) for i in range(3))
    tok = pj.Tokens.of(valid=np.arange(21)[None] >= np.array([[0], [4]]))
    encoding = pj.make(f'alibi(variant={variant!r})', heads=4, causal=False)
    run = lambda **how: pj.attend(encoding, q, k, v, tok, tok, **how)
    real = np.asarray(tok.valid)
    np.testing.assert_allclose(
        run(block=(8, 5))[real], run(implementation='dense')[real], atol=1e-6
    )


@pytest.mark.full
def test_trained_slopes_start_at_those_of_the_paper_and_get_gradients():
    tok, target = pj.Tokens.of(length=9), jax.random.normal(jax.random.key(0), (1, 4, 9, 9))
    pos = tok.pos
    for spec, shape in (
        ('alibi(learn_slopes=True)', (4,)),
        ("alibi(variant='asymmetric')", (2, 4)),
    ):
        encoding = pj.make(spec, heads=4)
        np.testing.assert_allclose(
            encoding.bias(pos, pos), pj.make('alibi()', heads=4).bias(pos, pos), rtol=1e-6
        )
        (gradient,) = jax.tree.leaves(
            jax.grad(lambda e: (e.bias(pos, pos) * target).sum())(nnx.clone(encoding))
        )
        assert gradient.shape == shape and (np.asarray(gradient) != 0).all()
    left, right = pj.make("alibi(variant='asymmetric')", heads=4), 0.25
    left.log_slopes[...] = left.log_slopes[...].at[1].set(jnp.log(right))
    bias = left.bias(pos[:, 4:5], pos)[0, :, 0]
    np.testing.assert_allclose(bias[:, 5:], np.tile(-right * np.arange(1, 5), (4, 1)), rtol=1e-6)
    np.testing.assert_allclose(
        bias[:, :5], -alibi_slopes(4)[:, None] * np.arange(4, -1, -1), rtol=1e-6
    )


def test_a_bias_that_hides_keys_is_no_part_for_an_extension():
    with pytest.raises(
        SpecError,
        match='lm_infinite extends a rotary encoding or a relative bias such as .*, got alibi',
    ):
        pj.make("lm_infinite(encoding=alibi(variant='half'))", heads=4, train_len=8)


def test_errors():
    with pytest.raises(ValueError, match='at least one head, got 0'):
        alibi_slopes(0)
    with pytest.raises(ValueError, match='positive integer, got 0'):
        pj.make('alibi()', heads=0)
    with pytest.raises(ValueError, match='slopes must be a tuple of heads=4 entries, got'):
        pj.make('alibi(slopes=(1.0, 0.25))', heads=4)
    with pytest.raises(ValueError, match='even number of heads, got 3'):
        pj.make("alibi(variant='half')", heads=3)
    with pytest.raises(ValueError, match=r'slopes must be positive, got -0.25 in \(1.0, -0.25\)'):
        pj.make('alibi(slopes=(1.0, -0.25), learn_slopes=True)', heads=2)
    with pytest.raises(ValueError, match="variant='symetric' is not one of 'symmetric'"):
        pj.make("alibi(variant='symetric')", heads=2)
