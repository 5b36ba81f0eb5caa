"""Contract tests of encoders of coordinates: they run on the example of every Card of this kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posenc_jax.coordinates import CoordinateEncoder, make_features
from posenc_jax.core.encoding import Constant
from posenc_jax.core.registry import entries
from posenc_jax.core.spec import parse

every_encoder = pytest.mark.parametrize(
    'entry', entries('coordinates'), ids=lambda entry: entry.key
)


def points(encoder, *shape):
    return jax.random.uniform(jax.random.key(1), (*shape, encoder.components), minval=0.01)


@every_encoder
def test_features_have_the_width_and_do_not_depend_on_other_points(entry):
    encoder = make_features(entry.card.example, nnx.Rngs(0))
    assert isinstance(encoder, CoordinateEncoder)
    coords = points(encoder, 2, 5)
    out = encoder.encode(coords)
    assert (out.shape, out.dtype) == ((2, 5, encoder.width), jnp.float32)
    np.testing.assert_array_equal(encoder.encode(coords), out)
    mapped = jax.jit(jax.vmap(jax.vmap(encoder.encode)))(coords)
    np.testing.assert_allclose(mapped, out, atol=2e-6)
    assert np.abs(out[0, 0] - out[0, 1]).max() > 1e-3
    with pytest.raises(ValueError, match=rf'encodes points \[..., {encoder.components}\], got'):
        encoder.encode(jnp.zeros((5, encoder.components + 1)))


@every_encoder
@pytest.mark.parametrize('place', [0.0, 1.0])
def test_gradients_are_finite_at_the_ends(entry, place):
    encoder = make_features(entry.card.example, nnx.Rngs(0))
    slope = jax.jacobian(encoder.encode)(jnp.full(encoder.components, place))
    assert np.isfinite(slope).all() and np.abs(slope).max() > 0


@every_encoder
def test_variables_declare_roles(entry):
    encoder = make_features(entry.card.example, nnx.Rngs(0))
    variables = jax.tree.leaves(
        nnx.state(encoder), is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)
    )
    for variable in variables:
        assert isinstance(variable, (nnx.Param, Constant))
        assert len(variable.get_metadata()['axes']) == variable.get_value().ndim
    trained = jax.tree.leaves(nnx.state(encoder, nnx.Param))
    assert bool(trained) == entry.card.promises.needs_training


@every_encoder
def test_the_example_round_trips(entry):
    parsed = parse(entry.card.example, ('coordinates',))
    assert parse(str(parsed), ('coordinates',)) == parsed
    first, second = (make_features(entry.card.example, nnx.Rngs(3)) for _ in range(2))
    coords = points(first, 3)
    np.testing.assert_array_equal(first.encode(coords), second.encode(coords))
