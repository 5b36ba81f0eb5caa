"""Burst sampling with `sigma_gpt`: all missing tokens are proposed at once, and those that agree
with each other are accepted by rejection sampling.

Pannatier, Courdier, Fleuret, "sigma-GPTs: A New Approach to Autoregressive Models", arXiv
2404.09562; code idiap/sigma-gpt.
"""

import dataclasses
import functools
import numbers
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int

from posenc_jax.lab.decoding.any_order import Written, given_first, in_place
from posenc_jax.lab.decoding.decode import init_cache, prefill
from posenc_jax.lab.decoding.generate import check_temperature
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.layer.cache import LayerCache
from posenc_jax.protocol.conflicts import chain
from posenc_jax.protocol.errors import check_choice
from posenc_jax.protocol.families import Mask
from posenc_jax.protocol.tokens import Tokens

Pairing = Literal['intended', 'released']
PAIRINGS = ('intended', 'released')


@dataclasses.dataclass(frozen=True)
class _Static:
    """The static arguments of the compiled functions; `given` counts a start slot."""

    graphdef: nnx.GraphDef
    given: int
    temperature: float
    pairing: str
    orders: int


def burst_sample(
    model: Transformer,
    tokens: Int[Array, 'B T'],
    order: Int[Array, '#B T'],
    *,
    known: int,
    key: Array,
    temperature: float = 1.0,
    start: int | None = None,
    orders: int = 5,
    pairing: Pairing = 'intended',
) -> Written:
    """Completes texts in bursts: all missing tokens are proposed at once, and as many proposals as
    agree with each other are accepted.

    A round has two passes. The first pass draws a token for every missing place, with probability p
    given the accepted tokens alone. The second pass evaluates the proposals in K random orders, in
    each of which a proposal also sees the proposals before it; this gives a probability q. One
    number u ~ U(0, 1) is drawn for each place and used in all orders. An order accepts proposals
    as long as `u < q / p`, and always the first one, which has q = p. The order that accepts most
    is kept, and its cache is cut to the accepted tokens. All rows advance by the smallest number of
    accepted tokens in any row. A round with one missing place has the first pass only. Rejected
    places are proposed anew in the next round, so the result does not have exactly the distribution
    of `sample_in_order`.

    Args:
      model, tokens, order, known, key, start: as for `sample_in_order`. With 'intended' the order
        of the missing places does not change the distribution of the result.
      temperature: divides the logits; positive.
      orders: K, the number of random orders in a round.
      pairing: the token and place that a proposal is conditioned on. 'intended': the last accepted
        token at its place. 'released', as in the published code for text: the last accepted token,
        but at the place before the proposed one in the order of the missing places. So from the
        second proposal on p is not the model's conditional probability. The first proposal of an
        order is accepted with 'released' too; this is ours.

    Raises:
      ValueError: the errors of `sample_in_order`, a temperature that is not positive, fewer than
        one order, or an unknown pairing.
    """
    check_choice('pairing', pairing, PAIRINGS)
    if not temperature > 0:
        raise ValueError(
            f'burst_sample draws at random: temperature must be positive, got {temperature}'
        )
    check_temperature(temperature, key)
    if not isinstance(orders, numbers.Integral) or orders < 1:
        raise ValueError(f'orders must be at least 1, an integer, got {orders}')
    sequence, places = given_first(model, tokens, order, known, start)
    given, total = known + (start is not None), sequence.shape[1]
    graphdef, state = nnx.split(model)
    static = _Static(graphdef, given, float(temperature), pairing, orders)
    burst, evaluations = _first_burst(static, state, sequence, places), int(given > 1)
    number = 0
    while (taken := int(burst.taken)) < total:
        run, passes = (_burst, 2) if taken < total - 1 else (_last_one, 1)
        burst, _ = run(static, state, burst, jax.random.fold_in(key, number))
        number, evaluations = number + 1, evaluations + passes
    return Written(in_place(burst.tokens[:, :total], burst.places[:, :total], start), evaluations)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Burst:
    """The state of burst sampling between two rounds.

    `tokens` and `places` have W more entries than the sequence, W the most tokens of a burst, so
    that a burst can be written anywhere in it. The first `taken` tokens are final. The cache holds
    all of these but the last, whose next place is not known yet.
    """

    tokens: Int[Array, 'B L+W']
    places: Int[Array, 'B L+W']
    taken: Int[Array, '']
    layers: tuple[LayerCache, ...]


