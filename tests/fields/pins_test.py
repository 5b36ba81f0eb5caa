"""PINs: outputs of levels against NumPy, levels that do not depend on later ones, the schedule, and
the spectrum of a coarse level.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from posenc_jax.fields import make_field
from posenc_jax.fields.pins import bands
from tests.golden_files import golden

GOLDEN = golden('pins')['values']


def make(arguments, **sizes):
    return make_field(f'pins({arguments})', **{**dict(features=2, outputs=1), **sizes})


def test_levels():
    network = make('width=3, levels=2, bands=1')
    for stage, head, layers, last in zip(
        network.stages, network.heads, GOLDEN['stages'], GOLDEN['heads']
    ):
        for layer, (weight, bias) in zip([*stage, head], [*layers, last], strict=True):
            layer.weight[...], layer.bias[...] = jnp.array(weight), jnp.array(bias)
    x = jnp.array(GOLDEN['x'])
    found = jnp.moveaxis(network.levels(x), -2, 0)
    np.testing.assert_allclose(found, GOLDEN['levels'], atol=1e-5)
    np.testing.assert_allclose(network(None, x), GOLDEN['levels'][-1], atol=1e-5)


def test_a_level_does_not_depend_on_later_ones():
    network, x = make('width=8, levels=3'), jax.random.uniform(jax.random.key(0), (6, 2))
    # Heads of later levels are zero at first, so that a new level changes nothing.
    np.testing.assert_array_equal(network.levels(x)[:, 2], network.levels(x)[:, 0])
    for head in network.heads:
        head.weight[...] = jnp.ones_like(head.weight[...])
    before = network.levels(x)
    np.testing.assert_array_equal(network.levels(x, last=1), before[:, :2])
    network.stages[2][0].weight[...] += 1.0
    after = network.levels(x)
    np.testing.assert_array_equal(after[:, :2], before[:, :2])
    assert np.abs(after[:, 2] - before[:, 2]).max() > 0.1


def test_levels_become_active_one_after_the_other():
    network = make('width=8, levels=2, progressive=True')
    network.heads[1].weight[...] = jnp.ones_like(network.heads[1].weight[...])
    x = jax.random.uniform(jax.random.key(0), (6, 2))
    levels = network.levels(x)
    for progress, level in ((0.0, 0), (0.49, 0), (0.5, 1), (1.0, 1), (None, 1)):
        np.testing.assert_allclose(network(None, x, progress=progress), levels[:, level], atol=1e-6)
    slopes = nnx.grad(lambda network: network(None, x, progress=0.25).sum())(network)
    assert not np.any(slopes['heads'][1]['weight'][...])
    assert np.any(slopes['heads'][0]['weight'][...])


def test_random_frequencies_are_sorted_and_kept_apart():
    network = make("width=8, levels=3, bands=2, encoding='rff', sigma=3.0")
    found = network.frequencies[...]
    assert found.shape == (2, 12) and (np.diff(np.linalg.norm(found, axis=0)) >= 0).all()
    x = jnp.array([[0.3, -0.2]])
    np.testing.assert_allclose(
        bands(x, found, 4, 4)[0, :4], np.sin(2 * np.pi * x[0] @ found[:, 4:8]), atol=1e-5
    )
    assert len(jax.tree.leaves(nnx.state(network, nnx.Param))) == 18


@pytest.mark.full
def test_the_first_level_holds_lower_frequencies():
    """A ramp with a high wave on one side: y_0 has less of its power beyond its band's edge."""
    x = jnp.linspace(-1, 1, 256, endpoint=False)[:, None]
    target = x + jnp.where(x > 0, jnp.sin(16 * jnp.pi * x), 0.0)
    network = make('width=32, levels=4, bands=1', features=1)
    graphdef, params, rest = nnx.split(network, nnx.Param, ...)
    loss = lambda p: jnp.mean((nnx.merge(graphdef, p, rest)(None, x) - target) ** 2)
    optimizer = optax.adam(3e-3)

    def step(carry, _):
        updates, state = optimizer.update(jax.grad(loss)(carry[0]), carry[1])
        return (optax.apply_updates(carry[0], updates), state), None

    start = (params, optimizer.init(params))
    (params, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, length=800))(start)
    assert loss(params) < 0.05
    levels = nnx.merge(graphdef, params, rest).levels(x)[..., 0]
    power = np.abs(np.fft.rfft(levels * np.hanning(256)[:, None], axis=0)) ** 2
    high = power[5:].sum(0) / power[1:].sum(0)
    assert high[0] < 0.5 * high[-1]
