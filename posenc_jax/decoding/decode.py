"""Generation: one pass over the prompts, then a scanned loop of single tokens through the cache."""

import dataclasses
import functools
from collections.abc import Callable
from numbers import Integral

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Num

from posenc_jax.core.tokens import Tokens
from posenc_jax.decoding.sampling import sample
from posenc_jax.model import cache as caching
from posenc_jax.model.cache import Cache, LayerCache
from posenc_jax.model.layers import Block, layer_rows
from posenc_jax.model.sharding import constrain, sharded_attend
from posenc_jax.model.transformer import Transformer


def init_cache(model: Transformer, tok: Tokens) -> Cache:
    """An empty cache for the tokens `tok` of the whole capacity, prompts and what is to come.

    `place` is called here, once; where an encoding reads token ids, again with the prompts and with
    every token after them, which costs O(capacity) integers a step and moves no token that is
    already there.

    Raises:
      ValueError: the model is an encoder, or has an encoding that no cache can serve.

    Example:
      >>> from posenc_jax.model import TransformerConfig
      >>> cfg = TransformerConfig(
      ...     vocab_size=7, train_len=8, layers=1, width=8, heads=2, encoding='alibi()'
      ... )
      >>> init_cache(Transformer(cfg, rngs=nnx.Rngs(0)), Tokens.of(length=16)).capacity
      16
    """
    if not model.cfg.causal:
        raise ValueError(f'generation needs a decoder, this model is of kind {model.cfg.kind!r}')
    for part in model.shared:
        caching.check_cached(part)
    unplaced = (
        dataclasses.replace(tok, ids=jnp.zeros((1, tok.length), jnp.int32))
        if model.reads_ids
        else None
    )
    placed = model.place(tok if unplaced is None else unplaced)
    return Cache(tokens=placed, cursor=jnp.zeros((), jnp.int32), layers=(), unplaced=unplaced)


def read_ids(model: Transformer, cache: Cache, tokens: Int[Array, 'B T']) -> Cache:
    """The cache with the ids of the tokens from its cursor on, and all tokens placed by what is now
    known.

    Whatever appends tokens to a cache, of this module or another, calls it first; where no encoding
    reads ids, it is the cache that was given.

    Example:
      >>> from posenc_jax.model import TransformerConfig
      >>> encoding = 'bipe(separators=(3,)) | rope()'
      >>> cfg = TransformerConfig(
      ...     vocab_size=7, train_len=8, layers=1, width=8, heads=2, encoding=encoding
      ... )
      >>> model = Transformer(cfg, rngs=nnx.Rngs(0))
      >>> cache = read_ids(model, init_cache(model, Tokens.of(length=4)), jnp.array([[5, 3, 6]]))
      >>> cache.tokens[0].pos.tolist()
      [[0, 0, 1, 1]]
    """
    if cache.unplaced is None:
        return cache
    ids = jnp.broadcast_to(cache.unplaced.ids, (len(tokens), cache.capacity))
    ids = jax.lax.dynamic_update_slice_in_dim(ids, tokens.astype(jnp.int32), cache.cursor, axis=1)
    unplaced = dataclasses.replace(cache.unplaced, ids=ids)
    return dataclasses.replace(cache, tokens=model.place(unplaced), unplaced=unplaced)


def prefill(
    model: Transformer, cache: Cache, prompts: Int[Array, 'B T'], *, last: int | None = None
) -> tuple[Float[Array, 'B _ V'], Cache]:
    """Fills an empty cache with prompts; returns the logits of their (`last`) tokens, which are
    those of the plain model.

    Raises:
      ValueError: prompts longer than the capacity, a cache that is not empty, `last` outside 0 ..
        T.
    """
    if cache.layers:
        raise ValueError('prefill needs an empty cache; continue a filled one with decode_step')
    length = prompts.shape[1]
    if length > cache.capacity:
        raise ValueError(f'prompts of {length} tokens do not fit a cache of {cache.capacity}')
    check_last(last, length)
    cache = read_ids(model, cache, prompts)
    x, layers = read(
        model, tuple(tok.slice(0, length) for tok in cache.tokens), prompts, cache.capacity, length
    )
    x = model.norm(x if last is None else x[:, length - last :])
    return model.logits(x), dataclasses.replace(
        cache, cursor=jnp.asarray(length, jnp.int32), layers=layers
    )


