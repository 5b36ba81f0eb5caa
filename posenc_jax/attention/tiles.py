"""The tiles into which queries and keys are cut, and the logits of one tile."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from posenc_jax.base.meshes import vary
from posenc_jax.base.products import scaled_dot_product
from posenc_jax.protocol.capabilities import first_carry
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.tokens import Bounds, Tokens, bounds


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How an array is cut into blocks of `size` tokens along `axis`: 1 for [B, L, heads, ...], 2 if
    its heads come first.
    """

    size: int
    axis: int

    def pad(self, a, pieces: int = 1):
        """The array with zeros behind each of its equal pieces, up to a whole number of blocks."""
        length = a.shape[self.axis] // pieces
        missing = -length % self.size
        if not missing:
            return a
        axis, behind = self.axis, (0, missing)
        apart = a.reshape(*a.shape[:axis], pieces, length, *a.shape[axis + 1 :])
        apart = jnp.pad(apart, [behind if i == axis + 1 else (0, 0) for i in range(apart.ndim)])
        return apart.reshape(*a.shape[:axis], -1, *a.shape[axis + 1 :])

    def unpad(self, a, length: int, pieces: int = 1):
        """The array of this length without the zeros of `pad`."""
        if a.shape[self.axis] == length:
            return a
        cut = [
            jax.lax.slice_in_dim(piece, 0, length // pieces, axis=self.axis)
            for piece in jnp.split(a, pieces, self.axis)
        ]
        return jnp.concatenate(cut, self.axis)

    def pad_tokens(self, tok: Tokens, pieces: int = 1) -> Tokens:
        """The tokens and invalid tokens behind each piece, up to a whole number of blocks."""
        if tok.length // pieces % self.size and tok.valid is None:
            tok = dataclasses.replace(tok, valid=jnp.ones_like(tok.index, bool))
        return jax.tree.map(lambda a: Blocks(self.size, 1).pad(a, pieces), tok)

    def tokens(self, tok: Tokens, number) -> Tokens:
        return tok.slice(number * self.size, self.size)

    def read(self, a, number):
        """A block, heads first."""
        return self.swap(jax.lax.dynamic_slice_in_dim(a, number * self.size, self.size, self.axis))

    def write(self, buffer, block, number):
        """`buffer` with a heads-first block in its place."""
        block = self.swap(block).astype(buffer.dtype)
        return jax.lax.dynamic_update_slice_in_dim(buffer, block, number * self.size, self.axis)

    def add(self, buffer, block, number):
        return self.write(buffer, self.read(buffer, number) + block, number)

    def add_tokens(self, buffer, block, number):
        """The same for leaves of tokens, [B, L, ...]."""
        here = jax.lax.dynamic_slice_in_dim(buffer, number * self.size, self.size, 1)
        return jax.lax.dynamic_update_slice_in_dim(buffer, here + block, number * self.size, 1)

    def swap(self, a):
        """The whole array with its heads first, or a result of that back in its layout."""
        return jnp.swapaxes(a, 1, 2) if self.axis == 1 else a

    @property
    def heads_first(self) -> 'Blocks':
        """How the result of `swap` of a whole array is cut."""
        return Blocks(self.size, 2)


class OneBlock(Blocks):
    """Arrays that are one block already, heads first."""

    def read(self, a, number):
        return a

    def tokens(self, tok: Tokens, number) -> Tokens:
        return tok


@dataclasses.dataclass(frozen=True)
class Plan:
    """The static part of a call of `attend`.

    Attributes:
      graphdef: the structure of the encoding.
      q, k, k_backward: how queries and keys are cut; keys also for the backward pass.
      varying: manual mesh axes over which all arrays vary, see `meshes.vary`.
      ring: the manual mesh axis round which the keys travel, or None.
      target: what a kernel is made for, or None for the blocked form.
      hopper: the forward pass is the kernel for Hopper.
      halves: of a ring, whether its devices exchange halves of their parts, see `ring.deal`.
      nodes: of a ring, how many equal pieces of the queries of a device meet keys on their own.
      dense: whether JAX differentiates the form.
      full: every query sees every key of the tiles, so that no mask is computed.
      uniform: all pairs of a tile are alike by their positions, see `Encoding.uniform`.
    """

    graphdef: Any
    q: Blocks
    k: Blocks
    k_backward: Blocks
    varying: tuple[str, ...]
    ring: str | None = None
    target: str | None = None
    hopper: bool = False
    halves: bool = False
    nodes: int = 1
    dense: bool = False
    full: bool = False
    uniform: bool = False

    def encoding(self, params, constants) -> Encoding:
        return nnx.merge(self.graphdef, params, constants)

    def placed(self, tok: Tokens) -> Tokens:
        """The tokens of a tile as doors see them: in a uniform tile they have one position."""
        return dataclasses.replace(tok, pos=tok.pos[:, :1]) if self.uniform else tok

    def loop(self, count, body, init) -> Callable:
        """`fori_loop`, or a plain call of `body` if there is one step, yet to be called without
        arguments. So an error in a door has no frame of this class in its traceback.
        """
        init = vary(init, self.varying)
        if isinstance(count, int) and count == 1:
            return functools.partial(body, 0, init)
        return functools.partial(jax.lax.fori_loop, 0, count, body, init)

    def pad(self, q, k, v, tq: Tokens, tk: Tokens) -> tuple:
        """The arrays and the tokens, with zeros behind each node's share up to whole blocks."""
        n = self.nodes
        padded = self.q.pad(q, n), self.k.pad(k, n), self.k.pad(v, n)
        return *padded, self.q.pad_tokens(tq, n), self.k.pad_tokens(tk, n)


def mask(encoding, tq: Tokens, tk: Tokens):
    """Which keys the queries of a tile see, without padding; None if they see all."""
    seen = encoding.mask(tq, tk)
    if tk.valid is None:
        return seen
    valid = tk.valid[:, None, None, :]
    return valid if seen is None else seen & valid


def pair_logits(encoding, q, k, tq, tk, carry=None, full: bool = False):
    """Evaluates one tile: float32 logits, not masked yet; the carry for the next block of keys; the
    mask. Without a `carry` the tile is the first one of its queries. In a `full` tile every query
    sees every key.
    """
    if carry is None:
        carry = first_carry(encoding, q, tq)
    seen = None if full else mask(encoding, tq, tk)
    if seen is None:
        seen = jnp.ones((1, 1, tq.length, tk.length), bool)
    s, carry = encoding.logits(scaled_dot_product(q, k), q, k, tq, tk, seen, carry)
    return s, carry, seen


def may_meet(encoding, own: Bounds, tk: Tokens):
    """Whether queries with these bounds may see one of the keys."""
    other = bounds(tk.without_feats())
    return jnp.asarray(encoding.may_see(own, other)) & (other.index_low <= other.index_high)


def sweep_order(plan, encoding, tq, tk):
    """The numbers of all key blocks, those that this block of queries may see first, from near to
    far; and how many it may see.
    """
    count = tk.length // plan.k.size
    if count == 1:
        return jnp.zeros(1, jnp.int32), 1
    number = jnp.arange(count)
    own = bounds(tq)

    seen = jax.vmap(lambda j: may_meet(encoding, own, plan.k.tokens(tk.without_feats(), j)))(number)
    return jnp.argsort(jnp.where(seen, -number, count)), seen.sum()
