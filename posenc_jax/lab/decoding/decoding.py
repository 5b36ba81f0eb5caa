"""The interface of a way of decoding, through which `generate` uses it."""

import dataclasses

import jax
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.lab.decoding.decode import decode_step, prefill
from posenc_jax.lab.model.block import Block
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.layer.cache import Cache


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Decoding:
    """How `generate` reads the prompts and appends a token, and what its cache keeps. This class
    keeps everything; methods that keep less override `prefill` and `step`.

    Every subclass must be a pytree. The argument `empty` of its methods is the empty cache of the
    whole text to come, with placed tokens. A step must not change the structure, shapes or dtypes
    of the cache. The first axis of every array in its layers must be the batch.
    """

    def check(self, model: Transformer) -> None:
        """Refuses a model that does not fit this way of decoding, before anything is compiled.

        Raises:
          ValueError: the model does not fit; the message says why.
        """

    def prefill(
        self, model: Transformer, empty: Cache, prompts: Int[Array, 'B T']
    ) -> tuple[Float[Array, 'B 1 V'], Cache]:
        """Reads the prompts; returns the logits of their last token and the cache."""
        return prefill(model, empty, prompts, last=1)

    def step(
        self,
        model: Transformer,
        empty: Cache,
        cache: Cache,
        tokens: Int[Array, 'B'],
        layers: list[tuple[int, Block]],
    ) -> tuple[Float[Array, 'B V'], Cache]:
        """Appends one token to each row; returns the logits of the next token and the cache."""
        return decode_step(model, cache, tokens, layers)

    def stale(self, model: Transformer, cache: Cache) -> Bool[Array, ''] | None:
        """Whether the cache and the logits of the last step are outdated, so that `renew` must
        compute them again; None where this can never happen.
        """
        return None

    def renew(self, model: Transformer, cache: Cache) -> tuple[Float[Array, 'B V'], Cache]:
        """Computes the logits of the last step and the cache again, after `stale` was true."""
        raise NotImplementedError
