"""The protocol: an `Encoding` and its doors, all of them shut by default.

    place -> embed -> qkv -> project -> match -> score -> mask -> softmax -> collect -> merge

Letters: B batch, T query tokens, S key tokens, L either, N query heads, K key/value heads, H head
width, D model width, P position components. A leading axis written #B may be 1 where the whole
batch shares it.

The token stage (`place`, `embed`, `qkv`, `project`, `merge`) sees whole sequences in the layout
[B, L, heads, H]. The pair stage (`init_carry`, `match`, `score`, `mask`, `collect`) sees one block
of queries and one block of keys, heads first: q [B, N, T, H], k and v [B, K, S, H], logits
[B, N, T, S] in float32. Features of tokens stay token first, [#B, L, heads or 1, ...]. Hooks are
optional: `fast_path` evaluates the whole pair stage at once where it can, `update_keys` rewrites
cached keys, `anchor` chooses the origin of an image before it is cut into patches, and
`auxiliary_loss` is a term that training adds to the loss of the task. Three more
belong together: `begin_stream`, `carry_stream` and `feed_stream` are about a second state that
flows from layer to layer.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from posenc_jax.base.products import scaled_dot_product, weighted_sum
from posenc_jax.protocol.calls import call, name_of, remembering
from posenc_jax.protocol.registry import Card, constructor_signature
from posenc_jax.protocol.tokens import Bounds, Tokens

Carry = Any  # pytree of arrays [B, N, T, ...]
Projections = tuple[
    Float[Array, 'B L N H'], Float[Array, 'B L K H'], Float[Array, 'B L K H']
]  # queries, keys, values

DOORS = (
    'place',
    'embed',
    'qkv',
    'project',
    'init_carry',
    'match',
    'score',
    'mask',
    'collect',
    'merge',
)
TOKEN_STAGE = ('place', 'embed', 'qkv', 'project')  # `merge` comes with `qkv`
HOOKS = (
    'fast_path', 'update_keys', 'anchor', 'auxiliary_loss',
    'begin_stream', 'carry_stream', 'feed_stream',
)  # fmt: skip

# Facts that an encoding may state about itself. `conflicts` says which exclude each other.
TRAITS = {
    'decides_causality': 'Its mask says which later keys are seen: no causal mask is added.',
    'decides_segments': 'Its mask says which documents are seen: no document mask is added.',
    'sees_later': 'It lets queries see keys after them.',
    'leaves_gaps': 'Its mask hides keys between others that a query sees.',
    'rotates': 'It turns queries and keys by their positions.',
    'reads_unrotated': 'It reads queries and keys before they are turned.',
    'reads_own_projections': 'Its logits read q and k as the parts before it leave them.',
    'reads_no_projections': 'Its logits read neither q nor k.',
    'sums_between': 'It sums over the keys between key and query, all of which must be seen.',
    'projects_earlier_rows': 'Its `qkv` projects rows in front, which its `project` takes off.',
    'several_inputs': 'Its `qkv` gives every head several inputs of attention.',
    'reads_ids': 'Its `place` reads token ids, of earlier tokens of the document alone.',
    'reads_target_order': 'The last component of a position is a place in the translation.',
    'reads_grid': 'Its `embed` needs tokens that are the cells of a grid.',
    'follows_length': 'What `project` does to a key depends on the current length.',
    'queries_follow_length': 'What `project` does to a query alone depends on the current length.',
    'places_together': 'What `place` gives a token depends on others, at least where it draws.',
    'moves_positions': 'A new token moves the positions of all others.',
}


class Constant(nnx.Variable):
    """An array that belongs to an encoding and is not trained: slopes, thresholds per head.

    Like `nnx.Param` it may carry `axes`, one role per dimension ('heads' where the head axis is),
    for sharding.
    """


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

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        if '__init__' in vars(cls):
            cls.__init__ = remembering(cls.__init__)
        cls.__signature__ = constructor_signature(cls)

    def __repr__(self):
        return call(name_of(type(self)), self._spec_arguments)

    __str__ = __repr__

    @property
    def position_range(self) -> PositionRange:
        """Which positions `place` assigns, and which ones the doors accept."""
        return PositionRange()

    # Token stage, whole sequences, O(L).

    def place(self, tok: Tokens, *, key: Array | None = None) -> Tokens:
        """Assigns positions. Only this door may be random: a `key` selects the training rule, None
        the evaluation rule.
        """
        return tok

    def embed(self, x: Float[Array, 'B L ...'], tok: Tokens) -> Float[Array, 'B L ...']:
        """Changes the token vectors at the input of the model, or before the layer `depth`."""
        return x

    def qkv(
        self, x: Float[Array, 'B rows ...'], linear: Callable[[Array], Projections], tok: Tokens
    ) -> Projections:
        """Queries, keys and values of the layer input; `linear` applies the layer's projections.

        An encoding that opens this door opens `merge` too. It may project n inputs and join the
        results along the heads. The doors up to `merge` then see n N query heads and n K key heads,
        those of the first input first. It may also project the `lookback` rows in front. Its own
        `project` then removes them from q, k and v, and no part before it may open `project`.

        Args:
          x: the layer input with `lookback` rows in front, as for `project`.
          linear: [B, L, D] -> q [B, L, N, H], k and v [B, L, K, H].
          tok: the tokens of the last L rows of `x`.
        """
        return linear(x[:, self.lookback :])

    def project(self, q, k, v, tq: Tokens, tk: Tokens, x=None):
        """Changes queries [B, T, N, H], keys and values [B, S, K, H] token by token, or attaches
        features to `tq` and `tk`.

        `x` is the layer input, [B, lookback + T, D]; rows before the sequence, and padding, are
        zero.
        """
        return q, k, v, tq, tk

    def merge(self, out: Float[Array, 'B T nN H']) -> Float[Array, 'B T N H']:
        """Combines the results for the n inputs that `qkv` projected into one."""
        return out

    # Pair stage, one block of queries and one of keys.

    def init_carry(self, q: Float[Array, 'B N T H'], tq: Tokens) -> Carry:
        """The carry of this block of queries at the start of its sweep over the key blocks, which
        goes from near to far.
        """
        return ()

    def match(self, q, k, tq: Tokens, tk: Tokens, seen, carry: Carry):
        """Logits of a block, float32 and scaled, and the carry for the next (farther) block."""
        return scaled_dot_product(q, k), carry

    def score(self, s: Float[Array, 'B N T S'], tq: Tokens, tk: Tokens, seen, carry: Carry):
        """Changes the logits of a block; returns them and the carry."""
        return s, carry

    def mask(self, tq: Tokens, tk: Tokens) -> Bool[Array, '#B #N T S'] | None:
        """Which keys each query may see; None for all. Masks of a chain are combined with AND."""
        return None

    def may_see(self, tq: Bounds, tk: Bounds) -> Bool[Array, ''] | bool:
        """Whether `mask` may allow any pair of two blocks, judged by the bounds of the blocks.

        A wrong True costs time; a wrong False would drop keys.
        """
        return True

    def collect(
        self, w: Float[Array, 'B N T S'], v, tq: Tokens, tk: Tokens
    ) -> Float[Array, 'B N T H']:
        """Sums the values with weights `w`, not normalised yet; must be linear in `w`."""
        return weighted_sum(w, v)

    # Hooks.

    def fast_path(
        self, q, k, v, tq: Tokens, tk: Tokens, *, causal: bool, sweep: Callable[[], Array]
    ) -> Array | None:
        """A cheaper evaluation of the pair stage, [B, T, N, H] in the dtype of `v`, or None if it
        does not apply.

        `attend` calls it if the caller sets no tile size and if no other part of the chain acts in
        the pair stage, apart from the causal mask. The result must equal `sweep()`. If its
        conditions are known only when the program runs, it chooses between the two in the program.
        The layout is that of `project`; JAX differentiates it.

        Args:
          causal: whether later keys are hidden.
          sweep: evaluates the pair stage by tiles.
        """
        return None

    def update_keys(
        self, k: Float[Array, 'B K S H'], tk: Tokens, new: Tokens
    ) -> Float[Array, 'B K S H']:
        """Rewrites cached keys for one new token (`new` has length 1)."""
        return k

    def anchor(
        self, x: Float[Array, 'B rows columns C'], stride: int
    ) -> Float[Array, 'B rows columns C']:
        """Chooses the origin of a grid before it is read in steps of `stride` cells. An encoding
        that opens this hook treats the grid as a torus.
        """
        return x

    def auxiliary_loss(
        self, x: Float[Array, 'B L D'], tok: Tokens, *, key: Array | None
    ) -> Float[Array, '']:
        """A term that training adds to the loss of the task, with its weight; float32.

        An encoding that opens this hook exists once in a model. A training loop of one's own adds
        the term itself.

        Args:
          x: token vectors before any `embed`.
          tok: the placed tokens, as `embed` gets them.
          key: the key that `place` got, so that both can make the same draws.
        """
        return jnp.zeros((), jnp.float32)

    def begin_stream(self, tok: Tokens) -> Float[Array, '#B L heads *S']:
        """The stream at the first layer, float32, of N or of K heads; it depends on no trained
        variable.

        An encoding that opens this hook finds the stream of its tokens in `project` as their
        feature 'stream', which it takes off. It may join it to the values there. Outside a model
        no stream arrives; `project` then begins one and leaves the values alone.
        """
        raise NotImplementedError

    def carry_stream(
        self, out: Float[Array, 'B T N V'], stream: Float[Array, 'B T heads *S']
    ) -> tuple[Float[Array, 'B T N H'], Float[Array, 'B T heads *S']]:
        """Takes the result of attention apart: the sums of the values, and the stream behind
        attention.
        """
        return out, stream

    def feed_stream(
        self, m: Float[Array, 'B T D'], stream: Float[Array, 'B T heads *S']
    ) -> Float[Array, 'B T heads *S']:
        """The stream behind the layer's feed-forward network, whose output is `m`."""
        return stream

    # Derived from the above.

    @property
    def cached(self) -> str:
        """The form in which a decode cache holds keys, see `Promises.cached`."""
        if 'moves_positions' in self.traits:
            return 'none'
        if 'follows_length' in self.traits:
            return 'raw'
        return 'evolving' if self.opens('update_keys') else 'encoded'

    @classmethod
    def opened_doors(cls) -> list[str]:
        """The doors and hooks that the class overrides, in the order of the pipeline."""
        return [d for d in DOORS + HOOKS if getattr(cls, d) is not getattr(Encoding, d)]

    def opens(self, door: str) -> bool:
        """Whether this encoding overrides a door or a hook."""
        return getattr(type(self), door) is not getattr(Encoding, door)
