"""A decode cache of constant size, of the first and last tokens: models with `lm_infinite` see no
others.
"""

import dataclasses
import numbers
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from posenc_jax.lab.decoding.decoding import Decoding
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.layer.cache import Cache, LayerCache, check_layers
from posenc_jax.methods.lm_infinite import LMInfinite
from posenc_jax.protocol.composite import name_of, owner_of, parts_of
from posenc_jax.protocol.tokens import Tokens


def end_slots(
    tok: Tokens, cursor: int | Int[Array, ''], first: int, last: int
) -> Int[Array, '#B {first+last}']:
    """Slots of the first real tokens and of the last filled slots of every row, in ascending order
    and without duplicates. A row with fewer slots than first + last begins with -1.

    Args:
      tok: tokens of the whole capacity, one text a row.
      cursor: number of filled slots.
      first, last: numbers of slots.

    Raises:
      ValueError: packed documents.
    """
    if tok.segment is not None:
        raise ValueError(
            'a cache of first and last tokens needs one text a row, got packed documents '
            '(tok.segment)'
        )
    slot = jnp.arange(tok.length, dtype=jnp.int32)
    wanted = (slot < cursor) & ((tok.rank < first) | (slot >= cursor - last))
    slots = jnp.where(wanted if tok.valid is None else wanted & tok.valid, slot, -1)
    slots = jnp.pad(slots, ((0, 0), (max(0, first + last - tok.length), 0)), constant_values=-1)
    return jnp.sort(slots, axis=1)[:, slots.shape[1] - first - last :]


def take_slots(tree: Any, slots: Int[Array, '#B n'], axis: int, room: int = 0) -> Any:
    """The entries of every array at these slots along `axis`, followed by `room` zeros. The first
    axis is the batch. An entry is zero where its slot is -1.
    """

    def one(a, slots):
        kept = jnp.take(a, slots, axis=axis - 1, mode='clip')
        kept = jnp.where(
            (slots >= 0).reshape(-1, *(1,) * (a.ndim - axis)), kept, jnp.zeros((), a.dtype)
        )
        return jnp.pad(kept, [(0, room * (i == axis - 1)) for i in range(a.ndim)])

    def rows(a):
        batch = max(a.shape[0], slots.shape[0])
        return jax.vmap(one)(*(jnp.broadcast_to(b, (batch, *b.shape[1:])) for b in (a, slots)))

    return jax.tree.map(rows, tree)


def keep_ends(
    cache: Cache, placed: tuple[Tokens, ...], *, first: int, last: int, room: int = 1
) -> Cache:
    """A cache of constant size: it keeps the first and the last tokens and drops all others, and
    has room for new tokens.

    Call it again whenever the room is used up. Decoding gives the same logits as with the full
    cache if the encodings hide the dropped tokens. This is not checked here;
    `constant_cache` checks it for a model. Every call copies first + last
    slots.

    Args:
      cache: a filled cache, or a result of this function.
      placed: `Cache.tokens` of the whole text to come; the tokens of the room are found in it by
        their index.
      first, last: numbers of tokens to keep; padding does not count among the first.
      room: number of tokens that can be appended.

    Raises:
      ValueError: sizes that keep nothing; packed documents; positions that depend on token ids; a
        room beyond the text to come (under jit, slots beyond the text are padding instead).
    """
    check_layers(cache, LayerCache, 'keep_ends', 'decode.prefill')
    if first < 0 or last < 1 or room < 1:
        raise ValueError(
            f'keep_ends: expected first >= 0, last >= 1 and room >= 1, got {first=}, {last=}, '
            f'{room=}'
        )
    if cache.unplaced is not None:
        raise ValueError(
            'keep_ends drops tokens, but an encoding of this model computes positions from the '
            'ids of all of them'
        )
    done = cache.tokens[0].index[0, cache.cursor - 1] + 1
    if not isinstance(done, jax.core.Tracer) and int(done) + room > placed[0].length:
        raise ValueError(
            f'keep_ends: room for {room} tokens after {int(done)} exceeds the text of '
            f'{placed[0].length} tokens'
        )
    slots = end_slots(cache.tokens[0], cache.cursor, first, last)

    def tokens(own, placed):
        kept = take_slots(dataclasses.replace(own, valid=None), slots, 1)
        kept = dataclasses.replace(
            kept, index=jnp.where(slots >= 0, kept.index, -1), valid=slots >= 0
        )
        known = (
            placed
            if placed.valid is not None
            else dataclasses.replace(placed, valid=jnp.ones_like(placed.index, bool))
        )
        coming = jax.tree.map(
            lambda a: jnp.pad(a, [(0, room * (i == 1)) for i in range(a.ndim)]), known
        ).slice(done, room)
        rows = lambda a, batch: jnp.broadcast_to(a, (batch, *a.shape[1:]))
        joined = lambda a, b: jnp.concatenate(
            [rows(a, max(len(a), len(b))), rows(b, max(len(a), len(b)))], axis=1
        )
        return jax.tree.map(joined, kept, coming)

    def layer(own: LayerCache) -> LayerCache:
        k, v, feats = take_slots((own.k, own.v, own.feats), slots, 2, room)
        return LayerCache(k, v, feats, own.rows)

    both = tuple(tokens(own, coming) for own, coming in zip(cache.tokens, placed, strict=True))
    return Cache(both, jnp.asarray(slots.shape[1], jnp.int32), tuple(map(layer, cache.layers)))


