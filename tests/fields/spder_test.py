"""SPDER: values and derivatives of its activation, and symmetries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posenc_jax.fields import make_field
from posenc_jax.fields.siren import siren
from posenc_jax.fields.spder import root_sine, spder_activation
from tests.golden_files import golden

GOLDEN = golden('spder')['values']
Z = jnp.array(GOLDEN['z'])


@pytest.mark.parametrize('damping, sign', [('sqrt', -1), ('arctan', 1), ('log', -1)])
def test_values_and_symmetry(damping, sign):
    found = spder_activation(Z, damping)
    np.testing.assert_allclose(found, GOLDEN[damping], atol=6e-6)
    np.testing.assert_array_equal(spder_activation(-Z, damping), sign * found)


def test_the_derivative_is_safe_at_zero():
    slope = jax.jit(jax.vmap(jax.grad(root_sine)))
    case = GOLDEN['slope']
    np.testing.assert_allclose(slope(jnp.array(case['z'])), case['values'], atol=6e-6)
    tiny = slope(jnp.array([0.0, 1e-45, -1e-38, 1e-12]))
    assert np.isfinite(tiny).all() and tiny[0] == 0
    z = jnp.linspace(-3.0, 3.0, 50)
    naive = jax.vmap(jax.grad(lambda z: jnp.sin(z) * jnp.sqrt(jnp.abs(z))))(z)
    np.testing.assert_allclose(slope(z), naive, atol=1e-5)


def test_without_damping_it_is_siren():
    x = jax.random.uniform(jax.random.key(0), (5, 2), minval=-1.0)
    network = make_field("spder(width=8, layers=2, damping='one')", features=2, outputs=1)
    layers = [layer.weights for layer in network.layers]
    np.testing.assert_allclose(network(x, x), siren(x, layers), atol=1e-5)


def test_the_factor_multiplies_sine_and_root():
    x = jax.random.uniform(jax.random.key(0), (5, 2), minval=-1.0)
    network = make_field('spder(width=8, layers=1)', features=2, outputs=1)
    (w, b), (v, c) = ([np.asarray(a) for a in layer.weights] for layer in network.layers)
    z = 30 * (x @ w + b)
    by_hand = (np.sin(z) * np.sqrt(np.abs(z))) @ v + c
    np.testing.assert_allclose(network(x, x), by_hand, atol=1e-5)
