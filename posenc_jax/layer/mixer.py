"""Mixers: what a layer does between its norms, which here is attention.

Code that reads or writes a decode cache, or looks at queries and keys, goes through the mixer.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from posenc_jax.base.derivatives import by_jax
from posenc_jax.layer import cache as caching
from posenc_jax.layer import slots, window_cache
from posenc_jax.layer.cache import LayerCache
from posenc_jax.layer.projections import OwnProjections, Projections
from posenc_jax.layer.sharded_attend import sharded_attend
from posenc_jax.layer.sharding import constrain
from posenc_jax.layer.window_cache import WindowCache
from posenc_jax.protocol.capabilities import merge, qkv
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.tokens import Tokens

State = Any  # the memory of a layer of the tokens so far: a pytree, the batch first


class Mixer(Protocol):
    """What a layer does between its norms. However a sequence is cut, `step` equals `whole`."""

    def whole(self, x: Float[Array, 'B L D'], tok: Tokens) -> Float[Array, 'B L D']:
        """The result for whole sequences."""
        ...

    def start(self, batch: int, tok: Tokens) -> State:
        """The state before the first token; `tok` are the tokens of the whole capacity."""
        ...

    def step(
        self, x: Float[Array, 'B T D'], tok: Tokens, state: State, cursor: Int[Array, '']
    ) -> tuple[Float[Array, 'B T D'], State]:
        """The result for T new tokens, and the state behind them.

        Args:
          tok: the tokens of the whole capacity.
          cursor: how many tokens came before. Where it is traced and a mixer keeps keys in slots,
            the result is NaN for tokens beyond the capacity.
        """
        ...

    def fill(
        self,
        x: Float[Array, 'B L D'],
        tok: Tokens,
        capacity: int,
        count: int | Int[Array, ''] | None = None,
    ) -> tuple[Float[Array, 'B L D'], State]:
        """`whole`, and the state behind the first `count` tokens (None: behind all of them)."""
        ...


@dataclasses.dataclass(frozen=True)
class AttentionMixer:
    """Attention as a `Mixer`: the projections of a layer and its encoding.

    Attributes:
      projections: of the layer.
      encoding: the layer's chain.
      block, implementation: of `attend`.
      dtype: of the layer input.
      attention_fn: evaluates the pair stage, with the arguments of `sharded_attend`.
    """

    projections: Projections | OwnProjections
    encoding: Encoding
    block: int | None = None
    implementation: str | None = None
    dtype: Any = jnp.float32
    attention_fn: Callable = sharded_attend
    streams: ClassVar[bool] = False

    def whole(self, x, tok, *, first: int = 0, capture: Callable | None = None):
        """As `Mixer.whole`; with `first`, only for the queries from there on, over all keys.

        An analysis gives `capture`, which is called with (q, k, v) before `Encoding.project` and
        with its results.
        """
        # JAX differentiates all of the dense form, so that forward mode works.
        with by_jax() if self.implementation == 'dense' else contextlib.nullcontext():
            qkv, rows = self.inputs(x, tok)
            q, k, v, tq, tk = self.encoding.project(*qkv, tok, tok, rows)
            if capture is not None:
                capture(qkv, (q, k, v, tq, tk))
            if first:
                q, tq = q[:, first:], tq.slice(first, tok.length - first)
            return self.output(self.attend(q, k, v, tq, tk))

    def start(self, batch, tok):
        x = jax.ShapeDtypeStruct((batch, 1, self.projections.width), self.dtype)
        first = lambda x, tok: self.fill(x, tok.slice(0, 1), tok.length)[1]
        return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(first, x, tok))

    def fill(
        self, x, tok: Tokens, capacity: int, count: int | Int[Array, ''] | None = None
    ) -> tuple[Float[Array, 'B T D'], LayerCache]:
        """`whole`, and the state behind the first `count` tokens (None: behind all of them)."""
        projected, state = self.begin(x, tok, capacity, count)
        return self.output(self.attend(*projected)), state

    def step(self, x, tok, state, cursor):
        projected, state = self.append(x, tok, state, cursor)
        out = self.attend(*projected, heads_first=True, implementation='dense')
        return slots.beyond_as_nan(self.output(out), cursor, tok.length), state

    # The parts of the methods above, for callers that read or cache something else.

    def inputs(self, x, tok: Tokens) -> tuple[tuple[Array, Array, Array], Array]:
        """Queries, keys and values of whole sequences before `project`, and the rows of the layer
        input as it reads them: padding is zero, and `lookback` zero rows stand in front.
        """
        rows = layer_rows(x, tok.valid, self.encoding.lookback)
        return self._qkv(x, rows, tok), rows

    def projected(self, x, tok: Tokens) -> tuple[Array, Array, Array, Tokens, Tokens]:
        """The arguments of `attend` for whole sequences."""
        qkv, rows = self.inputs(x, tok)
        return self.encoding.project(*qkv, tok, tok, rows)

    def begin(self, x, tok: Tokens, capacity: int, count: int | Int[Array, ''] | None = None):
        """The arguments of `attend` for whole sequences, and the state behind `count` tokens."""
        qkv, rows = self.inputs(x, tok)
        projected, state = caching.project_prompt(self.encoding, *qkv, tok, rows, capacity, count)
        return projected, _constrained(state)

    def append(self, x, tok: Tokens, state: Any, cursor, feats=None):
        """The arguments of `attend(..., heads_first=True)` for T new tokens, and the state with
        them. `tok` are the tokens of the whole capacity, `feats` further features of the new ones.
        """
        new = slots.at(tok, cursor, x.shape[1])
        row = layer_rows(x, None if tok.valid is None else new.valid, 0)
        rows = jnp.concatenate([state.rows, row], axis=1)
        qkv = self._qkv(x, rows, new)
        step: Any = (
            window_cache.project_new if isinstance(state, WindowCache) else caching.project_new
        )
        projected, state = step(self.encoding, state, *qkv, tok, row, cursor, feats)
        return projected, _constrained(state)

    def attend(self, q, k, v, tq, tk, *, encoding: Encoding | None = None, **options):
        """The pair stage and `merge`, [B, T, N, H]; by `encoding`, or by the layer's for None."""
        encoding = self.encoding if encoding is None else encoding
        options = dict(block=self.block, implementation=self.implementation) | options
        return merge(encoding, self.attention_fn(encoding, q, k, v, tq, tk, **options))

    def output(self, out: Float[Array, 'B T N H']) -> Float[Array, 'B T D']:
        """The result of the heads, back in the model width."""
        return self.projections.output(out)

    def _qkv(self, x, rows, tok):
        return qkv(self.encoding, x, rows, self.projections.qkv, tok)


def layer_rows(x: Float[Array, 'B T D'], valid, lookback: int) -> Float[Array, 'B R D']:
    """The rows that `SeveralInputs.qkv` and `Encoding.project` read: padding is zero, and
    `lookback` zero rows stand in front.
    """
    if valid is not None:
        x = jnp.where(valid[..., None], x, 0)
    return jnp.pad(x, ((0, 0), (lookback, 0), (0, 0))) if lookback else x


def _constrained(state):
    k, v = (constrain(a, 'batch', 'kv_heads', 'sequence', None) for a in (state.k, state.v))
    feats = jax.tree.map(lambda a: constrain(a, 'batch', 'heads', 'sequence'), state.feats)
    return dataclasses.replace(state, k=k, v=v, feats=feats)
