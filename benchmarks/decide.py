"""Which form of attention is fastest on this device, for `benchmarks/accelerator.py --decide`.

For one encoding of each class (`posenc_jax/attention/policy.py`) the blocked form, the kernels of
this library with several tiles, and what JAX has are timed, forward alone and with the gradients,
at two lengths. The results of the last 16 queries, and gradients of these, are compared with
attention in float64 by NumPy. A kernel is taken where it is at least 1.1 times as fast as the
blocked form in every time, and its errors are at most twice as large. The result is
the file that `attend` reads, and a page for docs/performance.md.
"""

import dataclasses
import datetime
import functools
import itertools
import math
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from accelerator import encoding_of, layer, library, why
from measure import Compiled, drawn
from written_decisions import write

import posenc_jax as pj
from posenc_jax.attention import decisions
from posenc_jax.attention.decisions import Decision
from posenc_jax.base import targets
from posenc_jax.language.catalog import markdown_table
from posenc_jax.protocol.capabilities import first_carry

# An encoding of each class, whose logits are the products and numbers of the tokens alone.
ENCODINGS = {
    'none': 'nope()', 'bias': 'alibi()', 'look-up': 't5_rpe()', 'carry': 'fox()',
    'products': 'sandwich()',
}  # fmt: skip
TILES = {
    'cuda': ((64, 64), (128, 64), (128, 128), (64, 32)),
    'tpu': ((256, 256), (512, 512), (512, 1024), (1024, 1024)),
}
WINS = 1.1  # so many times as fast as another form
PASSES = 'forward', 'both'
BLOCKED, JAX = 'blocked', 'JAX'
_COLUMNS = 'class', 'encoding', 'tokens', 'form', 'forward ms', 'with gradients ms', 'error'
_OVER = 'not timed, the time was over'
_ROWS = 16  # of the last queries, whose results and gradients are compared


