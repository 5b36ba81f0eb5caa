"""A decode cache of the first and the last tokens with positions that count within it."""

import dataclasses

import jax

from posenc_jax.lab.decoding.constant_cache import keep_ends
from posenc_jax.lab.decoding.decoding import Decoding
from posenc_jax.methods.streaming import Streaming
from posenc_jax.protocol.composite import name_of, parts_of


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StreamingCache(Decoding):
    """For `generate`: a cache of at most `first + recent` tokens, of which those between the first
    and the last ones are dropped.

    Attributes:
      first: number of first tokens that stay, the attention sinks; 4 in the released code. With 0
        it is a window whose positions count within it.
      recent: number of last tokens, the newest included; 512 in the released code.
      room: number of new tokens between two drops, each of which copies the cache. Just before the
        next drop the cache has `first + recent` tokens, and behind it `room` fewer.

    Example:
      >>> import jax.numpy as jnp
      >>> from posenc_jax.lab.decoding.generate import generate
      >>> from posenc_jax.lab.model.tiny import tiny_model
      >>> generate(
      ...     tiny_model('streaming(encoding=rope())', vocab_size=9),
      ...     jnp.ones((1, 5), int),
      ...     max_new_tokens=9,
      ...     temperature=0.0,
      ...     decoding=StreamingCache(first=1, recent=4),
      ... ).shape
      (1, 14)
    """

    first: int = dataclasses.field(default=4, metadata=dict(static=True))
    recent: int = dataclasses.field(default=512, metadata=dict(static=True))
    room: int = dataclasses.field(default=1, metadata=dict(static=True))

    def __post_init__(self):
        if not (self.first >= 0 and 1 <= self.room < self.recent):
            raise ValueError(
                'StreamingCache needs first >= 0 and 1 <= room < recent, got '
                f'first={self.first}, recent={self.recent}, room={self.room}'
            )

    def check(self, model):
        for layer_type, block in model.layers():
            parts = parts_of(model.encoding(layer_type, block))
            if not any(isinstance(part, Streaming) for part in parts):
                raise ValueError(
                    'StreamingCache needs positions that count within the cache, and a layer of '
                    f'this model has {" | ".join(map(name_of, parts))}; extend the model by '
                    'streaming()'
                )
            for part in parts:
                if found := part.traits & {'sums_between', 'mixes_logits'}:
                    raise ValueError(
                        f'StreamingCache drops tokens between others, which {name_of(part)} reads '
                        f'({", ".join(found)}); decode with Decoding(), which keeps all keys'
                    )
        if model.reads_ids:
            raise ValueError(
                'StreamingCache drops tokens, but an encoding of this model computes positions '
                'from the ids of all tokens'
            )

    def prefill(self, model, empty, prompts):
        # What does not fit is read token by token, so that no position exceeds the cache.
        size = self.first + self.recent
        begun = min(prompts.shape[1], size)
        of_prompt = tuple(tok.slice(0, begun) for tok in empty.tokens)
        logits, cache = super().prefill(
            model, dataclasses.replace(empty, tokens=of_prompt), prompts[:, :begun]
        )
        layers = list(model.layers())

        def read(state, tokens):
            logits, cache = self.step(model, empty, state[1], tokens, layers)
            return (logits[:, None], cache), None

        if begun == size:
            state = logits, self._dropped(cache, empty)
            return jax.lax.scan(read, state, prompts[:, begun:].T)[0]
        if room := min(size, empty.tokens[0].length) - begun:  # nothing is dropped yet
            first = min(self.first, begun - 1)
            cache = keep_ends(cache, empty.tokens, first=first, last=begun - first, room=room)
        return logits, cache

    def step(self, model, empty, cache, tokens, layers):
        if cache.capacity == self.first + self.recent:  # else the text ends before it is full
            # A loop of at most one step, because `cond` would copy the cache.
            full = lambda cache: cache.cursor >= cache.capacity
            cache = jax.lax.while_loop(full, lambda cache: self._dropped(cache, empty), cache)
        return super().step(model, empty, cache, tokens, layers)

    def _dropped(self, cache, empty):
        last = self.recent - self.room
        return keep_ends(cache, empty.tokens, first=self.first, last=last, room=self.room)
