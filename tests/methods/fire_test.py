"""FIRE: the progress variable against hand-made numbers, the network against its definition, limits
and the claim.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.methods.fire import fire_network, fire_progress
from tests.golden_files import golden, golden_suite
from tests.methods.pairs import attend, bias_of, qkv

GOLDEN = golden('fire')['values']
C, T = jnp.float32(GOLDEN['c']), jnp.float32(GOLDEN['threshold'])
N = 4


def make(arguments='threshold=8', seed=0):
    return pj.make(f'fire({arguments})', heads=N, rngs=nnx.Rngs(seed))


def progress(golden):
    return fire_progress(C, T, jnp.array([[golden['query']]]), jnp.array([[golden['key']]])).item()


test_golden = golden_suite('fire', {'progress.*.z': progress}, atol=1e-6)


def test_the_query_itself_is_always_at_zero():
    pos = jnp.arange(50)[None]
    assert not np.diagonal(fire_progress(C, T, pos, pos)[0]).any()
    own = np.diagonal(bias_of(make(), 50), axis1=1, axis2=2)
    np.testing.assert_allclose(own, own[:, :1] * np.ones(50), atol=1e-6)


def test_the_network_is_its_definition():
    encoding = make()
    z = jax.random.uniform(jax.random.key(0), (3, 5, 7))
    w1, w2 = encoding.w1[...], encoding.w2[...]
    expected = jnp.einsum('btsw,wn->bnts', jax.nn.relu(z[..., None] * w1[0] + w1[1]), w2)
    np.testing.assert_allclose(fire_network(z, w1, w2), expected, atol=1e-5)


def test_the_threshold_matters_for_early_queries_only():
    near, far = (bias_of(make(f'threshold={n}'), 50) for n in (8, 16))
    np.testing.assert_array_equal(near[:, 16:], far[:, 16:])
    assert np.abs(near[:, 1:16] - far[:, 1:16]).max((0, 2)).min() > 1e-4


def test_it_is_not_a_function_of_the_distance():
    bias = bias_of(make(), 50)
    assert np.abs(bias[:, 40, 39] - bias[:, 10, 9]).min() > 1e-3


@pytest.mark.full
def test_zero_output_weights_are_nope():
    encoding = make()
    encoding.w2[...] = jnp.zeros_like(encoding.w2[...])
    found = attend(pj.chain(encoding, pj.make('causal()')), *qkv(20))
    np.testing.assert_array_equal(found, attend(pj.make('nope()', causal=True), *qkv(20)))


def test_signs_of_the_trained_scalars_do_not_matter():
    encoding, other = make(), make()
    other.c[...], other.mult[...] = -other.c[...], -other.mult[...]
    np.testing.assert_array_equal(bias_of(encoding), bias_of(other))


def test_longer_inputs_stay_inside_what_training_saw():
    """The paper's claim: whatever the length, the progress lies in [0, 1] and the first key of a
    late query is near 1.
    """
    for last in (100, 10_000, 1_000_000):
        keys = jnp.linspace(0, last, 101).astype(int)[None]
        z = np.asarray(fire_progress(C, T, jnp.array([[last]]), keys))[0, 0]
        assert z.min() == 0 and (np.diff(z) < 0).all() and 1 - 1e-5 < z[0] <= 1


@pytest.mark.full
def test_tiles_of_positions_shared_by_the_batch_are_computed_once():
    encoding = make()
    shared, own = jnp.arange(9)[None], jnp.tile(jnp.arange(9), (3, 1))
    assert encoding.bias(shared, shared).shape == (1, N, 9, 9)
    np.testing.assert_allclose(
        encoding.bias(own, own), jnp.tile(encoding.bias(shared, shared), (3, 1, 1, 1)), atol=1e-6
    )


def test_initial_ranges_are_those_of_a_default_linear_layer():
    encoding = pj.make('fire(width=1000)', heads=50)
    for row in encoding.w1[...]:
        assert 0.99 < np.abs(row).max() <= 1
    bound = 1000**-0.5
    assert 0.99 * bound < np.abs(encoding.w2[...]).max() <= bound
    assert encoding.c[...] == np.float32(0.1) and encoding.mult[...] == 1