@functools.partial(jax.jit, static_argnums=0)
def _first_burst(static, state, sequence, places):
    model, given = nnx.merge(static.graphdef, state), static.given
    batch, total = sequence.shape
    missing = total - given
    room = lambda a: jnp.pad(a, ((0, 0), (0, missing)))
    # At the latest a whole burst is written behind all tokens but the last.
    behind = 2 * missing
    if given > 1:
        pairs = jnp.stack([places[:, : given - 1], places[:, 1:given]], axis=-1)
        _, cache = prefill(
            model, init_cache(model, Tokens.of(positions=pairs)), sequence[:, : given - 1], last=1
        )
        longer = lambda a: jnp.pad(a, ((0, 0), (0, 0), (0, behind), (0, 0)))
        layers = tuple(
            dataclasses.replace(own, k=longer(own.k), v=longer(own.v)) for own in cache.layers
        )
    else:
        shape = (batch, model.cfg.kv_heads, behind, model.cfg.head_dim)
        empty = lambda: jnp.zeros(shape, model.cfg.dtype)
        rows = jnp.zeros((batch, 0, model.cfg.width), model.cfg.dtype)
        layers = tuple(LayerCache(empty(), empty(), {}, rows) for _ in range(model.cfg.layers))
    return _Burst(room(sequence), room(places), jnp.asarray(given, jnp.int32), layers)


class _Alone(Mask):
    """A query sees all tokens of earlier passes, and of this pass only itself."""

    def allow(self, tq, tk):
        before = tk.feats['any_order'][:, None, :, 0]
        return (before | (tk.index[:, None, :] == tq.index[:, :, None]))[:, None]


def _pass(model, layers, tokens, pairs, cursor, count, *, alone):
    """Appends tokens behind the first `cursor` slots of the cache; returns their logits and the
    cache. Only the first `count` tokens are real. With `alone` they do not see each other.
    """
    length, capacity = tokens.shape[1], layers[0].k.shape[2]
    slots = jnp.arange(capacity, dtype=jnp.int32)[None]
    pos = jnp.zeros((pairs.shape[0], capacity, 2), pairs.dtype)
    pos = jax.lax.dynamic_update_slice_in_dim(pos, pairs, cursor, axis=1)
    before = {'any_order': (slots < cursor)[..., None]}
    whole = Tokens(slots, pos, rank=slots, valid=slots < cursor + count, feats=before)
    new = whole.slice(cursor, length)

    def mix(h, mixer, layer_type, own):
        projected, own = mixer.append(h, whole, own, cursor)
        seeing = chain(mixer.encoding, _Alone()) if alone else None
        tiles = dict(heads_first=True, implementation='dense')
        return mixer.output(mixer.attend(*projected, encoding=seeing, **tiles)), own

    x, filled = model.loop_layers(mix, model.embed(tokens, (new,) * len(model.links)), layers)
    return model.logits(model.norm(x)), filled


