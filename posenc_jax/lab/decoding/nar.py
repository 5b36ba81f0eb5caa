"""Near-to-far decoding of a grid: all tokens of a diagonal at once, from two or more heads.

He et al., "Neighboring Autoregressive Modeling for Efficient Visual Generation", arXiv 2503.10696;
code ThisisBillhe/NAR.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from posenc_jax.lab.decoding.any_order import Written
from posenc_jax.lab.decoding.decode import appended, init_cache, read_rows
from posenc_jax.lab.decoding.generate import check_temperature
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.layer.cache import Cache
from posenc_jax.methods.nar import NearToFar, near_to_far_order, near_to_far_positions
from posenc_jax.protocol.composite import parts_of
from posenc_jax.protocol.tokens import Tokens


class DirectionHeads(nnx.Module):
    """One output for each axis of a grid: head a of a token predicts its neighbour one step along
    axis a, below it (a = 0) and to its right (a = 1) in an image.

    The heads are linear and read the output of the last layer after the final norm. Differs from
    the code: there one of the heads stands behind extra layers.

    Args:
      axes: P, 2 for images, 3 for videos.
      width: D of the model.
      vocab_size: V, number of tokens that are predicted.
      rngs: draws the weights, with standard deviation D^-0.5.
    """

    def __init__(self, axes: int, width: int, vocab_size: int, *, rngs: nnx.Rngs):
        drawn = jax.random.normal(rngs.params(), (axes, width, vocab_size), jnp.float32)
        self.weights = nnx.Param(drawn * width**-0.5, axes=(None, 'width', 'vocab'))

    def __call__(self, x: Float[Array, 'B L D']) -> Float[Array, 'B L P V']:
        return jnp.einsum('bld,pdv->blpv', x, self.weights[...].astype(x.dtype))


def nar_sources(size: tuple[int, ...]) -> Int[np.ndarray, 'n P']:
    """Which token predicts a token along each axis: its place in the near-to-far order; -1 where
    the grid ends. Rows are in that order too.
    """
    cells, order = near_to_far_positions(size), near_to_far_order(size)
    place = np.argsort(order).reshape(size)
    return np.stack(
        [
            np.where(cell > 0, place[tuple((cells - one).T)], -1)
            for cell, one in zip(cells.T, np.eye(len(size), dtype=int))
        ],
        axis=-1,
    )


def nar_logits(outputs: Float[Array, 'B L P V'], size: tuple[int, ...]) -> Float[Array, 'B n V']:
    """The logits of all n tokens of a grid, in the near-to-far order, from the outputs of the heads
    for its conditions and all its tokens.

    A token takes the mean of the heads that predict it: of its neighbours before it along the axes,
    as far as the grid has them. The first token takes the mean of all heads of the last condition.

    Args:
      outputs: of C conditions and then of the tokens from near to far, L = C + n; C is at least 1.
      size: (rows, columns), or more numbers.

    Raises:
      ValueError: fewer than n + 1 tokens, or heads of another number of axes.
    """
    sources = nar_sources(size)
    conditions = outputs.shape[1] - len(sources)
    if conditions < 1 or outputs.shape[2] != len(size):
        raise ValueError(
            f'a grid of {size} needs outputs of at least {len(sources) + 1} tokens (one is a '
            f'condition) and {len(size)} heads, got {outputs.shape[1]} and {outputs.shape[2]}'
        )
    return _mean(outputs, sources, conditions)


def _mean(outputs, sources, first):
    """The means of the heads by which tokens are predicted; `first` is the place of the token that
    `sources` counts from. A token without any takes those of the token in front.
    """
    alone = (sources < 0).all(-1, keepdims=True)
    known = (sources >= 0) | alone
    places = jnp.where(alone, -1, sources) + first
    taken = outputs[:, jnp.where(known, places, 0), np.arange(sources.shape[1])]
    return (taken * known[..., None]).sum(2) / known.sum(-1, keepdims=True)


def draw_near_to_far(
    model: Transformer,
    heads: DirectionHeads,
    conditions: Int[Array, 'B C'],
    size: tuple[int, ...],
    *,
    key: Array | None = None,
    temperature: float = 1.0,
) -> Written:
    """Draws a grid of tokens, one diagonal for each pass through the model.

    The tokens of a diagonal are drawn independently of each other, given all diagonals before. The
    model reads a diagonal as one block, in which every token sees the whole diagonal. A grid of
    n x n tokens takes 2n - 1 passes instead of n^2. The result has tokens [B, rows, columns] (or
    more axes).

    Args:
      model: a decoder with the mask `nar` and positions of components, e.g.
        'axial_rope2d() | nar()'.
      heads: the outputs, one for each axis.
      conditions: token ids in front, at least one.
      size: (rows, columns), or (frames, rows, columns).
      key: random key; not needed at temperature 0.
      temperature: divides the logits; 0 takes the most probable token.

    Raises:
      ValueError: a layer without the mask, no conditions or ids outside the vocabulary, heads of
        another number of axes or of more tokens than the model has, a negative temperature or one
        without its key, or an encoding that no cache can serve.

    Example:
      >>> from posenc_jax.lab.model.tiny import tiny_model
      >>> model, heads = (
      ...     tiny_model('axial_rope2d() | nar()'),
      ...     DirectionHeads(2, 8, 6, rngs=nnx.Rngs(1)),
      ... )
      >>> out = draw_near_to_far(model, heads, jnp.array([[6]]), (2, 3), temperature=0.0)
      >>> out.tokens.shape, out.evaluations
      ((1, 2, 3), 4)
    """
    check_temperature(temperature, key)
    if conditions.ndim != 2 or not conditions.shape[1]:
        raise ValueError(
            'near-to-far decoding needs at least one condition token in each row, [B, C], got '
            f'{conditions.shape}'
        )
    model.check_ids(conditions)
    positions = near_to_far_positions(size, conditions.shape[1])
    for at in model.layers():
        if not any(isinstance(part, NearToFar) for part in parts_of(model.encoding(*at))):
            raise ValueError(
                f'near-to-far decoding needs the mask nar() in every layer, got {model.cfg.specs}'
            )
    if heads.weights.shape[0] != len(size):
        raise ValueError(f'a grid of {size} needs {len(size)} heads, got {heads.weights.shape[0]}')
    if heads.weights.shape[2] > model.cfg.vocab_size:
        raise ValueError(
            f'the heads predict {heads.weights.shape[2]} tokens, the model reads '
            f'{model.cfg.vocab_size}'
        )
    cache = init_cache(model, Tokens.of(positions=positions[None]))
    graphdef, state = nnx.split((model, heads))
    sources, depth = nar_sources(size), positions[conditions.shape[1] :].sum(-1)
    outputs, cache = _conditions(graphdef, state, cache, conditions)
    drawn, begin, passes = [], 0, 1
    for step in range(int(depth[-1]) + 1):
        end = int((depth <= step).sum())
        # Of the last block, whose first token is `before`, the outputs are known.
        before = begin - outputs.shape[1]
        own = np.where(sources[begin:end] < 0, -1, sources[begin:end] - before)
        first = outputs.shape[1] if step == 0 else 0
        own_key = None if key is None else jax.random.fold_in(key, step)
        chosen = _draw(temperature > 0, outputs, own, first, temperature, own_key)
        drawn.append(chosen.astype(conditions.dtype))
        if end < len(sources):
            outputs, cache = _diagonal(graphdef, state, cache, drawn[-1])
            passes += 1
        begin = end
    rows = jnp.concatenate(drawn, axis=1)[:, np.argsort(near_to_far_order(size))]
    return Written(rows.reshape(-1, *size), passes)


@functools.partial(jax.jit, static_argnums=0)
def _draw(at_random: bool, outputs, sources, first, temperature, key):
    logits = _mean(outputs, sources, first)
    if not at_random:
        return jnp.argmax(logits, axis=-1)
    return jax.random.categorical(key, logits / temperature, axis=-1)


@functools.partial(jax.jit, static_argnums=0)
def _conditions(graphdef, state, cache: Cache, tokens):
    model, heads = nnx.merge(graphdef, state)
    count = tokens.shape[1]
    placed = tuple(tok.slice(0, count) for tok in cache.tokens)
    x, layers = read_rows(model, placed, tokens, cache.capacity, count)
    cache = dataclasses.replace(cache, cursor=jnp.asarray(count, jnp.int32), layers=layers)
    return heads(model.norm(x)), cache


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _diagonal(graphdef, state, cache: Cache, tokens):
    """Appends the tokens of a diagonal as one block; returns the outputs of the heads for them."""
    model, heads = nnx.merge(graphdef, state)
    x, cache = appended(model, cache, tokens)
    return heads(model.norm(x)), cache
