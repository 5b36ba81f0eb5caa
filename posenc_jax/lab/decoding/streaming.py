"""A decode cache of the first and the last tokens with positions that count within it."""

import dataclasses

import jax

from posenc_jax.lab.decoding.constant_cache import DroppingCache, keep_ends
from posenc_jax.lab.decoding.decoding import Decoding
from posenc_jax.methods.streaming import Streaming
from posenc_jax.protocol.composite import name_of, parts_of


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StreamingCache(DroppingCache):
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
        super().check(model)

    def prefill(self, model, empty, prompts):
        # What does not fit is read token by token, so that no position exceeds the cache.
        size = self.first + self.recent
        begun = min(prompts.shape[1], size)
        logits, cache = self.read(model, empty, prompts[:, :begun])
        layers = list(model.layers())

        def append(state, tokens):
            logits, cache = self.step(model, empty, state[1], tokens, layers)
            return (logits[:, None], cache), None

        if begun == size:
            state = logits, self.dropped(model, cache, empty.tokens)
            return jax.lax.scan(append, state, prompts[:, begun:].T)[0]
        if room := min(size, empty.tokens[0].length) - begun:  # nothing is dropped yet
            first = min(self.first, begun - 1)
            cache = keep_ends(cache, empty.tokens, first=first, last=begun - first, room=room)
        return logits, cache

    def step(self, model, empty, cache, tokens, layers):
        if cache.capacity < self.first + self.recent:  # the text ends before the cache is full
            return Decoding.step(self, model, empty, cache, tokens, layers)
        return super().step(model, empty, cache, tokens, layers)

    def dropped(self, model, cache, placed):
        last = self.recent - self.room
        return keep_ends(cache, placed, first=self.first, last=last, room=self.room)
