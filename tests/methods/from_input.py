"""Encodings that read the layer input in `project`: their inputs, and values and gradients against
a reference.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import posenc_jax as pj
from tests.methods.pairs import attend


def draw_inputs(sizes, length, seed=3):
    """q, k, v and the layer input x, normal; `sizes` are (rows, heads, key heads, head width, model
    width).
    """
    rows, heads, kv_heads, head_dim, model_dim = sizes
    keys = jax.random.split(jax.random.key(seed), 4)
    per_key = (rows, length, kv_heads, head_dim)
    shapes = (rows, length, heads, head_dim), per_key, per_key, (rows, length, model_dim)
    return tuple(jax.random.normal(key, shape) for key, shape in zip(keys, shapes))


def run(encoding, q, k, v, x, tok, **how):
    return attend(encoding, q, k, v, tok, x, **how)


def check_values_and_gradients(encoding, arrays, reference, tolerance):
    """Dense and tiled equal `reference(encoding, q, k, v, x)`, also in the gradients of parameters
    and inputs; returns those of the reference.
    """
    tok = pj.Tokens.of(length=arrays[0].shape[1])
    graphdef, params, rest = nnx.split(encoding, nnx.Param, ...)
    aim = jax.random.normal(jax.random.key(9), arrays[0].shape)

    def value_and_grad(function):
        def loss(params, *arrays):
            out = function(nnx.merge(graphdef, params, rest), *arrays)
            return (out * aim).sum(), out

        (_, out), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4), has_aux=True))(
            params, *arrays
        )
        return out, grads

    expected, theirs = value_and_grad(reference)
    for how in (dict(implementation='dense'), dict(block=(8, 5))):
        out, ours = value_and_grad(lambda e, *a: run(e, *a, tok, **how))
        np.testing.assert_allclose(out, expected, atol=tolerance)
        assert jax.tree.structure(ours) == jax.tree.structure(theirs)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
            np.testing.assert_allclose(a, b, atol=tolerance * max(1.0, float(jnp.abs(b).max())))
    return theirs
