"""PAPEFT: a soft token in front of each document encodes the document's slot."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from posenc_jax.methods.sinusoidal import sinusoidal_table
from posenc_jax.protocol.bounds import CONTEXT, Size
from posenc_jax.protocol.encoding import Encoding, drawn_normal
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tables import check_integers

WAVES = 64  # width of the sinusoidal code of a location


def papeft_locations(number: Int[Array, '...'], count: Int[Array, '...']) -> Float[Array, '...']:
    """`l_k = k / (n - 1)` for slot k = number - 1 of n documents; 0 where there is one."""
    return (number - 1).astype(jnp.float32) / jnp.maximum(count - 1, 1).astype(jnp.float32)


def papeft_code(
    location: Float[Array, '#B L'], w1: Float[Array, 'A 64'], w2: Float[Array, 'D A']
) -> Float[Array, '#B L D']:
    """`W2 gelu(W1 sincos(1000 l))`, float32, with the tanh form of the gelu.

    `sincos` is 32 sines and then 32 cosines at frequencies `10000^(-m / 32)`.
    """
    code = sinusoidal_table(1000.0 * location, WAVES, style='halves')
    return jax.nn.gelu(code @ w1.astype(jnp.float32).T) @ w2.astype(jnp.float32).T


def papeft_documents(
    rng: np.random.Generator, documents: Int[np.ndarray, 'E n W'], gold: Int[np.ndarray, 'E']
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Order augmentation: shuffles the documents of every example and finds the right one's slot.

    Returns:
      Documents, slots of the right ones, and the order [E, n]: slot s holds document order[s] of
        the example.

    Raises:
      ValueError: documents of another shape; a slot that does not exist or is no integer.
    """
    _check_documents('papeft_documents', documents)
    examples, count = documents.shape[:2]
    gold = np.asarray(gold)
    if not np.issubdtype(gold.dtype, np.integer):
        raise ValueError(f'papeft: right slots are integers, got {gold.dtype}')
    if gold.shape != (examples,) or not ((gold >= 0) & (gold < count)).all():
        found = f'{gold.min()} .. {gold.max()}' if gold.shape == (examples,) else str(gold.shape)
        raise ValueError(f'papeft: {examples} right slots lie in 0 .. {count - 1}, got {found}')
    order = np.argsort(rng.random((examples, count)), axis=1)
    rows = np.arange(examples)[:, None]
    return documents[rows, order], np.argmax(order == gold[:, None], axis=1), order


def papeft_prompts(
    documents: Int[np.ndarray, 'E n W'], question: Int[np.ndarray, 'E Q'], empty: int
) -> tuple[np.ndarray, np.ndarray]:
    """Prompts with an empty token in front of every document, and positions [E, T, 3] for them.

    Args:
      documents: of n slots.
      question: what follows them, the answer of a training example included.
      empty: the id of the token whose vector is replaced.

    Returns:
      Tokens [E, T], T = n (W + 1) + Q, and positions: (index, slot + 1 of an empty token or 0, n).

    Raises:
      ValueError: documents or questions of another shape, or of different numbers of examples.
    """
    _check_documents('papeft_prompts', documents)
    examples, count, width = documents.shape
    if np.ndim(question) != 2 or len(question) != examples:
        raise ValueError(
            f'papeft: papeft_prompts takes a question [E, Q] for {examples} examples, got '
            f'{np.shape(question)}'
        )
    tokens = np.concatenate(
        [np.insert(documents, 0, empty, axis=-1).reshape(examples, -1), question], axis=1
    )
    slots = np.zeros(tokens.shape, np.int64)
    slots[:, : count * (width + 1) : width + 1] = 1 + np.arange(count)
    index = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    return tokens, np.stack([index, slots, np.full(tokens.shape, count)], axis=-1)


def _check_documents(user, documents):
    if np.ndim(documents) != 3:
        raise ValueError(f'papeft: {user} takes documents [E, n, W], got {np.shape(documents)}')


