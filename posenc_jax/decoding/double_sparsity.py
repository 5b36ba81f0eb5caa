"""Double Sparsity: a few channels say which few keys a query reads."""

import dataclasses
import numbers
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.core.composite import name_of, parts_of
from posenc_jax.core.encoding import Encoding
from posenc_jax.core.products import scaled_dot_product, weighted_sum
from posenc_jax.core.registry import Card, Promises, register
from posenc_jax.core.tables import known_range
from posenc_jax.core.tokens import Tokens
from posenc_jax.decoding.decode import Decoding, append
from posenc_jax.model import cache as caching
from posenc_jax.model.cache import Cache, LayerCache, check_layers
from posenc_jax.model.layers import layer_rows
from posenc_jax.model.sharding import sharded_attend
from posenc_jax.model.transformer import Transformer

_PAIR_DOORS = ('qkv', 'init_carry', 'match', 'score', 'collect', 'fast_path', 'merge')


def channel_scores(
    q: Float[Array, 'B T N H'], k: Float[Array, 'B T K H'], valid: Bool[Array, '#B T'] | None = None
) -> Float[Array, 'N H']:
    """`mean |q_c k_c|` over tokens, query and key of the same token, by query head; float32.

    Args:
      q, k: as logits are made of them, rotated.
      valid: False for padding.

    Example:
      >>> channel_scores(jnp.array([[[[1.0, -2.0]]]]), jnp.array([[[[3.0, 0.5]]]])).tolist()
      [[3.0, 1.0]]
    """
    group = q.shape[2] // k.shape[2]
    products = jnp.abs(q.astype(jnp.float32) * jnp.repeat(k.astype(jnp.float32), group, axis=2))
    real = (
        jnp.ones(q.shape[:2], jnp.float32)
        if valid is None
        else jnp.broadcast_to(valid, q.shape[:2]).astype(jnp.float32)
    )
    return jnp.einsum('btnh,bt->nh', products, real) / jnp.maximum(real.sum(), 1.0)