def read(
    model: Transformer,
    placed: tuple[Tokens, ...],
    tokens: Int[Array, 'B T'],
    capacity: int,
    count: int | Int[Array, ''],
) -> tuple[Float[Array, 'B T D'], tuple[LayerCache, ...]]:
    """One pass over whole rows: the last layer's output, before the final norm, and what the layers
    remember of it.

    Args:
      placed: the T tokens as each place of the period sees them, only the first `count` of them
        valid.
      tokens: their ids; any behind `count`.
      capacity: slots of the cache, at least T.
      count: how many tokens there are, at most T (it may be traced).
    """

    def layer(x, number, place, block):
        encoding, remembered = model.encoding(place, block), []

        def mix(h):
            rows = layer_rows(h, placed[place].valid, encoding.lookback)
            qkv = block.attention.qkv(encoding, h, rows, placed[place])
            arguments, own = caching.start(encoding, *qkv, placed[place], rows, capacity, count)
            remembered.append(_constrained(own))
            out = sharded_attend(
                encoding, *arguments, block=block.block, implementation=block.implementation
            )
            return encoding.merge(out)

        x = block.around(x, mix)
        return x, remembered[0]

    x, stacked = model.scan_layers(layer, model.embed(tokens, placed))
    groups = model.cfg.layers // len(stacked)
    return x, tuple(jax.tree.map(lambda a: a[g], own) for g in range(groups) for own in stacked)


def check_last(last: int | None, count: int) -> None:
    """Refuses a number of last tokens that a row of `count` does not have.

    Raises:
      ValueError: says which it has.
    """
    if last is not None and not (isinstance(last, Integral) and 0 <= last <= count):
        raise ValueError(f'last must be None, for all, or an integer in 0 .. {count}, got {last}')


def decode_step(
    model: Transformer,
    cache: Cache,
    tokens: Int[Array, 'B'],
    layers: list[tuple[int, Block]] | None = None,
) -> tuple[Float[Array, 'B V'], Cache]:
    """Appends one token a row; returns the logits of what follows.

    Args:
      layers: `model.layers()`, for a loop that cuts them out of their stacks once (XLA does not
        hoist it); None cuts them here.

    Raises:
      ValueError: the cache has not been prefilled or (where the cursor is known) is full.
    """
    caching.check_layers(cache, LayerCache, 'decode_step', 'prefill')
    cursor = cache.cursor

    def mix(h, encoding, block, tok, remembered):
        valid = None if tok.valid is None else tok.slice(cursor, 1).valid
        row = layer_rows(h, valid, 0)
        rows = new = None
        if encoding.opens('qkv'):
            rows, new = jnp.concatenate([remembered.rows, row], axis=1), tok.slice(cursor, 1)
        qkv = block.attention.qkv(encoding, h, rows, new)
        arguments, own = caching.step(encoding, remembered, *qkv, tok, row, cursor)
        out = encoding.merge(
            sharded_attend(encoding, *arguments, heads_first=True, implementation='dense')
        )
        return out, _constrained(own)

    return append(model, cache, tokens, mix, layers)


def append(
    model: Transformer,
    cache: Cache,
    tokens: Int[Array, 'B'],
    mix: Callable,
    layers: list[tuple[int, Block]] | None = None,
) -> tuple[Float[Array, 'B V'], Cache]:
    """One token a row behind a cache of any kind.

    Args:
      mix: `mix(h, encoding, block, tok, own)`: from the normed input of a layer, its encoding, the
        tokens of the whole capacity as it sees them, and what it remembers, to the result of its
        heads [B, 1, N, H] and what it remembers now.
      layers: as for `decode_step`.

    Raises:
      ValueError: the cache is full (where the cursor is known); tokens that are not one for each of
        its rows.
    """
    rows = jax.tree.leaves(cache.layers)[0].shape[0]
    if tokens.shape != (rows,):
        raise ValueError(
            f'a step appends one token to each of {rows} rows, got tokens of shape {tokens.shape}'
        )
    if not isinstance(cache.cursor, jax.core.Tracer) and int(cache.cursor) >= cache.capacity:
        raise ValueError(f'the cache of {cache.capacity} slots is full')
    cache = read_ids(model, cache, tokens[:, None])
    x = model.embed(tokens[:, None], tuple(tok.slice(cache.cursor, 1) for tok in cache.tokens))
    of_place = lambda h, encoding, place, block, own: mix(
        h, encoding, block, cache.tokens[place], own
    )
    x, appended = model.loop_layers(of_place, x, cache.layers, layers)
    return model.logits(model.norm(x))[:, 0], dataclasses.replace(
        cache, cursor=cache.cursor + 1, layers=appended
    )


