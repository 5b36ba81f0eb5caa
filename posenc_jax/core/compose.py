"""Composition: `chain` folds encodings door by door; `make` builds one from a spec string."""

import numbers

import jax
from flax import nnx

from posenc_jax.core import spec as spec_language
from posenc_jax.core.encoding import Encoding
from posenc_jax.core.registry import SpecError, nearest

EXCLUSIVE = ('branch', 'match', 'collect', 'merge')
CONTEXT_NAMES = ('heads', 'kv_heads', 'head_dim', 'model_dim', 'train_len', 'rngs')


class ChainedEncoding(Encoding):
    """Several encodings as one: folds run in chain order, masks are combined with AND, `EXCLUSIVE`
    doors have one owner.
    """

    def __init__(self, parts: tuple[Encoding, ...]):
        for door in EXCLUSIVE:
            owners = [part for part in parts if part.opens(door)]
            if len(owners) > 1:
                names = ' and '.join(map(name_of, owners))
                raise SpecError(
                    f'{names} both need the exclusive door {door!r}: nest one in the other, they '
                    'cannot be chained'
                )
        rotating = [part for part in parts if part.rotates]
        if len(rotating) > 1:
            names = ' and '.join(map(name_of, rotating))
            raise SpecError(
                f'{names} both rotate queries and keys, which would turn them twice: leave one out'
            )
        for part in parts[parts.index(rotating[0]) + 1 :] if rotating else ():
            if part.unrotated:
                first, second = name_of(rotating[0]), name_of(part)
                raise SpecError(
                    f'{second} reads queries and keys that are not rotated yet: write {second} '
                    f'before {first}'
                )
        for number, part in enumerate(parts):
            unread = {
                'last': (),
                'own': parts[number + 1 :],
                'none': (*parts[:number], *parts[number + 1 :]),
            }[part.projected]
            for other in unread:
                if other.opens('project'):
                    where = (
                        f'write {name_of(other)} before it'
                        if part.projected == 'own'
                        else f'leave {name_of(other)} out'
                    )
                    raise SpecError(
                        f'{name_of(part)} does not read what {name_of(other)} makes of queries '
                        f'and keys: {where}'
                    )
        summing, gaps = [p for p in parts if p.runs], [p for p in parts if p.leaves_gaps]
        if summing and gaps:
            raise SpecError(
                f'{name_of(summing[0])} sums over all keys up to the query, {name_of(gaps[0])} '
                'hides some between others: '
                'they cannot be chained'
            )
        evolving = [part for part in parts if part.cached == 'evolving']
        raw = [part for part in parts if part.cached == 'raw']
        if evolving and raw:
            raise SpecError(
                f'{name_of(evolving[0])} rewrites cached keys and {name_of(raw[0])} needs them '
                'raw: they cannot be chained'
            )
        earlier = [part for part in parts if part.lookback]
        if earlier and raw:
            raise SpecError(
                f'{name_of(raw[0])} projects all cached keys again at every step, and '
                f'{name_of(earlier[0])} reads rows of the '
                'layer input that are gone by then: they cannot be chained'
            )
        branching = [part for part in parts if part.opens('branch') and part.inputs > 1]
        of_heads = branching and [
            part for part in parts if part not in branching and _knows_heads(part)
        ]
        if of_heads:
            raise SpecError(
                f'{name_of(branching[0])} gives every head several inputs of attention, and '
                f'{name_of(of_heads[0])} has '
                'parameters per head or mixes heads: they cannot be chained'
            )
        later = [part for part in parts if part.sees_later]
        causal = [part for part in parts if hasattr(part, 'card') and part.card.causal_only]
        if causal and later:
            raise SpecError(
                f'{name_of(causal[0])} is defined for causal attention only, {name_of(later[0])} '
                'lets queries see later keys'
            )
        looking = [part for part in later if 'causality' not in part.decides]
        hiding = [part for part in parts if 'causality' in part.decides and not part.sees_later]
        if looking and hiding:
            raise SpecError(
                f'{name_of(looking[0])} has heads that look at later keys only, which '
                f'{name_of(hiding[0])} hides: use it in an '
                'encoder, or with full() or prefix()'
            )
        limits = [(part, part.position_limit) for part in parts if part.position_limit is not None]
        for number, part in enumerate(parts):
            for table, limit in limits:
                if part.draws is not None and part.draws > limit and table is not part:
                    raise SpecError(
                        f'{name_of(part)} draws positions 0 .. {part.draws - 1}, '
                        f'{name_of(table)} has {limit}; use a larger '
                        'table, a smaller range, or a policy for what lies beyond the table'
                    )
        self.parts = nnx.List(parts)

    @property
    def sees_later(self):
        return any(part.sees_later for part in self.parts)

    @property
    def rotates(self):
        return any(part.rotates for part in self.parts)

    @property
    def unrotated(self):
        return any(part.unrotated for part in self.parts)

    @property
    def runs(self):
        return any(part.runs for part in self.parts)

    @property
    def leaves_gaps(self):
        return any(part.leaves_gaps for part in self.parts)

    @property
    def reads_ids(self):
        return any(part.reads_ids for part in self.parts)

    @property
    def decides(self):
        return frozenset().union(*(part.decides for part in self.parts))

    @property
    def lookback(self):
        return max((part.lookback for part in self.parts), default=0)

    @property
    def cached(self):
        kinds = {part.cached for part in self.parts}
        return next((kind for kind in ('none', 'raw', 'evolving') if kind in kinds), 'encoded')

    def opens(self, door):
        return any(part.opens(door) for part in self.parts)

    def place(self, tok, *, key=None):
        for number, part in enumerate(self.parts):
            tok = part.place(tok, key=None if key is None else jax.random.fold_in(key, number))
        return tok

    def embed(self, x, tok):
        for part in self.parts:
            x = part.embed(x, tok)
        return x

    def branch(self, x, tok):
        for part in self.parts:
            if part.opens('branch'):
                return part.branch(x[:, self.lookback - part.lookback :], tok)
        return super().branch(x, tok)

    def project(self, q, k, v, tq, tk, x=None):
        for part in self.parts:
            rows = None if x is None else x[:, self.lookback - part.lookback :]
            q, k, v, tq, tk = part.project(q, k, v, tq, tk, rows)
        return q, k, v, tq, tk

    def merge(self, out):
        for part in self.parts:
            if part.opens('merge'):
                return part.merge(out)
        return out

    def open(self, q, tq):
        return tuple(part.open(q, tq) for part in self.parts)

    def turn(self, fresh, swept):
        return tuple(part.turn(*own) for part, *own in zip(self.parts, fresh, swept))

    def match(self, q, k, tq, tk, seen, carry):
        for number, part in enumerate(self.parts):
            if part.opens('match'):
                s, own = part.match(q, k, tq, tk, seen, carry[number])
                return s, (*carry[:number], own, *carry[number + 1 :])
        return super().match(q, k, tq, tk, seen, carry)

    def score(self, s, tq, tk, seen, carry):
        carries = []
        for part, own in zip(self.parts, carry):
            s, own = part.score(s, tq, tk, seen, own)
            carries.append(own)
        return s, tuple(carries)

    def mask(self, tq, tk):
        allowed = None
        for part in self.parts:
            own = part.mask(tq, tk)
            if own is not None:
                allowed = own if allowed is None else allowed & own
        return allowed

    def may_see(self, tq, tk):
        possible = True
        for part in self.parts:
            possible = part.may_see(tq, tk) & possible
        return possible

    def collect(self, w, v, tq, tk):
        for part in self.parts:
            if part.opens('collect'):
                return part.collect(w, v, tq, tk)
        return super().collect(w, v, tq, tk)

    def whole(self, q, k, v, tq, tk, *, causal, sweep):
        from posenc_jax.core.masks import Causal, Document, Full

        (owner, *rivals), others = (
            [part for part in self.parts if part.opens('whole') == wanted]
            for wanted in (True, False)
        )
        plain = lambda part: (
            isinstance(part, (Causal, Full)) or (isinstance(part, Document) and tk.segment is None)
        )
        doors = ('open', 'match', 'score', 'mask', 'collect')
        if rivals or any(part.opens(door) for part in others if not plain(part) for door in doors):
            return None
        causal = causal or any(isinstance(part, Causal) for part in others)
        return owner.whole(q, k, v, tq, tk, causal=causal, sweep=sweep)

    def evolve(self, k, tk, new):
        for part in self.parts:
            k = part.evolve(k, tk, new)
        return k