# Queries and keys of a tile; None is the kernel for Hopper, which has a tile of its own.
Tile = tuple[int, int] | None


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Lengths, heads and their width, tiles of kernels, rounds, and seconds that may be spent."""

    lengths: tuple[int, ...] = (2048, 8192)
    heads: int = 16
    width: int = 128
    dtype: str = 'bfloat16'
    tiles: tuple[Tile, ...] = ()
    rounds: int = 5
    seconds: float = 540.0

    def inputs(self, length: int) -> list[jax.Array]:
        return drawn((1, length, self.heads, self.width), self.dtype)


@dataclasses.dataclass
class Timed:
    """A form of attention at a length.

    Attributes:
      seconds: the median for each of `PASSES`.
      error: the largest difference to float64 of results and gradients, or nan.
      refused: why it did not run, or nothing.
    """

    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    error: float = math.nan
    refused: str = ''


Found = dict[tuple[str, int], dict[str, Timed]]  # by class and length, then by form


def _form(tile: Tile) -> str:
    return 'hopper' if tile is None else 'kernel'


def tile_name(tile: Tile) -> str:
    return 'kernel for Hopper' if tile is None else f'kernel {tile[0]} x {tile[1]}'


def stopwatch(name: str, call: Callable[[], Any]) -> float:
    """Seconds of a call, whose contender has this name."""
    begin = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - begin


def measure(
    sizes: Sizes,
    watch: Callable[[str, Callable[[], Any]], float] = stopwatch,
    clock: Callable[[], float] = time.monotonic,
) -> Found:
    """Times all forms. What has not begun when the seconds are over is left out.

    Args:
      sizes: what is timed.
      watch: (name, call) -> seconds of the call.
      clock: the time in seconds.
    """
    end, found = clock() + sizes.seconds, {}
    for length, (encodings, spec) in itertools.product(sizes.lengths, ENCODINGS.items()):
        arguments = sizes.inputs(length)
        exact = reference(sizes, spec, arguments)
        forms, calls = {}, {}
        for name, make in contenders(sizes, encodings, spec, length):
            forms[name] = Timed()
            if clock() > end:
                forms[name].refused = _OVER
                continue
            try:
                calls[name] = programs(make(), arguments)
                forms[name].error = error(calls[name]['both'](), exact)
            except Exception as problem:  # of many libraries, e.g. no memory, or no such kernel
                calls.pop(name, None)
                forms[name].refused = why(problem)
        take_turns(f'{encodings} {length}', forms, calls, sizes.rounds, watch)
        found[encodings, length] = forms
    return found


def contenders(sizes: Sizes, encodings: str, spec: str, length: int) -> Iterator[tuple]:
    """The name of each form, and a function that makes it."""
    shape = dict(length=length, heads=sizes.heads, width=sizes.width)
    yield BLOCKED, lambda: layer(spec, 'blocked', **shape)
    for tile in sizes.tiles:
        yield tile_name(tile), functools.partial(layer, spec, _form(tile), block=tile, **shape)
    if encodings == 'none':
        yield JAX, lambda: library(lambda spec: layer(spec, **shape))
    else:
        yield JAX, lambda: with_dense_bias(sizes, spec, length)


def with_dense_bias(sizes: Sizes, spec: str, length: int) -> Callable:
    """`jax.nn.dot_product_attention` with the bias of an encoding as an array."""
    bias = jax.jit(lambda: bias_of(sizes, spec, length, length).astype(sizes.dtype))()
    return lambda q, k, v: jax.nn.dot_product_attention(q, k, v, bias=bias, is_causal=True)


def programs(attention: Callable, arguments) -> dict[str, Compiled]:
    """The compiled passes. The gradients are those of the sum of the last rows."""

    def both(*given):
        out, pull = jax.vjp(attention, *given)
        cotangent = jnp.zeros_like(out).at[:, -_ROWS:].set(cotangents(out))
        return out, *pull(cotangent)

    return {'forward': Compiled(attention, *arguments), 'both': Compiled(both, *arguments)}


def cotangents(out) -> jax.Array:
    """Numbers for the last rows, of order one and different for every entry."""
    shape = out.shape[0], _ROWS, *out.shape[2:]
    return jnp.cos(jnp.arange(math.prod(shape), dtype=jnp.float32)).reshape(shape).astype(out.dtype)


def take_turns(what: str, forms: dict[str, Timed], calls, rounds: int, watch) -> None:
    """Fills in the seconds of all forms that run."""
    turn = [(name, part) for name in calls for part in PASSES]
    for name, part in turn:
        jax.block_until_ready(calls[name][part]())
    seconds = {one: [] for one in turn}
    for number in range(rounds):
        for name, part in turn if number % 2 == 0 else reversed(turn):
            seconds[name, part].append(watch(f'{what} {name} {part}', calls[name][part]))
    for (name, part), times in seconds.items():
        forms[name].seconds[part] = statistics.median(times)


def bias_of(sizes: Sizes, spec: str, length: int, rows: int) -> jax.Array:
    """What an encoding adds to the products of the last queries with all keys, [1, N, rows, S]."""
    encoding = encoding_of(spec, length=length, heads=sizes.heads, width=sizes.width)
    tok = pj.Tokens.of(length=length)
    x = jnp.zeros((1, length + encoding.lookback, sizes.heads * sizes.width))
    q = jnp.zeros((1, length, sizes.heads, sizes.width))
    q, k, _, tq, tk = encoding.project(q, q, q, tok, tok, x)
    q, tq = q[:, -rows:].swapaxes(1, 2), tq.slice(length - rows, rows)
    s = jnp.zeros((1, sizes.heads, rows, length))
    seen = encoding.mask(tq, tk)
    carry = first_carry(encoding, q, tq)
    return encoding.logits(s, q, k.swapaxes(1, 2), tq, tk, seen, carry)[0]


def reference(sizes: Sizes, spec: str, arguments) -> list[np.ndarray]:
    """The last rows of the result, and the gradients by queries (these rows), keys and values, by
    NumPy in float64; heads come first.
    """
    q, k, v = (np.asarray(a, np.float64)[0].swapaxes(0, 1) for a in arguments)
    length, scale = q.shape[1], q.shape[2] ** -0.5
    q = q[:, -_ROWS:]
    d_out = np.asarray(cotangents(arguments[0]), np.float64)[0].swapaxes(0, 1)
    with jax.default_device(jax.devices('cpu')[0]):
        s = scale * q @ k.swapaxes(1, 2) + np.asarray(bias_of(sizes, spec, length, _ROWS)[0])
    s = np.where(np.tri(_ROWS, length, length - _ROWS, bool), s, -np.inf)
    w = np.exp(s - s.max(-1, keepdims=True))
    w /= w.sum(-1, keepdims=True)
    out = w @ v
    d_s = w * (d_out @ v.swapaxes(1, 2) - (d_out * out).sum(-1, keepdims=True))
    return [out, scale * d_s @ k, scale * d_s.swapaxes(1, 2) @ q, w.swapaxes(1, 2) @ d_out]


def error(found, exact: list[np.ndarray]) -> float:
    """The largest difference, over the largest entry of its array where that is above 1."""
    out, d_q, *d_others = (np.asarray(a, np.float64)[0].swapaxes(0, 1) for a in found)
    ours = out[:, -_ROWS:], d_q[:, -_ROWS:], *d_others
    pairs = zip(ours, exact, strict=True)
    return max(float(np.abs(a - b).max() / max(1.0, np.abs(b).max())) for a, b in pairs)


def faster(found: Found, encodings: str, name: str, other: str) -> float | None:
    """How many times as fast a form is as another one, the least of all lengths and passes that
    both were timed at; None if there is none.
    """
    ratios = [
        forms[other].seconds[part] / forms[name].seconds[part]
        for (which, _), forms in found.items()
        if which == encodings and name in forms and other in forms
        for part in PASSES
        if part in forms[name].seconds and part in forms[other].seconds
    ]
    return min(ratios, default=None)


def failed(found: Found, encodings: str, name: str) -> bool:
    """Whether a form could not run at some length at which it was tried."""
    shown = {forms[name].refused for (which, _), forms in found.items() if which == encodings}
    return bool(shown - {'', _OVER})


def accurate(found: Found, encodings: str, name: str) -> bool:
    """Whether the error of a form is at most twice that of the blocked form at each length at which
    both were timed.
    """
    pairs = [
        (forms[name].error, forms[BLOCKED].error)
        for (which, _), forms in found.items()
        if which == encodings and forms[name].seconds and forms[BLOCKED].seconds
    ]
    return all(own <= 2 * blocked + 1e-6 for own, blocked in pairs)


def decide(found: Found, sizes: Sizes) -> list[Decision]:
    """A decision for each class whose blocked form was timed."""
    made = []
    for encodings in ENCODINGS:
        if not faster(found, encodings, BLOCKED, BLOCKED):
            continue
        ratios = {
            tile: ratio
            for tile in sizes.tiles
            if not failed(found, encodings, name := tile_name(tile))
            and accurate(found, encodings, name)
            and (ratio := faster(found, encodings, name, BLOCKED)) is not None
        }
        best = max(ratios, key=ratios.__getitem__, default=None)
        takes = bool(ratios) and ratios[best] >= WINS
        over_jax = faster(found, encodings, tile_name(best) if takes else BLOCKED, JAX)
        keeps = encodings != 'none' or over_jax is None or over_jax < WINS
        own = (_form(best), best, keeps) if takes else ('blocked', None, keeps)
        made.append(Decision(encodings, sizes.width, sizes.dtype, *own))
    return made


def page(found: Found, made: list[Decision], sizes: Sizes, measured: str) -> str:
    """The page, in Markdown."""
    rows = []
    for (encodings, length), forms in found.items():
        for name, one in forms.items():
            times = [f'{one.seconds[part] * 1e3:.2f}' if one.seconds else '' for part in PASSES]
            accuracy = '' if math.isnan(one.error) else f'{one.error:.1e}'
            shown = f'{name}: {one.refused}' if one.refused else name
            rows.append((encodings, ENCODINGS[encodings], f'{length}', shown, *times, accuracy))
    lines = [
        f'### Decisions for {targets.device_kind()} ({measured})\n',
        f'{sizes.heads} heads of width {sizes.width}, {sizes.dtype}, one row, causal; medians of '
        f'{sizes.rounds} rounds. Errors are those to float64, of the last {_ROWS} queries.\n',
        markdown_table(_COLUMNS, rows),
        f'\nA kernel is taken where it is {WINS} times as fast as blocks in each of these times.\n',
    ]
    for one in made:
        forms = {'blocked': 'blocks', 'hopper': 'our kernel for Hopper'}
        kernel = forms.get(one.form) or f'our kernel, tile {one.block[0]} x {one.block[1]}'
        first = ', behind the kernels of JAX' if one.library and one.encodings == 'none' else ''
        lines.append(f'- {one.encodings}: {kernel}{first}')
    return '\n'.join(lines) + '\n'


def run(sizes: Sizes, place: pathlib.Path, **clocks) -> str:
    """Measures, writes the file and the page beside it, and returns the page."""
    if not sizes.tiles:
        more = (None,) if targets.device() == 'sm_90' else ()
        sizes = dataclasses.replace(sizes, tiles=TILES[targets.platform()] + more)
    os.environ[decisions.VARIABLE] = ''  # an earlier file does not choose for the contenders
    found = measure(sizes, **clocks)
    made = decide(found, sizes)
    measured = f'{datetime.date.today()}, jax {jax.__version__}'
    text = page(found, made, sizes, measured)
    said = write(place, targets.device_kind() or 'unknown', measured, made)
    place.with_suffix('.md').write_text(text, encoding='utf-8')
    return f'{text}\n{said}\n' if said else text
