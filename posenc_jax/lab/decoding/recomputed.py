"""Decoding that reads the text again whenever its length changes the frequencies of a rotary
encoding.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from posenc_jax.lab.decoding.decode import decode_step, read_rows
from posenc_jax.lab.decoding.decoding import Decoding
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.layer.cache import Cache, filled
from posenc_jax.methods.rope import Rotary
from posenc_jax.protocol.composite import parts_of
from posenc_jax.protocol.length import current_length


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TextCache(Cache):
    """A cache that also holds the token ids of its text.

    Attributes:
      ids: token ids of all slots; 0 from the cursor on.
    """

    ids: Int[Array, 'B S']


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Recomputed(Decoding):
    """For `generate`: every token equals that of a full pass, also where the frequencies follow the
    current length.

    Under such a rule keys are cached unrotated and are rotated with the frequencies of the current
    length at every step. This is exact in the first layer only: deeper layers cached keys and
    values that were computed with the frequencies of a shorter text. So a step that changes the
    frequencies of any row is followed by a pass over all tokens so far, which computes the logits
    of the step and the whole cache again. `longrope` with two lists changes its frequencies once,
    at the trained length L, which costs one pass for each different prompt length in the batch.
    Dynamic rules (`dynamic_ntk`, `yarn(dynamic=True)`, `longrope(dynamic=True)`) change them at
    every step beyond L, and each of these steps costs a pass over the capacity. Other steps cost a
    little more than in `Decoding` (6 % on a CPU). The memory of a full pass is needed at all times.

    Example:
      >>> from posenc_jax.lab.model.tiny import tiny_model
      >>> from posenc_jax.lab.decoding.generate import generate
      >>> spec = 'rope(freqs=dynamic_ntk())'
      >>> model = tiny_model(spec, vocab_size=9, train_len=4, layers=2)
      >>> generate(
      ...     model, jnp.ones((1, 3), int), max_new_tokens=4, temperature=0.0, decoding=Recomputed()
      ... ).shape
      (1, 7)
    """

    def check(self, model):
        if not _following(model):
            raise ValueError(
                'Recomputed needs frequencies that follow the length of the text, as in '
                'rope(freqs=dynamic_ntk()), but those of this model do not; decode with Decoding()'
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
        """Whether the last cached token changed the frequencies of any row in any layer."""
        changed = jnp.array(False)
        for layer_type, part in _following(model):
            lengths = (
                current_length(*[filled(cache.tokens[layer_type], n)] * 2)[0]
                for n in (cache.cursor - 1, cache.cursor)
            )
            before, after = (jax.tree.leaves(part.frequencies(length)) for length in lengths)
            changed |= jnp.any(
                jnp.array([jnp.any(a != b) for a, b in zip(before, after, strict=True)])
            )
        return changed

    def renew(self, model, cache):
        """One pass over the whole capacity, so that one compiled program serves every length.
        Slots from the cursor on are not valid.
        """
        placed = tuple(filled(tok, cache.cursor) for tok in cache.tokens)
        x, layers = read_rows(model, placed, cache.ids, cache.capacity, cache.cursor, cache.source)
        x = jax.lax.dynamic_slice_in_dim(x, cache.cursor - 1, 1, axis=1)
        return model.logits(model.norm(x))[:, 0], dataclasses.replace(cache, layers=layers)


def default_decoding(model: Transformer, capacity: int | None = None) -> Decoding:
    """`Recomputed()` where `Decoding()` would not be exact and few steps need a new pass, else
    `Decoding()`.

    This is the case in a model of several layers with a frequency rule that changes at one length
    only (`switch` of `Frequencies`).

    Args:
      capacity: slots of the cache, if positions count them; a rule that changes beyond this length
        needs no new pass. None if positions are given by the task.
    """
    switches = [getattr(part.freqs, 'switch', None) for _, part in _following(model)]
    reached = any(at is not None and (capacity is None or at < capacity) for at in switches)
    return Recomputed() if reached and model.cfg.layers > 1 else Decoding()


def _following(model: Transformer) -> list[tuple[int, Rotary]]:
    """The rotary parts whose frequencies follow the current length, and the number of their layer
    in the period.
    """
    parts = [
        (layer_type, part)
        for layer_type, block in enumerate(model.blocks)
        if block.own_mixer is None
        for part in parts_of(model.encoding(layer_type, block))
    ]
    return [
        (layer_type, part)
        for layer_type, part in parts
        if isinstance(part, Rotary) and part.uses_length
    ]
