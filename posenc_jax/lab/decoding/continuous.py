"""Continuous batching: texts of different lengths that begin and end at different steps are decoded
together, each in a row of the cache with a cursor of its own.
"""

import collections
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from posenc_jax.lab.decoding.decode import decode_step, init_cache, prefill, read_rows
from posenc_jax.lab.decoding.decoding import Decoding
from posenc_jax.lab.decoding.generate import check_sampling, check_temperature
from posenc_jax.lab.decoding.recomputed import default_decoding
from posenc_jax.lab.decoding.sampling import sample
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.layer.cache import Cache, filled
from posenc_jax.protocol.tokens import Tokens


def one_row(model: Transformer, capacity: int) -> Cache:
    """The empty cache of one text."""
    return init_cache(model, Tokens.of(length=capacity))


def read_prompt(
    model: Transformer, capacity: int, prompt: Int[Array, ' T'], count: Int[Array, '']
) -> tuple[Float[Array, ' V'], Cache]:
    """Reads one prompt; returns the logits of its last token and the cache of one row.

    Args:
      model: a decoder in which no encoding reads ids, unless T is `count`.
      capacity: slots of the cache, at least T.
      prompt: token ids; those from `count` on may be anything.
      count: number of real tokens, in 1 .. T.
    """
    cache, tokens = one_row(model, capacity), prompt[None]
    if model.reads_ids:
        logits, cache = prefill(model, cache, tokens, last=1)
        return logits[0, -1], cache
    placed = tuple(filled(tok, count).slice(0, prompt.size) for tok in cache.tokens)
    x, layers = read_rows(model, placed, tokens, capacity, count)
    last = jax.lax.dynamic_slice_in_dim(x, count - 1, 1, axis=1)
    cursor = jnp.asarray(count, jnp.int32)
    return model.logits(model.norm(last))[0, 0], dataclasses.replace(
        cache, cursor=cursor, layers=layers
    )


def step_rows(
    model: Transformer, caches: Cache, tokens: Int[Array, ' R']
) -> tuple[Float[Array, 'R V'], Cache]:
    """Appends one token to each of R rows, each at its own cursor; returns the logits of the next
    tokens and the caches.

    Args:
      caches: R caches of one row, whose arrays are stacked along a new first axis.
      tokens: one for each row.
    """
    layers = model.layers()

    def one(cache, token):
        logits, cache = decode_step(model, cache, token[None], layers)
        return logits[0], cache

    return jax.vmap(one)(caches, tokens)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _read(graphdef, state, capacity, prompt, count, row, caches, logits):
    model = nnx.merge(graphdef, state)
    own, cache = read_prompt(model, capacity, prompt, count)
    caches = jax.tree.map(lambda a, new: a.at[row].set(new), caches, cache)
    return logits.at[row].set(own), caches


@functools.partial(jax.jit, static_argnums=0)
def _step(graphdef, state, caches, tokens):
    return step_rows(nnx.merge(graphdef, state), caches, tokens)


@functools.partial(jax.jit, static_argnames=('temperature', 'top_k', 'top_p'))
def _draw(logits, key, requests, numbers, **how):
    def one(logits, request, number):
        own = None if key is None else jax.random.fold_in(jax.random.fold_in(key, request), number)
        return sample(logits[None], own, **how)[0]

    return jax.vmap(one)(logits, requests, numbers)


@dataclasses.dataclass
class _Text:
    request: int
    prompt: np.ndarray
    left: int
    new: list[int] = dataclasses.field(default_factory=list)


