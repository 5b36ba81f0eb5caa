"""The causal PEG: numbers of another library, its state, what it tells a model, and decay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.lab.model.parameters import decays
from posenc_jax.mixers.peg_causal import PegCausal
from tests.golden_files import golden
from tests.mixers.small import model_of

GOLDEN = golden('peg_causal')


def layer_of_golden():
    layer = PegCausal(kernel=3, model_dim=2, rngs=nnx.Rngs(0))
    layer.kernel[...], layer.bias[...] = jnp.array(GOLDEN['kernel']), jnp.array(GOLDEN['bias'])
    return layer


def test_the_convolution_is_that_of_another_library():
    x = jnp.array(GOLDEN['x'])[None]
    y, state = layer_of_golden().fill(x, pj.Tokens.of(length=5), 5)
    np.testing.assert_allclose(y[0], GOLDEN['y'], atol=1e-5)
    np.testing.assert_array_equal(state.inner[0], x[0, -2:])


def test_padding_is_skipped_and_documents_start_anew():
    """Padding between tokens is not one of the k tokens, and the state holds real rows alone."""
    layer, x = layer_of_golden(), jnp.array(GOLDEN['x'])[None]
    rows = jnp.zeros((1, 8, 2)).at[:, jnp.array([1, 2, 4, 5, 6])].set(x) + 9.0 * jnp.array(
        [1, 0, 0, 1, 0, 0, 0, 1]
    ).reshape(1, 8, 1)
    valid = np.array([[0, 1, 1, 0, 1, 1, 1, 0]], bool)
    y, state = layer.fill(rows, pj.Tokens.of(valid=valid), 8)
    np.testing.assert_allclose(y[valid], GOLDEN['y'], atol=1e-5)
    np.testing.assert_array_equal(state.inner[0], x[0, -2:])
    twice = jnp.concatenate([x, x[:, :1]], axis=1)
    y, state = layer.fill(twice, pj.Tokens.of(segment=[[0] * 5 + [1]]), 6)
    np.testing.assert_allclose(y[0, 5], GOLDEN['y'][0], atol=1e-5)
    np.testing.assert_allclose(state.inner[0], [[0, 0], GOLDEN['x'][0]])


@pytest.mark.full
def test_it_tells_a_model_without_positions_the_order():
    """The first tokens in another order change the last logits only with it in the pattern."""
    ids = jnp.array([[1, 2, 3, 4, 5, 6]])
    moved = ids[:, jnp.array([2, 0, 1, 3, 4, 5])]
    gap = lambda model: float(np.abs(model(ids)[:, -1] - model(moved)[:, -1]).max())
    assert gap(model_of('peg_causal(kernel=3)', 'nope()')) > 1e-3
    assert gap(model_of('peg_causal(kernel=1)', 'nope()')) < 1e-5


def test_weight_decay_leaves_it_alone():
    model = model_of('peg_causal()', 'nope()')
    rules = nnx.traversals.flatten_mapping(decays(model))
    own = {path: rule for path, rule in rules.items() if 'own_mixer' in path}
    assert len(own) == 2 and not any(own.values()) and any(rules.values())


def test_one_token_has_no_state():
    layer = PegCausal(kernel=1, model_dim=3, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 4, 3))
    y, state = layer.fill(x, pj.Tokens.of(length=4), 4)
    np.testing.assert_allclose(y, x * layer.kernel[...][0], atol=1e-6)
    assert state.inner.shape == (2, 0, 3)
