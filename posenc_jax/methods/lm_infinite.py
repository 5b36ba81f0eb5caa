"""LM-Infinite: a window, the first tokens, a ceiling on distances, and optional top-k keys."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from posenc_jax.base.products import heads_first, scaled_dot_product
from posenc_jax.methods.extended_parts import check_part
from posenc_jax.methods.rope import Rotary, rotate
from posenc_jax.protocol.bounds import CONTEXT, Count, Size
from posenc_jax.protocol.checks import check_train_len
from posenc_jax.protocol.composite import Wrapper, name_of
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.families import signed_distance
from posenc_jax.protocol.masks import causal_mask
from posenc_jax.protocol.registry import Card, register


def lm_infinite_mask(
    q_rank: Int[Array, '#B T'], k_rank: Int[Array, '#B S'], n_global: int, n_local: int
) -> Bool[Array, '#B 1 T S']:
    """`i - j < n_local or j < n_global`: the keys of the window, and the first tokens of the text.

    Later keys are not hidden; `causal_mask` does that. The distances of LM-Infinite are
    `self_extend_distance(q_pos, k_pos, None, n_local)`.

    Args:
      q_rank, k_rank: numbers i and j of the tokens among the real tokens of their document.
      n_global: number of first tokens that every query sees.
      n_local: size of the window, the query included.

    Reference: Han, Wang, Peng, Xiong, Chen, Ji, Wang, arXiv 2308.16137.

    Example:
      >>> rank = jnp.arange(6)[None]
      >>> lm_infinite_mask(rank, rank, n_global=1, n_local=2)[0, 0, 5].astype(int).tolist()
      [1, 0, 0, 0, 1, 1]
    """
    near = signed_distance(q_rank, k_rank) < n_local
    return (near | (k_rank < n_global)[:, None])[:, None]


CARD = Card(
    name='LM-Infinite',
    door='project, logits, mask',
    example='lm_infinite(encoding=rope(), n_global=2, n_local=5)',
    share='model',
    causal_only=True,
    relative=True,
)


@register('lm_infinite', kind='encoding', card=CARD)
@register('lm_infinite', kind='extension', card=CARD)
class LMInfinite(Wrapper):
    """Masks all keys but the last `n_local` and the first `n_global` tokens, and limits distances
    to R = `n_local`.

    `D_ij = min(i - j, n_local)`, `j visible iff j <= i and (i - j < n_local or j < n_global)`. D is
    the relative position. Beyond the window a rotary query is rotated to R and the key to 0, and a
    relative bias is that of distance R. The mask counts real tokens of the document; distances are
    differences of positions. Without `top_k` a decode cache of n_global + n_local slots is enough
    (`posenc_jax.lab.decoding.constant_cache`).

    With `top_k` = k the last query of a text also sees keys of the middle, which are the causal
    keys that it would not see otherwise. Each head chooses the k keys with the largest logits at
    the relative position t, and uses these logits. With fewer than k keys in the middle it chooses
    none. Other masks of the chain have no influence on the choice. A decoded token is the last of
    its text, so in the first layer a step equals the last row of a pass over the text so far. In
    deeper layers it does not: earlier decoded tokens saw the keys that they chose, while in one
    pass only the last token chooses any. `project` needs all keys for the choice, so all keys are
    cached unrotated. A pass over a whole text computes all causal blocks, since any of them may
    have a chosen key. In `read_segment` a segment with its memory counts as a text.

    Differs from the paper: the ceiling always equals the window, as in the paper's experiments. As
    an extension `top_k` acts in every layer, since an encoding does not know its layer; the paper
    leaves it out of the first four layers, for which a model needs a pattern of encodings.

    Args:
      encoding: the rotary encoding, or a relative bias such as `alibi()`.
      n_global: number of first tokens that stay visible; 10 to 100 in the paper, 100 in the
        released code.
      n_local: size of the window and ceiling R; default `train_len`.
      top_k: number of keys of the middle that the last query sees; 5 in the paper, 0 for none.
      distance: t, the relative position of these keys; default train_len / 2, as in the paper.
      train_len: the trained length in tokens, from the model.

    Raises:
      ValueError: an encoding that is neither rotary nor a relative bias, or depends on the
        length; top_k with a bias; a distance without top_k; at call, top_k with packed documents.

    Reference: Han, Wang, Peng, Xiong, Chen, Ji, Wang, arXiv 2308.16137.

    Example:
      >>> import posenc_jax as pj
      >>> t = pj.Tokens.of(length=10)
      >>> spec = 'lm_infinite(encoding=alibi(), n_global=2, n_local=5)'
      >>> pj.make(spec, heads=2, train_len=5).mask(t, t)[0, 0].sum(-1).tolist()
      [1, 2, 3, 4, 5, 6, 7, 7, 7, 7]
    """

    def __init__(
        self,
        encoding: Encoding = CONTEXT,
        n_global: Count = 10,
        n_local: Size | None = None,
        top_k: Count = 0,
        distance: Size | None = None,
        train_len: int = CONTEXT,
    ):
        n_local = check_train_len('lm_infinite', train_len) if n_local is None else n_local
        if distance is not None and not top_k:
            raise ValueError(
                f'lm_infinite: distance needs top_k of at least 1, got {distance=}, {top_k=}'
            )
        self.encoding = check_part('lm_infinite', encoding, bias=True)
        if top_k and not isinstance(encoding, Rotary):
            raise ValueError(
                f'lm_infinite: top_k={top_k} needs a rotary encoding, got {name_of(encoding)}; use '
                'top_k=0'
            )
        if top_k and distance is None:
            distance = max(1, check_train_len('lm_infinite', train_len) // 2)
        self.n_global, self.n_local, self.top_k, self.distance = n_global, n_local, top_k, distance

    @property
    def unlike_decoding(self) -> str:
        """Why one pass over a prompt and its answer reads otherwise than decoding; '' if it does
        not.
        """
        if not self.top_k:
            return ''
        return (
            f'lm_infinite(top_k={self.top_k}) shows keys of the middle to the last token of a text '
            'alone'
        )

    @property
    def traits(self):
        own = {
            'leaves_gaps': self.n_global > 0,
            'follows_length': self.top_k > 0,
            'forms_logits': isinstance(self.encoding, Rotary),
        }
        return super().traits | {'decides_causality', *(name for name in own if own[name])}

    def project(self, q, k, v, tq, tk, x=None):
        if isinstance(self.encoding, Rotary):
            at = lambda distance: self.encoding.rotate(q, jnp.full((1, 1), distance))
            feats = (at(self.n_local),)
            if self.top_k:
                last, chosen = self._choose(q, k, tq, tk)
                feats = (*feats, at(self.distance), last[..., None])
                tk = tk.with_feats(lm_infinite=chosen)
            tq = tq.with_feats(lm_infinite=feats)
        return self.encoding.project(q, k, v, tq, tk, x)

    def _choose(self, q, k, tq, tk):
        """Whether a query is the last of its row, [B, T], and whether a key of the middle is among
        those that it chooses, [B, S, N].
        """
        if tk.segment is not None:
            raise ValueError(
                'lm_infinite: top_k needs one text a row, whose last token chooses keys, got '
                'packed documents (tok.segment)'
            )
        last = jnp.arange(tq.length) == jnp.broadcast_to(tq.last, q.shape[0])[:, None]
        causal = tk.index[:, None] <= tq.index[..., None]
        middle = (self._middle(tq, tk) & causal & last[..., None]).any(1)
        middle = middle if tk.valid is None else middle & tk.valid
        at = lambda a, place: heads_first(self.encoding.rotate(a, jnp.full((1, 1), place)))
        own = jnp.take_along_axis(q, last.argmax(1)[:, None, None, None], 1)
        s = scaled_dot_product(at(own, self.distance), at(k, 0))[:, :, 0]
        s, room = jnp.where(middle[:, None], s, -jnp.inf), ((0, 0), (0, 0), (0, self.top_k))
        s = jnp.pad(s, room, constant_values=-jnp.inf)
        best, slots = jax.lax.top_k(s, self.top_k)
        mark = jax.vmap(jax.vmap(lambda row, slots, enough: row.at[slots].set(enough)))
        chosen = mark(jnp.zeros(s.shape, bool), slots, jnp.isfinite(best[..., -1]))
        return last, jnp.swapaxes(chosen[..., : tk.length], 1, 2)

    def mask(self, tq, tk):
        visible = lm_infinite_mask(tq.rank, tk.rank, self.n_global, self.n_local)
        if 'lm_infinite' in tk.feats:
            last, chosen = tq.feats['lm_infinite'][2][..., 0], heads_first(tk.feats['lm_infinite'])
            visible = visible | (last[:, None, :, None] & chosen[:, :, None])
        return causal_mask(tq.index, tk.index) & visible

    def may_see(self, tq, tk):
        near = tk.rank_high > tq.rank_low - self.n_local
        kept = near | (tk.rank_low < self.n_global) | bool(self.top_k)
        return (tk.index_low <= tq.index_high) & kept

    def logits(self, s, q, k, tq, tk, seen, carry):
        if not isinstance(self.encoding, Rotary):
            at = lambda tok, pos: dataclasses.replace(tok, pos=jnp.full((1, 1), pos, jnp.int32))
            near, carry = super().logits(s, q, k, tq, tk, seen, carry)
            ceiling, _ = super().logits(s, q, k, at(tq, self.n_local), at(tk, 0), seen, carry)
            return jnp.where(self._beyond(tq, tk)[:, None], ceiling, near), carry
        beyond = self._beyond(tq, tk)[:, None]

        def with_ceiling(standing, k, s):
            k = self._unrotated(k, tk.pos)
            s = jnp.where(beyond, scaled_dot_product(standing[0], k), s)
            return jnp.where(middle, scaled_dot_product(standing[1], k), s) if self.top_k else s

        # A chosen key is at the relative position t, even if positions put it inside the window.
        middle = self._middle(tq, tk)[:, None] if self.top_k else False
        standing = tuple(map(heads_first, tq.feats['lm_infinite'][:2]))
        if tq.length == 1 and not self.top_k and tk.segment is None and self.n_global < tk.length:
            # A decoding step: unless positions jump, only the first keys are at the ceiling, so the
            # logits of these few are computed apart.
            rows = lambda a: jnp.broadcast_to(a, (s.shape[0], a.shape[-1]))
            at, first = map(rows, self._first(tk))
            few = lambda a, axis: jnp.take_along_axis(
                a, jnp.expand_dims(at, tuple(i for i in range(1, a.ndim) if i != axis)), axis
            )
            far = scaled_dot_product(standing[0], self._unrotated(few(k, 2), few(rows(tk.pos), 1)))
            far = jnp.where(few(rows(beyond[:, 0, 0]), 1)[:, None, None], far, few(s, 3))
            s = jax.vmap(lambda row, at, own: row.at[..., at].set(own))(s, at, far)
            beyond = beyond & ~first[:, None, None]
        reached, without = (seen & (beyond | middle)).any(), lambda standing, k, s: s
        return jax.lax.cond(reached, with_ceiling, without, standing, k, s), carry

    def _unrotated(self, k, pos):
        angles, _ = self.encoding.angles(pos)
        return rotate(k, -angles[:, None], layout=self.encoding.layout)

    def _first(self, tk):
        """Slots [#B, n_global] of the first keys of a text (different other slots if there are
        fewer), and whether a key is one of the first.
        """
        first = tk.rank < self.n_global
        first = first if tk.valid is None else first & tk.valid
        return jnp.argsort(~first, axis=1, stable=True)[:, : self.n_global], first

    def _beyond(self, tq, tk):
        """Pairs [#B, T, S] whose distance is at the ceiling."""
        return signed_distance(tq.pos, tk.pos) >= self.n_local

    def _middle(self, tq, tk):
        """Pairs [#B, T, S] whose key is before the window of the query and not one of the first."""
        return ~lm_infinite_mask(tq.rank, tk.rank, self.n_global, self.n_local)[:, 0]
