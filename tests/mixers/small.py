"""Mixers at small sizes, from spec strings."""

import jax
import numpy as np
from flax import nnx

from posenc_jax.language import spec as spec_language
from posenc_jax.language.layer_spec import parse_layer

MODEL, HEADS, WIDTH = 8, 2, 4
CONTEXT = dict(
    model_dim=MODEL, heads=HEADS, kv_heads=HEADS, head_dim=WIDTH, train_len=8, layers=2
)  # fmt: skip


def make(spec, seed=0, **context):
    """The mixer of a spec string, with all variables away from their initial values."""
    (node,) = parse_layer(spec).nodes
    mixer = spec_language.build(node, {**CONTEXT, **context, 'rngs': nnx.Rngs(seed)})
    for number, leaf in enumerate(
        jax.tree.leaves(nnx.state(mixer, nnx.Param), is_leaf=lambda a: isinstance(a, nnx.Variable))
    ):
        leaf[...] = leaf[...] + 0.3 * draw(100 + number, *leaf.shape)
    return mixer


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


whole = jax.jit(lambda mixer, x, tok: mixer.whole(x, tok))
