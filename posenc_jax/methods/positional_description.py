"""Random tags: each occurrence of a token gets a random vector that identifies it."""

from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from posenc_jax.protocol.bounds import CONTEXT, Ge, Lt
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.registry import Card, register


def positional_description_tags(
    seed: UInt32[Array, '2'],
    row: Int[Array, '#B L'],
    segment: Int[Array, '#B L'],
    order: Int[Array, '#B L'],
    width: int,
) -> Float[Array, 'B L width']:
    """Standard normal vectors, each determined by (row, segment, order) and the seed."""
    row, segment, order = jnp.broadcast_arrays(row, segment, order)
    key = jax.random.wrap_key_data(seed, impl='threefry2x32')

    def tag(*numbers):
        own = key
        for number in numbers:
            own = jax.random.fold_in(own, number)
        return jax.random.normal(own, (width,), jnp.float32)

    return jax.vmap(jax.vmap(tag))(row, segment, order)


@register(
    'positional_description',
    kind='encoding',
    card=Card(
        name='random tags',
        example='positional_description(width=8)',
        use_when=(
            'You train on arithmetic and the places should be random tags in place of '
            'numbers; the measured claim is open.'
        ),
        share='model',
        relative=True,
    ),
)
class PositionalDescription(Encoding):
    """Replaces the last r entries of every token vector by a random tag; the only encoding.

    `x_t = [e_t[: D - r], tau_t]`, `tau_t ~ N(0, I_r)`. Tags carry no position. They distinguish
    equal tokens, so that attention can find one of them again. A tag belongs to the n-th real token
    of a document in a row, so padding does not change tags. In training all tags are drawn anew at
    every step, for every row and document. The paper draws them at test time too. Without a key
    they come from a fixed key, and the n-th tokens of all rows and documents share a tag. So a
    model sees the same tags in every evaluation, and decoding token by token has the tags of the
    whole sequence.

    The paper's formats of numbers are arguments of tasks: `multiplication(digits=n,
    pad_product=True, reverse_output=True)`, `random_spaces(addition())`,
    `addition(scratchpad=True)`.

    Differs from the paper: there is no public code, so the entries that hold the tag, r and the
    normal distribution are our choice. The paper's "random embedding" is used inside numbers, in a
    pretrained model; here every token has one.

    Args:
      width: r, less than the model width.

    Reference: Shen et al., arXiv 2311.14737.

    Example:
      >>> import posenc_jax as pj
      >>> encoding, tok = (
      ...     pj.make('positional_description(width=2)', model_dim=4),
      ...     pj.Tokens.of(length=3),
      ... )
      >>> encoding.embed(jnp.ones((1, 3, 4)), encoding.place(tok, key=jax.random.key(0)))[
      ...     0, :, :2
      ... ].tolist()
      [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
    """

    def __init__(
        self, width: Annotated[int, Ge(1), Lt('model_dim')] = 64, model_dim: int = CONTEXT
    ):
        self.width = width

    def place(self, tok, *, key=None):
        seed = jax.random.bits(jax.random.key(0) if key is None else key, (2,), jnp.uint32)
        shared = lambda a: jnp.broadcast_to(a, (1, tok.length, 1, *jnp.shape(a)))
        # The row of a token is known in `embed`. `anew` says whether tags differ between rows.
        return tok.with_feats(
            positional_description={
                'seed': shared(seed),
                'anew': shared(jnp.int32(key is not None)),
            }
        )

    def embed(self, x, tok):
        feature = tok.feats['positional_description']
        anew = feature['anew'][..., 0]
        row = anew * jnp.arange(x.shape[0], dtype=jnp.int32)[:, None]
        segment = anew * (0 if tok.segment is None else tok.segment)
        tags = positional_description_tags(
            feature['seed'][0, 0, 0], row, segment, tok.rank, self.width
        )
        return jnp.concatenate([x[..., : -self.width], tags.astype(x.dtype)], axis=-1)
