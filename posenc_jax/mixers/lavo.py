"""LAVO: attention within blocks, beside an orthogonal memory of everything before them."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.base.orthonormal import orthonormal_rows
from posenc_jax.language.spec import CONTEXT
from posenc_jax.layer.recurrent_mixer import RecurrentMixer
from posenc_jax.mixers.head_projections import from_heads, input_weights, output_weights, to_heads
from posenc_jax.mixers.piecewise_scan import Blocks, known_rows, scan_pieces
from posenc_jax.protocol.bounds import Size
from posenc_jax.protocol.encoding import Constant
from posenc_jax.protocol.registry import Card, register

HIDDEN = -1e30  # a logit without weight


def lavo(
    basis: Float[Array, 'H r D'],
    rho: Float[Array, 'H w'],
    beta: Float[Array, 'H r'],
    state: tuple[Float[Array, 'B H r'], Float[Array, 'B w H D']],
    rows,
):
    """One piece of a row; `Lavo` has the equations.

    Args:
      basis, rho, beta: B, rho and beta.
      state: the sums of `B_n . c_s` over the complete blocks, and c of the last block.
      rows: q and c [B, C, H, D] in float32, valid, ranks and starts [B, C].

    Returns:
      The new state, and the results [B, C, H, D].
    """
    sums, buffer = state
    q, c, valid, rank, starts = rows
    window, scale = rho.shape[1], q.shape[-1] ** -0.5
    at = Blocks.of(valid, rank, starts, window)
    on_basis = lambda a: jnp.einsum('bshd,hrd->bshr', a, basis)
    held, new = on_basis(buffer), on_basis(c)
    filled = jnp.arange(window) < at.held[:, None]
    with_held = sums + jnp.einsum('bs,bshr->bhr', filled.astype(jnp.float32), held)

    def total(document, block):
        """The sums over the blocks before `block` of a document, both [B, T]."""
        earlier = at.valid[:, None] & (at.document[:, None] == document[..., None])
        earlier &= at.block[:, None] < block[..., None]
        complete = (block > at.state_block[:, None])[..., None, None]
        before = jnp.where(complete, with_held[:, None], sums[:, None])
        before = jnp.where((document == 0)[..., None, None], before, 0.0)
        return before + jnp.einsum('bts,bshr->bthr', earlier.astype(jnp.float32), new)

    count = at.block * window
    mean = total(at.document, at.block) / jnp.maximum(count, 1)[..., None, None]
    in_memory = scale * on_basis(q) * mean + beta
    in_memory = jnp.where((count > 0)[..., None, None], in_memory, HIDDEN)
    place = jnp.arange(window) + (at.state_block * window)[:, None]
    keys = jnp.concatenate([buffer, c], axis=1)
    distance = at.rank[:, :, None] - jnp.concatenate([place, at.rank], axis=1)[:, None]
    bias = jnp.swapaxes(rho[:, jnp.clip(distance, 0, window - 1)], 0, 1)
    seen = jnp.concatenate(at.sees(window), axis=-1)
    near = jnp.where(seen[:, None], scale * jnp.einsum('bthd,bshd->bhts', q, keys) + bias, HIDDEN)
    logits = jnp.concatenate([jnp.swapaxes(in_memory, 1, 2), near], axis=-1)
    weights = jax.nn.softmax(logits, axis=-1)
    memory, near = weights[..., : mean.shape[-1]], weights[..., mean.shape[-1] :]
    out = jnp.einsum('bhtr,bthr,hrd->bthd', memory, mean, basis)
    out = out + jnp.einsum('bhts,bshd->bthd', near, keys)
    sums = total(at.last_document[:, None], at.last_block[:, None])[:, 0]
    return (sums, at.store(buffer, c)), out


@register(
    'lavo',
    kind='mixer',
    card=Card(
        name='LAVO',
        example='lavo(slots=4, window=8)',
        use_when=(
            'You decode long texts with memory that grows by blocks only; the measured '
            'claim is open, and `cheems` had the lower loss.'
        ),
        causal_only=True,
        relative=True,
        needs_training=True,
    ),
)
class Lavo(RecurrentMixer):
    """Attention to the block of the query, and to means of everything before it.

    `softmax([q_i . M; q_i . c_s + rho_{i-s}]) [M; c]` for each head, where one stream `c_s = x_s
    W_c` is both keys and values. Blocks have w tokens. With orthonormal rows B_n and the start b0
    of the query's block, the memory is `M[n] = B_n (1/b0) sum_{s<b0} B_n . c_s`, and there is none
    in the first block. The query attends by one softmax to the r rows of the memory, `q . M[n] /
    sqrt(D) + beta_n`, and to the tokens of its block up to itself, `q . c_s / sqrt(D) + rho_{i-s}`.
    So positions act within a block alone, by a trained bias per head and distance, and no position
    is unseen in a longer text. Time is linear in the length, `L (r + w) D` for each head; the state
    is r sums and one block of c. Differs from the paper, which does not fix the positional part:
    rho as described, and no position in the memory. Blocks count the real tokens of each document.

    Args:
      slots: r, at most D; None for the smaller of 64 and D.
      window: w.
      learned: train the rows B_n, which are made orthonormal again whenever they are used; else
        they stay as they were drawn.
      memory_bias: train beta; else it is zero.

    Raises:
      ValueError: slots below 1 or above D.

    Reference: Zhang et al., arXiv 2312.11135.

    Example:
      >>> import posenc_jax as pj
      >>> sizes = dict(model_dim=8, heads=2, head_dim=4, layers=1)
      >>> mixer = Lavo(slots=3, window=2, **sizes, rngs=nnx.Rngs(0))
      >>> mixer.whole(jnp.ones((1, 5, 8)), pj.Tokens.of(length=5)).shape
      (1, 5, 8)
    """

    def __init__(
        self,
        slots: int | None = None,
        window: Size = 128,
        learned: bool = False,
        memory_bias: bool = False,
        model_dim: int = CONTEXT,
        heads: int = CONTEXT,
        head_dim: int = CONTEXT,
        layers: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        slots = min(64, head_dim) if slots is None else slots
        if not 1 <= slots <= head_dim:
            raise ValueError(
                f'lavo slots are orthogonal rows of the head width, so they must lie in 1 .. '
                f'{head_dim} (head_dim), got {slots}'
            )
        self.window = window
        into = lambda: input_weights(rngs, model_dim, heads, head_dim)
        self.w_q, self.w_c = into(), into()
        drawn = jax.random.normal(rngs.params(), (heads, slots, head_dim), jnp.float32)
        variable = nnx.Param if learned else Constant
        self.basis = variable(orthonormal_rows(drawn), axes=('heads', None, 'head_dim'))
        self.learned = learned
        self.rho = nnx.Param(jnp.zeros((heads, window), jnp.float32), axes=('heads', None))
        variable = nnx.Param if memory_bias else Constant
        self.beta = variable(jnp.zeros((heads, slots), jnp.float32), axes=('heads', None))
        self.w_out = output_weights(rngs, heads, head_dim, model_dim, layers)

    def initial(self, batch):
        heads, slots, head_dim = self.basis.shape
        zeros = lambda *shape: jnp.zeros((batch, *shape), jnp.float32)
        return zeros(heads, slots), zeros(self.window, heads, head_dim)

    def scan(self, x, tok, starts, state):
        project = lambda w: to_heads(x, w[...]).astype(jnp.float32)
        basis = orthonormal_rows(self.basis[...]) if self.learned else self.basis[...]
        rho, beta = self.rho[...], self.beta[...]
        rows = project(self.w_q), project(self.w_c), *known_rows(x, tok, starts)
        step = lambda state, rows: lavo(basis, rho, beta, state, rows)
        out, state = scan_pieces(step, state, rows, self.window)
        return from_heads(out.astype(x.dtype), self.w_out[...]), state
