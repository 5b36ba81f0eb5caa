"""`attend` on meshes that a user brings: Explicit axes, JAX's default, and inside `shard_map`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import posenc_jax as pj
from posenc_jax.testing.subject import attend, project, tokens
from tests import contract_test

HEADS, WIDTH, L = 4, 8, 12
SPECS = ['rope()', 'cope()', 't5_rpe()']  # a projection; a carry and a table; a table


@functools.cache
def layer(spec):
    encoding = pj.make(spec, heads=HEADS, head_dim=WIDTH, model_dim=32, train_len=L, causal=True)
    tok = pj.Tokens.of(length=L)

    def run(q, k, v):
        q, k, v, tq, tk = encoding.project(q, k, v, tok, tok)
        return pj.attend(encoding, q, k, v, tq, tk, block=(4, 6), applied=pj.TOKEN_STAGE)

    return run


def both(run):
    """The result and the gradients."""
    weighted = lambda *a: (run(*a) * jnp.cos(jnp.arange(WIDTH))).sum()
    return jax.jit(lambda *a: (run(*a), jax.grad(weighted, (0, 1, 2))(*a)))


def explicit_mesh():
    return jax.make_mesh(
        (2, 2), ('rows', 'model'), axis_types=(AxisType.Explicit,) * 2, devices=jax.devices()[:4]
    )


def rows_apart():
    """A mesh of two devices, and the spec of arrays whose first axis is cut over them."""
    types = (AxisType.Auto,)
    mesh = jax.make_mesh((2,), ('rows',), axis_types=types, devices=jax.devices()[:2])
    return mesh, PartitionSpec('rows')


@pytest.fixture(scope='module')
def arrays():
    return tuple(
        jax.random.normal(key, (4, L, HEADS, WIDTH))
        for key in jax.random.split(jax.random.key(0), 3)
    )


def same(ours, theirs):
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.full_but_one
@pytest.mark.parametrize('spec', SPECS)
def test_explicit_axes(spec, arrays):
    mesh = explicit_mesh()
    run, cut = both(layer(spec)), PartitionSpec('rows', None, 'model', None)
    expected = run(*arrays)
    with jax.set_mesh(mesh):
        out, gradients = both(layer(spec))(*jax.device_put(arrays, NamedSharding(mesh, cut)))
    assert out.sharding.spec == cut and gradients[0].sharding.spec == cut
    same((out, gradients), expected)


@pytest.mark.full_but_one
@pytest.mark.parametrize('check_vma', [True, False])
@pytest.mark.parametrize('spec', SPECS)
def test_shard_map(spec, check_vma, arrays):
    mesh, rows = rows_apart()
    mapped = jax.shard_map(
        layer(spec), mesh=mesh, in_specs=rows, out_specs=rows, check_vma=check_vma
    )
    same(both(mapped)(*arrays), both(layer(spec))(*arrays))


@pytest.mark.full_where(condition=lambda entry: entry.card.key != 'rope')
@contract_test.every_entry
def test_all_doors_in_a_shard_map_that_checks_what_varies(entry):
    """Each device has one row of the batch. Loops and branches keep the marks of their arrays: JAX
    checks them while it traces.
    """
    layer, (mesh, rows) = contract_test.subject_of(entry), rows_apart()
    run = lambda x, tok: attend(layer.encoding, *project(layer.encoding, layer.weights, x, tok))
    mapped = jax.shard_map(run, mesh=mesh, in_specs=rows, out_specs=rows)
    assert jax.eval_shape(mapped, layer.x, tokens()) == jax.eval_shape(run, layer.x, tokens())


def test_the_log_sum_exp_is_cut_like_the_queries(arrays):
    mesh = explicit_mesh()
    tok, encoding = pj.Tokens.of(length=L), pj.make('alibi()', heads=HEADS)
    run = jax.jit(lambda q, k, v: pj.attend(encoding, q, k, v, tok, tok, return_lse=True))
    expected = run(*arrays)
    with jax.set_mesh(mesh):
        cut = NamedSharding(mesh, PartitionSpec('rows', None, 'model'))
        out, lse = run(*jax.device_put(arrays, cut))
    assert lse.sharding.spec == PartitionSpec('rows', None, 'model')
    same((out, lse), expected)
