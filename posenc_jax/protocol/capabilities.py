"""The capabilities that few encodings have beside their doors. Each is a class that such an
encoding inherits from; `Encoding.opens` knows its methods by their names, like doors.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from posenc_jax.protocol.encoding import Carry, Encoding, Projections
from posenc_jax.protocol.tokens import Tokens


class SeveralInputs(Encoding):
    """Projects n inputs of attention and joins the results along the heads.

    The doors up to `merge` then see n N query heads and n K key heads, those of the first input
    first. An encoding that projects a single input in its own way leaves `merge` as it is.
    """

    def qkv(
        self, x: Float[Array, 'B rows ...'], linear: Callable[[Array], Projections], tok: Tokens
    ) -> Projections:
        """Queries, keys and values of the layer input.

        Args:
          x: the layer input with `lookback` rows in front, as for `project`.
          linear: [B, L, D] -> q [B, L, N, H], k and v [B, L, K, H], the layer's projections.
          tok: the tokens of the last L rows of `x`.

        Queries and keys may have more behind their H features, which `project` of the same encoding
        takes off.
        """
        raise NotImplementedError

    def merge(self, out: Float[Array, 'B T nN H']) -> Float[Array, 'B T N H']:
        """Combines the results for the n inputs into one."""
        return out


class Carries(Encoding):
    """Its `logits` hands a carry from each block of keys to the next, such as a prefix sum over the
    keys between. The sweep over the keys goes from near to far.
    """

    def first_carry(self, q: Float[Array, 'B N T H'], tq: Tokens) -> Carry:
        """The carry of a block of queries at its first block of keys: one 0 for each, float32, as
        for a sum, unless a subclass writes another.
        """
        return jnp.zeros(q.shape[:3], jnp.float32)


class Prunes(Carries):
    """Its sweep may leave out far keys, whose weights the carry shows to be negligible."""

    def ended(self, carry: Carry, tq: Tokens) -> Bool[Array, 'B N T']:
        """Which queries need no keys that are farther than the carry. A query that needs none at
        one block needs none at farther ones.

        `attend` skips a block of keys if no query of its tile needs it, in the result and in the
        gradients. No other part of a chain may change the logits, since the bound holds for these.
        """
        raise NotImplementedError


class Prepares(Encoding):
    """Its pair stage reads numbers that depend on its variables alone, such as products of its
    tables. They are computed once for all tiles.
    """

    def prepare(self) -> None:
        """Puts these numbers in the place of the variables. `attend` calls it on a copy. The pair
        stage also works without this call, and then computes them in every tile.
        """
        raise NotImplementedError


class EvolvingKeys(Encoding):
    """Every new token rewrites the cached keys."""

    def update_keys(
        self, k: Float[Array, 'B K S H'], tk: Tokens, new: Tokens
    ) -> Float[Array, 'B K S H']:
        """The cached keys behind one new token (`new` has length 1)."""
        raise NotImplementedError


class Streams(Encoding):
    """A second state, the stream, flows from layer to layer beside the hidden states.

    `project` finds the stream of its tokens as their feature 'stream', which it takes off. It may
    join it to the values there. Outside a model no stream arrives; `project` then begins one and
    leaves the values alone.
    """

    def begin_stream(self, tok: Tokens) -> Float[Array, '#B L heads *S']:
        """The stream at the first layer, float32, of N or of K heads; it depends on no trained
        variable.
        """
        raise NotImplementedError

    def carry_stream(
        self, out: Float[Array, 'B T N V'], stream: Float[Array, 'B T heads *S']
    ) -> tuple[Float[Array, 'B T N H'], Float[Array, 'B T heads *S']]:
        """Takes the result of attention apart: the sums of the values, and the stream behind
        attention.
        """
        raise NotImplementedError

    def feed_stream(
        self, m: Float[Array, 'B T D'], stream: Float[Array, 'B T heads *S']
    ) -> Float[Array, 'B T heads *S']:
        """The stream behind the layer's feed-forward network, whose output is `m`."""
        raise NotImplementedError


class AuxiliaryLoss(Encoding):
    """Adds a term to the loss of training. It exists once in a model. A training loop of one's own
    adds the term itself.
    """

    def auxiliary_loss(
        self, x: Float[Array, 'B L D'], tok: Tokens, *, key: Array | None
    ) -> Float[Array, '']:
        """The term with its weight, float32.

        Args:
          x: token vectors before any `embed`.
          tok: the placed tokens, as `embed` gets them.
          key: the key that `place` got, so that both can make the same draws.
        """
        raise NotImplementedError


class GridAnchor(Encoding):
    """Treats a grid as a torus and chooses its origin before it is cut into patches."""

    def anchor(
        self, x: Float[Array, 'B rows columns C'], stride: int
    ) -> Float[Array, 'B rows columns C']:
        """The grid with the chosen cell at the origin, to be read in steps of `stride` cells."""
        raise NotImplementedError


class FastPath(Encoding):
    """Evaluates the whole pair stage at once where it can."""

    def fast_path(
        self, q, k, v, tq: Tokens, tk: Tokens, *, causal: bool, sweep: Callable[[], Array]
    ) -> Array | None:
        """A cheaper evaluation of the pair stage, [B, T, N, H] in the dtype of `v`, or None if it
        does not apply.

        `attend` calls it if the caller sets no tile size and if no other part of the chain acts in
        the pair stage, apart from the causal mask. The result must equal `sweep()`. If its
        conditions are known only when the program runs, it chooses between the two in the program.
        The layout is that of `project`; JAX differentiates it.

        Args:
          causal: whether later keys are hidden.
          sweep: evaluates the pair stage by tiles.
        """
        raise NotImplementedError


def first_carry(encoding: Encoding, q: Float[Array, 'B N T H'], tq: Tokens) -> Carry:
    """The carry of a block of queries at its first block of keys, () of an encoding without one."""
    carries: Any = encoding
    return carries.first_carry(q, tq) if hasattr(encoding, 'first_carry') else ()


def prepared(encoding: Encoding) -> Encoding:
    """The encoding, or a copy that is prepared for its pair stage, see `Prepares`."""
    if not encoding.opens('prepare'):
        return encoding
    own: Any = nnx.merge(*nnx.split(encoding))
    own.prepare()
    return own


def qkv(
    encoding: Encoding,
    x: Float[Array, 'B length ...'],
    rows: Float[Array, 'B rows ...'],
    linear: Callable[[Array], Projections],
    tok: Tokens,
) -> Projections:
    """Queries, keys and values of the layer input.

    Args:
      x: the layer input.
      rows: the same as `SeveralInputs.qkv` reads it, with the rows that the encoding looks back at.
      linear, tok: as for `SeveralInputs.qkv`.
    """
    several: Any = encoding
    return several.qkv(rows, linear, tok) if encoding.opens('qkv') else linear(x)


def merge(encoding: Encoding, out: Float[Array, 'B T nN H']) -> Float[Array, 'B T N H']:
    """The result of attention for one input, see `SeveralInputs`."""
    several: Any = encoding
    return several.merge(out) if encoding.opens('merge') else out