def label_channels(scores: Float[Array, '... H'], groups: int = 16) -> Int[Array, '... r']:
    """The `r = H / groups` channels of the highest score, highest first; of equal ones the first
    comes first.

    Raises:
      ValueError: groups that do not divide the width of a head, with the nearest that do.

    Example:
      >>> label_channels(jnp.array([2.0, 4.0, 3.0, 0.5]), groups=2).tolist()
      [1, 2]
    """
    width = scores.shape[-1]
    if not isinstance(groups, numbers.Integral) or groups < 1 or width % groups:
        fitting = sorted(
            (n for n in range(1, width + 1) if width % n == 0), key=lambda n: (abs(n - groups), n)
        )
        raise ValueError(
            f'double_sparsity: groups must divide the head width {width}, got {groups}; nearest: '
            f'{fitting[0]}'
        )
    return jnp.argsort(-scores, axis=-1, stable=True)[..., : width // groups]


def key_labels(k: Float[Array, 'B K S H'], channels: Int[Array, 'N r']) -> Float[Array, 'B N S r']:
    """The label channels of every key, by query head.

    Raises:
      ValueError: known channels outside 0 .. H - 1, or channels of a number of heads that is no
        multiple of K.

    Example:
      >>> key_labels(jnp.arange(4.0).reshape(1, 1, 1, 4), jnp.array([[3, 1], [0, 2]]))[
      ...     0, :, 0
      ... ].tolist()
      [[3.0, 1.0], [0.0, 2.0]]
    """
    low, high = known_range(channels, None) or (0, 0)
    if low < 0 or high >= k.shape[-1] or channels.shape[0] % k.shape[1]:
        found = f'{low} .. {high} for {channels.shape[0]} heads'
        raise ValueError(
            f'double_sparsity: labels are channels 0 .. {k.shape[-1] - 1} of a multiple of '
            f'{k.shape[1]} heads, got {found}'
        )
    repeated = jnp.repeat(k, channels.shape[0] // k.shape[1], axis=1)
    return jnp.take_along_axis(repeated, channels[None, :, None], axis=-1)


def label_logits(
    q: Float[Array, 'B N T H'], labels: Float[Array, 'B N S r'], channels: Int[Array, 'N r']
) -> Float[Array, 'B N T S']:
    """The approximate logits `q_r . k_r / sqrt(r)`, float32.

    Example:
      >>> q, k, channels = (
      ...     jnp.array([[[[1.0, -2, 3, 0.5]]]]),
      ...     jnp.array([[[[2.0, 2, -1, 1]]]]),
      ...     jnp.array([[1, 2]]),
      ... )
      >>> label_logits(q, key_labels(k, channels), channels).round(3).item()
      -4.95
    """
    return scaled_dot_product(jnp.take_along_axis(q, channels[None, :, None], axis=-1), labels)


def top_keys(
    s: Float[Array, 'B N T S'], seen: Bool[Array, '#B #N T S'], keep: int
) -> Bool[Array, 'B N T S']:
    """Which keys a query reads: of those it sees, the `keep` with the highest logits, all where
    there are no more.

    Raises:
      ValueError: keep below 1.

    Example:
      >>> seen = jnp.array([True, True, True, False])[None, None, None]
      >>> top_keys(jnp.array([[[[0.1, 0.4, 0.2, 0.9]]]]), seen, 2)[0, 0, 0].tolist()
      [False, True, True, False]
    """
    _check_keep(keep)
    chosen = jax.lax.top_k(jnp.where(seen, s, -jnp.inf), min(keep, s.shape[-1]))[1]
    return jnp.put_along_axis(jnp.zeros(s.shape, bool), chosen, True, axis=-1, inplace=False) & seen


def _check_keep(keep):
    if not isinstance(keep, numbers.Integral) or keep < 1:
        raise ValueError(
            f'double_sparsity: a query reads at least 1 key, got keep={keep!r}; nearest: 1'
        )


def double_sparsity_attention(
    q: Float[Array, 'B N T H'],
    k: Float[Array, 'B K S H'],
    v: Float[Array, 'B K S H'],
    seen: Bool[Array, '#B #N T S'],
    channels: Int[Array, 'N r'],
    keep: int,
) -> Float[Array, 'B N T H']:
    """Exact attention, all channels, over the `top_keys` by `label_logits`; dense, for whole
    sequences and as an oracle.

    Example:
      >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 2, 5, 8))
      >>> causal, channels = (
      ...     jnp.tril(jnp.ones((5, 5), bool))[None, None],
      ...     jnp.zeros((2, 1), jnp.int32),
      ... )
      >>> double_sparsity_attention(q, k, v, causal, channels, keep=2).shape
      (1, 2, 5, 8)
    """
    kept = top_keys(label_logits(q, key_labels(k, channels), channels), seen, keep)
    s = jnp.where(kept, scaled_dot_product(q, k), -1e30)
    weights = jnp.where(kept, jax.nn.softmax(s, axis=-1), 0.0)
    return weighted_sum(weights, v).astype(v.dtype)


def _check_encoding(encoding: Encoding) -> Encoding:
    for part in parts_of(encoding):
        opened = [door for door in _PAIR_DOORS if part.opens(door)]
        if opened or part.cached != 'encoded' or part.lookback:
            does = f'opens {opened[0]!r}' if opened else 'does not cache keys as encoded'
            raise ValueError(
                'double_sparsity reads logits that are plain inner products, e.g. with rope(), '
                f'but {name_of(part)} {does}'
            )
    return encoding


def calibrate(
    model: Transformer, tokens: Int[Array, 'B T'], tok: Tokens | None = None, *, groups: int = 16
) -> Int[Array, 'layers N r']:
    """The label channels of every layer and query head, from the queries and keys of some text.

    Args:
      model: a decoder whose logits are plain inner products of what `project` leaves, as with
        `rope()`.
      tokens: text of the kind that will be read.
      groups: g; a key is judged by 1 / g of its channels, 16 or fewer.

    Raises:
      ValueError: groups that do not divide the width of a head; an encoding that acts on logits (it
        is named).

    Example:
      >>> from flax import nnx
      >>> from posenc_jax.model import TransformerConfig
      >>> cfg = TransformerConfig(
      ...     vocab_size=7, train_len=8, layers=3, width=16, heads=2, encoding='rope()'
      ... )
      >>> calibrate(Transformer(cfg, rngs=nnx.Rngs(0)), jnp.arange(12)[None] % 7, groups=4).shape
      (3, 2, 2)
    """
    tokens = jnp.asarray(tokens)
    placed = model.place(Tokens.of(length=tokens.shape[1]) if tok is None else tok, tokens)

    def layer(x, number, place, block):
        encoding, here = _check_encoding(model.encoding(place, block)), placed[place]
        h = block.attention_norm(x)
        q, k, _, tq, _ = encoding.project(
            *block.attention.split(h), here, here, layer_rows(h, here.valid, 0)
        )
        return block(x, here, encoding), label_channels(channel_scores(q, k, tq.valid), groups)

    _, channels = model.scan_layers(layer, model.embed(tokens, placed))
    return jnp.stack(channels, axis=1).reshape(model.cfg.layers, model.cfg.heads, -1)


def sparse_logits(
    model: Transformer,
    channels: Int[Array, 'layers N r'],
    tokens: Int[Array, 'B T'],
    tok: Tokens | None = None,
    *,
    keep: int,
    dense_layers: int = 2,
) -> Float[Array, 'B _ V']:
    """Logits of the model when every query, not only those of decoding, reads its `keep` best keys:
    to measure what it costs.

    Takes the memory of all pairs. Arguments and errors as for `label` and `decode_step`.

    Example:
      >>> from flax import nnx
      >>> from posenc_jax.model import TransformerConfig
      >>> cfg = TransformerConfig(
      ...     vocab_size=7, train_len=8, layers=3, width=16, heads=2, encoding='rope()'
      ... )
      >>> model, text = Transformer(cfg, rngs=nnx.Rngs(0)), jnp.arange(12)[None] % 7
      >>> sparse_logits(model, calibrate(model, text, groups=4), text, keep=3).shape
      (1, 12, 7)
    """
    _check_channels(model.cfg.layers, model.cfg.heads, model.cfg.head_dim, channels, dense_layers)
    _check_keep(keep)
    placed = model.place(Tokens.of(length=tokens.shape[1]) if tok is None else tok, tokens)

    def layer(x, number, place, block):
        encoding, here = _check_encoding(model.encoding(place, block)), placed[place]

        def mix(h):
            q, k, v, tq, tk = encoding.project(
                *block.attention.split(h), here, here, layer_rows(h, here.valid, 0)
            )
            first = lambda a: jnp.swapaxes(a, 1, 2)
            sparse = lambda: first(
                double_sparsity_attention(
                    *map(first, (q, k, v)), _seen(encoding, tq, tk), channels[number], keep
                )
            )
            return jax.lax.cond(
                number < dense_layers, lambda: sharded_attend(encoding, q, k, v, tq, tk), sparse
            )

        return block.around(x, mix), None

    return model.logits(model.norm(model.scan_layers(layer, model.embed(tokens, placed))[0]))


def _seen(encoding, tq: Tokens, tk: Tokens) -> Bool[Array, '#B #N T S']:
    seen = encoding.mask(tq, tk)
    seen = jnp.ones((1, 1, tq.length, tk.length), bool) if seen is None else seen
    return seen if tk.valid is None else seen & tk.valid[:, None, None]


def _check_channels(layers: int, heads: int, width: int, channels, dense_layers: int) -> None:
    if jnp.ndim(channels) != 3 or jnp.shape(channels)[:2] != (layers, heads):
        found = jnp.shape(channels)
        raise ValueError(
            f'double_sparsity: expected channels of {layers} layers and {heads} query heads, got '
            f'{found}'
        )
    if not jnp.issubdtype(channels.dtype, jnp.integer):
        raise ValueError(
            f'double_sparsity: channels are numbers of channels, integers, got {channels.dtype}'
        )
    if (
        not isinstance(channels, jax.core.Tracer)
        and not 0 <= int(channels.min()) <= int(channels.max()) < width
    ):
        found = f'{channels.min()} .. {channels.max()}'
        raise ValueError(
            f'double_sparsity: channels of heads of width {width} lie in 0 .. {width - 1}, got '
            f'{found}'
        )
    if not isinstance(dense_layers, numbers.Integral) or not 0 <= dense_layers <= layers:
        nearest = round(min(max(dense_layers, 0), layers))
        raise ValueError(
            f'double_sparsity: dense_layers lies in 0 .. {layers}, got {dense_layers}; nearest: '
            f'{nearest}'
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LabelledLayer:
    """What one layer remembers, and beside it what its keys are judged by.

    Attributes:
      own: keys and values, all of them.
      labels: [B, N, S, r]; None in dense layers.
      channels: which channels these are, [1, N, r]; None in dense layers.
    """

    own: LayerCache
    labels: Float[Array, 'B N S r'] | None
    channels: Int[Array, '1 N r'] | None


@register(
    'double_sparsity',
    kind='cache',
    card=Card(
        name='Double Sparsity',
        title='Post-Training Sparse Attention with Double Sparsity',
        arxiv='2408.07092',
        door='cache',
        equation='s_hat_ij = q_i[C] . k_j[C] / sqrt(r), C = top-r of mean |q_c k_c|; softmax '
        'over the top-h keys of s_hat_i',
        source='andy-yang-1/DoubleSparse',
        authors='Yang, Shuo and Sheng, Ying and Gonzalez, Joseph E. and Stoica, Ion and Zheng, '
        'Lianmin',
        year=2024,
        example='double_sparsity.Sparse(channels, keep=64)',
        promises=Promises(sweep_free=False, blockwise=False),
    ),
)
def label(cache: Cache, channels: Int[Array, 'layers N r'], *, dense_layers: int = 2) -> Cache:
    """Puts label channels beside a filled cache, so that `decode_step` of this module reads few
    keys at every token; `Sparse` is the way to `generate`.

    `s_hat_ij = q_i[C] . k_j[C] / sqrt(r)` over the label channels C of a query head; exact
    attention over the `keep` keys of the highest s_hat. The choice is each query head's own, also
    where heads share keys. Prompts are read densely, by `model.decode.prefill`, and the first
    layers stay dense. Differs from the paper: labels are kept in the precision of the cache, not in
    4 bits, and selecting and gathering are left to XLA instead of a kernel.

    Args:
      cache: filled; its keys are rotated, as the channels count them.
      channels: from `calibrate`.
      dense_layers: how many first layers read all keys.

    Raises:
      ValueError: an empty cache; channels of another shape than layers and query heads, or that
        heads do not have; dense_layers out of range.

    Reference: Yang, Sheng, Gonzalez, Stoica, Zheng, arXiv 2408.07092.

    Example:
      >>> from flax import nnx
      >>> from posenc_jax.model import TransformerConfig
      >>> from posenc_jax.decoding.decode import init_cache, prefill
      >>> cfg = TransformerConfig(
      ...     vocab_size=7, train_len=8, layers=3, width=16, heads=2, encoding='rope()'
      ... )
      >>> model, text = Transformer(cfg, rngs=nnx.Rngs(0)), jnp.arange(12)[None] % 7
      >>> _, cache = prefill(model, init_cache(model, Tokens.of(length=16)), text)
      >>> labelled = label(cache, calibrate(model, text, groups=4))
      >>> logits, labelled = decode_step(model, labelled, jnp.array([3]), keep=4)
      >>> logits.shape, labelled.layers[2].labels.shape, labelled.layers[0].labels
      ((1, 7), (1, 2, 16, 2), None)
    """
    check_layers(cache, LayerCache, 'double_sparsity.label', 'model.decode.prefill')
    channels = jnp.asarray(channels)
    layers, (_, kv_heads, _, width) = len(cache.layers), cache.layers[0].k.shape
    heads = channels.shape[1] if channels.ndim == 3 else 0
    _check_channels(layers, max(heads // kv_heads, 1) * kv_heads, width, channels, dense_layers)
    dense = [LabelledLayer(own, None, None) for own in cache.layers[:dense_layers]]
    sparse = [
        LabelledLayer(own, key_labels(own.k, c), c[None])
        for own, c in list(zip(cache.layers, channels))[dense_layers:]
    ]
    return dataclasses.replace(cache, layers=(*dense, *sparse))


def decode_step(
    model: Transformer,
    cache: Cache,
    tokens: Int[Array, 'B'],
    *,
    keep: int,
    layers: list[tuple[int, Any]] | None = None,
) -> tuple[Float[Array, 'B V'], Cache]:
    """Appends one token a row, each of whose queries reads `keep` keys; returns the logits of what
    follows.

    Args:
      cache: from `label`.
      keep: h, e.g. a sixteenth of the length; as many as there are keys is dense attention.
      layers: `model.layers()`, see `model.decode.decode_step`.

    Raises:
      ValueError: keep below 1; a full cache (where the cursor is known); another number of heads;
        an encoding that acts on logits (it is named).
    """
    _check_keep(keep)
    check_layers(cache, LabelledLayer, 'double_sparsity.decode_step', 'double_sparsity.label')
    cursor = cache.cursor
    marked = next((layer.channels for layer in cache.layers if layer.channels is not None), None)
    if marked is not None and marked.shape[1] != model.cfg.heads:
        raise ValueError(
            f'double_sparsity: channels of {marked.shape[1]} query heads, the model has '
            f'{model.cfg.heads}'
        )

    def mix(h, encoding, block, tok, remembered):
        labels, channels = remembered.labels, remembered.channels
        row = layer_rows(h, tok.slice(cursor, 1).valid if tok.valid is not None else None, 0)
        qkv = block.attention.split(h)
        (q, k, v, tq, tk), own = caching.step(
            _check_encoding(encoding), remembered.own, *qkv, tok, row, cursor
        )
        if labels is None:
            out = sharded_attend(
                encoding, q, k, v, tq, tk, heads_first=True, implementation='dense'
            )
        else:
            new = key_labels(jax.lax.dynamic_slice_in_dim(k, cursor, 1, axis=2), channels[0])
            labels = jax.lax.dynamic_update_slice_in_dim(labels, new, cursor, axis=2)
            out = _read(
                jnp.swapaxes(q, 1, 2), k, v, labels, channels[0], _seen(encoding, tq, tk), keep
            )
            out = jnp.swapaxes(out, 1, 2)
        return out, LabelledLayer(own, labels, channels)

    return append(model, cache, tokens, mix, layers)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sparse(Decoding):
    """For `generate`: prompts are read densely, new tokens by `decode_step` of this module.

    Attributes:
      channels: from `calibrate`.
      keep: how many keys a query reads.
      dense_layers: how many first layers read all keys.

    Example:
      >>> from flax import nnx
      >>> from posenc_jax.model import TransformerConfig
      >>> from posenc_jax.decoding.decode import generate
      >>> cfg = TransformerConfig(
      ...     vocab_size=7, train_len=8, layers=3, width=16, heads=2, encoding='rope()'
      ... )
      >>> model, text = Transformer(cfg, rngs=nnx.Rngs(0)), jnp.arange(12)[None] % 7
      >>> sparse = Sparse(calibrate(model, text, groups=4), keep=4)
      >>> generate(model, text, max_new_tokens=3, temperature=0.0, decoding=sparse).shape
      (1, 15)
    """

    channels: Int[Array, 'layers N r']
    keep: int = dataclasses.field(metadata=dict(static=True))
    dense_layers: int = dataclasses.field(default=2, metadata=dict(static=True))

    def __post_init__(self):
        _check_keep(self.keep)

    def check(self, model):
        _check_channels(
            model.cfg.layers, model.cfg.heads, model.cfg.head_dim, self.channels, self.dense_layers
        )
        for place, block in enumerate(model.blocks):
            _check_encoding(model.encoding(place, block))

    def prefill(self, model, empty, prompts):
        logits, cache = super().prefill(model, empty, prompts)
        return logits, label(cache, self.channels, dense_layers=self.dense_layers)

    def step(self, model, empty, cache, tokens, layers):
        return decode_step(model, cache, tokens, keep=self.keep, layers=layers)


def _read(q, k, v, labels, channels, seen, keep: int) -> Float[Array, 'B N 1 H']:
    """`double_sparsity_attention` of one query, which gathers the keys it reads."""
    batch, heads, kv_heads = q.shape[0], q.shape[1], k.shape[1]
    s = jnp.where(seen, label_logits(q, labels, channels), -jnp.inf)
    best, chosen = jax.lax.top_k(s[:, :, 0], min(keep, s.shape[-1]))
    slots = chosen.reshape(batch, kv_heads, -1, 1)
    take = lambda a: jnp.take_along_axis(a, slots, axis=2).reshape(batch, heads, -1, a.shape[-1])
    there = (best > -jnp.inf)[:, :, None]
    s = jnp.where(there, scaled_dot_product(q, take(k)), -1e30)
    return weighted_sum(jnp.where(there, jax.nn.softmax(s, axis=-1), 0.0), take(v)).astype(v.dtype)
