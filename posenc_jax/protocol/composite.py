"""Encodings made of other encodings: here their doors are forwarded and their traits united."""

import functools
import operator
from typing import Any, ClassVar

import jax
from flax import nnx

from posenc_jax.protocol import calls
from posenc_jax.protocol.capabilities import first_carry
from posenc_jax.protocol.encoding import Encoding, PositionRange
from posenc_jax.protocol.masks import Causal, Document, Full


class Composite(Encoding):
    """Several encodings as one.

    Doors that return a changed input run in the order of the parts. Masks are combined with AND. Of
    a door that only one part may open, the door of this part is used.

    Class attributes:
      adds: traits beside those of the parts.
    """

    adds: ClassVar[frozenset[str]] = frozenset()

    @property
    def children(self) -> tuple[Encoding, ...]:
        """The encodings this one is made of, in order."""
        raise NotImplementedError

    @property
    def traits(self):
        return self.adds.union(*(part.traits for part in self.children))

    @property
    def lookback(self):
        return max((part.lookback for part in self.children), default=0)

    @property
    def position_range(self):
        ranges = [part.position_range for part in self.children]
        known = lambda name: (n for r in ranges if (n := getattr(r, name)) is not None)
        return PositionRange(
            assigns=max(known('assigns'), default=None), accepts=min(known('accepts'), default=None)
        )

    @property
    def pair_values(self):
        return max((part.pair_values for part in self.children), default=0)

    def opens(self, door):
        if getattr(type(self), door, None) is getattr(Composite, door, None):
            return any(part.opens(door) for part in self.children)
        return super().opens(door)

    def _owners(self, door: str) -> list[tuple[int, Any]]:
        """The parts that open a door or have the method of a capability, with their numbers."""
        return [(number, part) for number, part in enumerate(self.children) if part.opens(door)]

    def _owner(self, door: str) -> Any:
        return next((part for _, part in self._owners(door)), None)

    def _rows(self, x, part: Encoding):
        """The rows of the layer input that a part reads."""
        return None if x is None else x[:, self.lookback - part.lookback :]

    def place(self, tok, *, key=None):
        for number, part in enumerate(self.children):
            tok = part.place(tok, key=None if key is None else jax.random.fold_in(key, number))
        return tok

    def embed(self, x, tok):
        for part in self.children:
            x = part.embed(x, tok)
        return x

    def qkv(self, x, linear, tok):
        owner = self._owner('qkv')
        return owner.qkv(self._rows(x, owner), linear, tok)

    def project(self, q, k, v, tq, tk, x=None):
        for part in self.children:
            q, k, v, tq, tk = part.project(q, k, v, tq, tk, self._rows(x, part))
        return q, k, v, tq, tk

    def merge(self, out):
        return self._owner('merge').merge(out)

    def first_carry(self, q, tq):
        return tuple(first_carry(part, q, tq) for part in self.children)

    def logits(self, s, q, k, tq, tk, seen, carry):
        carries = list(carry)
        # The part that forms the logits comes first, wherever it stands; `sorted` is stable.
        forms_none = lambda part: 'forms_logits' not in part[1].traits
        for number, part in sorted(enumerate(self.children), key=forms_none):
            s, carries[number] = part.logits(s, q, k, tq, tk, seen, carries[number])
        return s, tuple(carries)

    def ended(self, carry, tq):
        number, owner = self._owners('ended')[0]
        return owner.ended(carry[number], tq)

    def mask(self, tq, tk):
        allowed = None
        for part in self.children:
            own = part.mask(tq, tk)
            if own is not None:
                allowed = own if allowed is None else allowed & own
        return allowed

    def may_see(self, tq, tk):
        possible = True
        for part in self.children:
            possible = part.may_see(tq, tk) & possible
        return possible

    def sees_all(self, tq, tk):
        every = True
        for part in self.children:
            every = part.sees_all(tq, tk) & every
        return every

    def uniform(self, tq, tk):
        found = [part.uniform(tq, tk) for part in self.children]
        return all(a is not False for a in found) and functools.reduce(operator.and_, found, True)

    def collect(self, w, v, tq, tk):
        owner = self._owner('collect')
        return super().collect(w, v, tq, tk) if owner is None else owner.collect(w, v, tq, tk)

    def rescale(self, out, lse, tq):
        for part in self.children:
            out = part.rescale(out, lse, tq)
        return out

    def fast_path(self, q, k, v, tq, tk, *, causal, sweep):
        (_, owner), *rivals = self._owners('fast_path')
        others = [part for part in self.children if part is not owner]
        plain = lambda part: (
            isinstance(part, (Causal, Full)) or (isinstance(part, Document) and tk.segment is None)
        )
        doors = ('logits', 'mask', 'collect', 'rescale')
        if rivals or any(part.opens(door) for part in others if not plain(part) for door in doors):
            return None
        causal = causal or any(isinstance(part, Causal) for part in others)
        return owner.fast_path(q, k, v, tq, tk, causal=causal, sweep=sweep)

    def prepare(self):
        for _, part in self._owners('prepare'):
            part.prepare()

    def update_keys(self, k, tk, new):
        for _, part in self._owners('update_keys'):
            k = part.update_keys(k, tk, new)
        return k

    def begin_stream(self, tok):
        return self._owner('begin_stream').begin_stream(tok)

    def carry_stream(self, out, stream):
        return self._owner('begin_stream').carry_stream(out, stream)

    def feed_stream(self, m, stream):
        return self._owner('begin_stream').feed_stream(m, stream)

    @property
    def depth(self):
        return next((part.depth for part in self.children if part.depth != 0), 0)

    def anchor(self, x, stride):
        for _, part in self._owners('anchor'):
            x = part.anchor(x, stride)
        return x

    def auxiliary_loss(self, x, tok, *, key):
        folded = lambda number: None if key is None else jax.random.fold_in(key, number)
        return sum(
            part.auxiliary_loss(x, tok, key=folded(number))
            for number, part in self._owners('auxiliary_loss')
        )


class Wrapper(Composite):
    """A composite of one encoding, `self.encoding`; it overrides the doors that it changes."""

    encoding: Encoding

    @property
    def children(self):
        return (self.encoding,)


class ChainedEncoding(Composite):
    """Several encodings in a row, as `chain` makes it."""

    def __init__(self, parts):
        self.parts = nnx.List(parts)

    def __repr__(self):
        return ' | '.join(map(repr, self.parts))

    __str__ = __repr__

    @property
    def children(self):
        return tuple(self.parts)


def name_of(encoding: Encoding) -> str:
    """The registry key of an encoding, or the name of its class where it is not registered."""
    card = getattr(encoding, 'card', None)
    return calls.name_of(type(encoding)) if card is None else card.key


def parts_of(encoding: Encoding) -> tuple[Encoding, ...]:
    """The links of a chain; a single encoding is a chain of one."""
    return encoding.children if isinstance(encoding, ChainedEncoding) else (encoding,)


def owner_of(trait: str, encoding: Encoding) -> str:
    """The name of the part of a chain that has a trait.

    Example:
      >>> import posenc_jax as pj
      >>> owner_of('rotates', pj.make('rope() | causal()', head_dim=4))
      'rope'
    """
    return next(name_of(part) for part in parts_of(encoding) if trait in part.traits)