class Server:
    """Decodes texts that come at any time, in a fixed number of rows.

    A text takes a free row, whose prompt is read in one pass, and leaves it when it ends, while the
    other rows go on. What a text gets does not depend on the others: at temperature 0 its tokens
    are those of `generate` for it alone, up to rounding, and else each token is drawn with a key of
    its text and place. Two programs are compiled, and one for each power of two up to the length of
    the prompts. Where an encoding reads token ids, it is one for each length of a prompt.

    Args:
      model: a decoder; the copy that `model.for_decoding()` returns decodes fastest.
      rows: texts that are decoded together.
      capacity: slots of each row, for the prompt and the new tokens but the last.
      temperature, top_k, top_p, eos, key: as for `generate`. A text ends behind `eos`.

    Raises:
      ValueError: as `generate` and `init_cache`; a rule of frequencies for which `generate` reads
        the text again when it grows.

    Example:
      >>> from posenc_jax.lab.model.tiny import tiny_model
      >>> server = Server(tiny_model('alibi()'), rows=2, capacity=8)
      >>> texts = [server.submit(prompt, 3) for prompt in ([1, 2], [3], [4, 5, 6])]
      >>> {request: len(new) for request, new in server.run().items()}
      {0: 3, 1: 3, 2: 3}
    """

    def __init__(
        self,
        model: Transformer,
        *,
        rows: int,
        capacity: int,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        eos: int | None = None,
        key: Array | None = None,
    ):
        for name, size in dict(rows=rows, capacity=capacity).items():
            if size < 1:
                raise ValueError(f'Server: {name} must be at least 1, got {size}')
        check_temperature(temperature, key)
        check_sampling(model, temperature, top_k, top_p, eos)
        if type(default_decoding(model, capacity)) is not Decoding:
            raise ValueError(
                'Server: the frequencies of this model change at a length below the capacity of '
                f'{capacity}, where the text has to be read again; use generate, or a capacity '
                'below that length'
            )
        self._graphdef, self._state = nnx.split(model)
        self._padded, self._capacity, self._eos = not model.reads_ids, capacity, eos
        self._how: Any = dict(temperature=float(temperature), top_k=top_k, top_p=top_p)
        self._key = key if temperature > 0 else None
        shapes = jax.eval_shape(
            lambda: read_prompt(model, capacity, jnp.zeros(1, jnp.int32), jnp.asarray(1))
        )
        self._logits, self._caches = jax.tree.map(
            lambda a: jnp.zeros((rows, *a.shape), a.dtype), shapes
        )
        self._texts: list[_Text | None] = [None] * rows
        self._waiting: collections.deque[_Text] = collections.deque()
        self._requests = 0

    def submit(self, prompt, max_new_tokens: int) -> int:
        """Adds a text to those that wait for a row; returns its number, counted from 0.

        Args:
          prompt: token ids [T], at least one.
          max_new_tokens: after how many tokens it ends, at least 1.

        Raises:
          ValueError: no ids, or a text that does not fit a row.
        """
        ids = np.asarray(prompt)
        if ids.ndim != 1 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(
                f'a prompt is a row of at least one token id, got {ids.dtype} {ids.shape}'
            )
        if max_new_tokens < 1:
            raise ValueError(f'max_new_tokens must be at least 1, got {max_new_tokens}')
        if (needed := ids.size + max_new_tokens - 1) > self._capacity:
            raise ValueError(
                f'{ids.size} prompt tokens and {max_new_tokens} new ones (the last is not stored) '
                f'need {needed} slots, a row has {self._capacity}'
            )
        self._waiting.append(_Text(self._requests, ids.astype(np.int32), max_new_tokens))
        self._requests += 1
        return self._requests - 1

    def step(self) -> dict[int, int]:
        """Reads the prompts for which a row is free, and adds a token to each text that has one.

        Returns:
          The new token of each text; empty where nothing is left to do.
        """
        for row, text in enumerate(self._texts):
            if text is None and self._waiting:
                self._admit(row, self._waiting.popleft())
        here = {row: text for row, text in enumerate(self._texts) if text is not None}
        if not here:
            return {}
        requests, numbers = np.zeros((2, len(self._texts)), np.int32)
        for row, text in here.items():
            requests[row], numbers[row] = text.request, len(text.new)
        tokens = np.array(_draw(self._logits, self._key, requests, numbers, **self._how))
        for row, text in here.items():
            text.new.append(int(tokens[row]))
            text.left -= 1
            if not text.left or text.new[-1] == self._eos:
                self._texts[row] = None
        if any(text is not None for text in self._texts):
            self._logits, self._caches = _step(self._graphdef, self._state, self._caches, tokens)
        return {text.request: text.new[-1] for text in here.values()}

    def run(self) -> dict[int, list[int]]:
        """Decodes until nothing is left; returns the new tokens of each text since the call."""
        found = collections.defaultdict(list)
        for tokens in self.steps():
            for request, token in tokens.items():
                found[request].append(token)
        return dict(sorted(found.items()))

    def steps(self) -> Iterator[dict[int, int]]:
        """The results of `step` until nothing is left; texts may be added in between."""
        while tokens := self.step():
            yield tokens

    def _admit(self, row: int, text: _Text) -> None:
        count = text.prompt.size
        length = min(self._capacity, 1 << (count - 1).bit_length()) if self._padded else count
        prompt = np.zeros(length, np.int32)
        prompt[:count] = text.prompt
        self._logits, self._caches = _read(
            self._graphdef, self._state, self._capacity,
            prompt, np.int32(count), row, self._caches, self._logits,
        )  # fmt: skip
        self._texts[row] = text
