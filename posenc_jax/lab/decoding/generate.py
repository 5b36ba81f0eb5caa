"""Generation: one pass over the prompts, then a compiled loop that adds one token at a time."""

import dataclasses
import functools
from collections.abc import Sequence
from numbers import Integral

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Num

from posenc_jax.lab.decoding.decode import REMEMBERED, init_cache
from posenc_jax.lab.decoding.decoding import Decoding
from posenc_jax.lab.decoding.recomputed import default_decoding
from posenc_jax.lab.decoding.sampling import sample
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.layer import cache as caching
from posenc_jax.layer.cache import Cache
from posenc_jax.layer.cross import Source
from posenc_jax.layer.sharding import constrain
from posenc_jax.protocol.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class _Static:
    """The static arguments of the compiled loop."""

    graphdef: nnx.GraphDef
    steps: int
    temperature: float
    top_k: int | None
    top_p: float | None
    eos: int | None


@functools.partial(jax.jit, static_argnums=0)
def _generate(static: _Static, state, prompts, tok, decoding, key, source):
    model = nnx.merge(static.graphdef, state)
    empty = init_cache(model, tok, source)
    logits, cache = decoding.prefill(model, empty, prompts)
    new = _continue(static, model, decoding, empty, cache, logits[:, -1], key, prompts.dtype)
    return constrain(jnp.concatenate([prompts, new], axis=1), None, None)


def continue_cache(
    model: Transformer,
    cache: Cache,
    logits: Float[Array, 'B V'],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    key: Array | None = None,
) -> Int[Array, 'B new']:
    """Generates tokens behind a filled cache. The first of them is drawn from `logits`; the last
    one is not stored in the cache.

    Cached keys and values are never computed again, even where frequencies follow the length. In
    that case use `generate` with `Recomputed()`, which equals full passes.

    Raises:
      ValueError: an empty cache or one of another method, more tokens than fit, or a temperature
        above 0 without a key.

    Example:
      >>> from posenc_jax.lab.decoding.decode import prefill
      >>> from posenc_jax.lab.model.tiny import tiny_model
      >>> model, text = tiny_model('alibi()'), jnp.ones((1, 3), jnp.int32)
      >>> logits, cache = prefill(model, init_cache(model, Tokens.of(length=8)), text)
      >>> continue_cache(model, cache, logits[:, -1], max_new_tokens=4).shape
      (1, 4)
    """
    caching.check_layers(cache, REMEMBERED, 'continue_cache', 'prefill')
    check_new_tokens(cache, max_new_tokens, temperature, key)
    graphdef, state = nnx.split(model)
    return _continue_cache(
        _Static(graphdef, max_new_tokens, float(temperature), None, None, None),
        state,
        cache,
        logits,
        key,
    )


def check_new_tokens(
    cache: Cache, max_new_tokens: int, temperature: float, key: Array | None, *, query: int = 0
) -> None:
    """Refuses a number of new tokens that do not fit a filled cache behind a query of `query`
    tokens, and what `check_temperature` refuses.

    Raises:
      ValueError: in both cases.
    """
    free = max(0, cache.capacity - int(cache.cursor) - query)
    if not isinstance(max_new_tokens, Integral) or not 1 <= max_new_tokens <= free + 1:
        behind = f' behind a query of {query} tokens' if query else ''
        raise ValueError(
            f'max_new_tokens must be an integer in 1 .. {free + 1} ({free} of {cache.capacity} '
            f'slots are free{behind}, the last token is not stored), got {max_new_tokens}'
        )
    check_temperature(temperature, key)


def check_temperature(temperature: float, key: Array | None) -> None:
    """Refuses a temperature that is negative, or positive without a key.

    Raises:
      ValueError: in both cases.
    """
    if not temperature >= 0:
        raise ValueError(f'temperature must be at least 0, got {temperature}')
    if temperature > 0 and key is None:
        raise ValueError(
            f'temperature={temperature} draws at random and needs a key; temperature=0 takes the '
            'most probable'
        )