@register(
    'papeft',
    kind='encoding',
    card=Card(
        name='PAPEFT',
        example='papeft() | rope()',
        use_when=(
            'A model prefers documents in some slots of its prompt and you want to tune '
            'this away with few parameters.'
        ),
        share='model',
        relative=True,
        needs_training=True,
    ),
)
class PAPEFT(Encoding):
    """Replaces the empty token in front of every document by a learned vector of the slot.

    `e_k = W2 gelu(W1 sincos(1000 l_k))`, `l_k = k / (n - 1)` for slot k = 0 .. n - 1, whatever
    document lies in it; the gelu has its tanh form. W2 starts at zero, so the soft tokens are zero
    vectors until it is trained. `train.tune='encodings'` trains W1 and W2 alone (and what else the
    encoding of the model has to train), 'adapters' low-rank adapters besides, on prompts whose
    documents are shuffled. The task hands over positions with three components, [#B, L, 3]: the
    position, slot + 1 for an empty token or 0, and n; see `papeft_prompts`, and
    `kv_slots(ids="locations")`. The first component is the position for the other encodings, so an
    empty token takes up one position. Positions with one component have no documents. The cache
    holds soft tokens in its prefix. Differs from the paper: it describes the adapter in words only,
    so the exact form is this library's own.

    Args:
      width: d_a, rows of W1.
      model_dim, rngs: from the model.

    Raises:
      ValueError: at call, positions of another shape or fractional ones, and, where they are
        known, slots outside 0 .. n and a row whose tokens disagree on n.

    Reference: Zhang, Yang, Jiang, Chen, Zhao, Ma, Zhao, Liu, arXiv 2404.01430.

    Example:
      >>> import posenc_jax as pj
      >>> tok = pj.Tokens.of(positions=[[[0, 1, 2], [1, 0, 2], [2, 2, 2], [3, 0, 2]]])
      >>> part = pj.make('papeft()', model_dim=4)
      >>> part.embed(jnp.ones((1, 4, 4)), part.place(tok)).sum(-1).tolist()
      [[0.0, 4.0, 0.0, 4.0]]
    """

    def __init__(self, width: Size = 32, model_dim: int = CONTEXT, rngs: nnx.Rngs = CONTEXT):
        self.w1 = drawn_normal(rngs, (width, WAVES), WAVES**-0.5, ('rank', 'waves'))
        self.w2 = nnx.Param(jnp.zeros((model_dim, width), jnp.float32), axes=('width', 'rank'))

    def place(self, tok, *, key=None):
        if tok.pos.ndim == 2:
            return tok
        wanted = 'without documents, or integers [B, L, 3], position, slot + 1 and documents'
        check_integers(f'papeft needs positions [B, L], {wanted}', tok.pos, (3,))
        number, count = tok.pos[..., 1], tok.pos[..., 2]
        if tok.valid is not None:
            number, count = (jnp.where(tok.valid, a, 0) for a in (number, count))
        if not isinstance(number, jax.core.Tracer):
            _check_slots(number, count, tok.valid)
        index, slots = tok.pos[..., 0], tok.pos[..., None, 1:]
        return dataclasses.replace(tok, pos=index).with_feats(papeft=slots)

    def embed(self, x: Float[Array, 'B L D'], tok) -> Num[Array, 'B L D']:
        placed = tok.feats.get('papeft')
        if placed is None:
            return x
        number, count = placed[..., 0, 0], placed[..., 0, 1]
        code = papeft_code(papeft_locations(number, count), self.w1[...], self.w2[...])
        return jnp.where((number > 0)[..., None], code.astype(x.dtype), x)


def _check_slots(number, count, valid):
    """Raises unless slots lie in 0 .. n, and all real tokens of a row say the same n."""
    if bool(((number < 0) | (number > count)).any()):
        worst = int(jnp.where(number < 0, -number, number - count).argmax())
        raise ValueError(
            f'papeft: slot + 1 lies in 0 .. n, got {int(number.ravel()[worst])} of '
            f'{int(count.ravel()[worst])} documents; n counts all of them'
        )
    most = count.max(axis=1, keepdims=True)
    least = (count if valid is None else jnp.where(valid, count, most)).min(axis=1)
    if (least != most[:, 0]).any():
        row = int((least != most[:, 0]).argmax())
        raise ValueError(
            f'papeft: all tokens of a row say the same n, got {int(least[row])} and '
            f'{int(most[row, 0])} in row {row}'
        )
