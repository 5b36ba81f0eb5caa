"""A cache of constant size for models with `lm_infinite`, whose mask hides the dropped tokens."""

import dataclasses
import numbers

import jax

from posenc_jax.lab.decoding.decoding import Decoding
from posenc_jax.lab.decoding.keep_ends import keep_ends
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.layer.cache import Cache
from posenc_jax.methods.lm_infinite import LMInfinite
from posenc_jax.protocol.composite import name_of, parts_of
from posenc_jax.protocol.tokens import Tokens


def constant_cache(
    model: Transformer, cache: Cache, placed: tuple[Tokens, ...], *, room: int = 1
) -> Cache:
    """A cache of the keys and values that the `lm_infinite` layers of a model can still see, with
    room for new tokens (see `keep_ends`).

    Args:
      model: the model that filled the cache.
      cache, placed, room: as for `keep_ends`.

    Raises:
      ValueError: a layer without `lm_infinite` or with its `top_k`; the errors of `keep_ends`.
    """
    found = _windows(model)
    first, last = (max(getattr(part, name) for part in found) for name in ('n_global', 'n_local'))
    return keep_ends(cache, placed, first=first, last=max(last - 1, 1), room=room)


def _windows(model: Transformer) -> list[LMInfinite]:
    """The `lm_infinite` parts of all layers of the period. A layer without one is an error."""
    found = []
    for layer_type, block in enumerate(model.blocks):
        encoding = model.encoding(layer_type, block)
        parts = [part for part in parts_of(encoding) if isinstance(part, LMInfinite)]
        if not parts:
            names = ' | '.join(map(name_of, parts_of(encoding)))
            raise ValueError(
                'a cache of constant size needs lm_infinite in every layer, but a layer of this '
                f'model has {names}'
            )
        found += parts
    if choosing := [part.top_k for part in found if part.top_k]:
        raise ValueError(
            f'lm_infinite(top_k={choosing[0]}) may choose any key of the text, so no key can be '
            'dropped; use top_k=0'
        )
    return found


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ConstantCache(Decoding):
    """For `generate`: calls `constant_cache` after the prompt and whenever its room is used up.

    Attributes:
      room: number of new tokens between two such calls, each of which copies the cache.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from posenc_jax.lab.model import TransformerConfig
      >>> from posenc_jax.lab.decoding.generate import generate
      >>> spec = 'lm_infinite(encoding=rope(), n_global=1, n_local=3)'
      >>> model = Transformer(
      ...     TransformerConfig(
      ...         vocab_size=9, train_len=8, layers=1, width=8, heads=2, encoding=spec
      ...     ),
      ...     rngs=nnx.Rngs(0),
      ... )
      >>> generate(
      ...     model,
      ...     jnp.ones((1, 5), int),
      ...     max_new_tokens=9,
      ...     temperature=0.0,
      ...     decoding=ConstantCache(room=4),
      ... ).shape
      (1, 14)
    """

    room: int = dataclasses.field(default=64, metadata=dict(static=True))

    def __post_init__(self):
        if not isinstance(self.room, numbers.Integral) or self.room < 1:
            raise ValueError(
                f'ConstantCache needs room for at least 1 new token, an integer, got {self.room!r}'
            )

    def check(self, model):
        _windows(model)
        if model.reads_ids:
            raise ValueError(
                'ConstantCache drops tokens, but an encoding of this model computes positions '
                'from the ids of all tokens'
            )

    def prefill(self, model, empty, prompts):
        # The full cache has no room beyond the prompt, because it is cut right away.
        of_prompt = tuple(tok.slice(0, prompts.shape[1]) for tok in empty.tokens)
        logits, cache = super().prefill(
            model, dataclasses.replace(empty, tokens=of_prompt), prompts
        )
        return logits, constant_cache(model, cache, empty.tokens, room=self.room)

    def step(self, model, empty, cache, tokens, layers):
        # A loop of at most one step, because `cond` would copy the cache.
        full = lambda cache: cache.cursor >= cache.capacity
        cache = jax.lax.while_loop(
            full, lambda cache: constant_cache(model, cache, empty.tokens, room=self.room), cache
        )
        return super().step(model, empty, cache, tokens, layers)
