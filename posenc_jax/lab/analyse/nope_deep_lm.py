"""The layers in which a deep language model without positions learns the order of its tokens."""

import numpy as np
from jaxtyping import Array, Float, Int

from posenc_jax.lab.analyse.capture import compiled
from posenc_jax.lab.analyse.card import analysis_card
from posenc_jax.lab.analyse.states import through_layers
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.protocol.bounds import Size
from posenc_jax.protocol.registry import register
from posenc_jax.protocol.tokens import Tokens


@register(
    'nope_deep_lm',
    kind='analysis',
    card=analysis_card(
        'deep language models without positions',
        'nope_deep_lm(model, tokens)',
        (
            'You want to know how much order a deep model without positions knows; a '
            'measured claim about its loss is contrary.'
        ),
    ),
)
def nope_deep_lm(
    model: Transformer, tokens: Int[Array, 'B L'], *, orders: Size = 4, seed: int = 0
) -> Float[np.ndarray, ' layers']:
    """How much the last token knows, behind each layer, of the order of the tokens before it.

    `d_l = rms of h_l(x) - h_l(pi x) / rms of h_l(x), h_l the last token behind layer l, pi a
    permutation of the tokens before it`, over rows, channels and permutations. Positions stay where
    they are. Without positions, the first layer of a causal model is
    a weighted mean over a set of tokens: d_1 is 0 up to rounding. Its result at place i is a mean
    over i + 1 tokens, which is how a second layer can know the order; in a model that sees later
    tokens, d is 0 at every depth. `configs/nope_deep_lm.py` trains such a deep model. Differs from
    the paper, which compares perplexities: the measure is ours.

    Args:
      model: a decoder or encoder with any encodings; one that reads ids places the permuted tokens
        anew.
      tokens: token ids, at least three in a row.
      orders: number of permutations.
      seed: draws them.

    Raises:
      ValueError: fewer than three tokens, no permutation, a model that reads a source.

    Reference: Irie, Zeyer, Schlüter, Ney, arXiv 1905.04226.

    Example:
      >>> from posenc_jax.lab.model.tiny import tiny_model
      >>> d = nope_deep_lm(tiny_model('nope()', train_len=6, layers=2), np.arange(6)[None])
      >>> bool(d[0] < 1e-5), bool(d[1] > 1e-3)
      (True, True)
    """
    length = tokens.shape[1]
    if length < 3:
        raise ValueError(f'nope_deep_lm permutes the tokens before the last, got {length} tokens')
    last = lambda tokens: np.asarray(_last_rows(model, tokens), np.float32)
    plain = last(tokens)
    moved = [last(tokens[:, order]) - plain for order in orders_of(length, orders, seed)]
    rms = lambda a: np.sqrt(np.mean(np.square(a, dtype=np.float64), axis=(-2, -1)))
    return np.sqrt(np.mean([rms(a) ** 2 for a in moved], axis=0)) / rms(plain)


def orders_of(length: int, count: int, seed: int) -> list[np.ndarray]:
    """Random permutations of all places but the last, none of which leaves every place alone."""
    rng, same, found = np.random.default_rng(seed), np.arange(length), []
    while len(found) < count:
        order = np.append(rng.permutation(length - 1), length - 1)
        found += [] if (order == same).all() else [order]
    return found


@compiled
def _last_rows(model, tokens) -> Float[Array, 'layers B D']:
    """The vector of the last token behind each layer."""
    placed = model.place(Tokens.of(length=tokens.shape[1]), tokens)
    return through_layers(model, model.embed(tokens, placed), placed, lambda x: x[:, -1])[1]