def name_of(encoding: Encoding) -> str:
    """The registry key of an encoding, or the name of its class where it is not registered."""
    card = getattr(encoding, 'card', None)
    return type(encoding).__name__ if card is None else card.key


def _knows_heads(part: Encoding) -> bool:
    """Whether a part tells the heads of the model apart, so that more of them than these mean
    nothing to it.
    """
    variables = jax.tree.leaves(
        nnx.state(part), is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)
    )
    roles = {role for variable in variables for role in variable.get_metadata().get('axes') or ()}
    card = getattr(part, 'card', None)
    return bool(roles & {'heads', 'kv_heads'}) or (card is not None and card.promises.mixes_heads)


def parts_of(encoding: Encoding) -> tuple[Encoding, ...]:
    """The links of a chain; a single encoding is a chain of one."""
    return tuple(encoding.parts) if isinstance(encoding, ChainedEncoding) else (encoding,)


def chain(*encodings: Encoding) -> Encoding:
    """Joins encodings; nested chains are flattened and a chain of one is that encoding.

    Raises:
      SpecError: two encodings need the same exclusive door (one of `EXCLUSIVE`), or exclude each
        other otherwise; both are named. One that opens only one of `branch` and `merge`.
    """
    for encoding in encodings:
        if not isinstance(encoding, Encoding):
            raise SpecError(
                f'chain() joins encodings, got {encoding!r}; make() builds one from a spec string'
            )
    parts = tuple(part for encoding in encodings for part in parts_of(encoding))
    if not parts:
        raise SpecError('chain() needs at least one encoding; "nope()" is the empty one')
    for part in parts:
        if part.opens('branch') != part.opens('merge'):
            opened, shut = ('branch', 'merge') if part.opens('branch') else ('merge', 'branch')
            raise SpecError(
                f'{name_of(part)} opens the door {opened!r} and not {shut!r}: they are opened '
                'together'
            )
    return parts[0] if len(parts) == 1 else ChainedEncoding(parts)


