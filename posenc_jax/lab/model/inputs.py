"""The inputs of a model from a batch: token ids, vectors or images, what is known about them, and
the source where a batch has one.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from posenc_jax.features.graphs.encoder import PAIRS
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.layer.cross import Source
from posenc_jax.protocol.tokens import Tokens

# The key of the source differs from those that the decoder splits off its own.
OF_SOURCE = 97

SourceInput = tuple[Any, Tokens]  # the ids of a source, and what is known about them


INPUTS = ('tokens', 'vectors', 'image')


def inputs_of(batch: dict[str, Any]) -> Any:
    """The input of a model: token ids [B, T], `vectors` [B, T, C], R draws of them [B, R, T, C], or
    an `image` [B, rows, columns, C].
    """
    return next(batch[name] for name in INPUTS if name in batch)


def tokens_of(batch: dict[str, Any]) -> Tokens | None:
    """The `Tokens` of a batch: positions, documents, padding, and the adjacency of a graph and
    features of its pairs, where the batch has them; None for images, whose patches are their
    tokens.
    """
    if 'image' in batch:
        return None
    known = {name: batch.get(name) for name in ('positions', 'segment', 'valid')}
    axis = -2 if 'vectors' in batch else 1
    tok = Tokens.of(length=inputs_of(batch).shape[axis], **known)
    of_graph = [name for name in batch if name == 'adjacency' or name.startswith(PAIRS)]
    return tok.with_feats(**{name: batch[name][:, :, None] for name in of_graph})


def source_of(batch: dict[str, Any]) -> SourceInput | None:
    """The source of a batch and its `Tokens`; None where it has none."""
    if 'source' not in batch:
        return None
    known = {name: batch.get(f'source_{name}') for name in ('positions', 'valid')}
    return batch['source'], Tokens.of(length=batch['source'].shape[1], **known)


def encoded_source(
    model: Transformer, source: SourceInput | None, key: Array | None = None, train: bool = False
) -> Source | None:
    """What cross-attention reads of the result of `source_of`; None where there is no source.

    Args:
      model: an encoder-decoder, or any model if there is no source.
      source: the ids and tokens.
      key, train: as for a call of the model, which may use the same key.
    """
    if source is None:
        return None
    own = None if key is None else jax.random.fold_in(key, OF_SOURCE)
    return model.encoded(*source, key=own, train=train)


def auxiliary_loss(
    model: Transformer, batch: dict[str, Any], key: Array
) -> Float[Array, ''] | None:
    """The sum of the terms that encodings add to the loss; None where none of them adds one."""
    stacks: list[Any] = [(model, (inputs_of(batch), tokens_of(batch)), key)]
    if model.encoder is not None and (source := source_of(batch)) is not None:
        stacks.append((model.encoder, source, jax.random.fold_in(key, OF_SOURCE)))
    terms = [
        stack.auxiliary_loss(*tokens, own)
        for stack, tokens, own in stacks
        if stack.opens_auxiliary_loss
    ]
    return sum(terms, jnp.zeros((), jnp.float32)) if terms else None
