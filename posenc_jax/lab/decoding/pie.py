"""PIE: edits a cached text, and rotates the cached keys behind an edit to their new positions."""

import dataclasses
import functools
import numbers
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Num

from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.layer.cache import Cache, LayerCache, check_layers, filled
from posenc_jax.methods.rope import Layout, Rotary, rotate
from posenc_jax.methods.single_rotary import single_rotary
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.registry import Card, Promises, register
from posenc_jax.protocol.tokens import Tokens

Edit = tuple[int, int, Sequence[int]]


def pie_keys(
    k: Float[Array, 'B K S H'],
    before: Float[Array, '#B S F'],
    after: Float[Array, '#B S F'],
    *,
    layout: Layout = 'half',
    scale: float | Float[Array, '#B 1 S 1'] = 1.0,
) -> Float[Array, 'B K S H']:
    """Rotates keys from the angles `before` to the angles `after`, by one rotation in float32.

    Args:
      k: keys rotated by `before`, heads first as in the cache.
      before, after: angles in radians; only their difference is used.
      layout: arrangement of the rotated pairs of channels, see `rotate`.
      scale: ratio of the attention factors at the new and the old position; 1 if they are equal.
    """
    return rotate(k, (after - before)[:, None], layout=layout, scale=scale)


def at_positions(
    rotary: Rotary,
    k: Float[Array, 'B K S H'],
    before: Num[Array, '#B S'],
    after: Num[Array, '#B S'],
) -> Float[Array, 'B K S H']:
    """`pie_keys` from the positions `before` to the positions `after`; where the attention factor
    depends on the position, the keys are scaled by its ratio.
    """
    (old, was), (new, factor) = rotary.angles(before), rotary.angles(after)
    scale = (factor / was)[:, None, :, None] if jnp.ndim(factor) else 1.0
    return pie_keys(k, old, new, layout=rotary.layout, scale=scale)


def fixed_rotary(user: str, encoding: Encoding, beside: tuple[str, ...]) -> Rotary:
    """`single_rotary`, with frequencies that do not depend on the current length.

    Raises:
      ValueError: as `single_rotary`; frequencies that follow the length.
    """
    rotary = single_rotary(user, encoding, beside=beside)
    if rotary.uses_length:
        raise ValueError(
            f'{user} rotates cached keys by fixed angles, but the angles of {rotary.freqs} depend '
            'on the current length and change at every step; use fixed frequencies'
        )
    return rotary


@register(
    'pie',
    kind='cache',
    card=Card(
        name='PIE',
        door='cache',
        example='pie.edit(model, cache, [(3, 5, [7])])',
        use_when=(
            'You edit a long text and do not want to read all of it again; the measured '
            'claim about the time is open.'
        ),
        promises=Promises(sweep_free=False, blockwise=False),
    ),
)
def edit(model: Transformer, cache: Cache, edits: Sequence[Edit]) -> Cache:
    """The cache of an edited text. Keys and values before the first edit are kept. Behind it, keys
    are rotated to their new positions, and values are kept.

    `K'_(p + d) = R(d) K'_p, V'_(p + d) = V'_p, d = new - old length of the edits before p`. Every
    kept key is rotated once
    for all edits, in float32, by the change of its angle, so an attention factor is not applied
    again. The new tokens go through the model in one pass; they see the tokens before them in the
    edited text. Hidden states of kept tokens are not computed again. So the result is exact with
    one layer, and the paper's approximation with more. Differs from the paper: several edits are
    made at once; positions are those of the slots (`cache.tokens`) and need not count up by one;
    where the attention factor depends on the position (the first positions of LongRoPE), keys are
    scaled by its ratio. Keys have the dtype of the cache, so in bfloat16 every edit rounds the keys
    that it moves.

    Args:
      model: the decoder that filled the cache; every layer has one rotary encoding of fixed
        frequencies, besides masks.
      cache: a filled cache. All rows get the same edits.
      edits: tuples (start, end, new token ids) that replace the slots start .. end-1 of the old
        text. `end == start` inserts, and an empty list of ids deletes. Slots refer to the text
        before all edits and count padding in front. The order of the edits does not matter.

    Returns:
      A cache of the same capacity, for `decode_step`. The logits of the token behind the edited
      text are not computed.

    Raises:
      ValueError: an encoding other than one rotary encoding with fixed frequencies (the message
        names it); an empty cache, or one whose positions depend on token ids; packed documents;
        edits that overlap, reach outside the text or into padding, or have token ids outside the
        vocabulary; an edited text longer than the capacity.

    Reference: He, Zhang, Luo, Xu, Zhang, He, arXiv 2407.03157.

    Example:
      >>> from posenc_jax.lab.model.tiny import tiny_model
      >>> from posenc_jax.lab.decoding.decode import init_cache, prefill
      >>> model = tiny_model('rope()', vocab_size=9)
      >>> _, cache = prefill(
      ...     model, init_cache(model, Tokens.of(length=8)), jnp.array([[1, 2, 3, 4, 5]])
      ... )
      >>> changed = edit(model, cache, [(1, 3, [7]), (4, 4, [8, 8])])  # now 1 7 4 8 8 5
      >>> int(changed.cursor)
      6
    """
    for layer_type, block in model.layers():
        fixed_rotary('pie', model.encoding(layer_type, block), beside=('place', 'mask'))
    if cache.unplaced is not None:
        raise ValueError(
            'pie needs positions that do not depend on token ids, but this cache places tokens by '
            'their ids; read the edited text with a new cache'
        )
    check_layers(cache, LayerCache, 'pie.edit', 'prefill')
    if len(cache.layers) != model.cfg.layers:
        raise ValueError(
            f'pie: the cache has {len(cache.layers)} layers, the model has {model.cfg.layers}'
        )
    edits = _checked(edits, model.cfg.vocab_size, cache)
    source, slots, ids = _plan(edits, int(cache.cursor), cache.capacity)
    if not edits:
        return cache
    graphdef, state = nnx.split(model)
    return _edited(graphdef, state, cache, source, slots, ids)


