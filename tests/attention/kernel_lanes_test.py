"""Kernels of a TPU hold a number for each query in all lanes, and compute the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posenc_jax.attention.kernels.lanes import InLanes, OfRows, release
from posenc_jax.attention.kernels.program import Program

T, S = 8, 12
HIGH, S_, INDEX, KEYS = (
    jnp.asarray(np.random.default_rng(n).integers(-9, 9, shape), jnp.float32)
    for n, shape in enumerate([(1, 1, T), (1, 1, T, S), (1, T), (1, S)])
)


def step(high, s, index, keys):
    """What the sweep does with numbers for queries."""
    seen = index[:, None, :, None] >= keys[:, None, None]
    s = jnp.where(seen, s, -1e30)
    new = jnp.maximum(high, s.max(-1))
    w = jnp.exp(s - new[..., None])
    return new, jnp.exp(high - new) * 2 + w.sum(-1), w


OTHERS = {
    'moved': lambda high, s, index, keys: (high[0, 0], high.reshape(T, 1), jnp.swapaxes(s, 2, 3)),
    'along keys': lambda high, s, index, keys: (s + index[:, :, None], keys[..., None], s.sum(2)),
    'booleans': lambda high, s, index, keys: (high > 0, jnp.where(high > 0, high, index[None])),
    'one number': lambda high, s, index, keys: (jnp.full((1, 1, T), 3.0) * high, high.sum()),
    'sorted': lambda high, s, index, keys: jnp.cumsum(high, 2),
}


@pytest.mark.parametrize('function', [step, *OTHERS.values()], ids=['step', *OTHERS])
@pytest.mark.parametrize('rows', [False, True], ids=['', 'index in rows'])
def test_a_program_in_lanes_computes_the_same(function, rows):
    held = InLanes(4).hold
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (HIGH, S_, INDEX, KEYS)]
    arrays = [held(a, a.shape) for a in (HIGH, S_, INDEX, KEYS)]
    if rows:
        shapes[2], arrays[2] = OfRows(INDEX.shape, INDEX.dtype), held(INDEX, HIGH.shape)
    program = Program('tpu_interpreter', function, *shapes)
    found = jax.tree.leaves(program(program.constants, *arrays))
    expected = jax.tree.leaves(function(HIGH, S_, INDEX, KEYS))
    for one, other in zip(found, expected, strict=True):
        assert one.shape == InLanes(4).held(other.shape)
        np.testing.assert_allclose(release(one, other.shape), other, rtol=1e-6)


def test_a_step_moves_no_number_of_a_query_between_lanes():
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (HIGH, S_, INDEX, KEYS)]
    shapes[2] = OfRows(INDEX.shape, INDEX.dtype)
    program = Program('tpu_interpreter', step, *shapes)
    names = {equation.primitive.name for equation in program._equations}
    assert 'transpose' not in names
    assert all(
        e.invars[0].aval.size != T for e in program._equations if e.primitive.name == 'reshape'
    )
