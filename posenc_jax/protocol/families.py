"""Base classes for families of encodings; a new encoding overrides one function of its family."""

from typing import ClassVar, Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from posenc_jax.base.double import Double
from posenc_jax.base.products import over_batch
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.errors import must_define
from posenc_jax.protocol.tokens import Bounds, Tokens


class Embedding(Encoding):
    """Opens `embed`: adds a vector per position to token vectors. A subclass defines `table`."""

    def table(self, tok: Tokens, width: int) -> Float[Array, '#B L D']:
        """Position vectors of model width."""
        raise must_define(self, 'table(self, tok, width)')

    def embed(self, x, tok):
        added = self.table(tok, x.shape[-1]).astype(x.dtype)
        return x + (added if tok.valid is None else jnp.where(tok.valid[..., None], added, 0))


def check_token_width(user: str, own: int, width: int) -> None:
    """Raises ValueError if token vectors do not have the width that an encoding was built for."""
    if own != width:
        raise ValueError(f'{user} was built for token vectors of width {own}, got {width}')


def check_head_dim(user: str, own: int, x: Num[Array, 'B L _ H']) -> None:
    """Raises ValueError if queries or keys do not have the width that an encoding was built for."""
    if x.shape[-1] != own:
        raise ValueError(f'{user} was built for head_dim={own}, got vectors of width {x.shape[-1]}')


class Bias(Encoding):
    """Opens `logits`: adds a bias that depends on two positions. A subclass defines `bias`."""

    def bias(
        self, q_pos: Num[Array, '#B T'], k_pos: Num[Array, '#B S']
    ) -> Float[Array, '#B #N T S']:
        """Additive bias in float32, not divided by sqrt(H)."""
        raise must_define(self, 'bias(self, q_pos, k_pos)')

    def logits(self, s, q, k, tq, tk, seen, carry):
        bias = self.bias(tq.pos, tk.pos).astype(jnp.float32)
        if bias.ndim != 4:
            raise ValueError(
                f'{type(self).__name__}.bias returned the shape {bias.shape}, expected [B, heads, '
                'queries, keys], where B and heads may be 1'
            )
        if bias.shape[1] not in (1, s.shape[1]):
            raise ValueError(
                f'{type(self).__name__} was built for {bias.shape[1]} heads, the queries have '
                f'{s.shape[1]}'
            )
        return s + over_batch(bias, s.shape[0]), carry


class Mask(Encoding):
    """Opens `mask`: decides which keys a query may see. A subclass defines `allow`, and `may_see`
    so that whole blocks can be skipped; with `sees_all`, blocks that are seen whole need no mask.
    """

    @property
    def band(self) -> int | None:
        """The mask shows exactly the keys whose distance in `index` is below this number; None if
        it is another mask. Kernels of libraries know such bands.
        """
        return None

    @property
    def shown_first(self) -> int | None:
        """The mask shows the keys that are not later than the query, and so many first tokens of
        the text; None if it is another mask. Two calls of a library's causal kernel compute it.
        """
        return None

    def allow(self, tq: Tokens, tk: Tokens) -> Array:
        raise must_define(self, 'allow(self, tq, tk)')

    def mask(self, tq, tk):
        return self.allow(tq, tk)


def check_heads(user: str, per_head: Num[Array, 'heads ...'], s: Float[Array, 'B N T S']) -> None:
    """Refuses parameters and logits of different numbers of heads, which would broadcast if one of
    the numbers is 1.

    Raises:
      ValueError: the numbers differ; the message has both.

    Example:
      >>> check_heads('this', jnp.ones(2), jnp.ones((1, 2, 3, 3)))
    """
    if per_head.shape[0] != s.shape[1]:
        raise ValueError(
            f'{user} has parameters of {per_head.shape[0]} heads, the queries have {s.shape[1]}'
        )


def signed_distance(q_pos: Num[Array, '#B T'], k_pos: Num[Array, '#B S']) -> Num[Array, '#B T S']:
    """Query minus key position, >= 0 in the causal past; integers stay integers."""
    if q_pos.ndim != 2 or k_pos.ndim != 2:
        raise ValueError(
            'a distance needs one position per token [B, L], got positions of shape '
            f'{q_pos.shape}, {k_pos.shape}'
        )
    return q_pos[..., :, None] - k_pos[..., None, :]


def all_beyond(tq: Bounds, tk: Bounds, behind: int, ahead: int) -> Bool[Array, '']:
    """Whether all keys of a block are at least `behind` positions behind all queries of another, or
    all at least `ahead` positions ahead of them.

    Example:
      >>> from posenc_jax.protocol.tokens import bounds
      >>> of = lambda n: bounds(Tokens.of(positions=jnp.arange(n, n + 4)[None]))
      >>> [bool(all_beyond(of(12), of(n), 6, 6)) for n in (0, 4, 20)]
      [True, False, False]
    """
    return (tq.position_low - tk.position_high >= behind) | (
        tk.position_low - tq.position_high >= ahead
    )


def whole_distance(
    name: str, q_pos: Num[Array, '#B T'], k_pos: Num[Array, '#B S'], remedy: str = ''
) -> Int[Array, '#B T S']:
    """`signed_distance` of integer positions; `name` starts and `remedy` ends the error message.

    Raises:
      ValueError: positions that are no integers.
    """
    distance = signed_distance(q_pos, k_pos)
    if not jnp.issubdtype(distance.dtype, jnp.integer):
        raise ValueError(f'{name} needs integer positions, got {distance.dtype}{remedy}')
    return distance


class Frequencies(Protocol):
    """A rule for rotary frequencies. Implementations are frozen dataclasses registered with kind
    'frequencies'.

    Attributes:
      spec_kind: 'frequencies'.
      uses_length: whether the rule depends on the current length (then keys must be cached raw).
      start: optional: how many first positions keep the plain frequencies and temperature 1.
      switch: optional: the length beyond which a rule that uses the length gives other frequencies;
        None if they change at more than one length.
    """

    spec_kind: ClassVar[str] = 'frequencies'
    uses_length: ClassVar[bool] = False

    def __call__(
        self, rotary_dim: int, base: float, length: Num[Array, '...'] | None = None
    ) -> tuple[np.ndarray | Double, float | Float[Array, '...']]:
        """Inverse frequencies (radians per position, rotary_dim // 2 of them) and the temperature
        m.

        m multiplies cos and sin of queries and keys alike, so logits are scaled by m**2. Static
        rules return numpy float64 and a float. Rules that use the length return a `Double` of shape
        `length.shape + (rotary_dim // 2,)`, so that phases are exact there too, and m as an array
        of `length.shape`.
        """
        ...


def alibi_slopes(heads: int) -> np.ndarray:
    """The geometric slopes m_h of `heads` heads, float64 [N]. If N is no power of two, the slopes
    of the heads beyond the largest power come last.

    Raises:
      ValueError: fewer than one head.

    Example:
      >>> alibi_slopes(4).tolist()
      [0.25, 0.0625, 0.015625, 0.00390625]
    """
    if heads < 1:
        raise ValueError(f'ALiBi needs at least one head, got {heads}')
    power = 2 ** (heads.bit_length() - 1)
    slopes = 2.0 ** (-8.0 * np.arange(1, power + 1) / power)
    extra = 2.0 ** (-8.0 * np.arange(1, 2 * power + 1) / (2 * power))
    return np.concatenate([slopes, extra[0::2][: heads - power]])
