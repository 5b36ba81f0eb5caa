"""Programs whose arrays lie in larger ones give the results of the functions, whatever lies behind
the arrays.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posenc_jax.attention.kernels.padding import powers
from posenc_jax.attention.kernels.program import Program
from posenc_jax.attention.kernels.simplify import held

X, TABLE = (np.random.default_rng(n).normal(size=(3, 5)).astype(np.float32) for n in (0, 1))
INDEX = np.array([[4, 0, 2], [1, 1, 3]])

FUNCTIONS = {
    'sum': lambda x: x.sum(0) + x.sum(),
    'extremes': lambda x: (x.max(1), x.min(0), jnp.argmax(x, 1), jnp.argmin(x, 0)),
    'all and any': lambda x: ((x < 3).all(1), (x > 3).any(0)),
    'product': lambda x: x @ TABLE.T,
    'products': lambda x: jnp.einsum('at,as->ats', x, TABLE),
    'look-up': lambda x: x[:, INDEX],
    'outside': lambda x: x.at[:, INDEX + 2].get(mode='fill', fill_value=7.0),
    'clipped': lambda x: x.at[:, INDEX + 2].get(mode='clip'),
    'gradient of a look-up': jax.grad(lambda x: (x[:, INDEX] ** 2).sum()),
    'shapes': lambda x: (x[:, None, :, None], x.reshape(3, 1, 5).transpose(2, 1, 0)),
    'joined axes': lambda x: jnp.broadcast_to(x[..., None], (3, 5, 4)).reshape(3, 20),
    'other joined axes': lambda x: x.reshape(15),
    'parts': lambda x: (x[:, 1:4], x[::2], x[:, 3], jnp.split(x, [1, 3], 1), jnp.unstack(x)),
    'joined': lambda x: (jnp.concatenate([x, x[:1], x[:, ::-1]]), jnp.stack([x, x, x], 1)),
    'margins': lambda x: jax.lax.pad(x, 9.0, ((1, 2, 0), (-1, 1, 2))),
    'running sums': lambda x: (jnp.cumsum(x, 1), jax.lax.cumsum(x, 0, reverse=True)),
    'moving parts': lambda x: (
        jax.lax.dynamic_slice(x, (1, jnp.int32(x[0, 0]) + 4), (2, 3)),
        jax.lax.dynamic_update_slice(x, x[:1], (2, 0)),
    ),
    'sorted': lambda x: jnp.sort(x, 1),
    'loop': lambda x: jax.lax.scan(lambda c, row: (c + row, c * row), x[0], x),
}


@pytest.mark.parametrize('name', FUNCTIONS)
def test_what_lies_behind_an_array_changes_nothing(name):
    expected = FUNCTIONS[name](jnp.asarray(X))
    program = Program('interpreter', FUNCTIONS[name], X)
    for behind in (np.nan, -np.inf):
        wide = np.full(powers(X.shape), behind, np.float32)
        wide[: X.shape[0], : X.shape[1]] = X
        found = program(program.constants, jnp.asarray(wide))
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert one.shape == held(powers(other.shape))
            one = one.reshape(powers(other.shape))[tuple(map(slice, other.shape))]
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