def _constrained(layer: LayerCache) -> LayerCache:
    k, v = (constrain(a, 'batch', 'kv_heads', None, None) for a in (layer.k, layer.v))
    return dataclasses.replace(layer, k=k, v=v)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Decoding:
    """What `generate` remembers of a text and how it goes on: here everything. Methods that keep
    less override both steps.

    A pytree. `empty` is the cache of the whole text to come, its tokens placed, before anything was
    read. Structure, shapes and dtypes of a cache stay the same from step to step, and the first
    axis of all that its layers hold is that of the rows.
    """

    def check(self, model: Transformer) -> None:
        """Refuses a model that this does not fit, before anything is compiled.

        Raises:
          ValueError: says why.
        """

    def prefill(
        self, model: Transformer, empty: Cache, prompts: Int[Array, 'B T']
    ) -> tuple[Float[Array, 'B 1 V'], Cache]:
        """Logits of the last prompt token, and the cache."""
        return prefill(model, empty, prompts, last=1)

    def step(
        self,
        model: Transformer,
        empty: Cache,
        cache: Cache,
        tokens: Int[Array, 'B'],
        layers: list[tuple[int, Block]],
    ) -> tuple[Float[Array, 'B V'], Cache]:
        """Appends one token a row: logits of what follows, and the cache with it."""
        return decode_step(model, cache, tokens, layers)

    def stale(self, model: Transformer, cache: Cache) -> Bool[Array, ''] | None:
        """Whether the last step calls for `renew`, before its logits are used; None where no step
        ever does.
        """
        return None

    def renew(self, model: Transformer, cache: Cache) -> tuple[Float[Array, 'B V'], Cache]:
        """What the last step should have given, where it could not know."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is static in generation."""

    graphdef: nnx.GraphDef
    steps: int
    temperature: float
    top_k: int | None
    top_p: float | None
    eos: int | None


@functools.partial(jax.jit, static_argnums=0)
def _generate(plan: _Plan, state, prompts, tok, decoding, key):
    model = nnx.merge(plan.graphdef, state)
    empty = init_cache(model, tok)
    logits, cache = decoding.prefill(model, empty, prompts)
    new = _continue(plan, model, decoding, empty, cache, logits[:, -1], key, prompts.dtype)
    return jnp.concatenate([prompts, new], axis=1)


def continue_cache(
    model: Transformer,
    cache: Cache,
    logits: Float[Array, 'B V'],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    key: Array | None = None,
) -> Int[Array, 'B new']:
    """Tokens behind a filled cache, the first of them drawn from `logits`; the last of them is not
    stored.

    What is cached stays, also where frequencies follow the length: there `generate` with
    `Recomputed()` equals full passes.

    Raises:
      ValueError: an empty cache or one of another method, more tokens than fit, a temperature
        without a key.

    Example:
      >>> from posenc_jax.model import TransformerConfig
      >>> cfg = TransformerConfig(
      ...     vocab_size=7, train_len=8, layers=1, width=8, heads=2, encoding='alibi()'
      ... )
      >>> model = Transformer(cfg, rngs=nnx.Rngs(0))
      >>> logits, cache = prefill(
      ...     model, init_cache(model, Tokens.of(length=8)), jnp.ones((1, 3), jnp.int32)
      ... )
      >>> continue_cache(model, cache, logits[:, -1], max_new_tokens=4).shape
      (1, 4)
    """
    caching.check_layers(cache, LayerCache, 'continue_cache', 'prefill')
    free = cache.capacity - int(cache.cursor)
    if not isinstance(max_new_tokens, Integral) or not 1 <= max_new_tokens <= free + 1:
        raise ValueError(
            f'max_new_tokens must be an integer in 1 .. {free + 1} ({free} of {cache.capacity} '
            'slots are free, the last token is '
            f'not stored), got {max_new_tokens}'
        )
    check_temperature(temperature, key)
    graphdef, state = nnx.split(model)
    return _continue_cache(
        _Plan(graphdef, max_new_tokens, float(temperature), None, None, None),
        state,
        cache,
        logits,
        key,
    )


def check_temperature(temperature: float, key: Array | None) -> None:
    """Refuses a temperature that is negative, or positive without a key.

    Raises:
      ValueError: says which.
    """
    if not temperature >= 0:
        raise ValueError(f'temperature must be at least 0, got {temperature}')
    if temperature > 0 and key is None:
        raise ValueError(
            f'temperature={temperature} draws at random and needs a key; temperature=0 takes the '
            'most probable'
        )


@functools.partial(jax.jit, static_argnums=0)
def _continue_cache(plan, state, cache, logits, key):
    return _continue(
        plan, nnx.merge(plan.graphdef, state), Decoding(), cache, cache, logits, key, jnp.int32
    )


