"""Position interpolation of ALiBi: slopes divided by text length / trained length."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from posenc_jax.base.products import heads_first, over_batch
from posenc_jax.methods.alibi import ALiBi
from posenc_jax.protocol.bounds import CONTEXT, Factor, TrainLen
from posenc_jax.protocol.composite import Wrapper, name_of
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.length import current_length
from posenc_jax.protocol.registry import Card, register

Mode = Literal['static', 'dynamic', 'per_row']


def alibi_pi_scale(length: Num[Array, '...'], train_len: int) -> Float[Array, '...']:
    """`max(1, l / L)`, float32: the divisor of ALiBi's slopes at length l.

    It is exactly 1 up to the trained length L.
    """
    return 1.0 + jnp.maximum(length - train_len, 0).astype(jnp.float32) / train_len


CARD = Card(
    name='ALiBi position interpolation',
    door='project, logits',
    example='alibi_pi(factor=2.0)',
    use_when=(
        'You have a model with ALiBi and no time to tune it; to compare with plain '
        'ALiBi, since a measured claim on text is contrary.'
    ),
    share='model',
    relative=True,
)


@register('alibi_pi', kind='encoding', card=CARD)
class ALiBiPI(Wrapper):
    """Divides ALiBi's slopes by length / trained length, so that penalties stay in trained range;
    acts on the logits.

    `logit_ij = q_i . k_j / sqrt(H) - (m_h / s) |i - j|`. 'static': s is `factor` at every length,
    also below L; choose it for the longest text that will be read. 'dynamic': `s = max(1, n / L)`
    for all queries, with n the number of real tokens of the row, or of the packed document.
    'per_row': `s_i = max(1, (i + 1) / L)` for the i-th real token. Neither 'dynamic' nor 'per_row'
    changes anything up to L. With 'static' and 'per_row' decoding equals a full pass exactly. With
    'dynamic' a decoding step uses the scale of the current length, while cached keys and values of
    earlier tokens were computed with the scales of their own steps. So a single layer equals a full
    pass over its prefix, and a model of several layers does not. Differs from the paper: 'per_row'
    is ours. As an extension it wraps the ALiBi part of the chain, of any variant, and keeps its
    slopes.

    Args:
      factor: new length / trained length; only for 'static', which needs it.
      mode: 'static', 'dynamic' or 'per_row'.
      encoding: the ALiBi encoding; None is `alibi()`.
      train_len: L, from the model.
      heads: N, from the model.

    Raises:
      ValueError: 'static' without a factor; a factor with another mode; an encoding that is not
        ALiBi.

    Reference: Al-Khateeb, Dey, Soboleva, Hestness, arXiv 2310.13017.

    Example:
      >>> import posenc_jax as pj
      >>> part = pj.make('alibi_pi(mode="per_row")', heads=8, train_len=4)
      >>> t, zero = pj.Tokens.of(length=8), jnp.zeros((1, 8, 8, 8))
      >>> part.logits(zero, None, None, t, t, None, ())[0][0, 0, :, 0].round(3).tolist()
      [0.0, -0.5, -1.0, -1.5, -1.6, -1.667, -1.714, -1.75]
    """

    def __init__(
        self,
        factor: Factor | None = None,
        mode: Mode = 'static',
        encoding: Encoding | None = None,
        train_len: TrainLen = CONTEXT,
        heads: int = CONTEXT,
    ):
        self.mode = mode
        if mode == 'static' and factor is None:
            raise ValueError(
                "alibi_pi(mode='static') needs a factor; mode='per_row' follows the length"
            )
        if mode != 'static' and factor is not None:
            raise ValueError(
                f'alibi_pi(mode={mode!r}) takes its scale from the length, got {factor=}; leave '
                'it out'
            )
        self.factor, self.train_len = factor, train_len
        self.encoding = ALiBi(heads=heads) if encoding is None else encoding
        if not isinstance(self.encoding, ALiBi):
            found = name_of(encoding) if isinstance(encoding, Encoding) else repr(encoding)
            raise ValueError(
                f'alibi_pi extends ALiBi, got {found}; chain other encodings beside it, not '
                'inside it'
            )

    def logits(self, s, q, k, tq, tk, seen, carry):
        scale = self.factor
        if self.mode != 'static':
            length = tq.feats['alibi_pi'] if self.mode == 'dynamic' else tq.rank[..., None] + 1
            scale = alibi_pi_scale(heads_first(length), self.train_len)[..., None]
        bias = self.encoding.bias(tq.pos, tk.pos) / scale
        return s + over_batch(bias, s.shape[0]), carry


class DynamicALiBiPI(ALiBiPI, where=lambda given: given['mode'] == 'dynamic'):
    """ALiBi's slopes divided by the current length."""

    adds = frozenset({'reads_other_tokens'})

    def project(self, q, k, v, tq, tk, x=None):
        by_rank = lambda tok: dataclasses.replace(tok, pos=tok.rank)
        length, _ = current_length(by_rank(tq), by_rank(tk))
        length = jnp.broadcast_to(length, (length.shape[0], tq.length))
        return q, k, v, tq.with_feats(alibi_pi=length[..., None]), tk


@register('alibi_pi', kind='extension', card=ALiBiPI.card)
def alibi_pi(
    factor: float | None = None,
    mode: Mode = 'static',
    encoding: Encoding = CONTEXT,
    train_len: int = CONTEXT,
) -> ALiBiPI:
    """The encoding `ALiBiPI` of the ALiBi part of a chain. Differs from the paper: see `ALiBiPI`.

    Reference: Al-Khateeb, Dey, Soboleva, Hestness, arXiv 2310.13017.
    """
    return ALiBiPI(factor, mode, encoding, train_len)


alibi_pi.extends = (ALiBi,)
