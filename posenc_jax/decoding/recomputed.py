"""Decoding that reads the text anew whenever the frequencies of a rotary encoding change with its
length.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from posenc_jax.core.composite import parts_of
from posenc_jax.core.length import current_length
from posenc_jax.decoding.decode import Decoding, decode_step, read
from posenc_jax.model.cache import Cache, filled
from posenc_jax.model.transformer import Transformer
from posenc_jax.rotation.rope import Rotary


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TextCache(Cache):
    """A cache that also holds the text it is of.

    Attributes:
      ids: token ids of all slots; 0 from the cursor on.
    """

    ids: Int[Array, 'B S']


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Recomputed(Decoding):
    """For `generate`: every token as in a full pass, also where frequencies follow the current
    length.

    Rotary keys of such a rule are cached raw and turned by the frequencies of the present length,
    which in one layer is the full pass; what deeper layers cached was made with the frequencies of
    shorter texts. So a step that changes the frequencies of any row is followed by a pass over all
    tokens so far, which gives its logits and the whole cache anew. `longrope` with two lists
    changes once a row, at the trained length L, and costs one pass for each length of the prompts;
    dynamic rules (`dynamic_ntk`, `yarn(dynamic=True)`, `longrope(dynamic=True)`) change at every
    step beyond L, and every such step costs a pass over the capacity. A step that changes nothing
    costs a little more than in `Decoding` (6 % on a CPU), and the memory of a pass beside the cache
    is needed at all times.

    Example:
      >>> from flax import nnx
      >>> from posenc_jax.model import TransformerConfig
      >>> from posenc_jax.decoding.decode import generate
      >>> spec = 'rope(freqs=dynamic_ntk())'
      >>> cfg = TransformerConfig(
      ...     vocab_size=9, train_len=4, layers=2, width=8, heads=2, encoding=spec
      ... )
      >>> model = Transformer(cfg, rngs=nnx.Rngs(0))
      >>> generate(
      ...     model, jnp.ones((1, 3), int), max_new_tokens=4, temperature=0.0, decoding=Recomputed()
      ... ).shape
      (1, 7)
    """

    def check(self, model):
        if not _following(model):
            raise ValueError(
                'Recomputed reads the text anew where frequencies follow its length, as with '
                'rope(freqs=dynamic_ntk()); '
                'those of this model do not, so decode with Decoding()'
            )

    def prefill(self, model, empty, prompts):
        logits, cache = super().prefill(model, empty, prompts)
        ids = jnp.pad(prompts.astype(jnp.int32), ((0, 0), (0, cache.capacity - prompts.shape[1])))
        return logits, TextCache(**vars(cache), ids=ids)

    def step(self, model, empty, cache, tokens, layers):
        ids = jax.lax.dynamic_update_slice_in_dim(
            cache.ids, tokens[:, None].astype(jnp.int32), cache.cursor, axis=1
        )
        return decode_step(model, dataclasses.replace(cache, ids=ids), tokens, layers)

    def stale(self, model, cache):
        """Whether the last token of the cache changed the frequencies of any row in any layer."""
        changed = jnp.array(False)
        for place, part in _following(model):
            lengths = (
                current_length(*[filled(cache.tokens[place], n)] * 2)[0]
                for n in (cache.cursor - 1, cache.cursor)
            )
            before, after = (jax.tree.leaves(part.frequencies(length)) for length in lengths)
            changed |= jnp.any(
                jnp.array([jnp.any(a != b) for a, b in zip(before, after, strict=True)])
            )
        return changed

    def renew(self, model, cache):
        """One pass over the whole capacity, so that one program serves every length; what is to
        come is not valid.
        """
        placed = tuple(filled(tok, cache.cursor) for tok in cache.tokens)
        x, layers = read(model, placed, cache.ids, cache.capacity, cache.cursor)
        x = jax.lax.dynamic_slice_in_dim(x, cache.cursor - 1, 1, axis=1)
        return model.logits(model.norm(x))[:, 0], dataclasses.replace(cache, layers=layers)


def default_decoding(model: Transformer, capacity: int | None = None) -> Decoding:
    """`Recomputed()` where that costs next to nothing and `Decoding()` would not be exact, else
    `Decoding()`.

    That is in a model of several layers with a rule that changes at one length only (`switch` of
    `Frequencies`).

    Args:
      capacity: of the cache, if positions count its slots; a rule that changes beyond it does not
        change.

    Example:
      >>> from flax import nnx
      >>> from posenc_jax.model import TransformerConfig
      >>> spec = 'rope(freqs=longrope(long=(2.0, 4.0), short=(1.0, 2.0), factor=4.0))'
      >>> cfg = TransformerConfig(
      ...     vocab_size=9, train_len=4, layers=2, width=8, heads=2, encoding=spec
      ... )
      >>> model = Transformer(cfg, rngs=nnx.Rngs(0))
      >>> default_decoding(model), default_decoding(model, capacity=4)
      (Recomputed(), Decoding())
    """
    switches = [getattr(part.freqs, 'switch', None) for _, part in _following(model)]
    reached = any(at is not None and (capacity is None or at < capacity) for at in switches)
    return Recomputed() if reached and model.cfg.layers > 1 else Decoding()


def _following(model: Transformer) -> list[tuple[int, Rotary]]:
    """The parts whose frequencies follow the current length, each with its layer's place in the
    period.
    """
    parts = [
        (place, part)
        for place, block in enumerate(model.blocks)
        for part in parts_of(model.encoding(place, block))
    ]
    return [(place, part) for place, part in parts if isinstance(part, Rotary) and part.uses_length]