def _continue(plan, model, decoding, empty, cache, logits, key, dtype):
    draw = lambda logits, number: sample(
        logits,
        None if key is None else jax.random.fold_in(key, number),
        temperature=plan.temperature,
        top_k=plan.top_k,
        top_p=plan.top_p,
    ).astype(dtype)
    first, layers = draw(logits, 0), model.layers()

    # Carried without the axis of a single row (see `caching.step`), keys and values are updated in
    # place.
    single = logits.shape[0] == 1
    carried = lambda cache: (
        dataclasses.replace(cache, layers=jax.tree.map(lambda a: a[0], cache.layers))
        if single
        else cache
    )
    whole = lambda cache: (
        dataclasses.replace(cache, layers=jax.tree.map(lambda a: a[None], cache.layers))
        if single
        else cache
    )

    def drawn(logits, number, done):
        following = draw(logits, number)
        return following if plan.eos is None else jnp.where(done, plan.eos, following)

    def one(loop, number):
        cache, token, done = loop
        logits, cache = decoding.step(model, empty, whole(cache), token, layers)
        if plan.eos is not None:
            done = done | (token == plan.eos)
        following = drawn(logits, number, done)
        return (carried(cache), following, done), following

    loop = carried(cache), first, jnp.zeros(logits.shape[0], bool)
    if decoding.stale(model, cache) is None:
        _, rest = jax.lax.scan(one, loop, jnp.arange(1, plan.steps))
        return jnp.concatenate([first[:, None], rest.T], axis=1)

    # Two loops, since a renewal inside that of the steps makes XLA copy all keys and values at
    # every step.
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
        return jax.lax.while_loop(lambda state: (state[1] < plan.steps) & ~state[2], step, state)

    out = jnp.zeros((len(first), plan.steps), dtype).at[:, 0].set(first)
    state = loop, jnp.array(1, jnp.int32), jnp.array(False), out
    return jax.lax.while_loop(lambda state: (state[1] < plan.steps) | state[2], steps, state)[-1]


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
) -> Int[Array, 'B longer']:
    """Continues prompts token by token; compiled once per shape and choice of arguments.

    Args:
      model: a decoder.
      prompts: token ids; shorter prompts are padded on the left.
      max_new_tokens: how many tokens to add.
      valid: False for the padding of `prompts`; None where there is none.
      positions: what the task says the positions are, one for each slot of the cache; None counts
        the valid tokens.
      key: random key; not needed at temperature 0.
      temperature: divides the logits; 0 takes the most probable token.
      top_k: draw among the k most probable tokens.
      top_p: draw among the fewest most probable tokens whose probabilities reach p.
      eos: a row that has produced this token produces nothing else from there on.
      capacity: slots of the cache; None for one for every token, of which the last stays empty.
      decoding: what is remembered: everything (`Decoding()`), or `duo_attention.streaming(model)`,
        `double_sparsity.Sparse(...)`, `lm_infinite.ConstantCache(...)`; `recomputed.Recomputed()`
        reads the text anew where its length changes frequencies. None is everything, and where a
        rule switches lists at a length (`longrope` with two) and the text may pass it,
        `Recomputed()`; other rules that follow the length need it to equal full passes.

    Returns:
      The prompts (with their padding) followed by the new tokens.

    Raises:
      ValueError: wrong shapes or ranges, prompts padded on the right, a missing key, too small a
        capacity, a way of decoding that does not fit the model.

    Example:
      >>> from posenc_jax.model import TransformerConfig
      >>> cfg = TransformerConfig(
      ...     vocab_size=7, train_len=8, layers=1, width=8, heads=2, encoding='alibi()'
      ... )
      >>> generate(
      ...     Transformer(cfg, rngs=nnx.Rngs(0)),
      ...     jnp.ones((1, 3), jnp.int32),
      ...     max_new_tokens=2,
      ...     temperature=0.0,
      ... ).shape
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
    (batch, length), vocabulary = prompts.shape, model.cfg.vocab_size
    total = length + max_new_tokens
    capacity = total if capacity is None else capacity
    if total - 1 > capacity:
        raise ValueError(
            f'{length} prompt tokens and {max_new_tokens} new ones (the last is not stored) do '
            f'not fit a cache of {capacity}'
        )
    check_temperature(temperature, key)
    if decoding is None:
        from posenc_jax.decoding.recomputed import default_decoding

        decoding = default_decoding(model, capacity if positions is None else None)
    if not isinstance(decoding, Decoding):
        raise ValueError(
            f'decoding must be a Decoding, e.g. lm_infinite.ConstantCache(), got {decoding!r}'
        )
    decoding.check(model)
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
    tok = Tokens.of(length=capacity, positions=positions, valid=valid)
    graphdef, state = nnx.split(model)
    plan = _Plan(graphdef, max_new_tokens, float(temperature), top_k, top_p, eos)
    return _generate(plan, state, prompts, tok, decoding, None if temperature == 0 else key)
