"""Contract tests of fields: they run on the example of every Card of this kind."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from posenc_jax.fields import FieldNetwork, make_field
from posenc_jax.lab.files.disk import save_arrays
from posenc_jax.language.spec import parse
from posenc_jax.protocol.encoding import Constant
from posenc_jax.protocol.registry import entries

ENTRIES = entries('field')
RATES = dict(siren=1e-3, spder=1e-3, bit_plane_inr=1e-3, linear=0.1, doh=0.03)
every_field = pytest.mark.parametrize('entry', ENTRIES, ids=lambda entry: entry.key)


def components(entry):
    return 3 if entry.key == 'bit_plane_inr' else 2  # its last one is the bit


def made(entry, outputs=1):
    return make_field(
        entry.card.example, features=components(entry), outputs=outputs, rngs=nnx.Rngs(0)
    )


def read(network, coords, **further):
    return network(coords if network.takes_features else None, coords, **further)


def image(entry):
    """The pixels of a 16 x 16 picture as points, and a wave with an edge as their values."""
    axis = (np.arange(16) + 0.5) / 8 - 1
    rows, columns = np.meshgrid(axis, axis, indexing='ij')
    values = np.sin(3 * rows + columns) + (columns > 0.25)
    points = np.stack([rows, columns, *[0 * rows] * (components(entry) - 2)], axis=-1)
    return (
        jnp.asarray(points.reshape(256, -1), jnp.float32),
        jnp.asarray(values.reshape(256, 1) / 2, jnp.float32),
    )


@pytest.mark.full_where(condition=lambda entry: entry.key not in ('siren', 'pins'))
@every_field
def test_values_have_the_width_and_do_not_depend_on_other_points(entry):
    network = made(entry, outputs=3)
    assert isinstance(network, FieldNetwork)
    coords = image(entry)[0][:24].reshape(2, 12, -1)
    out = read(network, coords)
    assert (out.shape, out.dtype) == ((2, 12, 3), jnp.float32)
    np.testing.assert_allclose(read(network, coords[1, 3:4])[0], out[1, 3], atol=1e-5)
    graphdef, state = nnx.split(network)
    compiled = jax.jit(lambda state, x: read(nnx.merge(graphdef, state), x))(state, coords)
    np.testing.assert_allclose(compiled, out, atol=1e-5)
    np.testing.assert_array_equal(read(made(entry, outputs=3), coords), out)
    assert read(network, coords[:, :0]).shape == (2, 0, 3)


@pytest.mark.full_but_one
@every_field
def test_the_loss_falls_on_a_picture(entry):
    """The loss of 50 steps ends below that of the best constant, and far below where it began."""
    network, (coords, targets) = made(entry), image(entry)
    graphdef, params, rest = nnx.split(network, nnx.Param, ...)
    optimizer = optax.adam(RATES.get(entry.key, 1e-2))

    def loss(params):
        return jnp.mean((read(nnx.merge(graphdef, params, rest), coords) - targets) ** 2)

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, optimizer.init(params)), length=50)[1]

    losses = train(params)
    assert losses[-1] < (0.75 if entry.key == 'doh' else 0.5) * losses[0]
    assert losses[-1] < 0.9 * jnp.var(targets)


@every_field
def test_gradients_are_finite_at_the_origin(entry):
    network = made(entry)
    graphdef, params, rest = nnx.split(network, nnx.Param, ...)
    origin = jnp.zeros((1, components(entry)))
    value = lambda params, x: read(nnx.merge(graphdef, params, rest), x).sum()
    for_params, slope = jax.jit(jax.grad(value, argnums=(0, 1)))(params, origin)
    assert np.isfinite(slope).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(for_params))
    assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(for_params))


@every_field
def test_variables_declare_roles(entry):
    state = nnx.state(made(entry))
    for variable in jax.tree.leaves(state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)):
        assert isinstance(variable, (nnx.Param, Constant))
        assert len(variable.get_metadata()['axes']) == variable.get_value().ndim
    assert jax.tree.leaves(nnx.state(made(entry), nnx.Param))


@pytest.mark.full_where(condition=lambda entry: entry.key not in ('siren', 'linear'))
@every_field
def test_a_checkpoint_round_trips(entry, tmp_path):
    """What the variables hold decides the values, whatever a network was drawn with."""
    network, coords = made(entry), image(entry)[0][:3]
    kept = jax.tree.leaves(nnx.split(network)[1])
    save_arrays(tmp_path / 'kept.npz', **{str(n): leaf for n, leaf in enumerate(kept)})
    other = make_field(entry.card.example, features=components(entry), outputs=1, rngs=nnx.Rngs(7))
    graphdef, state = nnx.split(other)
    assert np.abs(read(other, coords) - read(network, coords)).max() > 1e-4
    with np.load(tmp_path / 'kept.npz') as found:
        leaves = [jnp.asarray(found[str(n)]) for n in range(len(kept))]
    again = nnx.merge(graphdef, jax.tree.unflatten(jax.tree.structure(state), leaves))
    np.testing.assert_array_equal(read(again, coords), read(network, coords))


@every_field
def test_the_example_round_trips(entry):
    parsed = parse(entry.card.example, ('field',))
    assert parse(str(parsed), ('field',)) == parsed


@every_field
def test_what_a_network_does_not_read_is_refused(entry):
    network, coords = made(entry), jnp.zeros((4, components(entry)))
    takes = network.takes_features
    wrong = functools.partial(network, None if takes else coords, coords)
    with pytest.raises(ValueError, match='reads features' if takes else 'takes no features'):
        wrong()
    with pytest.raises(ValueError, match=f'was made for {components(entry)}'):
        read(network, jnp.zeros((4, components(entry) + 1)))
    with pytest.raises(ValueError, match=r'must be finite, got nan at \[2, 1\] of points'):
        read(network, coords.at[2, 1].set(jnp.nan))
