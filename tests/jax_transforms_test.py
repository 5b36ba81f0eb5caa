"""The transformations of JAX on `pj.Attention`, over encodings that act in different places. The
table in docs/usage.md says which of them work. `tests/attention/attention_test.py` has those of
`pj.attend`, and `tests/layer/attention_layer_test.py` meshes and further symbolic lengths.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

import posenc_jax as pj

WIDTH, HEADS, LENGTH = 16, 4, 8
SPECS = ('rope()', 'alibi()', 'fire()', 'cope(npos=4)', 'path()', 'nope()')
every_spec = pytest.mark.parametrize('spec', SPECS)
two_devices = pytest.mark.skipif(len(jax.devices()) < 2, reason='needs two devices')
X = jax.random.normal(jax.random.key(0), (2, LENGTH, WIDTH))


@functools.cache
def layer(spec, seed=0, **options):
    return pj.Attention(
        spec, width=WIDTH, heads=HEADS, train_len=LENGTH, rngs=nnx.Rngs(seed), **options
    )


def close(a, b, tolerance=2e-5):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


def close_trees(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        close(a, b, 1e-4)


def run(state, x, *, graphdef):
    return nnx.merge(graphdef, state)(x)


def apart(spec, **options):
    """A pure function of the variables and the input, and the variables."""
    graphdef, state = nnx.split(layer(spec, **options))
    return functools.partial(run, graphdef=graphdef), state


@two_devices
@pytest.mark.full_but_one
@every_spec
@pytest.mark.parametrize('kind', ['Explicit', 'Auto'])
def test_gradients_on_a_mesh(kind, spec):
    function, state = apart(spec)
    mesh = jax.make_mesh((2,), ('rows',), axis_types=(AxisType[kind],), devices=jax.devices()[:2])
    both = jax.jit(jax.value_and_grad(lambda state, x: (function(state, x) ** 2).sum()))
    with jax.set_mesh(mesh):
        put = lambda a, spec: jax.device_put(a, jax.NamedSharding(mesh, spec))
        found = both(put(state, PartitionSpec()), put(X, PartitionSpec('rows')))
    close_trees(found, both(state, X))


@two_devices
@pytest.mark.full_but_one
@every_spec
def test_gradients_inside_shard_map(spec):
    function, state = apart(spec)
    auto = (AxisType.Auto,)  # Explicit axes need inputs that lie on the mesh
    mesh = jax.make_mesh((2,), ('rows',), axis_types=auto, devices=jax.devices()[:2])
    rows, whole = PartitionSpec('rows'), PartitionSpec()

    def loss(state, x):
        part = lambda state, x: jax.lax.psum((function(state, x) ** 2).sum(), 'rows')
        return jax.shard_map(part, mesh=mesh, in_specs=(whole, rows), out_specs=whole)(state, x)

    found = jax.jit(jax.grad(loss))(state, X)
    expected = jax.jit(jax.grad(lambda state: (function(state, X) ** 2).sum()))(state)
    close_trees(found, expected)


@two_devices
@pytest.mark.full_but_one
@every_spec
def test_pmap_over_rows(spec):
    function, state = apart(spec)
    out = jax.pmap(function, in_axes=(None, 0), devices=jax.devices()[:2])(state, X[:, None])
    close(out[:, 0], function(state, X))


@pytest.mark.full_but_one
@every_spec
def test_a_directional_derivative_in_the_dense_form(spec):
    function, state = apart(spec, implementation='dense')
    direction = X[::-1]
    _, tangent = jax.jit(lambda x: jax.jvp(lambda x: function(state, x), (x,), (direction,)))(X)
    inner = jax.jit(jax.grad(lambda x: (function(state, x) * X).sum()))(X)
    assert float((tangent * X).sum()) == pytest.approx(float((inner * direction).sum()), rel=1e-3)


@every_spec
@pytest.mark.parametrize('transform', [jax.hessian, jax.jacfwd], ids=['hessian', 'jacfwd'])
def test_forward_mode_elsewhere_is_a_named_error(transform, spec):
    function, state = apart(spec)
    with pytest.raises(TypeError, match="forward-mode .* implementation='dense' alone") as error:
        jax.jit(transform(lambda x: function(state, x).sum())).trace(X)
    assert '\n' not in str(error.value).split('\n---')[0]


@pytest.mark.full
@every_spec
def test_the_hessian_in_the_dense_form(spec):
    function, state = apart(spec, implementation='dense')
    x = X[:1, :3]
    loss = lambda x: (function(state, x) ** 2).sum()
    hessian = jax.jit(jax.hessian(loss))(x).reshape(x.size, x.size)
    assert np.abs(hessian).max() > 1e-3
    close(hessian, hessian.T, 1e-3)
    step = 1e-2 * X[1:, :3]
    gradient = jax.jit(jax.grad(loss))
    change = (gradient(x + step) - gradient(x - step)).ravel() / 2
    close(hessian @ step.ravel(), change, 2e-3)


@pytest.mark.full_but_one
@every_spec
def test_export_with_symbolic_lengths(spec):
    function, state = apart(spec)
    rows, length = jax.export.symbolic_shape('b, n', constraints=['n <= 16'])
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), state)
    x = jax.ShapeDtypeStruct((rows, length, WIDTH), jnp.float32)
    program = jax.export.export(jax.jit(function))(shapes, x)
    for used in (LENGTH, 5):
        close(program.call(state, X[:, :used]), jax.jit(function)(state, X[:, :used]))


@every_spec
def test_eval_shape_computes_nothing(spec):
    function, state = apart(spec)
    assert jax.eval_shape(function, state, X).shape == X.shape
    made = nnx.eval_shape(lambda: pj.Attention(spec, 16, 4, train_len=8, rngs=nnx.Rngs(0)))
    shapes = lambda module: jax.tree.map(lambda a: (a.shape, a.dtype), nnx.state(module))
    assert shapes(made) == shapes(layer(spec))


@pytest.mark.full_but_one
@every_spec
def test_vmap_over_variables(spec):
    """An ensemble: two sets of variables, each with its gradient."""
    function, one = apart(spec)
    _, other = apart(spec, seed=1)
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), one, other)
    loss = lambda state: (function(state, X) ** 2).sum()
    both = jax.value_and_grad(loss)
    together = jax.jit(jax.vmap(both))(states)
    for number, state in enumerate((one, other)):
        mine = jax.tree.map(lambda a: a[number], together)
        found = zip(jax.tree.leaves(mine), jax.tree.leaves(jax.jit(both)(state)), strict=True)
        for a, b in found:
            close(a, b, 1e-3)
