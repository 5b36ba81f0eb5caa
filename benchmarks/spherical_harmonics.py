"""Spherical harmonics of many places: `geo_sh` against the functions of scipy and of JAX.

    # degree 40, a million places: seven minutes on two busy cores
    python benchmarks/spherical_harmonics.py
    python benchmarks/spherical_harmonics.py --places 16384 --degrees 10

All real harmonics below a degree L, L^2 for each place, are computed in blocks of places, because
together they take 6 GB in float32 at L = 40. The contenders take turns in one process, block by
block, and the ratio is the median over the blocks. scipy's `sph_harm_y_all` computes the complex
harmonics of all degrees and orders at once, in float64; making real numbers of them is not timed.
JAX's `sph_harm_y` computes one pair of degree and order for each place, from a table of all pairs
that it makes each time; it is called with all pairs of a few places. The largest difference to
scipy's functions is printed too.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from measure import milliseconds, options, ratio, show, take_turns

from posenc_jax.features.coordinates.geo.geo_sh import geo_sh_harmonics
from posenc_jax.lab.tasks.globe import random_places


def by_scipy(places: np.ndarray, degrees: int) -> np.ndarray:
    """Complex harmonics [L, 2L - 1, N] of all degrees and orders."""
    azimuth, polar = np.radians(places.astype(np.float64).T + [[180], [90]])
    return scipy.special.sph_harm_y_all(degrees - 1, degrees - 1, polar, azimuth)


def real(values: np.ndarray) -> np.ndarray:
    """The columns of `geo_sh` [N, L^2] from scipy's harmonics; not timed."""
    columns = []
    for l in range(len(values)):
        m = np.arange(-l, l + 1)[:, None]
        value = values[l, np.abs(m[:, 0])]
        part = np.where(m < 0, value.imag, value.real) * np.where(m == 0, 1, 2**0.5)
        columns.append(part * (-1.0) ** m)
    return np.concatenate(columns).T


@functools.partial(jax.jit, static_argnums=1)
def by_jax(places: jax.Array, degrees: int) -> jax.Array:
    """Complex harmonics of all pairs, pair by pair for every place."""
    l = np.repeat(np.arange(degrees), 2 * np.arange(degrees) + 1)
    m = np.concatenate([np.arange(-k, k + 1) for k in range(degrees)])
    polar, azimuth = jnp.radians(places[:, 1] + 90), jnp.radians(places[:, 0] + 180)
    each = lambda a: jnp.repeat(a, len(l))
    tiled = lambda a: jnp.tile(jnp.asarray(a), len(places))
    args = (tiled(l), tiled(m), each(polar), each(azimuth))
    return jax.scipy.special.sph_harm_y(*args, n_max=degrees - 1)


def main():
    args = options(
        __doc__, places=1_000_000, degrees=40, block=(1024, 'places at a time'),
        jax_block=(16, 'places at a time for JAX'), jax_rounds=(5, 'blocks of JAX; 0 for none'),
    )  # fmt: skip
    places = random_places(np.random.default_rng(0), args.places).astype(np.float32)
    blocks = np.split(places, range(args.block, args.places, args.block))
    if len(blocks) > 1 and len(blocks[-1]) < args.block:  # one more shape to compile for
        blocks.pop()
    ours = jax.jit(functools.partial(geo_sh_harmonics, degrees=args.degrees))
    begin = time.perf_counter()
    compiled = ours.lower(blocks[0]).compile()
    compilation = time.perf_counter() - begin
    worst, spent = 0.0, {'geo_sh': [], 'scipy': []}
    for block in blocks:
        of = {'geo_sh': lambda: compiled(block), 'scipy': lambda: by_scipy(block, args.degrees)}
        for name in list(of) if len(spent['scipy']) % 2 else reversed(of):
            begin = time.perf_counter()
            result = jax.block_until_ready(of[name]())
            spent[name].append(time.perf_counter() - begin)
            of[name] = result
        if len(spent['scipy']) % 32 == 1:
            worst = max(worst, float(np.abs(np.asarray(of['geo_sh']) - real(of['scipy'])).max()))
    count = sum(map(len, blocks))
    rows = [
        (name, len(blocks[0]), milliseconds(times), f'{sum(times):.1f}', f'{per(times, count):.2f}')
        for name, times in spent.items()
    ]
    print(f'scipy over geo_sh: {ratio(spent, "scipy", "geo_sh"):.2f}x', flush=True)
    if args.jax_rounds:
        small = jnp.asarray(places[: args.jax_block])
        ways = {'geo_sh': lambda: ours(small), 'JAX': lambda: by_jax(small, args.degrees)}
        turns, size = take_turns(ways, args.jax_rounds), len(small)
        rows += [
            (f'{n}, small block', size, milliseconds(t), '', f'{per(t, size * len(t)):.2f}')
            for n, t in turns.items()
        ]
        print(f'JAX over geo_sh, small block: {ratio(turns, "JAX", "geo_sh"):.0f}x')
    columns = ('contender', 'block', 'ms a block', 's in all', 'us a place')
    show(f'{args.degrees**2} harmonics of {count} places: median (minimum)', columns, rows)
    print(f'geo_sh: compiled in {compilation:.1f} s, largest difference to scipy {worst:.1e}')


def per(times: list[float], count: int) -> float:
    """Microseconds for one of `count` places."""
    return sum(times) / count * 1e6


if __name__ == '__main__':
    main()