def make(spec: str | Encoding, *, causal: bool | None = None, **context) -> Encoding:
    """Builds an encoding from a spec string.

    Args:
      spec: e.g. 'rope(freqs=yarn(factor=4.0)) | alibi()'.
      causal: True or False adds the mask that a decoder or encoder needs unless the chain decides
        causality itself, and keeps packed documents apart; None adds nothing.
      **context: what the model knows and the spec need not repeat: `heads`, `kv_heads`, `head_dim`,
        `model_dim`, `train_len`, `rngs` (an `nnx.Rngs`).

    Raises:
      SpecError: the string is wrong, the context lacks something or has something unknown, or the
        parts do not fit together.
    """
    from posenc_jax.core.masks import Causal, Document, Full

    for name in context:
        if name not in CONTEXT_NAMES:
            raise SpecError(f'make() has no argument {name!r}; {nearest(name, CONTEXT_NAMES)}')
    if isinstance(spec, str):
        for name in ('heads', 'kv_heads', 'head_dim', 'model_dim'):
            size = context.get(name, 1)
            if isinstance(size, bool) or not isinstance(size, numbers.Integral) or size < 1:
                raise SpecError(f'make() takes {name} as a positive integer, got {size!r}')
        context.setdefault('kv_heads', context['heads']) if 'heads' in context else None
        if context.get('heads', 0) % context.get('kv_heads', 1):
            raise SpecError(
                f'{context["heads"]} heads are not a multiple of {context["kv_heads"]} kv_heads'
            )
        context.setdefault('rngs', nnx.Rngs(0))
        encoding = chain(
            *(spec_language.build(node, context) for node in spec_language.parse(spec).nodes)
        )
    elif isinstance(spec, Encoding):
        encoding = spec
    else:
        raise SpecError(
            'make() takes a spec string like "rope() | alibi()" or an encoding, got '
            f'{type(spec).__name__}'
        )
    if causal is not None:
        for part in parts_of(encoding):
            if not causal and hasattr(part, 'card') and part.card.causal_only:
                raise SpecError(f'{part.card.key} is defined for causal attention only')
        if 'causality' not in encoding.decides:
            encoding = chain(encoding, Causal() if causal else Full())
        if 'segments' not in encoding.decides:
            encoding = chain(encoding, Document())
    return encoding