def _checked(
    edits: Sequence[Edit], vocabulary: int, cache: Cache
) -> list[tuple[int, int, np.ndarray]]:
    """Checks the edits and returns them in ascending order, with arrays of token ids."""
    length = int(cache.cursor)
    checked = []
    for one in edits:
        if not isinstance(one, Sequence) or len(one) != 3:
            raise ValueError(
                f'pie: edits must be a list of (start, end, token ids), got {one!r} in it'
            )
        start, end, ids = one
        ids = np.asarray(ids)
        if ids.size and (ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer)):
            raise ValueError(
                f'pie: new tokens are a sequence of integers, got {ids.dtype} {ids.shape}'
            )
        if ids.size and not 0 <= ids.min() <= ids.max() < vocabulary:
            raise ValueError(
                f'pie: token ids must lie in 0 .. {vocabulary - 1}, got {ids.min()} .. {ids.max()}'
            )
        if not all(isinstance(bound, numbers.Integral) for bound in (start, end)):
            raise ValueError(
                f'pie: an edit is (start, end, token ids) with integer slots, got {start!r}, '
                f'{end!r}'
            )
        if not 0 <= start <= end <= length:
            raise ValueError(
                f'pie: the edit of {start} .. {end} lies outside the text; expected 0 <= start '
                f'<= end <= {length}'
            )
        checked.append((int(start), int(end), ids.astype(np.int32).reshape(-1)))
    checked.sort(key=lambda one: one[:2])
    for (start, end, _), (later, until, _) in zip(checked, checked[1:]):
        if later < end or (later, until) == (start, end):
            raise ValueError(
                f'pie: the edits of {start} .. {end} and {later} .. {until} overlap; join them '
                'into one'
            )
    for tok in cache.tokens:
        if tok.segment is not None:
            raise ValueError(
                'pie edits one text per row, the cache holds packed documents; give each a row '
                'of its own'
            )
        if (
            checked
            and tok.valid is not None
            and not np.asarray(tok.valid)[:, checked[0][0] :].all()
        ):
            first = int(np.where(~np.asarray(tok.valid))[1].max()) + 1
            raise ValueError(
                f'pie: the edit at {checked[0][0]} reaches into padding; all rows have tokens '
                f'from {first} on'
            )
    return checked


def _plan(edits, length: int, capacity: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The old slot of every new slot (-1 for a new token, -2 for an empty slot), the slots of the
    new tokens, and their ids.
    """
    pieces, done = [], 0
    for start, end, ids in edits:
        pieces += [np.arange(done, start), np.full(len(ids), -1)]
        done = end
    source = np.concatenate([*pieces, np.arange(done, length)]).astype(np.int32)
    if len(source) > capacity:
        raise ValueError(
            f'pie: the edited text of {len(source)} tokens does not fit a cache of {capacity}'
        )
    slots = np.flatnonzero(source < 0).astype(np.int32)
    ids = np.concatenate([np.zeros(0, np.int32), *(ids for _, _, ids in edits)])
    return np.pad(source, (0, capacity - len(source)), constant_values=-2), slots, ids


@functools.partial(jax.jit, static_argnums=0)
def _edited(graphdef, state, cache: Cache, source, slots, ids) -> Cache:
    model = nnx.merge(graphdef, state)
    cursor = (source > -2).sum().astype(jnp.int32)
    layers = model.layers()
    moved = [
        _moved(
            single_rotary('pie', model.encoding(layer_type, block)),
            own,
            cache.tokens[layer_type],
            source,
        )
        for (layer_type, block), own in zip(layers, cache.layers, strict=True)
    ]
    if not len(slots):
        return dataclasses.replace(cache, cursor=cursor, layers=tuple(moved))
    fresh = tuple(jax.tree.map(lambda a: a[:, slots], tok) for tok in cache.tokens)
    x = model.embed(jnp.broadcast_to(ids, (moved[0].k.shape[0], len(slots))), fresh)

    def mix(h, mixer, layer_type, own):
        q, k, v, tq, _ = mixer.projected(h, fresh[layer_type])
        put = lambda buffer, a: buffer.at[:, :, slots].set(
            jnp.swapaxes(a, 1, 2).astype(buffer.dtype)
        )
        grown = dataclasses.replace(own, k=put(own.k, k), v=put(own.v, v))
        now = filled(cache.tokens[layer_type], cursor)
        out = mixer.attend(q, grown.k, grown.v, tq, now, heads_first=True)
        return mixer.output(out), grown

    return dataclasses.replace(
        cache, cursor=cursor, layers=model.loop_layers(mix, x, moved, layers)[1]
    )


def _moved(rotary: Rotary, layer: LayerCache, tok: Tokens, source) -> LayerCache:
    """The kept keys and values at their new slots; all other slots are zero."""
    k = at_positions(rotary, layer.k[:, :, source], tok.pos[:, source], tok.pos)
    kept = lambda a: jnp.where((source >= 0)[:, None], a, 0)
    return dataclasses.replace(layer, k=kept(k), v=kept(layer.v[:, :, source]))
