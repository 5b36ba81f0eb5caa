"""DuoAttention: some key heads keep the whole cache, the others the first and the last tokens
alone.
"""

import dataclasses
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.core.compose import chain
from posenc_jax.core.composite import name_of, parts_of
from posenc_jax.core.encoding import Constant, Encoding
from posenc_jax.core.families import Mask, signed_distance
from posenc_jax.core.masks import Causal
from posenc_jax.core.registry import Card, Promises, register
from posenc_jax.core.spec import CONTEXT
from posenc_jax.core.tokens import Tokens
from posenc_jax.decoding.decode import Decoding, append, check_last, read_ids
from posenc_jax.model.cache import Cache, check_layers, filled
from posenc_jax.model.layers import layer_rows
from posenc_jax.model.sharding import constrain, sharded_attend
from posenc_jax.model.transformer import Transformer

Heads = tuple[bool, ...]  # of the key heads of a layer, which are retrieval heads


def retrieval_heads(
    gates: Float[Array, 'layers K'],
    *,
    sparsity: float | None = None,
    threshold: float | None = None,
) -> Bool[np.ndarray, 'layers K']:
    """Which key heads keep the whole cache: gates at or above their quantile at `sparsity`, or at
    or above a threshold.

    The quantile is over all layers at once, linear between two gates as in NumPy; equal gates fall
    on the same side, and the largest one stays at any sparsity.

    Args:
      gates: alpha, in 0 .. 1.
      sparsity: share of heads that stream, 0 to 1; 0.5 in the paper, 0.5 to 0.25 where query heads
        share keys.
      threshold: instead of it, e.g. 0.5.

    Raises:
      ValueError: gates of another shape or outside 0 .. 1; a sparsity or threshold outside 0 .. 1;
        both or none of the two.

    Example:
      >>> retrieval_heads(jnp.array([[0.9, 0.1], [0.3, 0.7]]), sparsity=0.5).tolist()
      [[True, False], [False, True]]
    """
    gates = np.asarray(gates, np.float64)
    if gates.ndim != 2 or not gates.size:
        raise ValueError(
            f'duo_attention: gates have shape [layers, kv_heads], got {gates.shape}; at least 1 '
            'of each'
        )
    if not ((gates >= 0) & (gates <= 1)).all():
        raise ValueError(
            f'duo_attention: gates lie in 0 .. 1, got {gates.min()} .. {gates.max()}; clip them'
        )
    if (sparsity is None) == (threshold is None):
        raise ValueError(
            f'duo_attention: give a sparsity or a threshold, got {sparsity=}, {threshold=}'
        )
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(
            f'duo_attention: threshold lies in 0 .. 1 as gates do, got {threshold}; 0.5 is the '
            "paper's"
        )
    if sparsity is None:
        return gates >= threshold
    if not 0 <= sparsity <= 1:
        raise ValueError(
            f'duo_attention: sparsity lies in 0 .. 1, got {sparsity}; nearest: '
            f'{min(max(sparsity, 0), 1)}'
        )
    return gates >= np.quantile(gates, sparsity)


