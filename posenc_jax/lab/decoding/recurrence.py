"""Segment-level recurrence (Transformer-XL) for any encoding: a text is read in segments, each with
a memory of the layer inputs of earlier tokens.

Reference: Dai et al., "Transformer-XL: Attentive Language Models Beyond a Fixed-Length Context",
arXiv 1901.02860.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from posenc_jax.lab.model.losses import target_losses
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.layer.layers import dropout
from posenc_jax.protocol.composite import name_of
from posenc_jax.protocol.tokens import Tokens


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Memory:
    """The memory of the M tokens before a segment.

    Attributes:
      rows: the inputs of every layer at these tokens.
      tokens: these tokens before `place`: their index, segment, padding and so on.
    """

    rows: Float[Array, 'layers B M D']
    tokens: Tokens

    @property
    def length(self) -> int:
        return self.rows.shape[2]


def read_segment(
    model: Transformer,
    tokens: Int[Array, 'B T'],
    memory: Memory | None = None,
    *,
    length: int,
    tok: Tokens | None = None,
    key: Array | None = None,
) -> tuple[Float[Array, 'B T V'], Memory]:
    """Logits of a segment whose tokens also see those of the memory, and the memory for the next
    segment.

    In every layer keys and values are computed from the memory and the segment, queries from the
    segment. No gradient passes through the memory into an earlier segment. With a memory of all
    earlier tokens the logits are those of one pass over the whole text. Random positions follow
    their evaluation rule. An encoding with `lookback` reads zeros before the memory. An encoding
    that counts the tokens of a document (`ssmax`, `alibi_pi`) also counts those before the memory.

    Args:
      model: a decoder.
      tokens: token ids of the segment.
      memory: the memory that the previous call returned; None at the start.
      length: most tokens of the new memory, which may differ from training; 0 reads every segment
        alone.
      tok: the `Tokens` of the segment, with indices after those of the memory. None continues the
        last document of the memory.
      key: random key of dropout; None for no dropout.

    Raises:
      ValueError: an encoder; an encoding whose positions depend on the whole text; a negative
        length; a memory longer than `length`, or of another model or batch; a `tok` whose fields
        differ from those of the memory; no `tok` where positions have several components.

    Example:
      >>> from posenc_jax.lab.model.tiny import tiny_model
      >>> model, text = tiny_model('transformer_xl()', layers=2), jnp.ones((1, 6), jnp.int32)
      >>> logits, memory = read_segment(model, text[:, :3], length=4)
      >>> logits, memory = read_segment(model, text[:, 3:], memory, length=4)
      >>> logits.shape, memory.rows.shape, memory.tokens.index.tolist()
      ((1, 3, 7), (2, 1, 4, 8), [[2, 3, 4, 5]])
    """
    cfg, (batch, size) = model.cfg, tokens.shape
    if not cfg.causal:
        raise ValueError(
            f'a memory of earlier segments needs a decoder, this model is of kind {cfg.kind!r}'
        )
    if length < 0:
        raise ValueError(f'the memory length must be at least 0, got {length}')
    for part in model.encodings:
        if part.traits & {'reads_ids', 'moves_positions'}:
            raise ValueError(
                f'{name_of(part)} finds positions from the whole text, but a segment and its '
                'memory are only a part of it'
            )
    held = 0 if memory is None else memory.length
    if held > length:
        raise ValueError(f'the memory holds {held} tokens, more than the given length of {length}')
    if held and (memory.rows.shape[:2], memory.rows.shape[3]) != ((cfg.layers, batch), cfg.width):
        raise ValueError(
            f'a memory of shape {memory.rows.shape} does not fit {cfg.layers} layers, {batch} '
            f'rows of tokens, width {cfg.width}'
        )
    before = memory.tokens if held else None
    tok = _continued(before, size) if tok is None else tok
    whole = _joined(before, tok) if held else tok
    placed = model.place(whole)
    stem_key, layer_key = (None, None) if key is None else jax.random.split(key)
    x = model.embed(tokens, tuple(own.slice(held, size) for own in placed))

    def layer(x, number, layer_type, block):
        mixer = model.attention(layer_type, block)

        def mix(h):
            if held:
                earlier = jax.lax.stop_gradient(memory.rows[number]).astype(h.dtype)
                h = jnp.concatenate([block.attention_norm(earlier), h], axis=1)
            return mixer.whole(h, placed[layer_type], first=held)

        own_key = None if layer_key is None else jax.random.fold_in(layer_key, number)
        return block.around(x, mix, key=own_key), x

    x, inputs = model.scan_layers(layer, dropout(x, cfg.dropout, stem_key))
    rows = jnp.stack(inputs, axis=1).reshape(cfg.layers, batch, size, cfg.width)
    rows = jnp.concatenate([memory.rows, rows], axis=2) if held else rows
    kept = min(length, held + size)
    start = held + size - kept
    new = Memory(jax.lax.stop_gradient(rows[:, :, start:]), whole.slice(start, kept))
    return model.logits(model.norm(x)), new


def read_segments(
    model: Transformer,
    tokens: Int[Array, 'B L'],
    *,
    segment: int,
    length: int,
    tok: Tokens | None = None,
    key: Array | None = None,
) -> Float[Array, 'B L V']:
    """Logits of a whole text that is read in segments with a memory of `length` tokens.

    Args:
      segment: number of tokens in a segment.
      model, tokens, length, tok, key: as for `read_segment`.

    Raises:
      ValueError: segments of less than one token; the errors of `read_segment`.
    """
    tok = Tokens.of(length=tokens.shape[1]) if tok is None else tok
    found, memory = [], None
    for number, at in enumerate(_segments(tokens.shape[1], segment)):
        own_key = None if key is None else jax.random.fold_in(key, number)
        own = tok.slice(at.start, at.stop - at.start)
        logits, memory = read_segment(
            model, tokens[:, at], memory, length=length, tok=own, key=own_key
        )
        found.append(logits)
    return jnp.concatenate(found, axis=1)


def segment_losses(
    model: Transformer,
    tokens: Int[Array, 'B L'],
    targets: Int[Array, 'B L'],
    *,
    segment: int,
    length: int,
) -> Float[Array, 'B L']:
    """Negative log-likelihood, in nats, of every target of a text that is read in segments with a
    memory of `length` tokens.

    Perplexity is `exp(mean)` of these. The function is compiled once for each length that the
    memory has while it grows to `length`.

    Raises:
      ValueError: segments of less than one token; the errors of `read_segment`.
    """
    graphdef, state = nnx.split(model)

    @jax.jit
    def read(state, tokens, targets, memory):
        logits, memory = read_segment(nnx.merge(graphdef, state), tokens, memory, length=length)
        return target_losses(logits, targets)[0], memory

    losses, memory = [], None
    for at in _segments(tokens.shape[1], segment):
        nll, memory = read(state, tokens[:, at], targets[:, at], memory)
        losses.append(nll)
    return jnp.concatenate(losses, axis=1)


def _segments(length: int, size: int) -> list[slice]:
    """The places of the segments of a text."""
    if size < 1:
        raise ValueError(f'a segment has at least one token, got {size}')
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _continued(before: Tokens | None, size: int) -> Tokens:
    """The next `size` tokens of the document that ends `before`, all valid."""
    if before is None:
        return Tokens.of(length=size)
    if before.pos.ndim != 2:
        raise ValueError(
            f'positions of shape {before.pos.shape} cannot be continued by counting; give the '
            'tokens of the segment as `tok`'
        )
    each = lambda change: (
        lambda a: None if a is None else jnp.repeat(change(a[:, -1:]), size, axis=1)
    )
    counted = lambda a: a[:, -1:] + 1 + jnp.arange(size, dtype=a.dtype)
    return Tokens(
        index=counted(before.index),
        pos=counted(before.pos),
        rank=counted(before.rank),
        segment=each(lambda a: a)(before.segment),
        valid=each(jnp.ones_like)(before.valid),
    )


def _joined(before: Tokens, tok: Tokens) -> Tokens:
    names = [f.name for f in dataclasses.fields(Tokens) if f.name != 'feats']
    known = [[name for name in names if getattr(t, name) is not None] for t in (before, tok)]
    if known[0] != known[1]:
        raise ValueError(
            f'the tokens of the memory have the fields {known[0]}, those of the segment {known[1]}'
        )

    def join(a, b):
        rows = max(len(a), len(b))
        return jnp.concatenate([jnp.broadcast_to(x, (rows, *x.shape[1:])) for x in (a, b)], axis=1)

    return jax.tree.map(join, before.without_feats(), tok.without_feats())
