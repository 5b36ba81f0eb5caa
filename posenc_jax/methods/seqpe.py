"""SeqPE: the vector of a position is what a small transformer makes of its digits."""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from posenc_jax.base.products import heads_first, over_batch, scaled_dot_product
from posenc_jax.methods.seqpe_encoder import MAX_DIGITS, SeqPEEncoder, seqpe_digits
from posenc_jax.methods.seqpe_losses import (
    seqpe_comparisons,
    seqpe_contrastive_loss,
    seqpe_labels,
    seqpe_side,
    seqpe_transfer_loss,
    seqpe_windows,
)
from posenc_jax.protocol.bounds import (
    CONTEXT,
    Finite,
    Ge,
    Le,
    NonNegative,
    Positive,
    Share,
    Size,
    TrainLen,
)
from posenc_jax.protocol.capabilities import AuxiliaryLoss
from posenc_jax.protocol.encoding import Encoding, PositionRange, drawn_normal
from posenc_jax.protocol.families import check_heads, check_token_width
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tables import check_range, known_range
from posenc_jax.protocol.tokens import Tokens

Use = Literal['attn_scalar', 'attn_mul', 'attn_add', 'input_add']
Direction = Literal['causal', 'both']


def seqpe_logits(
    pq: Float[Array, '#B T N H'], pk: Float[Array, '#B S K H']
) -> Float[Array, '#B N T S']:
    """`pq_i . pk_j / sqrt(H)`, float32: what `attn_scalar` adds to the logits."""
    return scaled_dot_product(heads_first(pq), heads_first(pk))


