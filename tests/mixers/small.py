"""Mixers at small sizes, from spec strings, and what several tests of mixers do with them."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.language import spec as spec_language
from posenc_jax.language.layer_spec import parse_layer

MODEL, HEADS, WIDTH = 8, 2, 4
OF_IMAGES = dict(vocab_size=0, output_size=3, channels=1, patch=2, pool='mean')
OF_POINTS = dict(vocab_size=0, output_size=5, channels=3, pool='mean')
CONTEXT = dict(
    model_dim=MODEL, heads=HEADS, kv_heads=HEADS, head_dim=WIDTH, train_len=8, layers=2
)  # fmt: skip


def built(spec, seed=0, **context):
    """The mixer of a spec string, with its initial variables."""
    (node,) = parse_layer(spec).nodes
    return spec_language.build(node, {**CONTEXT, **context, 'rngs': nnx.Rngs(seed)})


def make(spec, seed=0, **context):
    """The mixer of a spec string, with all variables away from their initial values."""
    return moved(built(spec, seed, **context), seed=100)


def model_of(*pattern, **fields):
    """A small model with layers of these specs, two at least."""
    sizes = dict(vocab_size=11, train_len=16, width=MODEL, heads=HEADS, encoding='')
    fields = {'layers': max(2, len(pattern)), 'pattern': pattern, **sizes, **fields}
    return Transformer(TransformerConfig(**fields), rngs=nnx.Rngs(0))


def moved(module, by=0.3, seed=0):
    """The module, after random numbers have been added to its trained variables, some of which
    start at zero.
    """
    for number, leaf in enumerate(variables(module, nnx.Param)):
        leaf[...] = leaf[...] + by * draw(seed + number, *leaf.shape)
    return module


def variables(module, *kinds):
    """The variables of a module, in order."""
    state = nnx.state(module, *kinds)
    return jax.tree.leaves(state, is_leaf=lambda a: isinstance(a, nnx.Variable))


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def assert_all_learn(gradient, least=0.0):
    """Asserts that every leaf of a gradient is finite, and somewhere larger than `least`."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > least, f'{name} does not learn'


class Joined(nnx.Module):
    """Parts of a whole with the stream that flows through them, as one mixer: each adds its result
    to its input.
    """

    def __init__(self, parts):
        self.parts = nnx.List(parts)

    def start(self, batch, tok):
        return tuple(part.start(batch, tok) for part in self.parts)

    def whole(self, x, tok):
        return self._through(x, tok, lambda part, *rest: (*part.whole(*rest), None))[0]

    def fill(self, x, tok, capacity, count=None):
        return self._through(x, tok, lambda part, *rest: part.fill(*rest, capacity, count))

    def step(self, x, tok, state, cursor):
        states = iter(state)
        run = lambda part, x, _, stream: part.step(x, tok, stream, next(states), cursor)
        return self._through(x, tok.slice(cursor, x.shape[1]), run)

    def _through(self, x, tok, run):
        whole = lambda a: jnp.broadcast_to(a, (len(x), *a.shape[1:]))
        stream, states = jax.tree.map(whole, self.parts[0].begin_stream(tok)), []
        for part in self.parts:
            y, stream, state = run(part, x, tok, stream)
            x = x + y
            states.append(state)
        return x, tuple(states)


whole = jax.jit(lambda mixer, x, tok: mixer.whole(x, tok))
