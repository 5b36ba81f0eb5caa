"""GALI: subdivides only as many positions as needed, and interpolates logits between them."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from posenc_jax.base.meshes import vary, varying_axes
from posenc_jax.base.phases import phase
from posenc_jax.base.products import heads_first, scaled_dot_product
from posenc_jax.methods.extended_parts import check_part
from posenc_jax.methods.rope import Rotary, rotate
from posenc_jax.protocol.bounds import CONTEXT, NonNegative
from posenc_jax.protocol.checks import check_train_len
from posenc_jax.protocol.composite import Wrapper
from posenc_jax.protocol.encoding import Constant, Encoding
from posenc_jax.protocol.families import check_heads
from posenc_jax.protocol.length import current_length
from posenc_jax.protocol.registry import Card, register

LAST = np.iinfo(np.int32).max


def gali_slots(
    total: Int[Array, '...'], train_len: int, local: int
) -> tuple[Int[Array, '...'], Int[Array, '...']]:
    """The number G of parts into which a position is divided for a text of T tokens, and the number
    n of first tokens at divided positions.

    `G = ceil((T - w) / (M - w))`, `n = T - M + ceil((T - M) / (G - 1))`; G = 1 and n = 0 if T <= M.

    Args:
      total: T.
      train_len: M.
      local: w, the least number of last tokens that keep unit spacing.

    Raises:
      ValueError: w outside 0 .. M - 1.
    """
    _check_local(local, train_len)
    over = jnp.maximum(total - train_len, 0)
    parts = jnp.maximum(-((local - total) // (train_len - local)), 1)
    return parts, over - (-over // jnp.maximum(parts - 1, 1))


def gali_ids(
    pos: Int[Array, '...'], total: Int[Array, '...'], train_len: int, local: int
) -> Float[Array, '...']:
    """The ids of tokens r in a text of T tokens: `r//G + (r mod G) / G` for the first n tokens, `r
    - (T - M)` for the others, with G and n from `gali_slots`.
    """
    parts, fractions = gali_slots(total, train_len, local)
    return jnp.where(pos < fractions, pos / parts, pos - jnp.maximum(total - train_len, 0))


def gali_chunks(total: int, train_len: int, chunk: int | float) -> list[int]:
    """Lengths of the chunks in which T tokens are read: first M tokens, then `chunk` tokens each.

    Args:
      total: T.
      train_len: M.
      chunk: an integer, or a fraction below 1 of the number of tokens read before.

    Raises:
      ValueError: T or M below 1, a chunk of less than one token, or a number above 1 that is not
        an int.
    """
    _check_chunk(chunk, check_train_len('gali', train_len))
    if total < 1:
        raise ValueError(f'gali: a text has at least 1 token, got {total}')
    ends = [min(total, train_len)]
    while ends[-1] < total:
        more = chunk if isinstance(chunk, int) else int(chunk * ends[-1])
        ends.append(min(total, ends[-1] + more))
    return np.diff(ends, prepend=0).tolist()


def _check_local(local, train_len):
    if not 0 <= local < train_len:
        last = train_len - 1
        raise ValueError(
            f'gali: local must be between 0 and train_len - 1 = {last}, got {local}; the nearest '
            f'is {min(max(local, 0), last)}'
        )


def _check_chunk(chunk, train_len):
    if not isinstance(chunk, int) and chunk >= 1:
        raise ValueError(
            'gali: chunk must be a number of tokens, an int, or a fraction below 1, got '
            f'{chunk!r}; the nearest is {round(chunk)}'
        )
    if chunk <= 0 or chunk * (1 if isinstance(chunk, int) else train_len) < 1:
        raise ValueError(
            f'gali: a chunk needs at least one token, got chunk={chunk} with train_len={train_len}'
        )


def gali_normals(
    seed: int, heads: Int[Array, 'N'], q_pos: Int[Array, '#B T'], k_pos: Int[Array, '#B S']
) -> Float[Array, '#B N T S']:
    """A normally distributed number for every head and pair of positions. It is a hash of (seed,
    head, i, j), so it does not depend on the tiles of attention.
    """
    state, q_pos, k_pos = jnp.uint32(0), q_pos[:, None, :, None], k_pos[:, None, None, :]
    for word in (jnp.asarray(seed), heads[:, None, None], q_pos, k_pos):
        state = _scrambled(state ^ word.astype(jnp.uint32))
    radius, turn = (
        (_scrambled(state + jnp.uint32(n)) >> 8).astype(jnp.float32) * 2.0**-24 for n in (1, 2)
    )
    return jnp.sqrt(-2.0 * jnp.log(1.0 - radius)) * jnp.cos(2.0 * jnp.pi * turn)


def _scrambled(word: UInt32[Array, '...']) -> UInt32[Array, '...']:
    """A permutation of 32-bit words in which every bit depends on all bits: a constant is added,
    followed by the final steps of MurmurHash3.
    """
    word = word + jnp.uint32(0x9E3779B9)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        word = (word ^ (word >> shift)) * jnp.uint32(factor)
    return word ^ (word >> 16)


CARD = Card(
    name='GALI',
    door='project, logits',
    example='gali(encoding=rope(), chunk=3, local=2, train_len=8)',
    use_when=(
        'You extend a rotary model without training; to compare with other '
        'extensions, since two measured claims are contrary.'
    ),
    share='model',
    causal_only=True,
)


@register('gali', kind='encoding', card=CARD)
@register('gali', kind='extension', card=CARD)
class GALI(Wrapper):
    """Reads a text in chunks and divides the oldest positions, so that each chunk fits into the
    trained length M; interpolates rotary logits between whole distances.

    `logit_ij = (1 - r) A(a - ceil p_j) + r A(a - floor p_j)`, `a = ceil p_i`, `r = frac(a - p_j)`.
    A(d) is the rotary logit at the whole distance d, and p are the ids (`gali_ids`) for a text of T
    tokens. T is the end of the chunk of query i, or the length of the text if that is shorter,
    since earlier chunks are not computed again. So the logit is a function of the pair: one pass
    over a text equals prefill in chunks, and a decoding step is a chunk of one token. In the first
    layer a step equals the last row of a pass over the text so far. In deeper layers it does so
    with chunks of one token only, since a longer chunk has other hidden states than single steps.
    Keys are cached once, rotated at their own position. Keys with whole ids are used as they are,
    as in RoPE; other keys are rotated to their ids at every use. Differs from the paper: two
    interpolated logits are computed as one, with an interpolated key; the noise is off by default.
    It is a function of (seed, head, i, j), and so it is the same in every layer, every row of a
    batch and for all tiles.

    Args:
      encoding: the rotary encoding.
      chunk: tokens in a chunk after the first one, which has M; or a fraction below 1 of the number
        of tokens read before. 1 is one token at a time.
      local: w, the least number of last tokens that keep unit spacing; default 128 as released, or
        M / 8 if that is less (our convention). With 0 no token of a text of k M tokens keeps it;
        its last id is above M - 1 and is rounded up to M for a query, one more than was trained.
      noise: standard deviation of the noise on interpolated logits at distance T; it is
        proportional to the distance. 1 as released; 0 (the default) is no noise.
      seed: seed of the noise.
      train_len: M; the model's, or less, which helps according to the paper.
      heads: N, from the model.

    Raises:
      ValueError: an encoding that is not rotary, depends on the length or has other frequencies
        at its first positions; local outside 0 .. train_len - 1; a chunk of less than one token; at
        call, positions that are not integers, and with noise another number of heads.

    Reference: Li, Zhang, Li, Han, arXiv 2502.02659.

    Example:
      >>> import posenc_jax as pj
      >>> t, spec = pj.Tokens.of(length=13), 'gali(encoding=rope(), chunk=3, local=2)'
      >>> pj.make(spec, heads=2, head_dim=8, train_len=8).believed(t, t)[0].tolist()
      [8, 8, 8, 8, 8, 8, 8, 8, 11, 11, 11, 13, 13]
    """

    adds = frozenset({'forms_logits', 'reads_other_tokens'})

    extends = (Rotary,)

    def __init__(
        self,
        encoding: Encoding = CONTEXT,
        chunk: int | float = 3000,
        local: int | None = None,
        noise: NonNegative = 0.0,
        seed: int = 0,
        train_len: int = CONTEXT,
        heads: int = CONTEXT,
    ):
        local = min(128, check_train_len('gali', train_len) // 8) if local is None else local
        _check_local(local, train_len)
        _check_chunk(chunk, train_len)
        self.encoding = check_part('gali', encoding, even=True)
        self.chunk, self.local, self.noise = chunk, local, noise
        self.seed, self.train_len = seed, train_len
        self.head = Constant(jnp.arange(heads), axes=('heads',)) if noise else None

    def believed(self, tq, tk) -> Int[Array, '#B T']:
        """The text length T of each query: the end of its chunk, or of the text if that is
        shorter.
        """
        if not jnp.issubdtype(tq.pos.dtype, jnp.integer):
            raise ValueError(f'gali: positions must be integers, got {tq.pos.dtype}')
        length, _ = current_length(tq, tk)
        if isinstance(self.chunk, int):
            ends = self.train_len - (self.train_len - 1 - tq.pos) // self.chunk * self.chunk
        else:
            table = np.cumsum(gali_chunks(LAST, self.train_len, self.chunk)).astype(np.int32)
            ends = jnp.asarray(table)[jnp.searchsorted(table, tq.pos, side='right')]
        return jnp.minimum(jnp.where(tq.pos < self.train_len, self.train_len, ends), length)

    def project(self, q, k, v, tq, tk, x=None):
        total = self.believed(tq, tk)
        over = jnp.maximum(total - self.train_len, 0)
        parts, fractions = gali_slots(total, self.train_len, self.local)
        own = jnp.where(tq.pos < fractions, -(-tq.pos // parts), tq.pos - over)
        total = jnp.broadcast_to(total, own.shape)[..., None]
        tq = tq.with_feats(gali=(self.encoding.rotate(q, own), total))
        return self.encoding.rotate(q, own + over), self.encoding.rotate(k, tk.pos), v, tq, tk

    def logits(self, s, q, k, tq, tk, seen, carry):
        far_q, total = heads_first(tq.feats['gali'][0]), tq.feats['gali'][1][..., 0]
        parts, fractions = gali_slots(total, self.train_len, self.local)
        whole = (tk.pos[:, None, :] >= fractions[:, :, None])[:, None]
        nothing = lambda q, k: vary(
            jnp.zeros((*q.shape[:3], k.shape[2]), jnp.float32), varying_axes(q, k)
        )

        # The queries of most tiles have one value of G or two, and each value needs its own keys. A
        # query whose text fits into M divides no position, so it works with any value.
        fits = fractions == 0
        most = parts.max(axis=1, keepdims=True)
        least = jnp.where(fits, most, parts).min(axis=1, keepdims=True)
        once = lambda q, k: scaled_dot_product(q, self._interpolated(k, tk.pos, most))

        def twice(q, k):
            other = scaled_dot_product(q, self._interpolated(k, tk.pos, least))
            return jnp.where((parts == most)[:, None, :, None], once(q, k), other)

        def one_by_one(q, k):
            row = lambda q, parts: scaled_dot_product(
                q[:, :, None], self._interpolated(k, tk.pos, parts[:, None])
            )[:, :, 0]
            rows = jnp.moveaxis(q, 2, 0), parts.T
            return jnp.moveaxis(jax.lax.map(lambda a: jax.checkpoint(row)(*a), rows), 0, 2)

        few = ((parts == most) | (parts == least) | fits).all()
        ways = jnp.where((least == most).all(), 0, jnp.where(few, 1, 2))
        interpolated = lambda q, k: jax.lax.switch(ways, (once, twice, one_by_one), q, k)
        near = jax.lax.cond((seen & whole).any(), scaled_dot_product, nothing, q, k)
        far = jax.lax.cond((seen & ~whole).any(), interpolated, nothing, far_q, k)
        if self.noise:
            check_heads('gali', self.head[...], far)
            between = ~whole & (tk.pos[:, None, :] % parts[:, :, None] > 0)[:, None]
            spread = self.noise * (tq.pos[:, :, None] - tk.pos[:, None, :]) / total[:, :, None]
            normals = gali_normals(self.seed, self.head[...], tq.pos, tk.pos)
            far = far + jnp.where(between, spread[:, None] * normals, 0.0)
        return jnp.where(whole, near, far), carry

    def _interpolated(self, k, pos, parts):
        """The interpolated key: `(1-r) k` rotated to the next whole id plus `r k` rotated to the
        one before, from keys rotated at `pos`.
        """
        inv_freq, _ = self.encoding.frequencies()
        here, below = phase(pos, inv_freq), pos // parts
        turn = lambda place: (phase(place, inv_freq) - here)[:, None]
        exact, layout = k.astype(jnp.float32), self.encoding.layout
        at = lambda place: rotate(exact, turn(place), layout=layout)
        r = (-pos % parts / parts)[:, None, :, None]
        return ((1.0 - r) * at(below + (pos % parts > 0)) + r * at(below)).astype(k.dtype)