@register(
    'seqpe',
    kind='encoding',
    card=Card(
        name='SeqPE',
        example='seqpe(max_pos=128)',
        use_when=(
            'You want positions that are read as digits, in one or more dimensions; to '
            'compare with RoPE or ALiBi, since a measured claim on text is contrary.'
        ),
        share='model',
        needs_training=True,
    ),
)
class SeqPE(AuxiliaryLoss):
    """Reads the digits of a position by a small transformer; acts where `use` says.

    `logit_ij = (q_i . k_j + c pq_i . pk_j) / sqrt(H)`, `[pq_i | pk_i] = W e(p_i) + b`. e(p) in R^D
    is the output at a mark behind the n decimal digits of p (see `SeqPEEncoder`), divided by the
    temperature; pq and pk are its vectors per query and key head.

    - 'attn_scalar': `logit_ij = (q_i . k_j + c pq_i . pk_j) / sqrt(H)`;
    - 'attn_mul' and 'attn_add': `(q_i * pq_i) . (k_j * pk_j)` and `(q_i + pq_i) . (k_j + pk_j)`;
    - 'input_add': `x_i + e(p_i)`, once at the input of the model, without W.

    `place` computes the vectors once for all layers, and a decode cache holds them once. With a key
    it follows the training rule: dropout in the encoder, and with probability `shift` all positions
    are read as `p + s`, s uniform over the shifts that stay below `max_pos`. Training adds two
    losses (`auxiliary_loss`), `contrastive` times L_ct and `transfer` times L_tr. L_ct tells the
    nearest of `candidates` positions by the product of their vectors. L_tr makes the vectors of
    `offsets` positions in a window far away as alike among each other as those of the first window;
    it is left out where the positions are shifted. T is the trained length. An evaluation with
    `eval.positions='sampled'` follows the training rule, with dropout and shifts.

    Differs from the paper: W is shared by all layers ('single', the paper's setting for text), for
    images the paper has one in every layer. Pivots, candidates and windows are drawn anew in every
    step, with repetitions, and there is one shift for the whole batch. Edits of digits read the
    zeros in front of a number too. Grouped key heads have their own pk.

    Args:
      use: 'attn_scalar', 'attn_mul', 'attn_add' or 'input_add'.
      max_pos: components of positions lie below it.
      components: P; positions are [B, L, P], for P = 1 also [B, L].
      digits: n of each component; None for those of `max_pos - 1`.
      layers: blocks of the encoder.
      direction: 'causal', or 'both' for attention among digits in both directions.
      mask_padding: hides the zeros in front of a number.
      temperature: divides e(p).
      scale: c, of 'attn_scalar' alone.
      shift: probability of a random shift.
      contrastive, transfer: weights of L_ct and L_tr.
      draws: pivots of L_ct, and windows of L_tr, in a step.
      candidates: of a pivot.
      offsets: of a window; at most its volume is used.
      dropout: rate in the encoder.
      std: standard deviation of the initial weights.
      heads, kv_heads, head_dim, model_dim, train_len: N, K, H, D and T, from the model.

    Raises:
      ValueError: digits that max_pos does not have; heads that do not divide D; a `max_pos` that
        leaves no window for L_tr; at call, positions that are no integers, have other components,
        or lie outside `0 .. max_pos - 1` (where they are traced they give NaN).

    Reference: Li et al., arXiv 2506.13277.

    Example:
      >>> import posenc_jax as pj
      >>> sizes = dict(heads=2, kv_heads=2, head_dim=4, model_dim=8, train_len=16)
      >>> encoding = pj.make('seqpe(max_pos=100)', **sizes)
      >>> pq, pk = encoding.place(pj.Tokens.of(positions=[[3, 99]])).feats['seqpe']
      >>> pq.shape, pk.shape
      ((1, 2, 2, 4), (1, 2, 2, 4))
    """

    traits = frozenset({'reads_other_tokens'})

    def __init__(
        self,
        use: Use = 'attn_scalar',
        max_pos: Annotated[int, Ge(2)] = 20000,
        components: Size = 1,
        digits: int | None = None,
        layers: Size = 2,
        direction: Direction = 'causal',
        mask_padding: bool = False,
        temperature: Positive = 1.0,
        scale: Finite = 1.0,
        shift: Share = 0.1,
        contrastive: NonNegative = 0.1,
        transfer: NonNegative = 0.1,
        draws: Size = 16,
        candidates: Annotated[int, Ge(2)] = 32,
        offsets: Annotated[int, Ge(2)] = 32,
        dropout: Annotated[float, Ge(0), Le(0.99)] = 0.1,
        std: NonNegative = 0.02,
        heads: int = CONTEXT,
        kv_heads: int = CONTEXT,
        head_dim: int = CONTEXT,
        model_dim: int = CONTEXT,
        train_len: TrainLen = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        needed = len(str(max_pos - 1))
        digits = needed if digits is None else digits
        if not needed <= digits <= MAX_DIGITS:
            raise ValueError(
                f'seqpe digits must lie in {needed} .. {MAX_DIGITS} for max_pos={max_pos}, got '
                f'{digits}'
            )
        if model_dim % heads:
            raise ValueError(
                f'seqpe: the encoder has the heads of the model, which must divide its width; got '
                f'{heads} heads and width {model_dim}'
            )
        side = seqpe_side(train_len, components)
        if transfer and max_pos - side <= side // 4:
            raise ValueError(
                f'seqpe max_pos must be at least {side + side // 4 + 1}, so that a window of '
                f'{side} positions has room beside the trained one, got {max_pos}; or set '
                'transfer=0.0'
            )
        self.use, self.max_pos, self.components, self.digits = use, max_pos, components, digits
        self.direction, self.mask_padding = direction, mask_padding
        self.temperature, self.scale = temperature, scale
        self.shift, self.contrastive, self.transfer = shift, contrastive, transfer
        self.draws, self.candidates, self.offsets = draws, candidates, offsets
        self.dropout, self.heads, self.train_len = dropout, heads, train_len
        self.encoder = SeqPEEncoder(model_dim, digits, components, layers, std=std, rngs=rngs)
        kernel = lambda count, role: drawn_normal(
            rngs, (model_dim, count, head_dim), std, ('width', role, None)
        )
        bias = lambda count, role: nnx.Param(jnp.zeros((count, head_dim)), axes=(role, None))
        if use != 'input_add':
            self.query, self.query_bias = kernel(heads, 'heads'), bias(heads, 'heads')
            self.key, self.key_bias = kernel(kv_heads, 'kv_heads'), bias(kv_heads, 'kv_heads')

    @property
    def position_range(self):
        return PositionRange(accepts=self.max_pos)

    def vectors(self, pos: Int[Array, '*B P'], key: Array | None = None) -> Float[Array, '*B D']:
        """e(p) of positions, float32; with a key, with dropout."""
        out = self.encoder(
            seqpe_digits(pos, self.digits),
            self.heads,
            causal=self.direction == 'causal',
            mask_padding=self.mask_padding,
            dropout=self.dropout,
            key=key,
        )
        return out / self.temperature

    def place(self, tok, *, key=None):
        pos = self._positions(tok)
        inside = ((pos >= 0) & (pos < self.max_pos)).all(-1, keepdims=True)
        if tok.valid is not None:
            inside |= ~tok.valid[..., None]
        if key is not None:
            of_shift, key, _ = jax.random.split(key, 3)
            known = pos if tok.valid is None else jnp.where(tok.valid[..., None], pos, 0)
            room = jnp.maximum(self.max_pos - known.max((0, 1)), 1)
            start = jax.random.randint(of_shift, (self.components,), 0, room)
            pos = pos + jnp.where(self._shifted(of_shift), start, 0)
        e = jnp.where(inside, self.vectors(pos, key), jnp.nan)
        if self.use == 'input_add':
            return tok.with_feats(seqpe=e[:, :, None])
        exact = lambda kernel: jnp.einsum(
            'bld,dnh->blnh', e, kernel[...], precision=jax.lax.Precision.HIGHEST
        )
        pq, pk = exact(self.query) + self.query_bias[...], exact(self.key) + self.key_bias[...]
        return tok.with_feats(seqpe=(pq, pk))

    def _shifted(self, key):
        """Whether a step shifts positions, from the first part of the key that `place` gets."""
        return jax.random.bernoulli(jax.random.fold_in(key, 97), self.shift)

    def _positions(self, tok: Tokens) -> Int[Array, '#B L P']:
        pos = tok.pos[..., None] if tok.pos.ndim == 2 else tok.pos
        if pos.shape[2:] != (self.components,) or not jnp.issubdtype(pos.dtype, jnp.integer):
            raise ValueError(
                f'seqpe(components={self.components}) needs integer positions [B, L, '
                f'{self.components}], got {tok.pos.dtype} {tok.pos.shape}'
            )
        # The length says nothing about positions that are traced and have components.
        if self.components == 1 or known_range(tok.pos, tok.valid) is not None:
            check_range('seqpe', tok, self.max_pos, 'a larger max_pos')
        return pos

    def embed(self, x, tok):
        added = tok.feats['seqpe'][:, :, 0]
        check_token_width('seqpe', added.shape[-1], x.shape[-1])
        if tok.valid is not None:
            added = jnp.where(tok.valid[..., None], added, 0)
        return x + added.astype(x.dtype)

    def project(self, q, k, v, tq, tk, x=None):
        check_heads('seqpe', self.query_bias[...], heads_first(q))
        change = jnp.multiply if self.use == 'attn_mul' else jnp.add
        q, k = (
            change(a, p).astype(a.dtype)
            for a, p in ((q, tq.feats['seqpe'][0]), (k, tk.feats['seqpe'][1]))
        )
        return q, k, v, tq, tk

    def logits(self, s, q, k, tq, tk, seen, carry):
        check_heads('seqpe', self.query_bias[...], s)
        added = self.scale * seqpe_logits(tq.feats['seqpe'][0], tk.feats['seqpe'][1])
        return s + over_batch(added, s.shape[0]), carry

    def auxiliary_loss(self, x, tok, *, key):
        of_shift, _, key = jax.random.split(key, 3)
        of_pivots, of_windows, of_vectors = jax.random.split(key, 3)
        sizes = self.draws, self.components, self.max_pos
        drawn = []
        if self.contrastive:
            drawn.append(seqpe_comparisons(of_pivots, *sizes, self.candidates, self.digits))
        if self.transfer:
            drawn.append(seqpe_windows(of_windows, *sizes, self.offsets, self.train_len))
        # One call of the encoder reads all positions.
        flat = [pos.reshape(-1, self.components) for pos in drawn]
        ends = np.cumsum([len(pos) for pos in flat])[:-1]
        vectors = jnp.split(self.vectors(jnp.concatenate(flat), of_vectors), ends)
        vectors = [e.reshape(*pos.shape[:-1], -1) for e, pos in zip(vectors, drawn)]
        loss = jnp.zeros((), jnp.float32)
        if self.contrastive:
            e = vectors[0]
            own = seqpe_contrastive_loss(e[:, 0], e[:, 1:], seqpe_labels(drawn[0]))
            loss += self.contrastive * own
        if self.transfer:
            own = seqpe_transfer_loss(*vectors[-1], self.heads)
            loss += jnp.where(self._shifted(of_shift), 0.0, self.transfer * own)
        return loss


class InputSeqPE(SeqPE, where=lambda given: given['use'] == 'input_add'):
    """SeqPE that adds e(p) to the token vectors."""

    project, logits = Encoding.project, Encoding.logits


class ScalarSeqPE(SeqPE, where=lambda given: given['use'] == 'attn_scalar'):
    """SeqPE that adds products of pq and pk to the logits."""

    embed, project = Encoding.embed, Encoding.project


class ProjectedSeqPE(SeqPE, where=lambda given: given['use'] in ('attn_add', 'attn_mul')):
    """SeqPE that changes queries and keys by pq and pk."""

    embed, logits = Encoding.embed, Encoding.logits


class QuietSeqPE(SeqPE, where=lambda given: not (given['contrastive'] or given['transfer'])):
    """SeqPE without a loss of its own."""

    auxiliary_loss = None