def constant_cache(
    model: Transformer, cache: Cache, placed: tuple[Tokens, ...], *, room: int = 1
) -> Cache:
    """A cache of the keys and values that the `lm_infinite` layers of a model can still see, with
    room for new tokens (see `keep_ends`).

    Args:
      model: the model that filled the cache.
      cache, placed, room: as for `keep_ends`.

    Raises:
      ValueError: a layer without `lm_infinite`, or with its `top_k` or an encoding that
        `mixes_logits`; the errors of `keep_ends`.
    """
    found = _windows(model)
    first, last = (max(getattr(part, name) for part in found) for name in ('n_global', 'n_local'))
    return keep_ends(cache, placed, first=first, last=max(last - 1, 1), room=room)


def _windows(model: Transformer) -> list[LMInfinite]:
    """The `lm_infinite` parts of all layers of the period. A layer without one is an error."""
    found = []
    for layer_type, block in enumerate(model.blocks):
        encoding = model.encoding(layer_type, block)
        parts = [part for part in parts_of(encoding) if isinstance(part, LMInfinite)]
        if not parts:
            names = ' | '.join(map(name_of, parts_of(encoding)))
            raise ValueError(
                'a cache of constant size needs lm_infinite in every layer, but a layer of this '
                f'model has {names}'
            )
        if 'mixes_logits' in encoding.traits:
            raise ValueError(
                f'{owner_of("mixes_logits", encoding)} mixes logits, so dropped keys would change '
                'those of others; decode with Decoding(), which keeps all keys'
            )
        found += parts
    if choosing := [part.top_k for part in found if part.top_k]:
        raise ValueError(
            f'lm_infinite(top_k={choosing[0]}) may choose any key of the text, so no key can be '
            'dropped; use top_k=0'
        )
    return found


class DroppingCache(Decoding):
    """For `generate`: drops tokens whenever the cache is full. A subclass writes `dropped`."""

    def dropped(self, model: Transformer, cache: Cache, placed: tuple[Tokens, ...]) -> Cache:
        """The cache with room for new tokens; `placed` are the tokens of the whole text to come."""
        raise NotImplementedError

    def check(self, model):
        if model.reads_ids:
            raise ValueError(
                f'{type(self).__name__} drops tokens, but an encoding of this model computes '
                'positions from the ids of all tokens'
            )

    def read(self, model: Transformer, empty: Cache, prompts: Int[Array, 'B T']):
        """The logits of the last token, and a cache that has no room beyond the prompts."""
        of_prompt = tuple(tok.slice(0, prompts.shape[1]) for tok in empty.tokens)
        return super().prefill(model, dataclasses.replace(empty, tokens=of_prompt), prompts)

    def step(self, model, empty, cache, tokens, layers):
        # A loop of at most one step, because `cond` would copy the cache.
        full = lambda cache: cache.cursor >= cache.capacity
        cache = jax.lax.while_loop(
            full, lambda cache: self.dropped(model, cache, empty.tokens), cache
        )
        return super().step(model, empty, cache, tokens, layers)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ConstantCache(DroppingCache):
    """For `generate`: calls `constant_cache` after the prompt and whenever its room is used up.

    Attributes:
      room: number of new tokens between two such calls, each of which copies the cache.

    Example:
      >>> import jax.numpy as jnp
      >>> from posenc_jax.lab.model.tiny import tiny_model
      >>> from posenc_jax.lab.decoding.generate import generate
      >>> spec = 'lm_infinite(encoding=rope(), n_global=1, n_local=3)'
      >>> model = tiny_model(spec, vocab_size=9)
      >>> generate(
      ...     model,
      ...     jnp.ones((1, 5), int),
      ...     max_new_tokens=9,
      ...     temperature=0.0,
      ...     decoding=ConstantCache(room=4),
      ... ).shape
      (1, 14)
    """

    room: int = dataclasses.field(default=64, metadata=dict(static=True))

    def __post_init__(self):
        if not isinstance(self.room, numbers.Integral) or self.room < 1:
            raise ValueError(
                f'ConstantCache needs room for at least 1 new token, an integer, got {self.room!r}'
            )

    def check(self, model):
        _windows(model)
        super().check(model)

    def prefill(self, model, empty, prompts):
        logits, cache = self.read(model, empty, prompts)
        return logits, self.dropped(model, cache, empty.tokens)

    def dropped(self, model, cache, placed):
        return constant_cache(model, cache, placed, room=self.room)