def check_sampling(
    model: Transformer, temperature: float, top_k: int | None, top_p: float | None, eos: int | None
) -> None:
    """Refuses choices of the next token that have no meaning for a model.

    Raises:
      ValueError: a number that is out of range, or one that temperature 0 does not read.
    """
    vocabulary = model.cfg.output_size
    if temperature == 0 and not top_k is top_p is None:
        raise ValueError(
            f'temperature=0 takes the most probable token; {top_k=}, {top_p=} have no meaning'
        )
    if top_k is not None and not 1 <= top_k <= vocabulary:
        raise ValueError(f'top_k must lie in 1 .. {vocabulary}, got {top_k}')
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f'top_p must lie in (0, 1], got {top_p}')
    if eos is not None and not 0 <= eos < vocabulary:
        raise ValueError(f'eos must lie in 0 .. {vocabulary - 1}, got {eos}')


@functools.partial(jax.jit, static_argnums=0)
def _continue_cache(static, state, cache, logits, key):
    return _continue(
        static, nnx.merge(static.graphdef, state), Decoding(), cache, cache, logits, key, jnp.int32
    )


def _continue(static, model, decoding, empty, cache, logits, key, dtype):
    draw = lambda logits, number: sample(
        logits,
        None if key is None else jax.random.fold_in(key, number),
        temperature=static.temperature,
        top_k=static.top_k,
        top_p=static.top_p,
    ).astype(dtype)
    first, layers = draw(logits, 0), model.layers()

    # A cache of a single row is carried without its batch axis, so that XLA updates keys and values
    # in place (see `caching.step`).
    single = logits.shape[0] == 1
    of_layers = lambda change, cache: (
        dataclasses.replace(cache, layers=jax.tree.map(change, cache.layers)) if single else cache
    )
    carried = functools.partial(of_layers, lambda a: a[0])
    whole = functools.partial(of_layers, lambda a: a[None])

    def drawn(logits, number, done):
        following = draw(logits, number)
        return following if static.eos is None else jnp.where(done, static.eos, following)

    def one(loop, number):
        cache, token, done = loop
        logits, cache = decoding.step(model, empty, whole(cache), token, layers)
        if static.eos is not None:
            done = done | (token == static.eos)
        following = drawn(logits, number, done)
        return (carried(cache), following, done), following

    loop = carried(cache), first, jnp.zeros(logits.shape[0], bool)
    if decoding.stale(model, cache) is None:
        _, rest = jax.lax.scan(one, loop, jnp.arange(1, static.steps))
        return jnp.concatenate([first[:, None], rest.T], axis=1)

    # Two nested loops: with `renew` inside the loop of the steps, XLA would copy all keys and
    # values at every step.
    def step(state):
        loop, number, _, out = state
        loop, following = one(loop, number)
        return (
            loop,
            number + 1,
            decoding.stale(model, whole(loop[0])),
            out.at[:, number].set(following),
        )

    def renewed(state):
        (cache, _, done), number, _, out = state
        logits, cache = decoding.renew(model, whole(cache))
        token = drawn(logits, number - 1, done)
        return (
            (carried(cache), token, done),
            number,
            jnp.array(False),
            out.at[:, number - 1].set(token),
        )

    def steps(state):
        state = jax.lax.cond(state[2], renewed, lambda state: state, state)
        return jax.lax.while_loop(lambda state: (state[1] < static.steps) & ~state[2], step, state)

    out = jnp.zeros((len(first), static.steps), dtype).at[:, 0].set(first)
    state = loop, jnp.array(1, jnp.int32), jnp.array(False), out
    return jax.lax.while_loop(lambda state: (state[1] < static.steps) | state[2], steps, state)[-1]


