"""The protocol: an `Encoding` and its doors, all of them shut by default.

    place -> embed -> project -> logits -> mask -> softmax -> collect -> rescale

Letters: B batch, T query tokens, S key tokens, L either, N query heads, K key/value heads, H head
width, D model width, P position components. A leading axis written #B may be 1 where the whole
batch shares it.

A mask is computed before the logits of its block, which may read it as `seen`, and is applied after
them.

The token stage (`place`, `embed`, `project`) sees whole sequences in the layout [B, L, heads, H].
The pair stage (`logits`, `mask`, `collect`) sees one block of queries and one block of keys, heads
first: q [B, N, T, H], k and v [B, K, S, H], logits [B, N, T, S] in float32. Features of tokens stay
token first, [#B, L, heads or 1, ...], and `rescale` sees the result token first too.
`protocol/capabilities.py` has what few encodings do beside this.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from posenc_jax.base.products import weighted_sum
from posenc_jax.protocol.calls import call, name_of, remembering
from posenc_jax.protocol.card import cached_by
from posenc_jax.protocol.errors import nearest
from posenc_jax.protocol.registry import Card, constructor_signature
from posenc_jax.protocol.tokens import Bounds, Tokens

Carry = Any  # pytree of arrays [B, N, T, ...]
Projections = tuple[
    Float[Array, 'B L N _'], Float[Array, 'B L K _'], Float[Array, 'B L K H']
]  # queries, keys, values

DOORS = ('place', 'embed', 'project', 'logits', 'mask', 'collect', 'rescale')
# The methods of capabilities, see `protocol/capabilities.py`.
CAPABILITIES = (
    'qkv', 'merge', 'first_carry', 'ended', 'update_keys', 'begin_stream', 'carry_stream',
    'feed_stream', 'auxiliary_loss', 'anchor', 'fast_path', 'prepare',
)  # fmt: skip
PIPELINE = (
    'place', 'embed', 'qkv', 'project', 'first_carry', 'logits', 'mask', 'collect', 'rescale',
    'merge',
    *(name for name in CAPABILITIES if name not in ('qkv', 'first_carry', 'merge')),
)  # fmt: skip
TOKEN_STAGE = ('place', 'embed', 'qkv', 'project')

# Facts that an encoding may state about itself. `conflicts` says which exclude each other.
TRAITS = {
    'decides_causality': 'Its mask says which later keys are seen: no causal mask is added.',
    'decides_segments': 'Its mask says which documents are seen: no document mask is added.',
    'sees_later': 'It lets queries see keys after them.',
    'leaves_gaps': 'Its mask hides keys between others that a query sees.',
    'rotates': 'It turns queries and keys by their positions.',
    'reads_unrotated': 'It reads queries and keys before they are turned.',
    'reads_own_projections': 'Its logits read q and k as the parts before it leave them.',
    'forms_logits': 'Its logits are inner products of its own: it comes before other parts.',
    'forms_weights': 'Its logits are the logarithms of weights: it comes behind other parts.',
    'reads_no_projections': 'Its logits read neither q nor k.',
    'mixes_logits': 'A logit reads those of other heads or keys: one tile has all heads and keys.',
    'sums_between': 'It sums over the keys between key and query, all of which must be seen.',
    'reads_ids': 'Its `place` reads token ids, of earlier tokens of the document alone.',
    'reads_target_order': 'The last component of a position is a place in the translation.',
    'reads_grid': 'Its `embed` needs tokens that are the cells of a grid.',
    'follows_length': '`project` of a key depends on the length, or on which tokens are left.',
    'reads_other_tokens': 'What `place` gives a token, or `project` a query, depends on others.',
    'moves_positions': 'A new token moves the positions of all others.',
}


# Doors of earlier versions. An encoding that still has one would lose its effect without a word.
_REPLACED = {
    'match': 'logits(s, q, k, tq, tk, seen, carry)',
    'score': 'logits(s, q, k, tq, tk, seen, carry)',
    'init_carry': 'first_carry(q, tq), and inherit from posenc_jax.protocol.capabilities.Carries',
}


class Constant(nnx.Variable):
    """An array that belongs to an encoding and is not trained: slopes, thresholds per head.

    Like `nnx.Param` it may carry `axes`, one role per dimension ('heads' where the head axis is),
    for sharding.
    """


def drawn_normal(
    rngs: nnx.Rngs, shape: tuple[int, ...], std: float, axes: tuple[str | None, ...]
) -> nnx.Param:
    """A parameter drawn from N(0, std**2), float32, with the roles of its axes."""
    return nnx.Param(std * jax.random.normal(rngs.params(), shape, jnp.float32), axes=axes)


def drawn_uniform(
    rngs: nnx.Rngs, shape: tuple[int, ...], bound: float, axes: tuple[str | None, ...]
) -> nnx.Param:
    """A parameter drawn from U(-bound, bound), float32, with the roles of its axes."""
    drawn = jax.random.uniform(rngs.params(), shape, jnp.float32, -bound, bound)
    return nnx.Param(drawn, axes=axes)


@dataclasses.dataclass(frozen=True)
class PositionRange:
    """Bounds of positions. A chain compares what one part assigns with what another accepts.

    Attributes:
      assigns: `place` assigns positions from 0 to below this number; None if it has no such bound.
      accepts: positions below this number have a table entry; None if every position is accepted.
    """

    assigns: int | None = None
    accepts: int | None = None


class Encoding(nnx.Module):
    """A positional encoding as a value. It overrides the doors it opens; all others stay shut.

    It prints as its spec string, with the arguments that differ from their defaults. What `make`
    got from the model (`heads`, ...) is left out. Variables are shown where a model is printed.

    An option that opens other doors, or has other traits, is a variant, which is a subclass:
    `class HalfALiBi(ALiBi, where=lambda given: given['variant'] == 'half')`. `ALiBi(...)` gives an
    object of it if `where` holds for the arguments. A variant has no `__init__` of its own, and
    inherits directly from the class that has it. Variants whose conditions hold together are
    joined, so they may not change the same attribute in different ways. A variant shuts a door of
    its class by `mask = Encoding.mask`, and a method of a capability by `merge = None`.

    Class attributes:
      card: the catalogue entry, set by `register`; an unregistered encoding has none.
      registered_key: its name in spec strings, set by `register`.
      spec_kind: lets a spec string give encodings as arguments of others.
      traits: keys of `TRAITS`.
      lookback: how many earlier rows of the layer input `qkv` and `project` read (a short
        convolution); these rows come first in `x`.
      depth: where `embed` acts: 0 at the input of the model, k before layer k (layers count from
        0), 'every' before every layer.
    """

    card: ClassVar[Card]
    registered_key: ClassVar[str]
    spec_kind: ClassVar[str] = 'encoding'
    traits: ClassVar[frozenset[str]] = frozenset()
    lookback: ClassVar[int] = 0
    depth: int | Literal['every'] = 0
    _spec_arguments: tuple[tuple[str, str], ...] = ()
    _variants: ClassVar[list[tuple[Callable, type['Encoding']]]] = []
    _variant_of: ClassVar[type['Encoding']]

    def __init_subclass__(
        cls, *, where: Callable[[Mapping[str, Any]], bool] | None = None, **options
    ):
        super().__init_subclass__(**options)
        for name, instead in _REPLACED.items():
            if name in vars(cls):
                raise TypeError(f'{cls.__name__}.{name} would never be called: write {instead}')
        for stated in (vars(cls).get('traits'), vars(cls).get('adds')):
            unknown = stated - TRAITS.keys() if isinstance(stated, frozenset) else ()
            for trait in sorted(unknown):
                raise TypeError(f'{cls.__name__}: {trait!r} is no trait; {nearest(trait, TRAITS)}')
        if not {'mask', 'allow'}.isdisjoint(vars(cls)) and 'sees_all' not in vars(cls):
            cls.sees_all = Encoding.sees_all  # that of a base class is about another mask
        if not {'logits', 'bias', 'collect'}.isdisjoint(vars(cls)) and 'uniform' not in vars(cls):
            cls.uniform = Encoding.uniform  # likewise
        if '__init__' in vars(cls):
            cls._variants = []
            cls.__init__ = remembering(cls.__init__, cls._variants)
        if where is not None:
            cls._add_variant(where)
        cls.__signature__ = constructor_signature(cls)

    @classmethod
    def _add_variant(cls, where: Callable[[Mapping[str, Any]], bool]) -> None:
        """Makes this class a variant of the class from which it inherits its `__init__`."""
        owner = next((base for base in cls.__bases__ if '_variants' in vars(base)), Encoding)
        if owner is Encoding or vars(owner).get('__init__') is not cls.__init__:
            raise TypeError(
                f'{cls.__name__} is a variant by `where`: it must inherit directly from an '
                'encoding that has an `__init__`, and have none of its own'
            )
        # In a notebook a class may be written anew; the new one replaces the old one.
        place = cls.__module__, cls.__qualname__
        others = [
            own for own in owner._variants if (own[1].__module__, own[1].__qualname__) != place
        ]
        owner._variants[:] = [*others, (where, cls)]
        cls._variant_of = owner

    def __repr__(self):
        return call(name_of(type(self)), self._spec_arguments)

    __str__ = __repr__

    @property
    def position_range(self) -> PositionRange:
        """Which positions `place` assigns, and which ones the doors accept."""
        return PositionRange()

    @property
    def pair_values(self) -> int:
        """How many numbers `logits` holds for a pair, if they may be more than one for each head:
        the width of a network of pairs. Tiles are smaller by it where a part `mixes_logits`.
        """
        return 0

    # Token stage, whole sequences, O(L).

    def place(self, tok: Tokens, *, key: Array | None = None) -> Tokens:
        """Assigns positions. Only this door may be random: a `key` selects the training rule, None
        the evaluation rule.
        """
        return tok

    def embed(self, x: Float[Array, 'B L ...'], tok: Tokens) -> Float[Array, 'B L ...']:
        """Changes the token vectors at the input of the model, or before the layer `depth`."""
        return x

    def project(self, q, k, v, tq: Tokens, tk: Tokens, x=None):
        """Changes queries [B, T, N, H], keys and values [B, S, K, H] token by token, or attaches
        features to `tq` and `tk`.

        `x` is the layer input, [B, lookback + T, D]; rows before the sequence, and padding, are
        zero.
        """
        return q, k, v, tq, tk

    # Pair stage, one block of queries and one of keys.

    def logits(
        self, s: Float[Array, 'B N T S'], q, k, tq: Tokens, tk: Tokens, seen, carry: Carry
    ) -> tuple[Float[Array, 'B N T S'], Carry]:
        """The logits of a block in float32, and the carry for the next (farther) block.

        Args:
          s: the logits so far, at first the scaled inner products of `q` and `k`. A compiled
            program computes no products that nobody reads. An encoding with the trait
            'forms_logits' forms logits of its own from `q` and `k`.
          seen: which pairs the masks show, bool [#B, #N, T, S].
          carry: what this encoding returned for the nearer block, see `Carries`; () otherwise.
        """
        return s, carry

    def mask(self, tq: Tokens, tk: Tokens) -> Bool[Array, '#B #N T S'] | None:
        """Which keys each query may see; None for all. Masks of a chain are combined with AND."""
        return None

    def may_see(self, tq: Bounds, tk: Bounds) -> Bool[Array, ''] | bool:
        """Whether `mask` may allow any pair of two blocks, judged by the bounds of the blocks.

        A wrong True costs time; a wrong False would drop keys.
        """
        return True

    def sees_all(self, tq: Bounds, tk: Bounds) -> Bool[Array, ''] | bool:
        """Whether `mask` allows every pair of two blocks, judged by the bounds of the blocks.

        A wrong False costs time; a wrong True would show keys that are hidden.
        """
        return not self.opens('mask')

    def uniform(self, tq: Bounds, tk: Bounds) -> Bool[Array, ''] | bool:
        """Whether all pairs of two blocks of valid tokens look up the same entry of a table, judged
        by the bounds of the blocks. `logits` and `collect` then get one position for each block,
        [#B, 1], in the place of all its positions. So they must read nothing of tokens but `pos`
        and features.

        A wrong False costs time; a wrong True would change results.
        """
        return not (self.opens('logits') or self.opens('collect'))

    def collect(
        self, w: Float[Array, 'B N T S'], v, tq: Tokens, tk: Tokens
    ) -> Float[Array, 'B N T H']:
        """Sums the values with weights `w`, not normalised yet; must be linear in `w`."""
        return weighted_sum(w, v)

    def rescale(
        self, out: Float[Array, 'B T N V'], lse: Float[Array, 'B T N'], tq: Tokens
    ) -> Float[Array, 'B T N V']:
        """Changes the result of attention where the sweep over the keys has ended, in the dtype of
        `out`. A learned sink, for instance, makes the weights of a query sum to less than one.

        Args:
          lse: the log-sum-exp of each query's logits, float32, below -1e28 where it sees no key.
        """
        return out

    # Derived from the above.

    @property
    def cached(self) -> str:
        """The form in which a decode cache holds keys, see `Promises.cached`."""
        evolving = {'update_keys'} if self.opens('update_keys') else set()
        return cached_by(self.traits | evolving)

    @classmethod
    def opened_doors(cls) -> list[str]:
        """The doors that the class overrides and the methods of its capabilities, in the order of
        `PIPELINE`.
        """
        own = lambda name: getattr(cls, name, None) is not getattr(Encoding, name, None)
        return [name for name in PIPELINE if own(name)]

    def opens(self, door: str) -> bool:
        """Whether this encoding overrides a door, or has a method of a capability."""
        return getattr(type(self), door, None) is not getattr(Encoding, door, None)
