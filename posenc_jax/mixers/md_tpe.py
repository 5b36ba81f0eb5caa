"""MD-TPE: a layer of decaying sums along the axes of a grid, before layers without positions."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from posenc_jax.language.spec import CONTEXT
from posenc_jax.layer.recurrent_mixer import RecurrentMixer
from posenc_jax.mixers.piecewise_scan import Blocks, known_rows, scan_pieces
from posenc_jax.protocol.bounds import Size
from posenc_jax.protocol.registry import Card, register

PIECE = 32  # tokens that are summed by one product


def decays(
    target: Int[Array, 'B T'],
    source: Int[Array, 'B S'],
    related,
    log_decay: Float[Array, 'E'],
    stride: int,
    line: int,
) -> Float[Array, 'B T S E']:
    """`lambda_e^n` where a source lies n >= 0 steps of an axis before its target, else 0.

    Args:
      target, source: ranks in row-major order; negative for none.
      related: which pairs count at all, [B, T, S].
      log_decay: of each term, at most 0.
      stride: the difference of ranks of a step of the axis.
      line: the number of ranks after which lines of the axis start anew.
    """
    apart = target[:, :, None] - source[:, None]
    same = target[:, :, None] // line == source[:, None] // line
    related = related & same & (apart % stride == 0) & (apart >= 0) & (source >= 0)[:, None]
    steps = jnp.where(related, apart // stride, 0)
    return jnp.where(related[..., None], jnp.exp(steps[..., None] * log_decay), 0.0)


def decaying_sums(
    b: Float[Array, 'D E'], log_decay: Float[Array, 'E'], stride: int, line: int, h, x, at: Blocks
):
    """One piece of the sums along one axis.

    Args:
      b, log_decay: coefficients of the channels and decays of the terms.
      stride, line: of the axis, see `decays`.
      h: the decayed sums behind the last token of each of the `stride` lines, [B, stride, E, D].
      x, at: the rows [B, C, D] and the `Blocks` of size 1 of the piece.

    Returns:
      The sums weighted by b, [B, C, D], and the new h.
    """
    last = lambda rank: rank[:, None] - (rank[:, None] - jnp.arange(stride)) % stride
    before = last(at.state_block + jnp.minimum(at.held, 1) - 1)  # -1 without a token
    to_state = lambda target, old: decays(
        target, before, old[..., None], log_decay, stride, line
    )  # fmt: skip
    to_piece = lambda target, document: decays(
        target,
        at.rank,
        at.valid[:, None] & (document[..., None] == at.document[:, None]),
        log_decay,
        stride,
        line,
    )
    place = jnp.arange(x.shape[1])
    causal = (place[:, None] >= place)[..., None]
    sums = jnp.einsum('btse,bsd->bted', to_piece(at.rank, at.document) * causal, x)
    sums = sums + jnp.einsum('btje,bjed->bted', to_state(at.rank, at.old), h)
    newest = last(at.last_block)
    document = jnp.broadcast_to(at.last_document[:, None], newest.shape)
    new = jnp.einsum('bjse,bsd->bjed', to_piece(newest, document), x)
    new = new + jnp.einsum('bjie,bied->bjed', to_state(newest, document == 0), h)
    some = at.valid.any(axis=1)[:, None, None, None]
    return jnp.einsum('bted,de->btd', sums, b), jnp.where(some, new, h)


@register(
    'md_tpe',
    kind='mixer',
    card=Card(
        name='MD-TPE',
        example='md_tpe(shape=(3,), terms=4)',
        use_when=(
            'You have tokens on a grid and a linear model, which needs a cheap hint of their order.'
        ),
        relative=True,
        needs_training=True,
    ),
)
class MdTpe(RecurrentMixer):
    """Adds decaying sums of earlier token vectors along every axis of a grid.

    `y_n = sum_{m <= n} (sum_e b_a[c, e] lambda_ae^(n - m)) x_m` for each channel c and axis a, over
    the tokens m that differ from n in the coordinate of this axis alone: a causal Toeplitz matrix
    of E decaying exponentials, lambda = sigmoid of a parameter. It is meant as the first layer of a
    model, before layers that see no positions: `pattern=('md_tpe()', 'lightnet()', ...)`. Tokens
    are in row-major order, the first axis slowest, and a token's coordinates follow from its rank
    in its document. Tokens in front of a grid of patches are left as they are. Time is linear in
    the length, `L E D` for each axis; the state has E D numbers for each line that crosses a row.
    Differs from the paper: the sums are those of the normed layer input, and are added to the
    residual stream. At first the decays are spread over 2 to 256 tokens, and b is normal, such that
    a term of white noise has the same variance at every decay.

    Args:
      shape: the sizes of all axes but the first; () is a sequence.
      terms: E.

    Raises:
      ValueError: too many lines; at call, tokens on a grid with other columns.

    Reference: Qin et al., arXiv 2405.21022.

    Example:
      >>> import posenc_jax as pj
      >>> mixer = MdTpe(shape=(3,), terms=2, model_dim=8, layers=1, rngs=nnx.Rngs(0))
      >>> mixer.whole(jnp.ones((1, 6, 8)), pj.Tokens.of(length=6)).shape
      (1, 6, 8)
    """

    def __init__(
        self,
        shape: tuple[Size, ...] = (),
        terms: Size = 16,
        model_dim: int = CONTEXT,
        layers: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        strides = [math.prod(shape[axis:]) for axis in range(len(shape) + 1)]
        if strides[0] >= 2**20:
            raise ValueError(f'md_tpe shape {shape} has {strides[0]} lines; at most 2**20 are kept')
        self.shape = tuple(shape)
        # The lines of an axis start anew where the axis before it makes a step; the first never.
        self.axes = tuple(zip(strides, [2**30, *strides[:-1]]))
        scales = 2.0 ** np.linspace(1, 8, terms)
        rows = len(self.axes), terms
        start = jnp.broadcast_to(jnp.asarray(np.log(scales - 1), jnp.float32), rows)
        self.decay = nnx.Param(start, axes=('axes', 'terms'))
        size = (2 * layers * terms * len(self.axes)) ** -0.5 * np.sqrt(1 - (1 - 1 / scales) ** 2)
        drawn = jax.random.normal(rngs.params(), (len(self.axes), model_dim, terms), jnp.float32)
        self.b = nnx.Param(drawn * size, axes=('axes', 'width', 'terms'))

    def initial(self, batch):
        _, model_dim, terms = self.b.shape
        return tuple(
            jnp.zeros((batch, stride, terms, model_dim), jnp.float32) for stride, _ in self.axes
        )

    def whole(self, x, tok):
        if tok.grid is None:
            return super().whole(x, tok)
        rows, columns = tok.grid
        if self.shape != (columns,):
            raise ValueError(
                f'md_tpe shape={self.shape} does not fit a grid of {rows} x {columns} tokens; use '
                f'shape=({columns},)'
            )
        extra = x.shape[1] - rows * columns
        cells = tok.slice(extra, rows * columns)
        cells = dataclasses.replace(cells, rank=cells.rank - extra)
        return jnp.pad(super().whole(x[:, extra:], cells), ((0, 0), (extra, 0), (0, 0)))

    def scan(self, x, tok, starts, state):
        b, log_decay = self.b[...], jax.nn.log_sigmoid(self.decay[...])

        def step(state, rows):
            x, valid, rank, starts = rows
            at = Blocks.of(valid, rank, starts, 1)
            parts = [
                decaying_sums(b[axis], log_decay[axis], *sizes, state[axis], x, at)
                for axis, sizes in enumerate(self.axes)
            ]
            return tuple(h for _, h in parts), functools.reduce(jnp.add, [y for y, _ in parts])

        rows = x.astype(jnp.float32), *known_rows(x, tok, starts)
        y, state = scan_pieces(step, state, rows, PIECE)
        return y.astype(x.dtype), state
