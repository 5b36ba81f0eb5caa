"""Contract tests of encoders of coordinates: they run on the example of every Card of this kind."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posenc_jax.features.coordinates import CoordinateEncoder, make_features
from posenc_jax.features.coordinates.geo import GeoEncoder
from posenc_jax.language.spec import parse
from posenc_jax.protocol.encoding import Constant
from posenc_jax.protocol.registry import entries

ENTRIES = entries('coordinates')
every_encoder = pytest.mark.parametrize('entry', ENTRIES, ids=lambda entry: entry.key)
# Of each form of computation one; the points of the contract that follow from the form are in the
# fast tier for them alone.
REPRESENTATIVES = ('fourier_features', 'geo_sh', 'geo_theory', 'mspe')
representatives_fast = pytest.mark.full_where(
    condition=lambda entry: entry.key not in REPRESENTATIVES
)
every_geo_encoder = pytest.mark.parametrize(
    'entry', [e for e in ENTRIES if issubclass(e.build, GeoEncoder)], ids=lambda entry: entry.key
)


@functools.cache
def made(entry):
    return make_features(entry.card.example, nnx.Rngs(0))


def points(encoder):
    """Points [2, 5, d] of [0, 1], or of the whole globe. Every test uses this shape, so that its
    operations are compiled once.
    """
    coords = jax.random.uniform(jax.random.key(1), (2, 5, encoder.components), minval=0.01)
    if isinstance(encoder, GeoEncoder):
        coords = coords * jnp.array([359.0, 179.0]) - jnp.array([180.0, 90.0])
    return coords


@representatives_fast
@every_encoder
def test_features_have_the_width_and_do_not_depend_on_other_points(entry):
    encoder = made(entry)
    assert isinstance(encoder, CoordinateEncoder)
    coords = points(encoder)
    out = encoder.encode(coords)
    assert (out.shape, out.dtype) == ((2, 5, encoder.width), jnp.float32)
    np.testing.assert_array_equal(encoder.encode(coords), out)
    mapped = jax.vmap(jax.vmap(encoder.encode))
    for compiled in jax.jit(lambda c: (encoder.encode(c), mapped(c)))(coords):
        np.testing.assert_allclose(compiled, out, atol=2e-6)
    assert np.abs(out[0, 0] - out[0, 1]).max() > 1e-3
    others = encoder.encode(coords.at[0, 1:].set(coords[1, 1:]).at[1].set(coords[0]))
    np.testing.assert_array_equal(others[0, 0], out[0, 0])


@representatives_fast
@every_encoder
def test_numbers_of_any_precision_are_encoded_in_float32(entry):
    encoder = made(entry)
    coords = points(encoder)
    for given in (
        coords.astype(jnp.bfloat16),
        jnp.round(coords).astype(jnp.int32),
        np.asarray(coords, np.float64),
    ):
        out = encoder.encode(given)
        assert out.dtype == jnp.float32
        np.testing.assert_array_equal(out, encoder.encode(jnp.asarray(given, jnp.float32)))


@representatives_fast
@every_encoder
def test_wrong_coordinates_are_refused(entry):
    encoder = made(entry)
    number, name = encoder.components, type(encoder).__name__
    with pytest.raises(ValueError, match=rf'{name} encodes points \[..., {number}\], got'):
        encoder.encode(jnp.zeros((5, number + 1)))
    with pytest.raises(ValueError, match=rf'{name} encodes points .* of shape \(\)'):
        encoder.encode(jnp.array(0.0))
    for kind in ('bool', 'complex64'):
        with pytest.raises(ValueError, match=f'{name} encodes real numbers, got .* dtype {kind}'):
            encoder.encode(jnp.zeros((5, number), kind))
    last = encoder.names[-1] if encoder.names else f'coordinate {number - 1}'
    for wrong in (np.nan, -np.inf):
        coords = points(encoder).at[1, 0, -1].set(wrong)
        where = rf'{wrong} as {last} of 1 of 10 points, first at \[1, 0\]'
        with pytest.raises(ValueError, match=f'{name} encodes finite coordinates, got {where}'):
            encoder.encode(coords)
    # Values are not known while JAX traces: what is not a number stays that, and only there.
    traced = np.asarray(jax.jit(encoder.encode)(points(encoder).at[1, 0].set(np.nan)))
    assert np.isnan(traced[1, 0]).all()
    assert np.isfinite(np.delete(traced.reshape(10, -1), 5, axis=0)).all()


@representatives_fast
@every_encoder
def test_gradients_are_finite_at_the_ends(entry):
    """At 0 and 1 in every coordinate; on the globe also at the poles and on the seam."""
    encoder = made(entry)
    ends = [np.zeros(encoder.components), np.ones(encoder.components)]
    if isinstance(encoder, GeoEncoder):
        ends += [[0, 90], [0, -90], [77, 90], [180, -90], [-180, 0]]
    slopes = np.asarray(jax.jit(jax.vmap(jax.jacobian(encoder.encode)))(jnp.array(ends)))
    assert np.isfinite(slopes).all() and (np.abs(slopes).max((1, 2)) > 0).all()


@every_encoder
def test_variables_declare_roles(entry):
    variables = jax.tree.leaves(
        nnx.state(made(entry)), is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)
    )
    for variable in variables:
        assert isinstance(variable, (nnx.Param, Constant))
        assert len(variable.get_metadata()['axes']) == variable.get_value().ndim
    trained = jax.tree.leaves(nnx.state(made(entry), nnx.Param))
    assert bool(trained) == entry.card.promises.needs_training


@every_encoder
def test_the_example_round_trips(entry):
    parsed = parse(entry.card.example, ('coordinates',))
    assert parse(str(parsed), ('coordinates',)) == parsed
    first, second = (make_features(entry.card.example, nnx.Rngs(3)) for _ in range(2))
    coords = points(first)
    np.testing.assert_array_equal(first.encode(coords), second.encode(coords))


@every_encoder
def test_an_empty_set_of_points_is_encoded(entry):
    shape = jax.eval_shape(made(entry).encode, jnp.zeros((0, made(entry).components)))
    assert (shape.shape, shape.dtype) == ((0, made(entry).width), jnp.float32)


@every_geo_encoder
def test_the_ends_of_the_ranges_and_the_seam_of_the_map(entry):
    """Features are those of one meridian exactly where the class says so."""
    coords = points(made(entry)).at[0, :4].set([[-180, 12], [180, 12], [-180, -90], [180, 90]])
    out = made(entry).encode(coords)
    assert np.isfinite(out).all()
    assert made(entry).seamless == (np.abs(out[0, 0] - out[0, 1]).max() < 1e-5)


@pytest.mark.parametrize(
    'place, message',
    [
        ([48.1, 111.6], r'latitudes 5 .. 111.6; 1 of 2 points, first at \[1\]; they look swapped'),
        ([200, 10], r'longitudes 5 .. 200 .* longitudes of 0 .. 360 become .*\+ 180\) % 360 - 180'),
        ([-200, 10], r'longitudes -200 .. 5 .* longitudes become those of'),
        ([48, 300], 'they look swapped'),
        ([120, -100], 'check their unit and their order'),
        ([120, 100], 'the latitude of an angle from the pole is 90 - angle'),
        (
            [5e5, 4e6],
            r'longitudes 5 .. 500000 and latitudes 5 .. 4e\+06.*map projection, in metres',
        ),
    ],
)
def test_coordinates_out_of_degrees_are_refused(place, message):
    coords = jnp.array([[5.0, 5.0], place])
    for spec in ('geo_wrap()', 'mspe(features=4) | geo_sh(degrees=2)'):
        with pytest.raises(
            ValueError, match=rf'\(longitude, latitude\) in degrees.* got .*{message}'
        ):
            make_features(spec).encode(coords)
    # While JAX traces, values are not known; without a seam, the next turn has the right features.
    encode = jax.jit(make_features('geo_wrap()').encode)
    np.testing.assert_allclose(
        encode(jnp.array([[200.0, 10.0]])), encode(jnp.array([[-160.0, 10.0]])), atol=1e-6
    )


def test_features_of_the_globe_are_joined():
    both = make_features('geo_sh(degrees=2) | geo_wrap() | fourier_features(bands=1)')
    with pytest.raises(ValueError, match='they look swapped'):
        both.check_values(np.array([[10.0, 100.0]], np.float32))
    with pytest.raises(ValueError, match='got nan as longitude of 1 of 1 point$'):
        both.check_values(np.array([np.nan, 0], np.float32))
    features = jax.eval_shape(both.encode, jnp.zeros((3, 2)))
    assert features.shape == (3, both.width) and both.width == 4 + 4 + 6


def test_nested_lists_are_points():
    encoder = make_features('geo_grid(scales=2)')
    place = [[5.0, 6.0], [7.0, 8.0]]
    np.testing.assert_array_equal(encoder.encode(place), encoder.encode(jnp.array(place)))
    for wrong, message in ((3.0, r'of shape \(\)'), ([['a', 'b']], 'encodes real numbers')):
        with pytest.raises(ValueError, match=message):
            encoder.encode(wrong)
