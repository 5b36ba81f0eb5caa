"""Double Sparsity: a few channels of every key decide which few keys a query attends to."""

import dataclasses
import numbers
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.base.products import scaled_dot_product, weighted_sum
from posenc_jax.lab.decoding.decode import append
from posenc_jax.lab.decoding.decoding import Decoding
from posenc_jax.lab.decoding.label_channels import (
    channel_scores,
    check_keep,
    double_sparsity_attention,
    key_labels,
    label_channels,
    label_logits,
)
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.layer.cache import Cache, LayerCache, check_layers
from posenc_jax.layer.mixer import AttentionMixer
from posenc_jax.protocol.composite import name_of, parts_of
from posenc_jax.protocol.registry import Card, Promises, register
from posenc_jax.protocol.tokens import Tokens

_PAIR_DOORS = ('qkv', 'logits', 'collect', 'rescale', 'fast_path', 'merge')


def _check_mixer(mixer: AttentionMixer) -> AttentionMixer:
    for part in parts_of(mixer.encoding):
        opened = [door for door in _PAIR_DOORS if part.opens(door)]
        if opened or part.cached != 'encoded' or part.lookback:
            does = f'opens {opened[0]!r}' if opened else 'does not cache keys as encoded'
            raise ValueError(
                'double_sparsity needs logits that are plain inner products of cached keys, e.g. '
                f'with rope(), but {name_of(part)} {does}'
            )
    return mixer


def calibrate(
    model: Transformer, tokens: Int[Array, 'B T'], tok: Tokens | None = None, *, groups: int = 16
) -> Int[Array, 'layers N r']:
    """The label channels of every layer and query head, found from the queries and keys of a text.

    Args:
      model: a decoder whose logits are plain inner products of the projected queries and keys, as
        with `rope()`.
      tokens: calibration text, similar to the text on which the model will be used.
      groups: g; the labels of a key are r = H / g of its channels. 16 in the paper, or less.

    Raises:
      ValueError: groups do not divide the head width, or an encoding acts on the logits (the
        message names it).
    """
    tokens = jnp.asarray(tokens)
    placed = model.place(Tokens.of(length=tokens.shape[1]) if tok is None else tok, tokens)

    def layer(x, number, layer_type, block):
        mixer, here = _check_mixer(model.attention(layer_type, block)), placed[layer_type]
        q, k, _, tq, _ = mixer.projected(block.attention_norm(x), here)
        return block(x, here, mixer.encoding), label_channels(
            channel_scores(q, k, tq.valid), groups
        )

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
    """Logits of the model if every query of a text, not only a decoding step, attends to its `keep`
    best keys. This measures the loss of quality.

    The memory is quadratic in the length. Arguments and errors are those of `label` and
    `decode_step`.
    """
    _check_channels(model.cfg.layers, model.cfg.heads, model.cfg.head_dim, channels, dense_layers)
    check_keep(keep)
    placed = model.place(Tokens.of(length=tokens.shape[1]) if tok is None else tok, tokens)

    def layer(x, number, layer_type, block):
        mixer, here = _check_mixer(model.attention(layer_type, block)), placed[layer_type]

        def mix(h):
            q, k, v, tq, tk = mixer.projected(h, here)
            first = lambda a: jnp.swapaxes(a, 1, 2)
            sparse = lambda: first(
                double_sparsity_attention(
                    *map(first, (q, k, v)), _seen(mixer.encoding, tq, tk), channels[number], keep
                )
            )
            dense = lambda: mixer.attend(q, k, v, tq, tk)
            return mixer.output(jax.lax.cond(number < dense_layers, dense, sparse))

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
            f'double_sparsity: channels must be channel numbers, integers, got {channels.dtype}'
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
    """The cache of one layer with the labels of its keys.

    Attributes:
      own: all keys and values.
      labels: the label channels of the keys, [B, N, S, r]; None in dense layers.
      channels: the numbers of these channels, [1, N, r]; None in dense layers.
    """

    own: LayerCache
    labels: Float[Array, 'B N S r'] | None
    channels: Int[Array, '1 N r'] | None


