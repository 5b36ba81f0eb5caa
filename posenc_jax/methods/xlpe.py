"""Cross-lingual positions: the order of a source, and the order of its translation."""

from collections.abc import Iterable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from posenc_jax.methods.sinusoidal import sinusoidal_table
from posenc_jax.protocol.bounds import CONTEXT
from posenc_jax.protocol.capabilities import SeveralInputs
from posenc_jax.protocol.encoding import Encoding, drawn_normal
from posenc_jax.protocol.families import check_token_width
from posenc_jax.protocol.registry import Card, register

Level = Literal['input', 'head', 'both']
Missing = Literal['error', 'identity']


def alignment_keys(pairs: Iterable[tuple[int, int]], length: int) -> Float[np.ndarray, ' T']:
    """The mean of the target indices to which each source word is aligned.

    A word without an alignment has the key of the word before it, and -1 at the start.

    Args:
      pairs: (source index, target index), counted from 0.
      length: T, words of the source.

    Raises:
      ValueError: a source index outside 0 .. T-1, a negative target index, no words.
    """
    if length < 1:
        raise ValueError(f'xlpe: a source has at least one word, got {length}')
    found: list[list[int]] = [[] for _ in range(length)]
    for source, target in pairs:
        if not 0 <= source < length or target < 0:
            raise ValueError(
                f'xlpe: the alignment {source}-{target} is outside a source of {length} words: '
                f'source indices lie in 0 .. {length - 1}, target indices are at least 0'
            )
        found[source].append(target)
    keys, before = np.empty(length), -1.0
    for word, targets in enumerate(found):
        before = keys[word] = sum(targets) / len(targets) if targets else before
    return keys


def ranks(keys: Sequence[float] | Num[np.ndarray, ' T']) -> Int[np.ndarray, ' T']:
    """pi: the place of each word when the words are sorted by key, equal keys in their order."""
    order = np.argsort(np.asarray(keys), kind='stable')
    places = np.empty(len(order), np.int32)
    places[order] = np.arange(len(order))
    return places


def xlpe_btg_order(
    keys: Sequence[float] | Num[np.ndarray, ' T'],
) -> tuple[Int[np.ndarray, ' T'], int]:
    """pi of the order nearest to the keys that a bracketing transduction grammar reaches.

    Such an order comes from a binary tree over the words in which some nodes swap their two sides.
    CKY over all spans finds the tree with the fewest pairs of words in the wrong order: a node that
    keeps its sides costs the pairs (a left, b right) with `key_a > key_b`, a node that swaps them
    those with `key_a < key_b`. If costs are equal, sides are kept and the left one is short. O(T^3)
    time.

    Returns:
      pi, the place of each word; and the cost, 0 if the order of the keys itself is reached.

    Raises:
      ValueError: no keys.
    """
    keys = np.asarray(keys)
    size = len(keys)
    if size < 1:
        raise ValueError('xlpe: xlpe_btg_order needs at least one key, got none')
    # later[a, b] counts the pairs of a word before a and a word before b, the former's key larger.
    larger = (keys[:, None] > keys[None, :]).astype(np.int64)
    later, earlier = (
        np.pad(counts.cumsum(0).cumsum(1), ((1, 0), (1, 0))) for counts in (larger, larger.T)
    )
    cost = np.zeros((size + 1, size + 1), np.int64)
    choice: dict[tuple[int, int], tuple[int, bool]] = {}
    for width in range(2, size + 1):
        for low in range(size - width + 1):
            high = low + width
            cut = np.arange(low + 1, high)
            between = lambda s: s[cut, high] - s[low, high] - s[cut, cut] + s[low, cut]
            below = cost[low, cut] + cost[cut, high]
            kept, swapped = below + between(later), below + between(earlier)
            swap = bool(swapped.min() < kept.min())
            best = swapped if swap else kept
            cost[low, high] = best.min()
            choice[low, high] = int(cut[best.argmin()]), swap
    order, spans = [], [(0, size)]
    while spans:
        low, high = spans.pop()
        if high - low == 1:
            order.append(low)
            continue
        cut, swap = choice[low, high]
        left, right = (low, cut), (cut, high)
        spans += [left, right] if swap else [right, left]
    places = np.empty(size, np.int32)
    places[order] = np.arange(size)
    return places, int(cost[0, size])


def xlpe_order(
    pairs: Iterable[tuple[int, int]], length: int, *, btg: bool = False
) -> Int[np.ndarray, ' T']:
    """pi(t): the place of source word t in the order of the translation.

    Words are sorted by `alignment_keys`, equal keys in their order. pi is the position of word t,
    the inverse of the list of the words in their new order.

    Args:
      pairs: (source index, target index), counted from 0.
      length: T, words of the source.
      btg: take the nearest order that a bracketing transduction grammar reaches (`xlpe_btg_order`).

    Raises:
      ValueError: as `alignment_keys`.

    Example:
      >>> xlpe_order([(0, 0), (1, 5), (2, 1), (3, 2), (5, 3)], 6).tolist()
      [0, 5, 1, 2, 3, 4]
    """
    keys = alignment_keys(pairs, length)
    return xlpe_btg_order(keys)[0] if btg else ranks(keys)