def generate(
    model: Transformer,
    prompts: Int[Array, 'B T'],
    *,
    max_new_tokens: int,
    valid: Bool[Array, 'B T'] | None = None,
    positions: Num[Array, '#B S *P'] | None = None,
    key: Array | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos: int | None = None,
    capacity: int | None = None,
    decoding: Decoding | None = None,
    source: Source | None = None,
) -> Int[Array, 'B T+{max_new_tokens}']:
    """Continues prompts token by token; compiled once per shape and choice of arguments.

    Args:
      model: a decoder, or an encoder-decoder.
      prompts: token ids; shorter prompts are padded on the left.
      max_new_tokens: how many tokens to add.
      valid: False for the padding of `prompts`; None where there is none.
      positions: positions from the task, one for each slot of the cache; None counts the valid
        tokens.
      key: random key; not needed at temperature 0.
      temperature: divides the logits; 0 takes the most probable token.
      top_k: draw among the k most probable tokens.
      top_p: draw among the fewest most probable tokens whose probabilities reach p.
      eos: token id that ends a text; a row that has produced it repeats it.
      capacity: slots of the cache; None for prompts and new tokens (the last slot stays empty).
      decoding: what the cache keeps. `Decoding()` keeps everything.
        `duo_attention.cache.streaming(model)`, `double_sparsity.Sparse(...)` and
        `constant_cache.ConstantCache(...)` and `streaming.StreamingCache(...)` are methods of this
        package.
        `recomputed.Recomputed()` reads the text again when its length changes the frequencies;
        without it, rules that follow the length do not equal full passes. None is `Recomputed()`
        for a rule that changes once (`longrope` with two lists) if the text may pass that length,
        else `Decoding()`.
      source: the result of `model.encoded`, for an encoder-decoder; its rows belong to those of the
        prompts.

    Returns:
      The prompts (with their padding) followed by the new tokens.

    Raises:
      ValueError: wrong shapes or ranges, prompts padded on the right, a missing key, a capacity
        that is too small, or a `decoding` that does not fit the model.

    Example:
      >>> from posenc_jax.lab.model.tiny import tiny_model
      >>> model, text = tiny_model('alibi()'), jnp.ones((1, 3), jnp.int32)
      >>> generate(model, text, max_new_tokens=2, temperature=0.0).shape
      (1, 5)
    """
    prompts = jnp.asarray(prompts)
    if prompts.ndim != 2 or prompts.shape[1] < 1 or not jnp.issubdtype(prompts.dtype, jnp.integer):
        raise ValueError(
            f'prompts must be integers [B, T] with T at least 1, got {prompts.dtype} '
            f'{prompts.shape}'
        )
    if max_new_tokens < 1:
        raise ValueError(f'max_new_tokens must be at least 1, got {max_new_tokens}')
    batch, length = prompts.shape
    total = length + max_new_tokens
    capacity = total if capacity is None else capacity
    if total - 1 > capacity:
        raise ValueError(
            f'{length} prompt tokens and {max_new_tokens} new ones (the last is not stored) do '
            f'not fit a cache of {capacity}'
        )
    check_temperature(temperature, key)
    if decoding is None:
        decoding = default_decoding(model, capacity if positions is None else None)
    if not isinstance(decoding, Decoding):
        raise ValueError(f'decoding must be a Decoding, e.g. ConstantCache(), got {decoding!r}')
    decoding.check(model)
    check_sampling(model, temperature, top_k, top_p, eos)
    if valid is not None:
        valid = np.asarray(valid, bool)
        if valid.shape != prompts.shape:
            raise ValueError(f'valid has shape {valid.shape}, prompts {prompts.shape}')
        if (valid[:, :-1] & ~valid[:, 1:]).any() or not valid[:, -1].all():
            row = int(np.argmax((valid[:, :-1] & ~valid[:, 1:]).any(1) | ~valid[:, -1]))
            raise ValueError(
                f'prompts must be padded on the left and end in a token; row {row} does not'
            )
        valid = np.concatenate([valid, np.ones((batch, capacity - length), bool)], axis=1)
    if positions is not None:
        positions = jnp.asarray(positions)
        if positions.shape[0] not in (1, batch) or positions.shape[1] != capacity:
            raise ValueError(
                f'positions have shape {positions.shape}; expected {batch} rows (or 1) of '
                f'{capacity}'
            )
    model.check_source(source)
    if source is not None and len(source.x) != batch:
        raise ValueError(f'{batch} prompts, but {len(source.x)} rows of the source')
    tok = Tokens.of(length=capacity, positions=positions, valid=valid)
    graphdef, state = nnx.split(model)
    static = _Static(graphdef, max_new_tokens, float(temperature), top_k, top_p, eos)
    key = None if temperature == 0 else key
    return _generate(static, state, prompts, tok, decoding, key, source)


def pad_left(rows: Sequence[Int[np.ndarray, ' _']]) -> tuple[Int[np.ndarray, 'B T'], np.ndarray]:
    """Rows of unequal length as one array with zeros in front of the shorter rows, and an array
    that is True where an entry is a token.

    Example:
      >>> [a.tolist() for a in pad_left([np.array([5, 6]), np.array([7])])]
      [[[5, 6], [0, 7]], [[True, True], [False, True]]]
    """
    width = max(map(len, rows))
    valid = np.arange(width) >= width - np.array([[len(row)] for row in rows])
    ids = np.zeros(valid.shape, np.int32)
    ids[valid] = np.concatenate(rows)
    return ids, valid
