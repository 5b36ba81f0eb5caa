"""BAM: the prior by hand, its limits ALiBi and NoPE, the sign of its place, and what is shared with
which layers.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.lab.model.parameters import decays
from posenc_jax.methods.alibi import alibi_bias, alibi_slopes
from posenc_jax.methods.bam import bam_prior
from tests.golden_files import golden
from tests.methods.models import model_of
from tests.methods.pairs import bias_of

GOLDEN = golden('bam')['values']
N = 4


def make(arguments=''):
    return pj.make(f'bam({arguments})', heads=N)


def test_the_prior_by_hand():
    case = GOLDEN['square']
    encoding = make(f'beta=2.0, scale={(case["slope"],) * N}')
    bias = bias_of(encoding)[0, -1, ::-1]
    # The tolerance is that of the 1e-5 inside the power.
    np.testing.assert_allclose(bias[case['distance']], case['prior'], atol=5e-5)


def test_the_initial_prior_is_alibi_less_the_epsilon():
    slopes, pos = alibi_slopes(N), jnp.arange(30)[None]
    expected = (
        np.asarray(alibi_bias(jnp.asarray(slopes), pos, pos)[0]) - 1e-5 * slopes[:, None, None]
    )
    np.testing.assert_allclose(bias_of(make()), expected, atol=1e-6)


def test_an_exponent_of_zero_is_nope():
    bias = bias_of(make('beta=0.0'))
    np.testing.assert_array_equal(bias[:, 0, 0], -np.exp(np.asarray(make().logscale[...])))
    assert (np.ptp(bias, axis=(1, 2)) == 0).all()


@pytest.mark.parametrize('number', range(3))
def test_the_place_of_the_peak_and_its_sign(number):
    loc, mu, peak = (GOLDEN[name][number] for name in ('loc', 'mu', 'peak'))
    encoding = make(f'loc={loc}')
    row = bias_of(encoding)[0, 15]
    assert row.argmax() == 15 + peak  # key minus query: 1 lies in the future
    expected = -0.25 * (np.abs(np.arange(30) - 15 - mu) + 1e-5)
    np.testing.assert_allclose(row, expected, atol=1e-6)


def test_a_negative_exponent_turns_a_head_away_from_the_query():
    bias = bias_of(make(f'beta={GOLDEN["beta"]}, scale={(1.0,) * N}'))[0, 15]
    assert bias[15] == pytest.approx(-GOLDEN['at_the_query'], rel=1e-5) and bias.argmin() == 15
    assert (np.diff(bias[15:]) > 0).all()  # and is drawn to what is far


@pytest.mark.parametrize('beta', [-0.4, 0.0, 0.3, 1.0, 2.0])
@pytest.mark.parametrize('loc', [0.0, 0.5, -1.5])
@pytest.mark.full
def test_gradients_are_finite_also_at_distance_zero(beta, loc):
    pos = jnp.arange(9)[None]
    encoding = make(f'beta={beta}, loc={loc}')
    target = jax.random.normal(jax.random.key(0), (1, N, 9, 9))
    gradient = jax.grad(lambda e: (e.bias(pos, pos) * target).sum())(encoding)
    for name in ('beta', 'logscale', 'loc'):
        assert np.isfinite(getattr(gradient, name)[...]).all(), name
    alone = jax.grad(lambda *p: bam_prior(*p, pos[:, :1], pos[:, :1]).sum(), (0, 1, 2))
    values = tuple(jnp.full(N, x, jnp.float32) for x in (beta, 0.0, 0.0))
    assert all(np.isfinite(g).all() for g in alone(*values))


def test_one_prior_for_all_layers_and_a_gain_in_each():
    model = model_of('bam() | ssmax()', layers=3)
    (prior,) = [part for part in model.shared if part.card.key == 'bam']
    assert prior.beta.shape == (2,)
    assert [part.card.key for part in model.blocks[0].encodings] == ['ssmax']
    assert model.blocks[0].encodings[0].gain.shape == (3, 2)
    encodings = decays(model)
    kept = jax.tree.leaves([encodings['shared'], encodings['blocks'][0]['encodings']])
    assert len(kept) == 4 and not any(kept)  # no weight decay on any of them


def test_fixed_parameters_are_not_trained():
    state = nnx.state(make('fixed=("loc", "beta")'), nnx.Param)
    assert {path[-1] for path, _ in nnx.to_flat_state(state)} == {'logscale'}


def test_far_distances_keep_a_shape_that_alibi_loses():
    """The claim behind its reach: with beta < 1 what lies 500 times farther off is weighed, where
    ALiBi underflows.
    """
    pos, key = jnp.array([[128_000]]), jnp.array([[0]])
    prior = make('beta=0.2').bias(pos, key)[0, 0, 0, 0]
    assert np.exp(prior) > 0.05 and np.exp(make().bias(pos, key)[0, 0, 0, 0]) == 0.0