def _proposals(static, model, burst, key):
    """A token for every missing place and its log probability; the places and their number; the
    last accepted token and its place.
    """
    total = burst.tokens.shape[1] - _window(burst, static)
    window, missing = _window(burst, static), total - burst.taken
    at = lambda a, first, size: jax.lax.dynamic_slice_in_dim(a, first, size, axis=1)
    last_token, last_place = (
        at(burst.tokens, burst.taken - 1, 1),
        at(burst.places, burst.taken - 1, 1),
    )
    places = at(burst.places, burst.taken, window)
    own = jnp.broadcast_to(last_place, places.shape)
    if static.pairing == 'released':
        own = jnp.concatenate([last_place, places[:, :-1]], axis=1)
    tokens = jnp.broadcast_to(last_token, places.shape)
    pairs = jnp.stack([own, places], axis=-1)
    logits, _ = _pass(model, burst.layers, tokens, pairs, burst.taken - 1, missing, alone=True)
    log_p = jax.nn.log_softmax(logits / static.temperature, axis=-1)
    drawn = jax.random.categorical(key, log_p, axis=-1).astype(burst.tokens.dtype)
    return (
        drawn,
        jnp.take_along_axis(log_p, drawn[..., None], axis=-1)[..., 0],
        places,
        missing,
        last_token,
        last_place,
    )


def _window(burst, static):
    return (burst.tokens.shape[1] - static.given) // 2


@functools.partial(jax.jit, static_argnums=0)
def _burst(static, state, burst, key):
    """One round of two passes; also returns `q / p`, [K, B, W], of every order, row and place."""
    model = nnx.merge(static.graphdef, state)
    draw_key, uniform_key, order_key = jax.random.split(key, 3)
    drawn, log_p, places, missing, last_token, last_place = _proposals(
        static, model, burst, draw_key
    )
    (batch, window), k = drawn.shape, static.orders
    uniform = jax.random.uniform(uniform_key, drawn.shape)
    lots = jax.random.uniform(order_key, (k, batch, window)) + (jnp.arange(window) >= missing)
    order = jnp.argsort(lots, axis=-1)
    arranged = lambda a: jnp.take_along_axis(jnp.broadcast_to(a, order.shape), order, axis=-1)
    drawn, log_p, places, uniform = (arranged(a) for a in (drawn, log_p, places, uniform))

    rows = lambda a: a.reshape(k * batch, *a.shape[2:])
    before = lambda first, a: jnp.concatenate(
        [jnp.broadcast_to(first, (k, batch, 1)), a[..., :-1]], axis=-1
    )
    pairs = jnp.stack([before(last_place, places), places], axis=-1)
    repeated = jax.tree.map(lambda a: jnp.tile(a, (k, *[1] * (a.ndim - 1))), burst.layers)
    logits, filled = _pass(
        model,
        repeated,
        rows(before(last_token, drawn)),
        rows(pairs),
        burst.taken - 1,
        missing,
        alone=False,
    )
    log_q = jax.nn.log_softmax(logits / static.temperature, axis=-1).reshape(k, batch, window, -1)
    ratio = jnp.exp(jnp.take_along_axis(log_q, drawn[..., None], axis=-1)[..., 0] - log_p)
    taken = (uniform < ratio) | (jnp.arange(window) == 0)
    taken = jnp.cumprod(taken & (jnp.arange(window) < missing), axis=-1).sum(axis=-1)
    best = jnp.argmax(taken, axis=0)
    of_best = lambda a: jnp.take_along_axis(a, best.reshape(1, batch, *[1] * (a.ndim - 2)), axis=0)[
        0
    ]
    write = lambda whole, a: jax.lax.dynamic_update_slice_in_dim(
        whole, of_best(a), burst.taken, axis=1
    )
    burst = _Burst(
        tokens=write(burst.tokens, drawn),
        places=write(burst.places, places),
        taken=burst.taken + taken.max(axis=0).min(),
        layers=jax.tree.map(lambda a: of_best(a.reshape(k, batch, *a.shape[1:])), filled),
    )
    return burst, ratio


@functools.partial(jax.jit, static_argnums=0)
def _last_one(static, state, burst, key):
    """The round where one place is left."""
    drawn, *_ = _proposals(static, nnx.merge(static.graphdef, state), burst, key)
    tokens = jax.lax.dynamic_update_slice_in_dim(burst.tokens, drawn[:, :1], burst.taken, axis=1)
    return dataclasses.replace(burst, tokens=tokens, taken=burst.taken + 1), None
