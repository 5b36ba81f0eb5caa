"""DAPE: a small network of the logits of all heads adjusts a static bias, for each pair or along
the keys.
"""

import dataclasses
import functools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from posenc_jax.protocol.bounds import CONTEXT, NonNegative, Size
from posenc_jax.protocol.composite import Composite, name_of, parts_of
from posenc_jax.protocol.encoding import Encoding, drawn_uniform
from posenc_jax.protocol.families import Bias, check_heads
from posenc_jax.protocol.registry import Card, Promises, register


def dape_along_keys(
    channels: Float[Array, '#B C T S'], kernel: Float[Array, 'taps C O']
) -> Float[Array, '#B O T ...']:
    """The correlation `sum_t channels[..., j + t] kernel[t]` along the keys, where all taps have a
    key: S + 1 - taps of them. One tap is a linear map of each pair.
    """
    count = channels.shape[3] + 1 - len(kernel)
    shifted = (channels[..., tap : tap + count] for tap in range(len(kernel)))
    product = functools.partial(jnp.einsum, 'bcts,co->bots', precision=jax.lax.Precision.HIGHEST)
    return functools.reduce(jnp.add, map(product, shifted, kernel))


def _by_rows(adjust, s, bias, seen):
    """`adjust(s, bias, seen)`, computed for a few queries of one text at a time. Their hidden
    values then fit the cache of a CPU. The backward pass computes them again.
    """
    batch, _, queries, keys = s.shape
    rows = math.gcd(queries, max(1, 512 // keys))

    def split(a):
        a = jnp.broadcast_to(a, (batch, a.shape[1], queries, keys))
        a = a.reshape(batch, -1, queries // rows, rows, keys)
        return jnp.moveaxis(a, 2, 1).reshape(-1, 1, a.shape[1], rows, keys)

    given = jax.tree.map(split, (s, bias, seen))
    found = jax.lax.map(jax.checkpoint(lambda row: adjust(*row)), given)
    found = found.reshape(batch, queries // rows, -1, rows, keys)
    return jnp.moveaxis(found, 1, 2).reshape(s.shape)


def dape_adjustment(
    s: Float[Array, 'B N T S'],
    bias: Float[Array, '#B N T S'] | None,
    seen: Bool[Array, '#B #N #T S'],
    of_scores: Float[Array, 'taps N W'],
    of_bias: Float[Array, 'taps N W'] | None,
    offset: Float[Array, 'W'],
    out: Float[Array, 'taps W N'],
    slope: float = 0.01,
) -> Float[Array, 'B N T S']:
    """`W2 leaky(W1 [S; b] + c1)` of every pair, float32; with three taps convolutions along the
    keys.

    Args:
      s, bias: S and b, the channels; b is None where there is no bias.
      seen: which pairs the masks show. The convolutions read zeros in place of all others.
      of_scores, of_bias: the parts of W1 that read S and b.
      offset: c1.
      out: W2.
      slope: of the leaky ReLU, for negative numbers.
    """
    reach = len(out) // 2
    # A logit of -inf refuses its key. Its product with a weight would be no number.
    s = jnp.where(s > -jnp.inf, s, 0.0)
    shown = lambda a: jnp.where(seen, a, 0.0) if reach else a
    beside = lambda a: jnp.pad(shown(a), [(0, 0)] * 3 + [(2 * reach, 2 * reach)])
    channels, weights = s, of_scores
    if bias is not None and of_bias is not None:
        channels = jnp.concatenate([s, jnp.broadcast_to(bias, s.shape)], 1)
        weights = jnp.concatenate([of_scores, of_bias], 1)
    hidden = dape_along_keys(beside(channels), weights)
    hidden = jax.nn.leaky_relu(hidden + offset[:, None, None], slope)
    if reach:
        # The first key that the query sees, and all places behind it, the one behind the last key
        # too: the next key, once there is one, is not seen, and its hidden values are the same.
        from_first = jax.lax.cummax(seen.any(1, keepdims=True).astype(jnp.int32), axis=3)
        behind = from_first[..., -1:]
        present = jnp.concatenate([jnp.zeros_like(behind), from_first, behind], axis=3)
        hidden = jnp.where(present > 0, hidden, 0.0)
    return dape_along_keys(hidden, out)


@register(
    'dape',
    kind='encoding',
    card=Card(
        name='DAPE',
        door='logits',
        example='dape(encoding=kerple(), width=8)',
        use_when=(
            'You train a model of text with ALiBi, KERPLE or FIRE and can pay for a small '
            'network on the logits.'
        ),
        share='layer',
        relative=True,
        needs_training=True,
    ),
)
class DAPE(Composite):
    """Adds to the logits and their bias what a small network makes of both, over all heads at once.

    `logits = S + b + W2 leaky(W1 [S; b] + c1)`, `S = q k / sqrt(H)`, for every pair of a query and
    a key; S and b have one channel for each head, and b is the bias of `encoding`. So the bias
    follows the content, and a head reads the logits of the other heads. Without an `encoding` the
    network reads S alone, which may be that of a rotary encoding: `rope() | dape()`.

    A tile of logits has all heads and all keys (the trait `mixes_logits`), so a mesh cannot cut
    the heads, no kernel computes it, and blocks of keys that a query does not see are not skipped.
    The memory stays linear in the length.

    Differs from the paper: there is no c2, which would add the same number to all logits of a
    query, and so nothing where the weights of a query sum to 1. The network of `fire()` has a ReLU
    where the released code has a leaky one.

    Args:
      encoding: the bias, such as `kerple()`, `alibi()` or `fire()`, or a chain of biases; None for
        none.
      width: hidden units W.
      slope: of the leaky ReLU.
      heads: N, from the model.

    Raises:
      ValueError: an encoding that is no bias of positions; when used, queries of another number of
        heads.

    Reference: Zheng et al., arXiv 2405.14722.

    Example:
      >>> import posenc_jax as pj
      >>> pj.make('dape(encoding=alibi())', heads=12).of_scores.shape
      (1, 12, 32)
    """

    adds = frozenset({'mixes_logits'})
    taps: ClassVar[int] = 1

    def __init__(
        self,
        encoding: Encoding | None = None,
        width: Size = 32,
        slope: NonNegative = 0.01,
        heads: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        for part in self._biases(encoding):
            if not isinstance(part, Bias):
                raise ValueError(
                    f'{name_of(self)} adjusts a bias of positions such as kerple() or alibi(), got '
                    f'{name_of(part)}; write {name_of(part)} before it in the chain'
                )
        self.encoding, self.slope = encoding, slope
        self.card = self._own_card()  # pyright: ignore[reportAttributeAccessIssue]
        bound = (self.taps * heads * (1 if encoding is None else 2)) ** -0.5
        channels = lambda: drawn_uniform(
            rngs, (self.taps, heads, width), bound, (None, 'heads', None)
        )
        self.of_scores = channels()
        self.of_bias = None if encoding is None else channels()
        self.offset = drawn_uniform(rngs, (width,), bound, (None,))
        shape, within = (self.taps, width, heads), (self.taps * width) ** -0.5
        self.out = drawn_uniform(rngs, shape, within, (None, None, 'heads'))

    @staticmethod
    def _biases(encoding: Encoding | None) -> tuple[Any, ...]:
        return () if encoding is None else parts_of(encoding)

    def _own_card(self) -> Card:
        """The Card with what the bias promises and needs."""
        card = type(self).card
        cards = [part.card for part in self._biases(self.encoding) if hasattr(part, 'card')]
        relative = all(part.promises.relative for part in cards)
        return dataclasses.replace(
            card,
            causal_only=any(part.causal_only for part in cards),
            promises=dataclasses.replace(card.promises, relative=relative),
        )

    @property
    def children(self):
        return () if self.encoding is None else (self.encoding,)

    @property
    def pair_values(self):
        return self.offset.shape[-1]

    def logits(self, s, q, k, tq, tk, seen, carry):
        check_heads(name_of(self), self.of_scores[0], s)
        # No gradient passes a table that lacks the offset of a pair which nothing reads.
        real = seen if tq.valid is None else seen & tq.valid[:, None, :, None]
        at = lambda part: jnp.where(real, part.bias(tq.pos, tk.pos), 0.0)
        biases = [at(part) for part in self._biases(self.encoding)]
        bias, of_bias = None, None
        if self.of_bias is not None:
            rows = max(map(len, biases))
            every = (jnp.broadcast_to(a, (rows, *s.shape[1:])) for a in biases)
            bias, of_bias = functools.reduce(jnp.add, every), self.of_bias[...]
        weights = self.of_scores[...], of_bias, self.offset[...], self.out[...]
        adjust = lambda *pairs: dape_adjustment(*pairs, *weights, self.slope)
        if all(isinstance(size, int) for size in s.shape):  # others are symbolic, in `jax.export`
            by_rows = functools.partial(_by_rows, adjust)
            adjustment = jax.lax.platform_dependent(s, bias, seen, cpu=by_rows, default=adjust)
        else:
            adjustment = adjust(s, bias, seen)
        # What an option of the bias does to S beside adding b, as a weight of kerple, it does here.
        for part in self._biases(self.encoding):
            s, _ = part.logits(s, q, k, tq, tk, seen, ())
        return s + adjustment, carry


@register(
    'dape_v2',
    kind='encoding',
    card=Card(
        name='DAPE V2',
        door='logits',
        example='dape_v2(encoding=kerple(), width=8)',
        use_when='You use DAPE and want a pair to read the logits of its neighbours as well.',
        share='layer',
        relative=True,
        needs_training=True,
        promises=Promises(sweep_free=False),
    ),
)
class DAPEV2(DAPE):
    """DAPE whose network is two convolutions along the keys, so that a pair reads its neighbours.

    `logits = S + b + W2 * leaky(W1 * [S; b] + c1)`, where * is a convolution of width 3 along the
    keys. S and b are 0 at keys that the query does not see. Hidden values are 0 in front of the
    first key that the query sees. The one behind the last key that it sees is not, since it is made
    of keys that it sees. So the logit of key j depends on the keys j - 2 .. j + 2 that are seen.

    Everything else is as in `DAPE`. Caches that drop keys refuse it, since others would become
    neighbours.

    Differs from the paper: there is no c2, as in `DAPE`. The released code has zeros in place of
    the hidden values behind the last key of a text, so the last query differs from the same query
    of a longer text; here it does not, and decoding equals a pass over the whole. For a rotary
    encoding the released code declares twice the channels that it has; here W1 reads N. In decoding
    the released code hides all cached keys but the first from the network; here none is hidden.

    Args:
      encoding: the bias, or None, as in `DAPE`.
      width: hidden units W.
      slope: of the leaky ReLU.
      heads: N, from the model.

    Raises:
      ValueError: as for `DAPE`.

    Reference: Zheng et al., arXiv 2410.04798.

    Example:
      >>> import posenc_jax as pj
      >>> pj.make('rope() | dape_v2()', heads=12, head_dim=64).parts[1].of_scores.shape
      (3, 12, 32)
    """

    taps = 3
