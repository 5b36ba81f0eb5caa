"""Writing in any order with `sigma_gpt`, one token at a time. The model reads the given tokens
first, wherever they stand in the text. `posenc_jax.lab.decoding.burst` writes several tokens at a
time.

Pannatier, Courdier, Fleuret, "sigma-GPTs: A New Approach to Autoregressive Models", arXiv
2404.09562; code idiap/sigma-gpt.
"""

import dataclasses
import numbers

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from posenc_jax.lab.decoding.generate import check_temperature, generate
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.methods.sigma_gpt import SigmaGPT
from posenc_jax.protocol.composite import name_of, parts_of


@dataclasses.dataclass(frozen=True)
class Written:
    """A finished text or grid.

    Attributes:
      tokens: token ids in the natural order of the text, or row by row.
      evaluations: passes through the model, including the pass over the given tokens.
    """

    tokens: Int[Array, 'B *size']
    evaluations: int


def sample_in_order(
    model: Transformer,
    tokens: Int[Array, 'B T'],
    order: Int[Array, '#B T'],
    *,
    known: int,
    key: Array | None = None,
    temperature: float = 1.0,
    start: int | None = None,
) -> Written:
    """Completes texts of which any tokens are given, one token at a time in any order, through the
    decode cache.

    Args:
      model: a decoder whose encoding is `sigma_gpt`.
      tokens: texts in natural order. Only the given tokens are read; the other ids may be anything.
      order: permutation of 0 .. T-1: first the places of the given tokens, then the other places in
        the order in which they are to be written.
      known: number of given tokens: 0 .. T-1 with `start`, 1 .. T-1 without it.
      key: random key; not needed at temperature 0.
      temperature: divides the logits; 0 takes the most probable token.
      start: token id of a start slot in front of the text. Only a sinusoidal table has a position
        for it (see `SigmaGPT`). None for no start slot.

    Raises:
      ValueError: the encoding is not `sigma_gpt` alone, shapes or ranges are wrong, a given token
        is not in the vocabulary, `order` is not a permutation, or the key is missing.

    Example:
      >>> from posenc_jax.lab.model.tiny import tiny_model
      >>> model, text = tiny_model('sigma_gpt(max_len=9)'), jnp.array([[0, 0, 0, 5]])
      >>> out = sample_in_order(model, text, jnp.array([[3, 1, 2, 0]]), known=1, temperature=0.0)
      >>> int(out.tokens[0, 3]), out.evaluations
      (5, 3)
    """
    sequence, places = given_first(model, tokens, order, known, start)
    check_temperature(temperature, key)
    given = known + (start is not None)
    pairs = jnp.stack([places[:, :-1], places[:, 1:]], axis=-1)
    new = sequence.shape[1] - given
    drawn = dict(temperature=temperature, key=None if temperature == 0 else key)
    written = generate(
        model,
        sequence[:, :given],
        max_new_tokens=new,
        positions=pairs,
        capacity=pairs.shape[1],
        **drawn,
    )
    return Written(in_place(written, places, start), new)


def given_first(model, tokens, order, known, start):
    """Checks the arguments of `sample_in_order` and returns the tokens sorted by `order` and their
    places, [B, L] each, with the start slot in front if there is one.
    """
    parts = [part for at in model.layers() for part in parts_of(model.encoding(*at))]
    others = sorted({name_of(part) for part in parts} - {'sigma_gpt', 'causal', 'document'})
    own = [part for part in parts if isinstance(part, SigmaGPT)]
    if others or not own or not model.cfg.causal:
        raise ValueError(
            'writing in any order needs a decoder with the encoding sigma_gpt alone, got '
            f'{model.cfg.specs}'
        )
    tokens, order = jnp.asarray(tokens), np.asarray(order)
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f'tokens must be integers [B, T], got {tokens.dtype} {tokens.shape}')
    batch, length = tokens.shape
    if order.ndim != 2 or order.shape[0] not in (1, batch) or order.shape[1] != length:
        raise ValueError(
            f'order has shape {order.shape}, expected {batch} rows (or 1) of {length} places'
        )
    if (wrong := (np.sort(order, axis=1) != np.arange(length)).any(axis=1)).any():
        row = int(np.argmax(wrong))
        raise ValueError(
            f'order must be a permutation of 0 .. {length - 1}; row {row} is {order[row].tolist()}'
        )
    if not isinstance(known, numbers.Integral) or not (start is None) <= known < length:
        raise ValueError(
            f'known must be an integer in {int(start is None)} .. {length - 1}, got {known}'
        )
    if own[0].vectors is None:
        if start is not None and not (
            isinstance(start, numbers.Integral) and 0 <= start < model.cfg.vocab_size
        ):
            raise ValueError(
                f'start must be an integer in 0 .. {model.cfg.vocab_size - 1}, got {start}'
            )
    elif start is not None:
        raise ValueError(
            "a start slot has no row in a learned table; use sigma_gpt(table='sinusoid') or give "
            'a token'
        )
    elif length > own[0].max_len:
        raise ValueError(
            f'texts of {length} tokens do not fit the {own[0].max_len} positions of sigma_gpt'
        )
    places = jnp.broadcast_to(jnp.asarray(order, jnp.int32), tokens.shape)
    sequence = jnp.take_along_axis(tokens, places, axis=1)
    if known and not isinstance(tokens, jax.core.Tracer):
        low, high = int(sequence[:, :known].min()), int(sequence[:, :known].max())
        if not 0 <= low <= high < model.cfg.vocab_size:
            raise ValueError(
                f'the given tokens must have ids in 0 .. {model.cfg.vocab_size - 1}, got {low} '
                f'.. {high}'
            )
    if start is not None:
        first = lambda value, a: jnp.pad(a, ((0, 0), (1, 0)), constant_values=value)
        sequence, places = first(start, sequence), first(-1, places)
    return sequence, places


def in_place(sequence, places, start):
    """The tokens of `sequence` in the natural order of the text, without the start slot."""
    if start is not None:
        sequence, places = sequence[:, 1:], places[:, 1:]
    return jnp.put_along_axis(jnp.zeros_like(sequence), places, sequence, axis=1, inplace=False)
