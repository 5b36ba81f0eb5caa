"""The subject on which the laws are checked: one attention layer with an encoding, and its inputs.

The layer runs all doors: `place`, `embed`, `qkv` and the projections, `project`, `attend`, `merge`.
`plain` is the reference for `attend`: it calls the doors of the pair stage once on the whole matrix
of logits, and JAX differentiates it. It uses no code of `attend`. `Subject` compiles each function
once, and all laws use it. The sizes are the smallest at which encodings have an effect.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from posenc_jax.attention.attend import attend as attend_heads
from posenc_jax.base.products import scaled_dot_product
from posenc_jax.protocol.capabilities import first_carry, merge, qkv
from posenc_jax.protocol.encoding import TOKEN_STAGE, Encoding
from posenc_jax.protocol.registry import Promises
from posenc_jax.protocol.tokens import Tokens

ROWS, LENGTH, HEADS, KV_HEADS, WIDTH, MODEL = 2, 20, 4, 2, 8, 32
# The sizes that an encoding takes from the model, and the trained length.
CONTEXT = dict(heads=HEADS, kv_heads=KV_HEADS, head_dim=WIDTH, model_dim=MODEL, train_len=16)
DOCUMENT = LENGTH // 2
PACKED = np.arange(LENGTH)[None] // DOCUMENT + np.zeros((ROWS, 1), int)
PADDED = np.ones((ROWS, LENGTH), bool)
PADDED[0, :3] = PADDED[1, -4:] = False
# Tiles whose sizes do not divide the length; many blocks of queries and one of keys.
BLOCKS = ((8, 3), (3, 32))


def draw(seed: int, *shape: int) -> jax.Array:
    """Random numbers of the normal distribution, of a shape."""
    return jax.random.normal(jax.random.key(seed), shape)


@functools.cache
def cotangent() -> np.ndarray:
    """The derivative of a loss by the output of the layer, [ROWS, LENGTH, HEADS, WIDTH]."""
    return np.asarray(draw(9, ROWS, LENGTH, HEADS, WIDTH))


def moved(encoding: Encoding, seed: int) -> Encoding:
    """The encoding with random numbers added to its parameters, because some start at zero."""
    graphdef, params, rest = nnx.split(encoding, nnx.Param, ...)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 100), len(leaves) + 1)
    leaves = [leaf + 0.3 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys)]
    return nnx.merge(graphdef, jax.tree.unflatten(structure, leaves), rest)


def tokens(*, pos=None, segment=None, valid=None, length=LENGTH, rows=ROWS) -> Tokens:
    """Tokens in which no optional array is None, so that all inputs of one length use the same
    compiled function.
    """
    if pos is None and segment is None and valid is None:
        return _plain_tokens(length, rows)
    segment = np.zeros((rows, length), np.int32) if segment is None else segment
    valid = np.ones((rows, length), bool) if valid is None else valid
    tok = Tokens.of(segment=segment, valid=valid)
    pos = jnp.broadcast_to(tok.pos, (rows, length)) if pos is None else pos
    return dataclasses.replace(tok, pos=pos, index=jnp.broadcast_to(tok.index, (rows, length)))


@functools.cache
def _plain_tokens(length, rows):
    with jax.ensure_compile_time_eval():  # also where a function is being traced
        return tokens(valid=np.ones((rows, length), bool), length=length, rows=rows)


def earlier_rows(x, tok, lookback):
    """The layer input as `project` gets it: `lookback` rows of zeros in front, and zeros at padded
    tokens.
    """
    x = x if tok.valid is None else jnp.where(tok.valid[..., None], x, 0)
    return jnp.pad(x, ((0, 0), (lookback, 0), (0, 0)))


def split(encoding, weights, x, rows, tok):
    """q, k, v of all inputs of attention, joined along the heads. Unless the encoding opens `qkv`,
    x is the only input.
    """
    linear = lambda x: tuple(
        jnp.einsum('bld,dnh->blnh', x, weights[name].astype(x.dtype)) for name in 'qkv'
    )
    return qkv(encoding, x, rows, linear, tok)


def project(encoding, weights, x, tok, *, key=None):
    """Runs all doors before the pair stage; returns q, k, v and the tokens of queries and keys."""
    tok = encoding.place(tok, key=key)
    x = encoding.embed(x, tok)
    rows = earlier_rows(x, tok, encoding.lookback)
    return encoding.project(*split(encoding, weights, x, rows, tok), tok, tok, rows)


APPLIED = functools.partial(attend_heads, applied=TOKEN_STAGE)


def tiles_of(encoding: Encoding, block: Any, keys: int) -> Any:
    """Tiles of so many queries and keys; of all keys where the encoding reads them at once."""
    if block is None or 'mixes_logits' not in encoding.traits:
        return block
    return block if isinstance(block, int) else block[0], keys


def attend(encoding, *arguments, how=APPLIED, **options):
    """Runs the pair stage by the function `how`, and `merge` after it."""
    options['block'] = tiles_of(encoding, options.get('block'), arguments[-1].length)
    return merge(encoding, how(encoding, *arguments, **options))


def plain(encoding, q, k, v, tq, tk):
    """Attention over the whole matrix of logits, computed by the doors without `attend`."""
    q, k, v = (jnp.swapaxes(a, 1, 2) for a in (q, k, v))
    seen = tk.valid[:, None, None, :]
    allowed = encoding.mask(tq, tk)
    seen = seen if allowed is None else seen & allowed
    s, _ = encoding.logits(
        scaled_dot_product(q, k), q, k, tq, tk, seen, first_carry(encoding, q, tq)
    )
    seen = seen & (s > -jnp.inf)  # a key may also be refused by its logit
    w = jnp.where(seen, jax.nn.softmax(jnp.where(seen, s, -1e30), axis=-1), 0.0)
    out = jnp.swapaxes(encoding.collect(w, v, tq, tk), 1, 2)
    lse = jax.nn.logsumexp(s, axis=-1, where=seen)
    return merge(encoding, encoding.rescale(out, jnp.swapaxes(lse, 1, 2), tq))


def attention_of(how):
    """The function that evaluates attention as 'plain', 'dense', or in tiles of two sizes."""
    if how == 'plain':
        return plain
    options = {'implementation': how} if how == 'dense' else {'block': how}
    return functools.partial(attend, **options)


def gradients(attention, encoding, weights, x, tok, cotangent):
    """The output, the gradients of parameters, projections and input, and whether the output is
    finite. The output of a padded query has no meaning, because whole blocks of padded queries are
    skipped. It must be finite, but it is not compared.
    """
    graphdef, params, rest = nnx.split(encoding, nnx.Param, ...)

    def output(params, weights, x):
        whole = nnx.merge(graphdef, params, rest)
        return attention(whole, *project(whole, weights, x, tok))

    out, pull = jax.vjp(output, params, weights, x)
    real = tok.valid[..., None, None]
    return jnp.where(real, out, 0), pull(jnp.where(real, cotangent, 0)), jnp.isfinite(out).all()


def outputs(attention, encoding, weights, x, tok, cotangent):
    """`gradients` without the gradients."""
    out = attention(encoding, *project(encoding, weights, x, tok))
    return jnp.where(tok.valid[..., None, None], out, 0), None, jnp.isfinite(out).all()


class Subject:
    """A layer with an encoding, with random weights and input, and its compiled functions.

    Args:
      make: gives the encoding for a seed; its parameters depend on the seed.
      name: of the encoding, for messages.
      promises: what its Card states; None where it states nothing.
      gain: scale of the projections to queries, keys and values.
    """

    def __init__(
        self,
        make: Callable[[int], Encoding],
        name: str,
        promises: Promises | None,
        gain: float = 2.0,
    ):
        self.make, self.name, self.promises = make, name, promises
        self.encoding = make(0)
        self.graphdef, self.state = nnx.split(self.encoding)
        kernel = lambda seed, heads: draw(seed, MODEL, heads, WIDTH) * gain * MODEL**-0.5
        self.weights = {'q': kernel(1, HEADS), 'k': kernel(2, KV_HEADS), 'v': kernel(3, KV_HEADS)}
        self.x = draw(4, ROWS, LENGTH, MODEL)
        self.traces: dict[Any, int] = {}

    def counted(self, name, function):
        """A compiled function of the state of the encoding and more; its traces are counted."""

        def counted(state, *arguments):
            self.traces[name] = self.traces.get(name, 0) + 1
            return function(nnx.merge(self.graphdef, state), *arguments)

        return jax.jit(counted)

    @functools.cached_property
    def _project(self):
        return self.counted('project', project)

    @functools.cached_property
    def _dense(self):
        return self.counted('dense', functools.partial(attend, implementation='dense'))

    @functools.cached_property
    def _gradients(self):
        return {
            how: self.counted(('gradients', how), functools.partial(gradients, attention_of(how)))
            for how in ('plain', 'dense', *BLOCKS)
        }

    def project(self, x=None, tok=None, weights=None, state=None):
        """q, k, v and the tokens of queries and keys, of the given inputs or the usual ones."""
        state = self.state if state is None else state
        weights = self.weights if weights is None else weights
        return self._project(
            state, weights, self.x if x is None else x, tokens() if tok is None else tok
        )

    def attend(self, *arguments, state=None):
        """The result of the pair stage, with one block."""
        return np.asarray(self._dense(self.state if state is None else state, *arguments))

    def __call__(self, x=None, tok=None, weights=None, state=None):
        return self.attend(*self.project(x, tok, weights, state), state=state)

    def gradients(self, how, tok=None, out=None):
        """The result of `gradients`. By default the batch has one row padded on the left and one
        padded on the right.
        """
        tok = tokens(valid=PADDED) if tok is None else tok
        out = cotangent() if out is None else out
        return self._gradients[how](self.state, self.weights, self.x, tok, out)
