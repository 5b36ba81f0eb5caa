"""Different encodings for different heads of one layer."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from posenc_jax.protocol.bounds import CONTEXT
from posenc_jax.protocol.capabilities import first_carry
from posenc_jax.protocol.composite import Composite, name_of, parts_of
from posenc_jax.protocol.encoding import CAPABILITIES, Constant, Encoding
from posenc_jax.protocol.registry import Card, Promises, register
from posenc_jax.protocol.tokens import Tokens


@register(
    'per_head',
    kind='encoding',
    card=Card(
        name='per-head mixture',
        door='project, logits, mask, collect',
        example='per_head(first=rope(), second=alibi(), heads_of_first=2)',
        use_when='You want two encodings in one layer, some heads with each.',
        relative=True,
    ),
)
class PerHead(Composite):
    """Encodes the first heads of a layer by one encoding and the others by another.

    `head h is encoded by first if h < n, else by second`. Nested, it mixes any number of encodings.
    Both are built for all heads of the model: `alibi()` gives a head the slope that it would have
    without the mixture. Both are also evaluated for all heads, and one result is chosen for each,
    so that heads may lie on several devices. This costs as much as the two encodings together.
    Differs from the recipes of published models: this evaluation of both, and nothing else.

    Args:
      first, second: encodings or chains of them that act on layers.
      heads_of_first: n, a multiple of the number of query heads that share a key head.
      heads, kv_heads: N and K, from the model.

    Raises:
      ValueError: n outside 1 .. N-1, or no such multiple; an encoding that opens `place` or
        `embed`, that has a capability other than `Carries` and `FastPath`, that mixes heads, or
        whose keys are not cached as encoded; chains that disagree on whether they decide which
        later keys or documents are seen.

    Reference: this library.

    Example:
      >>> import posenc_jax as pj
      >>> spec = 'per_head(first=rope(), second=alibi(), heads_of_first=2)'
      >>> mixture = pj.make(spec, heads=4, head_dim=8)
      >>> mixture.of_first[...].tolist()
      [True, True, False, False]
    """

    def __init__(
        self,
        first: Encoding,
        second: Encoding,
        heads_of_first: int,
        heads: int = CONTEXT,
        kv_heads: int = CONTEXT,
    ):
        group = heads // kv_heads
        if not 1 <= heads_of_first < heads:
            raise ValueError(
                f'per_head: heads_of_first must lie in 1 .. {heads - 1} of {heads} heads, got '
                f'{heads_of_first}'
            )
        if heads_of_first % group:
            nearest = max(group, round(heads_of_first / group) * group)
            raise ValueError(
                f'per_head: {heads_of_first} heads cut a group of {group} that share a key head; '
                f'use {min(nearest, heads - group)}'
            )
        for part in (*parts_of(first), *parts_of(second)):
            for door in ('place', 'embed', *sorted({*CAPABILITIES} - {'first_carry', 'fast_path'})):
                if part.opens(door):
                    raise ValueError(
                        f'per_head: {name_of(part)} opens {door!r}, which heads share; chain it '
                        'beside per_head'
                    )
            if 'mixes_logits' in part.traits:
                raise ValueError(
                    f'per_head: {name_of(part)} mixes the logits of all heads; chain it behind '
                    'per_head'
                )
            if part.cached != 'encoded':
                raise ValueError(
                    f'per_head: keys of {name_of(part)} are cached {part.cached}; only encodings '
                    'whose keys are cached encoded can be mixed'
                )
        seen = {'decides_causality', 'decides_segments', 'sees_later'}
        if (first.traits ^ second.traits) & seen:
            raise ValueError(
                f'per_head: {name_of(first)} and {name_of(second)} disagree on whether later '
                'keys are seen, or on who decides '
                'it; chain such a mask beside per_head'
            )
        self.first, self.second = first, second
        parts = (*parts_of(first), *parts_of(second))
        cards = [part.card for part in parts if hasattr(part, 'card')]
        self.card = _card_of(type(self).card, cards)  # pyright: ignore[reportAttributeAccessIssue]
        self.of_first = Constant(jnp.arange(heads) < heads_of_first, axes=('heads',))
        self.keys_of_first = Constant(
            jnp.arange(kv_heads) < heads_of_first // group, axes=('kv_heads',)
        )

    @property
    def children(self):
        return self.first, self.second

    def opens(self, door):
        # Heads share what is computed at once, so `fast_path` serves neither.
        return door != 'fast_path' and any(part.opens(door) for part in self.children)

    def _choose(self, ours, theirs, axis, *, keys=False):
        """The heads of `first` from `ours` and the others from `theirs`, along `axis`."""
        if ours is theirs:
            return ours
        chosen = (self.keys_of_first if keys else self.of_first)[...]
        return jnp.where(chosen.reshape(-1, *[1] * (ours.ndim - axis - 1)), ours, theirs)

    def project(self, q, k, v, tq, tk, x=None):
        one, two = (part.project(q, k, v, tq, tk, self._rows(x, part)) for part in self.children)
        q, k, v = (
            self._choose(a, b, 2, keys=keys) for a, b, keys in zip(one, two, (False, True, True))
        )
        return q, k, v, _with_both(tq, one[3], two[3]), _with_both(tk, one[4], two[4])

    def first_carry(self, q, tq):
        return tuple(first_carry(part, q, _side(n, tq)) for n, part in enumerate(self.children))

    def logits(self, s, q, k, tq, tk, seen, carry):
        one, first = self.first.logits(s, q, k, _side(0, tq), _side(0, tk), seen, carry[0])
        two, second = self.second.logits(s, q, k, _side(1, tq), _side(1, tk), seen, carry[1])
        return self._choose(one, two, 1), (first, second)

    def mask(self, tq, tk):
        hidden = [part.mask(_side(n, tq), _side(n, tk)) for n, part in enumerate(self.children)]
        if all(mask is None for mask in hidden):
            return None
        everything = jnp.ones((1, 1, tq.length, tk.length), bool)
        return self._choose(*(everything if mask is None else mask for mask in hidden), 1)

    def may_see(self, tq, tk):
        return jnp.logical_or(self.first.may_see(tq, tk), self.second.may_see(tq, tk))

    def sees_all(self, tq, tk):
        return self.first.sees_all(tq, tk) & self.second.sees_all(tq, tk)

    def collect(self, w, v, tq, tk):
        if not self.opens('collect'):
            return super().collect(w, v, tq, tk)
        of_sides = (
            part.collect(w, v, _side(n, tq), _side(n, tk)) for n, part in enumerate(self.children)
        )
        return self._choose(*of_sides, 1)

    def rescale(self, out, lse, tq):
        one, two = (part.rescale(out, lse, _side(n, tq)) for n, part in enumerate(self.children))
        return self._choose(one, two, 2)


def _with_both(tok: Tokens, one: Tokens, two: Tokens) -> Tokens:
    """The tokens with the features that each side added, kept apart since both may have the same
    names.
    """
    added = tuple(
        {name: f for name, f in side.feats.items() if f is not tok.feats.get(name)}
        for side in (one, two)
    )
    return tok.with_feats(per_head=added) if any(added) else tok


def _side(number: int, tok: Tokens) -> Tokens:
    """The tokens with the features of one side."""
    if 'per_head' not in tok.feats:
        return tok
    common = {name: f for name, f in tok.feats.items() if name != 'per_head'}
    return dataclasses.replace(tok, feats={**common, **tok.feats['per_head'][number]})


def _card_of(card: Card, parts: list[Card]) -> Card:
    """The Card with the promises that both sides make and the needs that either side has."""
    both = lambda name: all(getattr(part.promises, name) for part in parts)
    needs_training = any(part.promises.needs_training for part in parts)
    promises: dict[str, Any] = {
        name: both(name) for name in ('relative', 'sweep_free', 'blockwise')
    }
    causal_only = any(part.causal_only for part in parts)
    return dataclasses.replace(
        card, promises=Promises(needs_training=needs_training, **promises), causal_only=causal_only
    )