@register(
    'duo_attention',
    kind='encoding',
    card=Card(
        name='DuoAttention',
        title='DuoAttention: Efficient Long-Context LLM Inference with Retrieval and Streaming '
        'Heads',
        arxiv='2410.10819',
        door='mask',
        equation='key j visible iff j <= i, in streaming heads also (j < sink or i - j <= recent)',
        source='mit-han-lab/duo-attention',
        authors='Xiao, Guangxuan and Tang, Jiaming and Zuo, Jingwei and Guo, Junxian and Yang, '
        'Shang and Tang, Haotian and '
        'Fu, Yao and Han, Song',
        year=2024,
        example='rope() | duo_attention(sink=2, recent=4, retrieval=(1,))',
        causal_only=True,
        promises=Promises(relative=True),
    ),
)
class DuoAttention(Mask):
    """Streaming heads see the first `sink` and the last `recent` tokens before each query,
    retrieval heads all of them.

    Key j is visible iff `j <= i`, and in streaming heads also `j < sink or i - j <= recent`;
    counted in real tokens of the document. Positions stay as they are, so any encoding stands
    beside it. It replaces the causal mask: `deploy` puts it into a model by gates that
    `train_gates` (posenc_jax/training/duo_gates.py) found, and `prefill` and `decode_step` of this
    module then keep `sink + recent + 1` keys of every streaming head. Differs from the paper: the
    mask says `i - j <= recent` as its decoding does (the query and `recent` keys before it), so
    that a step equals the pass over the prefix; its training mask, and the gates', say `i - j <
    recent`.

    Args:
      sink: first tokens that stay visible; 64 when deployed in the paper, 128 while gates are
        trained.
      recent: last tokens before the query; 256.
      retrieval: numbers of the key heads that see everything.
      heads, kv_heads: N and K, from the model; query heads that share keys are of one kind.

    Raises:
      ValueError: sink or recent below 0; a key head that does not exist, or twice.

    Reference: Xiao, Tang, Zuo, Guo, Yang, Tang, Fu, Han, arXiv 2410.10819.

    Example:
      >>> import posenc_jax as pj
      >>> t = pj.Tokens.of(length=6)
      >>> pj.make('duo_attention(sink=1, recent=2, retrieval=(1,))', heads=2).mask(t, t)[0].sum(
      ...     -1
      ... ).tolist()
      [[1, 2, 3, 4, 4, 4], [1, 2, 3, 4, 5, 6]]
    """

    traits = frozenset({'decides_causality', 'leaves_gaps'})

    def __init__(
        self,
        sink: int,
        recent: int,
        retrieval: tuple[int, ...] = (),
        heads: int = CONTEXT,
        kv_heads: int = CONTEXT,
    ):
        if not all(isinstance(size, numbers.Integral) and size >= 0 for size in (sink, recent)):
            raise ValueError(
                f'duo_attention: expected integers sink >= 0 and recent >= 0, got {sink=}, '
                f'{recent=}'
            )
        if len(set(retrieval)) != len(retrieval) or not set(retrieval) <= set(range(kv_heads)):
            raise ValueError(
                f'duo_attention: retrieval names key heads of 0 .. {kv_heads - 1}, each once; '
                f'got {retrieval}'
            )
        self.sink, self.recent, self.heads, self.kv_heads = sink, recent, heads, kv_heads
        self.retrieval = self._per_head(np.isin(np.arange(kv_heads), retrieval))

    def _per_head(self, of_keys):
        return Constant(
            jnp.repeat(jnp.asarray(of_keys, bool), self.heads // self.kv_heads, axis=-1),
            axes=('heads',),
        )

    def with_heads(self, retrieval: Bool[Array, '... K']) -> 'DuoAttention':
        """A copy with these retrieval heads, which may lead with a stack of layers."""
        copy = DuoAttention(self.sink, self.recent, (), self.heads, self.kv_heads)
        copy.retrieval = self._per_head(retrieval)
        return copy

    def allow(self, tq, tk):
        causal = tk.index[:, None, :] <= tq.index[:, :, None]
        near = signed_distance(tq.order, tk.order) <= self.recent
        streaming = near | (tk.order < self.sink)[:, None, :]
        return causal[:, None] & (streaming[:, None] | self.retrieval[...][:, None, None])

    def may_see(self, tq, tk):
        near = tk.order_high >= tq.order_low - self.recent
        return (tk.index_low <= tq.index_high) & (
            near | (tk.order_low < self.sink) | self.retrieval[...].any()
        )


def with_mask(encoding: Encoding, mask: DuoAttention) -> Encoding:
    """The chain of a layer with this mask in the place of its causal one.

    Raises:
      ValueError: a chain without a causal mask, e.g. an encoder's, or one that decides causality
        another way, or with two.

    Example:
      >>> import posenc_jax as pj
      >>> chained = with_mask(
      ...     pj.make('alibi()', heads=2, causal=True), DuoAttention(1, 2, (), 2, 2)
      ... )
      >>> [name_of(part) for part in parts_of(chained)]
      ['alibi', 'duo_attention', 'document']
    """
    parts = parts_of(encoding)
    if (count := sum(isinstance(part, (Causal, DuoAttention)) for part in parts)) != 1:
        chained = ' | '.join(map(name_of, parts))
        raise ValueError(
            f'duo_attention takes the place of one causal mask, found {count or "none"} in '
            f'{chained}'
        )
    return chain(*(mask if isinstance(part, (Causal, DuoAttention)) else part for part in parts))


def deploy(
    model: Transformer, retrieval: Bool[Array, 'layers K'], *, sink: int = 64, recent: int = 256
) -> Transformer:
    """The same model whose streaming heads see `sink` first and `recent` last tokens only.

    Args:
      model: a decoder, whose layers have the ordinary causal mask or have been deployed before.
      retrieval: see `retrieval_heads`.

    Raises:
      ValueError: another shape than layers by key heads; sink below 0, recent below 1; a model
        without causal masks.

    Example:
      >>> from posenc_jax.model import TransformerConfig
      >>> cfg = TransformerConfig(
      ...     vocab_size=7, train_len=8, layers=2, width=8, heads=2, encoding='rope()'
      ... )
      >>> model = deploy(
      ...     Transformer(cfg, rngs=nnx.Rngs(0)),
      ...     np.array([[True, False], [False, False]]),
      ...     sink=1,
      ...     recent=2,
      ... )
      >>> heads_of(model)
      ((True, False), (False, False))
    """
    retrieval = np.asarray(retrieval)
    wanted = (model.cfg.layers, model.cfg.kv_heads)
    if retrieval.shape != wanted or retrieval.dtype != bool:
        found = f'{retrieval.dtype} {retrieval.shape}'
        raise ValueError(
            f'duo_attention: expected booleans for {wanted} layers and key heads, got {found}'
        )
    if recent < 1:
        raise ValueError(
            f'duo_attention: a streaming head keeps at least 1 recent key, got {recent=}'
        )
    mask = DuoAttention(sink, recent, (), model.cfg.heads, model.cfg.kv_heads)
    for place, block in model.layers():
        with_mask(model.encoding(place, block), mask)
    for kind in (Causal, DuoAttention):
        if any(
            isinstance(part, kind)
            for place, block in model.layers()
            for part in parts_of(model.encoding(place, block))
        ):
            model = model.map_parts(
                kind, lambda part, layers: mask.with_heads(jnp.asarray(retrieval)[layers])
            )
    return model


def _mask_of(encoding: Encoding) -> DuoAttention:
    """The mask of a layer whose cache can be split by heads.

    Raises:
      ValueError: a chain without it, or with something that needs more than the keys and values of
        its own head.
    """
    parts = parts_of(encoding)
    found = [part for part in parts if isinstance(part, DuoAttention)]
    if len(found) != 1:
        raise ValueError(
            'this cache is for duo_attention, e.g. from deploy(); got '
            f'{" | ".join(map(name_of, parts))}'
        )
    for part in parts:
        promises = getattr(part, 'card', DuoAttention.card).promises
        if (
            part.cached != 'encoded'
            or part.lookback
            or part.opens('qkv')
            or promises.mixes_heads
            or part.opens('init_carry')
        ):
            raise ValueError(
                f'duo_attention drops keys head by head, but {name_of(part)} reads more of a '
                'sequence than the encoded keys '
                'and values of one head; decode with model.decode, which keeps all of them'
            )
    return found[0]


def heads_of(model: Transformer) -> tuple[Heads, ...]:
    """Which key heads of every layer are retrieval heads.

    Raises:
      ValueError: a traced model, of which they are not known; a layer whose encoding does not fit
        (it is named).
    """
    with jax.ensure_compile_time_eval():
        masks = [_mask_of(model.encoding(place, block)) for place, block in model.layers()]
        if any(isinstance(mask.retrieval[...], jax.core.Tracer) for mask in masks):
            raise ValueError(
                'duo_attention: which heads stream must be known while compiling; hand in '
                'heads_of(model)'
            )
        return tuple(
            tuple(np.asarray(mask.retrieval[...])[:: mask.heads // mask.kv_heads].tolist())
            for mask in masks
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DuoLayer:
    """What one layer remembers.

    Attributes:
      k, v: of retrieval heads, [B, K', S, H], as in `core.cache`.
      sink_k, sink_v: of streaming heads, their first tokens, [B, K - K', sink, H].
      recent_k, recent_v: their last ones, [B, K - K', recent + 1, H]; the token at index c lies in
        slot c mod (recent + 1).
      heads: which key heads are retrieval heads.
    """

    k: Float[Array, 'B R S H']
    v: Float[Array, 'B R S H']
    sink_k: Float[Array, 'B C sink H']
    sink_v: Float[Array, 'B C sink H']
    recent_k: Float[Array, 'B C recent H']
    recent_v: Float[Array, 'B C recent H']
    heads: Heads = dataclasses.field(metadata=dict(static=True))


def prefill(
    model: Transformer,
    cache: Cache,
    prompts: Int[Array, 'B T'],
    *,
    last: int | None = None,
    full: bool = False,
    heads: tuple[Heads, ...] | None = None,
) -> tuple[Float[Array, 'B _ V'], Cache]:
    """Reads prompts: the logits of their (`last`) tokens, and the cache.

    One layer at a time has the keys of all its heads in memory. The logits are those of the
    deployed model, whose steps continue them; with `full`, as in the released code where a prompt
    is read at once, all heads see all of the prompt.

    Args:
      model: from `deploy`, or with `duo_attention` in its encoding.
      cache: an empty one, of prompts (padded on the left) and what is to come.
      full: read the prompt without streaming.
      heads: `heads_of(model)`, needed where the model is traced.

    Raises:
      ValueError: prompts that are no integers [B, T], longer than the capacity, or not of the rows
        of the cache; packed documents; (where `valid` is known) padding that is not in front; a
        layer whose encoding does not fit (it is named).

    Example:
      >>> from posenc_jax.model import TransformerConfig
      >>> from posenc_jax.decoding.decode import init_cache
      >>> encoding = 'rope() | duo_attention(sink=1, recent=2, retrieval=(1,))'
      >>> cfg = TransformerConfig(
      ...     vocab_size=7, train_len=8, layers=2, width=8, heads=2, encoding=encoding
      ... )
      >>> model, text = Transformer(cfg, rngs=nnx.Rngs(0)), jnp.arange(14).reshape(2, 7) % 7
      >>> _, cache = prefill(model, init_cache(model, Tokens.of(length=100)), text[:, :6])
      >>> logits, cache = decode_step(model, cache, text[:, 6])
      >>> (
      ...     bool(jnp.allclose(logits, model(text)[:, -1], atol=1e-5)),
      ...     cache.layers[0].k.shape,
      ...     cache.layers[0].recent_k.shape,
      ... )
      (True, (2, 1, 100, 4), (2, 1, 3, 4))
    """
    if prompts.ndim != 2 or not prompts.shape[1] or not jnp.issubdtype(prompts.dtype, jnp.integer):
        raise ValueError(
            f'prompts must be integers [B, T] with T at least 1, got {prompts.dtype} '
            f'{prompts.shape}'
        )
    if cache.layers:
        raise ValueError('prefill needs an empty cache; continue a filled one with decode_step')
    (batch, length), tok = prompts.shape, cache.tokens[0]
    if length > tok.length:
        raise ValueError(f'prompts of {length} tokens do not fit a cache of {tok.length}')
    check_last(last, length)
    if rows := sorted({leaf.shape[0] for leaf in jax.tree.leaves(tok)} - {1, batch}):
        raise ValueError(
            f'duo_attention: the cache is of {rows[0]} rows, the prompts of {batch}; expected '
            f'{batch} (or 1)'
        )
    if tok.segment is not None:
        raise ValueError(
            'duo_attention keeps one text a row, got packed documents; give each a row of its own'
        )
    if tok.valid is not None and not isinstance(tok.valid, jax.core.Tracer):
        valid = np.asarray(tok.valid)
        if (wrong := valid[:, :-1] & ~valid[:, 1:]).any():
            row, slot = map(int, np.argwhere(wrong)[0])
            raise ValueError(
                'duo_attention keeps the first and last slots of a text: padding stands in '
                f'front, but slot {slot + 1} of row '
                f'{row} is padding behind a token; move it to the left'
            )
    heads = heads_of(model) if heads is None else heads
    cache = read_ids(model, cache, prompts)
    tokens = cache.tokens
    placed = tuple(t.slice(0, length) for t in tokens)

    def mix(h, encoding, place, block, own_heads):
        mask = _mask_of(encoding)
        seeing = (
            with_mask(encoding, mask.with_heads(np.ones(mask.kv_heads, bool))) if full else encoding
        )
        q, k, v, tq, tk = _projected(encoding, *block.attention.split(h), placed[place], h)
        out = sharded_attend(
            seeing, q, k, v, tq, tk, block=block.block, implementation=block.implementation
        )
        return out, _kept(mask, own_heads, k, v, tokens[place], length)

    x, layers = model.loop_layers(mix, model.embed(prompts, placed), heads)
    x = model.norm(x if last is None else x[:, prompts.shape[1] - last :])
    return model.logits(x), dataclasses.replace(
        cache, cursor=jnp.asarray(length, jnp.int32), layers=layers
    )


def decode_step(
    model: Transformer,
    cache: Cache,
    tokens: Int[Array, 'B'],
    layers: list[tuple[int, Any]] | None = None,
) -> tuple[Float[Array, 'B V'], Cache]:
    """Appends one token a row; returns the logits of what follows. See `model.decode.decode_step`.

    Raises:
      ValueError: another number of rows than the cache has; the cache is full (where the cursor is
        known).
    """
    check_layers(cache, DuoLayer, 'duo_attention.decode_step', 'duo_attention.prefill')
    cursor, rows = cache.cursor, cache.layers[0].k.shape[0]
    if tokens.shape != (rows,) or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(
            f'duo_attention: expected a token id for each of {rows} rows, got {tokens.dtype} '
            f'{tokens.shape}'
        )

    def mix(h, encoding, block, tok, own):
        mask, new = _mask_of(encoding), tok.slice(cursor, 1)
        q, k, v, tq, _ = _projected(encoding, *block.attention.split(h), new, h)
        grown = _appended(own, mask, k, v, new, cursor)
        return _attended(encoding, mask, grown, q, tq, tok, cursor), grown

    return append(model, cache, tokens, mix, layers)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Streaming(Decoding):
    """For `generate`: a deployed model with the cache of this module; made by `streaming`.

    Attributes:
      heads: `heads_of(model)`.
      full: as for `prefill`.
    """

    heads: tuple[Heads, ...] = dataclasses.field(metadata=dict(static=True))
    full: bool = dataclasses.field(default=False, metadata=dict(static=True))

    def check(self, model):
        found = heads_of(model)
        if found != self.heads:
            counts = f'{len(self.heads)} layers, the model {len(found)}'
            differ = [
                layer for layer, pair in enumerate(zip(self.heads, found)) if pair[0] != pair[1]
            ]
            where = (
                f'has {counts}'
                if len(found) != len(self.heads)
                else f'differs from the model in layer {differ[0]}'
            )
            raise ValueError(
                f'duo_attention: what streams was asked of another model, it {where}; use '
                'streaming(model)'
            )

    def prefill(self, model, empty, prompts):
        return prefill(model, empty, prompts, last=1, full=self.full, heads=self.heads)

    def step(self, model, empty, cache, tokens, layers):
        return decode_step(model, cache, tokens, layers)


def streaming(model: Transformer, *, full: bool = False) -> Streaming:
    """How `generate` keeps what a deployed model sees: all keys of retrieval heads, of the others
    the first and last.

    Raises:
      ValueError: a layer without `duo_attention`.

    Example:
      >>> from posenc_jax.model import TransformerConfig
      >>> from posenc_jax.decoding.decode import generate
      >>> encoding = 'rope() | duo_attention(sink=1, recent=2, retrieval=(1,))'
      >>> cfg = TransformerConfig(
      ...     vocab_size=7, train_len=8, layers=2, width=8, heads=2, encoding=encoding
      ... )
      >>> model, text = Transformer(cfg, rngs=nnx.Rngs(0)), jnp.arange(6)[None]
      >>> generate(model, text, max_new_tokens=3, temperature=0.0, decoding=streaming(model)).shape
      (1, 9)
    """
    return Streaming(heads_of(model), full)


def _projected(encoding, q, k, v, tok, h):
    q, k, v, tq, tk = encoding.project(q, k, v, tok, tok, layer_rows(h, tok.valid, 0))
    if added := sorted((tq.feats.keys() | tk.feats.keys()) - tok.feats.keys()):
        raise ValueError(
            f'duo_attention keeps keys and values, but {added[0]} attaches features; decode with '
            'model.decode'
        )
    return q, k, v, tq, tk


def _split(heads: Heads) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the retrieval and of the streaming heads."""
    return np.flatnonzero(heads), np.flatnonzero(~np.asarray(heads, bool))


def _sinks(tok: Tokens, sink: int) -> Int[Array, '#B sink']:
    """Indices of the first real tokens of every row; beyond the capacity where there are fewer."""
    first = 0 if tok.valid is None else jnp.argmax(tok.valid, axis=1)[:, None]
    return first + jnp.arange(sink)[None]


def _ring(cursor, size: int) -> Int[Array, '1 size']:
    """Indices of the tokens in the slots of a ring into which that at `cursor` was written last;
    negative where it is empty.
    """
    return (cursor - (cursor - jnp.arange(size)) % size)[None]


def _at(a: Array, index: Int[Array, '#B n'], axis: int) -> Array:
    """Entries along an axis, by row; what lies outside is clipped, for the caller to hide."""
    rows = max(a.shape[0], index.shape[0])
    shape = index.shape[0], *[1] * (axis - 1), index.shape[1], *[1] * (a.ndim - axis - 1)
    index = jnp.clip(index, 0, a.shape[axis] - 1).reshape(shape)
    a = jnp.broadcast_to(a, (rows, *a.shape[1:]))
    return jnp.take_along_axis(a, jnp.broadcast_to(index, (rows, *index.shape[1:])), axis=axis)


def _kept(mask: DuoAttention, heads: Heads, k, v, tok: Tokens, length: int) -> DuoLayer:
    """The cache of a prompt from its keys and values [B, T, K, H]."""
    retrieval, streaming = _split(heads)
    k, v = (jnp.swapaxes(a, 1, 2) for a in (k, v))
    room = lambda a: jnp.pad(a[:, retrieval], ((0, 0), (0, 0), (0, tok.length - length), (0, 0)))
    kept = lambda a, index: _at(a[:, streaming], index, 2)
    sinks, ring = _sinks(tok, mask.sink), _ring(length - 1, mask.recent + 1)
    return DuoLayer(
        room(k), room(v), kept(k, sinks), kept(v, sinks), kept(k, ring), kept(v, ring), heads
    )


def _appended(own: DuoLayer, mask: DuoAttention, k, v, new: Tokens, cursor) -> DuoLayer:
    retrieval, streaming = _split(own.heads)
    k, v = (jnp.swapaxes(a, 1, 2) for a in (k, v))

    def write(buffer, a, slot):
        put = jax.lax.dynamic_update_slice_in_dim
        if buffer.shape[0] > 1:
            return put(buffer, a.astype(buffer.dtype), slot, 2)
        return put(buffer[0], a[0].astype(buffer.dtype), slot, 1)[None]  # see `core.cache.step`

    is_sink = new.order == jnp.arange(mask.sink)
    if new.valid is not None:
        is_sink &= new.valid
    first = lambda buffer, a: jnp.where(is_sink[:, None, :, None], a.astype(buffer.dtype), buffer)
    slot = cursor % (mask.recent + 1)
    return DuoLayer(
        write(own.k, k[:, retrieval], cursor),
        write(own.v, v[:, retrieval], cursor),
        first(own.sink_k, k[:, streaming]),
        first(own.sink_v, v[:, streaming]),
        write(own.recent_k, k[:, streaming], slot),
        write(own.recent_v, v[:, streaming], slot),
        own.heads,
    )


def _attended(
    encoding: Encoding, mask: DuoAttention, own: DuoLayer, q, tq: Tokens, tok: Tokens, cursor
):
    """The result of one query, [B, 1, N, H]: retrieval heads over the whole cache, streaming heads
    over what they keep.
    """
    now, outs, order = filled(tok, cursor + 1), [], []
    sinks, ring = _sinks(tok, mask.sink), _ring(cursor, mask.recent + 1)
    rows = max(sinks.shape[0], ring.shape[0])
    spread = lambda a: jnp.broadcast_to(a, (rows, a.shape[1]))
    kept = jnp.concatenate([spread(sinks), spread(ring)], axis=1)
    slots = jax.tree.map(lambda a: _at(a, kept, 1), now)
    in_ring = jnp.arange(kept.shape[1])[None] >= mask.sink
    there = jnp.where(in_ring, (kept >= 0) & (slots.order >= mask.sink), kept < tok.length)
    slots = dataclasses.replace(slots, valid=slots.valid & there)
    join = lambda sink, recent: jnp.concatenate([sink, recent], axis=2)
    group = mask.heads // mask.kv_heads
    for key_heads, k, v, tk in zip(
        _split(own.heads),
        (own.k, join(own.sink_k, own.recent_k)),
        (own.v, join(own.sink_v, own.recent_v)),
        (now, slots),
    ):
        if not len(key_heads):
            continue
        heads = (key_heads[:, None] * group + np.arange(group)).ravel()
        k, v = (constrain(a, 'batch', 'kv_heads', None, None) for a in (k, v))
        part = _of_heads(encoding, heads, key_heads)
        outs.append(
            sharded_attend(
                part, q[:, :, heads], k, v, tq, tk, heads_first=True, implementation='dense'
            )
        )
        order.append(heads)
    return jnp.concatenate(outs, axis=2)[:, :, np.argsort(np.concatenate(order))]


def _of_heads(encoding: Encoding, heads: np.ndarray, key_heads: np.ndarray) -> Encoding:
    """The encoding of some heads alone: what is per head is an array that says which of its axes
    the heads are.
    """
    graphdef, state = nnx.split(encoding)
    arrays, structure = jax.tree.flatten(state)
    variables = jax.tree.leaves(state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    chosen = {'heads': heads, 'kv_heads': key_heads}
    taken = []
    for array, variable in zip(arrays, variables, strict=True):
        for axis, role in enumerate(variable.get_metadata().get('axes') or ()):
            if role in chosen:
                array = jnp.take(array, chosen[role], axis=axis)
        taken.append(array)
    return nnx.merge(graphdef, jax.tree.unflatten(structure, taken))