def xlpe_vectors(
    a: Float[Array, '#B L D'],
    x: Float[Array, '#B L D'],
    u: Float[Array, 'D D'],
    v: Float[Array, 'D D'],
) -> Float[Array, '#B L D']:
    """`tanh(U A_t + V X_t)`, float32, with A and X the codes of t and of pi(t)."""
    dot = lambda a, w: jnp.matmul(a, w.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.tanh(dot(a, u) + dot(x, v))


def last_heads(
    first: Float[Array, 'B L n H'], second: Float[Array, 'B L n H'], count: int
) -> Float[Array, 'B L n H']:
    """The last `count` heads of `second` behind the others of `first`."""
    cut = first.shape[2] - count
    return jnp.concatenate([first[:, :, :cut], second[:, :, cut:]], axis=2)


@register(
    'xlpe',
    kind='encoding',
    card=Card(
        name='cross-lingual position representation',
        example='xlpe(level="both", missing="identity")',
        use_when=(
            'You translate, and the order of the target is known or predicted for the '
            'words of the source.'
        ),
        share='model',
        needs_training=True,
    ),
)
class XLPE(SeveralInputs):
    """Tells an encoder where a word stands in the source, and where in the order of the target.

    `x_t + tanh(U A_t + V X_t)`, `A_t = sinusoid(t)`, `X_t = sinusoid(pi(t))`. Positions are [B, L,
    2] of components (t, pi(t)); `xlpe_order` makes pi from word alignments. Level 'input'
    adds the equation's term to the token vectors. Level 'head' projects q, k and v of the first N -
    tau heads from x + A and those of the last tau heads from x + X, where x is the input of the
    layer. The paper does this in the first layer alone: set `pattern` of an encoder, or
    `source_pattern` of an encoder-decoder, to `('xlpe(level="head")', 'nope()', ...)`. Without a
    pattern every layer does it. Differs from the paper: in a pre-norm model the layer input is
    normed before A and X are added. The paper's code is not public, so the initial U, V ~ N(0,
    1/D), and pi from alignments in place of its preorderer, are our choices.

    Args:
      level: 'input', 'head' or 'both'.
      tau: heads that read X; None for half of them. With grouped keys, whole groups.
      missing: what positions with one component mean: 'error', or 'identity' for pi(t) = t, with
        which level 'head' is `sinusoidal()` in this layer.
      heads, kv_heads, model_dim, rngs: from the model.

    Raises:
      ValueError: a tau outside 0 .. N or one that cuts a group; at call, positions without pi, or
        with another number of components.

    Reference: Ding, Wang, Tao, arXiv 2004.13310.
    """

    traits = frozenset({'reads_target_order'})

    def __init__(
        self,
        level: Level = 'input',
        tau: int | None = None,
        missing: Missing = 'error',
        heads: int = CONTEXT,
        kv_heads: int = CONTEXT,
        model_dim: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        self.missing = missing
        group = heads // kv_heads
        tau = heads // 2 // group * group if tau is None else tau
        if not 0 <= tau <= heads or tau % group:
            raise ValueError(
                f'xlpe tau must lie in 0 .. {heads}, the number of heads, and be a multiple of '
                f'the {group} heads that share a key, got {tau}'
            )
        self.heads, self.tau, self.model_dim = heads, tau, model_dim
        draw = lambda: drawn_normal(rngs, (model_dim,) * 2, model_dim**-0.5, (None, 'width'))
        self.u, self.v = (draw() if level != 'head' else None for _ in range(2))

    def codes(self, tok, width: int) -> tuple[Float[Array, '#B L D'], Float[Array, '#B L D']]:
        """A and X of every token, zero at padding."""
        pos = tok.pos
        if pos.ndim == 2 and self.missing == 'identity':
            pos = jnp.stack([pos, pos], axis=-1)
        if pos.shape[2:] != (2,):
            raise ValueError(
                'xlpe needs positions [B, L, 2] of components (t, pi(t)), where '
                f'xlpe_order makes pi from word alignments, got {tok.pos.shape}; '
                'missing="identity" reads positions [B, L] as pi(t) = t'
            )
        a, x = (sinusoidal_table(pos[..., part], width) for part in range(2))
        real = True if tok.valid is None else tok.valid[..., None]
        return jnp.where(real, a, 0), jnp.where(real, x, 0)

    def embed(self, x, tok):
        check_token_width('xlpe', self.model_dim, x.shape[-1])
        # tanh(0) = 0, so padding is left unchanged.
        added = xlpe_vectors(*self.codes(tok, x.shape[-1]), self.u[...], self.v[...])
        return x + added.astype(x.dtype)

    def qkv(self, x, linear, tok):
        inputs = (x + code.astype(x.dtype) for code in self.codes(tok, x.shape[-1]))
        both = zip(*map(linear, inputs))
        q, k, v = (last_heads(a, b, a.shape[2] * self.tau // self.heads) for a, b in both)
        return q, k, v


class InputXLPE(XLPE, where=lambda given: given['level'] == 'input'):
    """The term of the token vectors alone."""

    qkv = merge = None


class HeadXLPE(XLPE, where=lambda given: given['level'] == 'head'):
    """The inputs of the heads alone."""

    embed = Encoding.embed
