"""ALiBi: slopes, the distance form, and what the paper leaves open without a causal mask."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.bias.alibi import alibi_bias, alibi_slopes

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / 'golden' / 'alibi.json').read_text())['values']


@pytest.mark.parametrize('heads', GOLDEN['slopes'])
def test_slopes(heads):
    np.testing.assert_allclose(alibi_slopes(int(heads)), GOLDEN['slopes'][heads], atol=5e-6)


def test_slopes_of_sixteen_heads_are_powers_of_the_root():
    np.testing.assert_allclose(alibi_slopes(16), 2.0 ** (-np.arange(1, 17) / 2), rtol=1e-15)


def test_the_last_row_of_probabilities():
    row = GOLDEN['row']
    pos = jnp.arange(row['length'])[None]
    bias = alibi_bias(jnp.array([row['slope']]), pos[:, -1:], pos)
    np.testing.assert_allclose(jax.nn.softmax(bias[0, 0, 0]), row['probabilities'], atol=1e-6)


def test_key_position_form_is_equal_under_a_causal_mask_only():
    pos = jnp.arange(9)[None]
    slopes = jnp.asarray(alibi_slopes(4), jnp.float32)
    distance_form = alibi_bias(slopes, pos, pos)[0]
    key_form = jnp.broadcast_to(slopes[:, None, None] * pos[0].astype(jnp.float32), distance_form.shape)
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


def test_errors():
    with pytest.raises(ValueError, match='at least one head, got 0'):
        alibi_slopes(0)
    with pytest.raises(ValueError, match='positive integer, got 0'):
        pj.make('alibi()', heads=0)
    with pytest.raises(ValueError, match='2 slopes .* for 4 heads'):
        pj.make('alibi(slopes=(1.0, 0.25))', heads=4)