@register(
    'double_sparsity',
    kind='cache',
    card=Card(
        name='Double Sparsity',
        door='cache',
        example='double_sparsity.Sparse(channels, keep=64)',
        use_when=(
            'You decode behind very long texts and want to read a part of the keys; to '
            'compare with the whole cache, since a measured claim about the loss is '
            'contrary.'
        ),
        promises=Promises(sweep_free=False, blockwise=False),
    ),
)
def label(cache: Cache, channels: Int[Array, 'layers N r'], *, dense_layers: int = 2) -> Cache:
    """Adds label channels to a filled cache, so that `decode_step` of this module attends to few
    keys. To use it with `generate`, pass `Sparse`.

    `s_hat_ij = q_i[C] . k_j[C] / sqrt(r), C = top-r of mean |q_c k_c|; softmax over the top-h keys
    of s_hat_i`: the r label channels C of a query head approximate its logits, and exact attention
    follows over the h = `keep` best keys. Every query head makes its own choice, also where heads
    share keys. Prompts are read with dense attention by
    `posenc_jax.lab.decoding.decode.prefill`, and the first layers are always dense. Differs from
    the paper: labels have the precision of the cache instead of 4 bits, and XLA selects and gathers
    the keys instead of a kernel.

    Args:
      cache: a filled cache of encoded (rotated) keys.
      channels: from `calibrate`, on encoded keys too.
      dense_layers: number of first layers whose queries attend to all keys.

    Raises:
      ValueError: an empty cache; channels of a wrong shape, or not in 0 .. H-1; dense_layers out of
        range.

    Reference: Yang, Sheng, Gonzalez, Stoica, Zheng, arXiv 2408.07092.
    """
    check_layers(cache, LayerCache, 'double_sparsity.label', 'decode.prefill')
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
    """Appends one token to each row, whose queries attend to `keep` keys; returns the logits of the
    next token and the cache.

    Args:
      cache: from `label`.
      keep: h, the number of keys, e.g. a sixteenth of the length. With h at least the number of
        keys this is dense attention.
      layers: as for `posenc_jax.lab.decoding.decode.decode_step`.

    Raises:
      ValueError: keep below 1; a full cache (checked where the cursor is not traced); channels of
        another number of heads; an encoding that acts on the logits (the message names it).
    """
    check_keep(keep)
    check_layers(cache, LabelledLayer, 'double_sparsity.decode_step', 'double_sparsity.label')
    cursor = cache.cursor
    marked = next((layer.channels for layer in cache.layers if layer.channels is not None), None)
    if marked is not None and marked.shape[1] != model.cfg.heads:
        raise ValueError(
            f'double_sparsity: the cache has channels of {marked.shape[1]} query heads, the model '
            f'has {model.cfg.heads}'
        )

    def mix(h, mixer, tok, remembered):
        labels, channels = remembered.labels, remembered.channels
        (q, k, v, tq, tk), own = _check_mixer(mixer).append(h, tok, remembered.own, cursor)
        if labels is None:
            out = mixer.attend(q, k, v, tq, tk, heads_first=True, implementation='dense')
        else:
            new = key_labels(jax.lax.dynamic_slice_in_dim(k, cursor, 1, axis=2), channels[0])
            labels = jax.lax.dynamic_update_slice_in_dim(labels, new, cursor, axis=2)
            seen = _seen(mixer.encoding, tq, tk)
            out = _read(jnp.swapaxes(q, 1, 2), k, v, labels, channels[0], seen, keep)
            out = jnp.swapaxes(out, 1, 2)
        return mixer.output(out), LabelledLayer(own, labels, channels)

    return append(model, cache, tokens, mix, layers)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sparse(Decoding):
    """For `generate`: prompts are read with dense attention, new tokens with `decode_step` of this
    module.

    Attributes:
      channels: from `calibrate`.
      keep: number of keys that a query attends to.
      dense_layers: number of first layers whose queries attend to all keys.

    Example:
      >>> from posenc_jax.lab.model.tiny import tiny_model
      >>> from posenc_jax.lab.decoding.generate import generate
      >>> model, text = tiny_model('rope()', layers=3, width=16), jnp.arange(12)[None] % 7
      >>> sparse = Sparse(calibrate(model, text, groups=4), keep=4)
      >>> generate(model, text, max_new_tokens=3, temperature=0.0, decoding=sparse).shape
      (1, 15)
    """

    channels: Int[Array, 'layers N r']
    keep: int = dataclasses.field(metadata=dict(static=True))
    dense_layers: int = dataclasses.field(default=2, metadata=dict(static=True))

    def __post_init__(self):
        check_keep(self.keep)

    def check(self, model):
        _check_channels(
            model.cfg.layers, model.cfg.heads, model.cfg.head_dim, self.channels, self.dense_layers
        )
        for layer_type, block in enumerate(model.blocks):
            _check_mixer(model.attention(layer_type, block))

    def prefill(self, model, empty, prompts):
        logits, cache = super().prefill(model, empty, prompts)
        return logits, label(cache, self.channels, dense_layers=self.dense_layers)

    def step(self, model, empty, cache, tokens, layers):
        return decode_step(model, cache, tokens, keep=self.keep, layers=layers)


def _read(q, k, v, labels, channels, seen, keep: int) -> Float[Array, 'B N 1 H']:
    """`double_sparsity_attention` of one query, which gathers its chosen keys first."""
    batch, heads, kv_heads = q.shape[0], q.shape[1], k.shape[1]
    s = jnp.where(seen, label_logits(q, labels, channels), -jnp.inf)
    best, chosen = jax.lax.top_k(s[:, :, 0], min(keep, s.shape[-1]))
    slots = chosen.reshape(batch, kv_heads, -1, 1)
    take = lambda a: jnp.take_along_axis(a, slots, axis=2).reshape(batch, heads, -1, a.shape[-1])
    there = (best > -jnp.inf)[:, :, None]
    s = jnp.where(there, scaled_dot_product(q, take(k)), -1e30)
    return weighted_sum(jnp.where(there, jax.nn.softmax(s, axis=-1), 0.0), take(v)).astype(v.dtype)
