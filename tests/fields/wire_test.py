"""WIRE: activations and networks against NumPy in complex numbers, units, limits, and real
parameters.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posenc_jax.fields import make_field
from posenc_jax.fields.gauss import gauss_activation
from posenc_jax.fields.wire import wire, wire_activation
from tests.golden_files import golden_suite


def activation(case):
    return wire_activation(jnp.array(case['z']), case['omega'], case['scale'])


def units(form):
    def made(case):
        spec = f"wire(width={case['width']}, layers=1, form='{form}')"
        return make_field(spec, features=2, outputs=1).layers[0].weight.shape[1]

    return made


test_golden = golden_suite(
    'wire',
    {
        'real': (lambda case: activation(case).real, {'atol': 1e-6}),
        'imaginary': (lambda case: activation(case).imag, {'atol': 1e-6}),
        'units': units('wire'),
        'units2d': units('wire2d'),
    },
)


def number(layer):
    """W and b of a layer in complex128."""
    if not hasattr(layer, 'imaginary'):
        return [np.asarray(part, np.complex128) for part in layer.weights]
    pairs = zip(layer.real.weights, layer.imaginary.weights)
    return [np.asarray(a, np.float64) + 1j * np.asarray(b, np.float64) for a, b in pairs]


def by_numpy(network, x, omega, scale):
    h = np.asarray(x, np.float64)
    for place, layer in enumerate(list(network.layers)[:-1]):
        w, b = number(layer)
        z = h @ w + b
        size = np.abs(z) ** 2
        if network.others:
            w, b = number(network.others[place])
            size = size + np.abs(h @ w + b) ** 2
        h = np.exp(1j * omega * z - scale**2 * size)
    w, b = number(network.layers[-1])
    return (h @ w + b).real


@pytest.mark.parametrize('form', ['wire', 'wire2d'])
def test_networks(form):
    spec = f"wire(width=12, layers=3, omega=5.0, scale=2.0, form='{form}')"
    network = make_field(spec, features=2, outputs=2, rngs=nnx.Rngs(1))
    x = jax.random.uniform(jax.random.key(0), (5, 2), minval=-1.0)
    found = network(x, x)
    np.testing.assert_allclose(found, by_numpy(network, x, 5.0, 2.0), atol=1e-5)
    assert len(network.others) == (3 if form == 'wire2d' else 0)


def test_parameters_are_real_and_about_as_many_as_those_of_real_units():
    network = make_field('wire(width=256, layers=3)', features=2, outputs=1)
    leaves = jax.tree.leaves(nnx.state(network, nnx.Param))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype('float32')}
    real = make_field('siren(width=256, layers=3)', features=2, outputs=1)
    count = lambda network: sum(p.size for p in jax.tree.leaves(nnx.state(network, nnx.Param)))
    assert 0.95 < count(network) / count(real) < 1.05


def test_gradients_are_those_of_real_and_imaginary_parts():
    """Against differences in float64: no part has the sign of a conjugate."""
    network = make_field('wire(width=4, layers=2, omega=3.0, scale=1.0)', features=2, outputs=1)
    x = jnp.array([[0.3, -0.6]])
    slopes = nnx.grad(lambda network: network(x, x).sum())(network)
    for part in ('real', 'imaginary'):
        layer, step = getattr(network.layers[1], part), 1e-3
        values = []
        kept = layer.bias[...]
        for sign in (1, -1):
            layer.bias[...] = kept.at[0].add(sign * step)
            values.append(by_numpy(network, x, 3.0, 1.0).item())
        layer.bias[...] = kept
        slope = slopes['layers'][1][part]['bias'][...][0]
        np.testing.assert_allclose(slope, (values[0] - values[1]) / (2 * step), rtol=1e-3)


def test_without_a_window_it_is_a_wave_and_without_a_frequency_a_gaussian():
    z = jnp.linspace(-0.3, 0.3, 7)
    wave = wire_activation(z, 20.0, 0.0)
    np.testing.assert_allclose(wave.real, np.cos(20 * np.asarray(z)), atol=1e-6)
    np.testing.assert_allclose(wave.imag, np.sin(20 * np.asarray(z)), atol=1e-6)
    still = wire_activation(jax.lax.complex(z, 2 * z), 0.0, 3.0)
    np.testing.assert_allclose(still.imag, 0, atol=1e-7)
    np.testing.assert_allclose(still.real, gauss_activation(jnp.sqrt(5.0) * z, 3.0), rtol=1e-5)
    other = wire_activation(z, 20.0, 3.0, jnp.full(7, 0.5))
    np.testing.assert_allclose(other, wire_activation(z, 20.0, 3.0) * np.exp(-9 / 4), atol=1e-6)


def test_networks_of_waves_alone_and_of_gaussians_alone():
    x = jax.random.uniform(jax.random.key(0), (5, 2), minval=-1.0)
    for spec, omega, scale in (
        ('wire(width=12, layers=1, scale=0.0)', 30.0, 0.0),
        ('wire(width=12, layers=3, omega=0.0, scale=2.0)', 0.0, 2.0),
    ):
        network = make_field(spec, features=2, outputs=2, rngs=nnx.Rngs(1))
        np.testing.assert_allclose(network(x, x), by_numpy(network, x, omega, scale), atol=1e-5)


def test_the_peak_of_a_complex_argument():
    omega, scale = 30.0, 10.0
    z = jax.lax.complex(jnp.zeros(2001), jnp.linspace(-0.5, 0.5, 2001))
    found = np.abs(wire_activation(z, omega, scale))
    np.testing.assert_allclose(found.max(), np.exp(omega**2 / (4 * scale**2)), rtol=1e-4)
    np.testing.assert_allclose(z.imag[found.argmax()], -omega / (2 * scale**2), atol=1e-6)


def test_one_layer_by_hand():
    one, half = (jnp.eye(1), jnp.zeros(1)), jnp.array([[0.5 + 0.25j]])
    found = wire(jnp.array([[0.1]]), [one, (half, jnp.array([1j]))], 20.0, 10.0)
    expected = (np.exp(2j - 1) * (0.5 + 0.25j) + 1j).real
    np.testing.assert_allclose(found, [[expected]], rtol=1e-5)
