"""LM-Infinite: a window, the first tokens, and a ceiling on distances."""

import dataclasses

import jax
import jax.numpy as jnp

from posenc_jax.core.encoding import Encoding, heads_first, scaled_dot_product
from posenc_jax.core.families import signed_distance
from posenc_jax.core.registry import Card, Promises, register
from posenc_jax.core.spec import CONTEXT
from posenc_jax.extension.parts import check_part
from posenc_jax.rotation.frequencies.checks import check_train_len
from posenc_jax.rotation.rope import Rotary, rotate


CARD = Card(
    name='LM-Infinite',
    title='LM-Infinite: Zero-Shot Extreme Length Generalization for Large Language Models',
    arxiv='2308.16137',
    door='project, match, score, mask',
    equation='key j visible iff j <= i and (i - j < R or j < n_global); D_ij = min(i - j, R)',
    source='Glaciohound/LM-Infinite',
    authors='Han, Chi and Wang, Qifan and Peng, Hao and Xiong, Wenhan and Chen, Yu and Ji, Heng and Wang, Sinong',
    year=2024,
    example='lm_infinite(encoding=rope(), n_global=2, n_local=5)',
    share='model',
    causal_only=True,
    promises=Promises(relative=True),
)


@register('lm_infinite', kind='encoding', card=CARD)
@register('lm_infinite', kind='extension', card=dataclasses.replace(CARD, example='lm_infinite(n_global=2, n_local=5)'))
class LMInfinite(Encoding):
    """Queries see the last `n_local` and the first `n_global` tokens, at distances of at most R = `n_local`.

    Key j is visible iff `j <= i` and (`i - j < n_local` or `j < n_global`); `D_ij = min(i - j, R)`: beyond the window a
    rotary query stands at R and the key unrotated at 0, a relative bias is that of distance R. Which keys are
    visible is counted in real tokens of the document, distances in positions. Differs from the paper: the ceiling always equals
    the window, as in its experiments; the variant that lets the last query choose k tokens of the middle is not part
    of this class.

    Args:
      encoding: the rotary encoding, or a relative bias such as `alibi()`.
      n_global: first tokens that stay visible; 10 to 100 in the paper, 100 in the released code.
      n_local: window and ceiling R; default `train_len`.
      train_len: from the model.

    Raises:
      ValueError: an encoding that is neither, or depends on the length; n_global below 0; n_local below 1.

    Reference: Han, Wang, Peng, Xiong, Chen, Ji, Wang, arXiv 2308.16137.

    Example:
      >>> import posenc_jax as pj
      >>> t = pj.Tokens.of(length=10)
      >>> pj.make('lm_infinite(encoding=alibi(), n_global=2, n_local=5)', heads=2, train_len=5).mask(t, t)[0, 0].sum(-1).tolist()
      [1, 2, 3, 4, 5, 6, 7, 7, 7, 7]
    """

    decides = frozenset({'causality'})

    def __init__(
        self,
        encoding: Encoding = CONTEXT,
        n_global: int = 10,
        n_local: int | None = None,
        train_len: int = CONTEXT,
    ):
        n_local = check_train_len('lm_infinite', train_len) if n_local is None else n_local
        if n_global < 0 or n_local < 1:
            raise ValueError(f'lm_infinite: expected n_global >= 0 and n_local >= 1, got {n_global=}, {n_local=}')
        self.encoding = check_part('lm_infinite', encoding, bias=True)
        self.n_global, self.n_local = n_global, n_local

    @property
    def rotates(self):
        return self.encoding.rotates

    @property
    def leaves_gaps(self):
        return self.n_global > 0

    def project(self, q, k, v, tq, tk, x=None):
        if isinstance(self.encoding, Rotary):
            tq = tq.with_feats(lm_infinite=self.encoding.rotate(q, jnp.full((1, 1), self.n_local)))
        return self.encoding.project(q, k, v, tq, tk, x)

    def mask(self, tq, tk):
        causal = tk.index[:, None, :] <= tq.index[:, :, None]
        near = signed_distance(tq.order, tk.order) < self.n_local
        return (causal & (near | (tk.order < self.n_global)[:, None, :]))[:, None]

    def may_see(self, tq, tk):
        near = tk.order_high > tq.order_low - self.n_local
        return (tk.index_low <= tq.index_high) & (near | (tk.order_low < self.n_global))

    def opens(self, door):
        return super().opens(door) and (door != 'match' or isinstance(self.encoding, Rotary))

    def match(self, q, k, tq, tk, seen, carry):
        s, carry = super().match(q, k, tq, tk, seen, carry)
        if not isinstance(self.encoding, Rotary):
            return s, carry
        beyond = self._beyond(tq, tk)[:, None]

        def with_ceiling(q, k, s):
            angles, _ = self.encoding.angles(tk.pos)
            unrotated = rotate(k, -angles[:, None], layout=self.encoding.layout)
            return jnp.where(beyond, scaled_dot_product(q, unrotated), s)

        at_ceiling = heads_first(tq.feats['lm_infinite'])
        return jax.lax.cond((seen & beyond).any(), with_ceiling, lambda q, k, s: s, at_ceiling, k, s), carry

    def score(self, s, tq, tk, seen, carry):
        if isinstance(self.encoding, Rotary):
            return s, carry
        at = lambda tok, pos: dataclasses.replace(tok, pos=jnp.full((1, 1), pos, jnp.int32))
        near, carry = self.encoding.score(s, tq, tk, seen, carry)
        ceiling, _ = self.encoding.score(s, at(tq, self.n_local), at(tk, 0), seen, carry)
        return jnp.where(self._beyond(tq, tk)[:, None], ceiling, near), carry

    def _beyond(self, tq, tk):
        """Pairs [#B, T, S] whose distance is at the ceiling."""
        return signed_distance(tq.pos, tk.pos) >= self.n_local
