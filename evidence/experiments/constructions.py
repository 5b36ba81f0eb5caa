"""Claims of encodings of space, of text with pictures and of graphs that need no training.

Groups:    text      the share of the logits of 256 tokens of text that are those of RoPE bit for
                     bit, by what pairs read, the least of four designs of positions; 'picture' is
                     the same with a picture in the middle, where they may not be
           frames    the share of 1000 distances of two frames of a video at which the pairs of the
                     time add to q . k what they add at distance 1
           circle    how far the distances of the tokens of a picture to a token of text spread, as
                     a share of their mean: the token of text with the largest spread with
                     Circle-RoPE, and with the least with MRoPE
           moved     the largest change of a logit where all cells of an 8 x 8 grid move by one
                     along both axes, with drawn generators
           windows   how many times the largest coordinate of a window grows where the window
                     doubles, from 8, 12 and 16 cells (seeds 0, 1, 2)
           graphs    the dodecahedron and the Desargues graph: the largest difference of the returns
                     of up to five steps of a walk, and of the numbers of nodes at each distance;
                     the share of nodes of one graph whose colour the other one does not have after
                     colour refinement by walks and by distances, and by distances for the carbon
                     atoms of two molecules; and the share of pairs of nodes of drawn graphs whose
                     distance the walks tell
           sums      the largest change of a logit where 32 tokens in front add the same to all sums
                     of contextual GRAPE-M, and of the output of a layer that decodes token by token
           gates     the largest difference of a logit of GRAPE-A with constant gates and of ALiBi
                     with the same slopes, as a share of the range of the logits, by gate; 'drawn'
                     is the same with gates that vary
Time:      a minute of processor time for a seed of all groups
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int, Shaped

import posenc_jax as pj
from evidence.experiments.program import Found, Program, each
from posenc_jax.attention.tiles import pair_logits
from posenc_jax.features.graphs.graphormer import graphormer_shortest_paths
from posenc_jax.features.graphs.rrwp import rrwp_probabilities
from posenc_jax.lab.tasks.graphs.named import blind_pair, from_edges, relabelled
from posenc_jax.methods.swin_v2_cpb import swin_v2_cpb_coordinates
from posenc_jax.methods.videorope import STRIDES
from posenc_jax.methods.visual_layout import visual_layout, visual_tokens

Numbers = Iterator[tuple[str, float]]  # a variant and its number
HEADS, WIDTH = 8, 64
TEXT, FARTHEST = 256, 100_000  # tokens, and the largest position of the first of them
DESIGNS = ('mrope', 'spatial_reset', 'diagonal', 'circle')
FRAMES = 1000
SIDE, WINDOWS = 8, (8, 12, 16)
STEPS = 5  # of walks
PREFIX, BEHIND = 32, 32  # tokens in front, and those whose logits are compared


def _drawn(rng: np.random.Generator, *shape: int) -> Float[np.ndarray, '...']:
    return rng.standard_normal(shape, dtype=np.float32)


def _logits(encoding, q, k, tok, x: Any = None) -> Float[np.ndarray, 'N T S']:
    """Of one text; those of keys that are not seen mean nothing."""
    q, k, _, tq, tk = encoding.project(q, k, k, tok, tok, x)
    return np.asarray(pair_logits(encoding, q.swapaxes(1, 2), k.swapaxes(1, 2), tq, tk)[0][0])


def text(seed: int) -> Numbers:
    rng = np.random.default_rng(seed)
    q, k = (_drawn(rng, 1, TEXT, HEADS, WIDTH) for _ in range(2))
    base, first = 10 ** rng.uniform(4, 6), int(rng.integers(FARTHEST))
    sizes = dict(heads=HEADS, head_dim=WIDTH)
    plain = pj.Tokens.of(positions=first + np.arange(TEXT)[None])
    rope = _logits(pj.make(f'rope(base={base})', **sizes), q, k, plain)

    def equal(design: str, frequencies: str, *segments) -> float:
        layout = visual_layout(*segments)
        layout[:, 0] += first
        spec = f"mrope(positions='{design}', frequencies='{frequencies}', base={base})"
        encoding = pj.make(spec, **sizes)
        tok = encoding.place(pj.Tokens.of(positions=layout[None]))
        return float((_logits(encoding, q, k, tok) == rope).mean())

    for frequencies in ('chunked', 'interleaved', 'low_frequency_time', 'by_head'):
        yield frequencies, min(equal(design, frequencies, TEXT) for design in DESIGNS)
    half = (TEXT - SIDE**2) // 2
    yield 'picture', equal('mrope', 'chunked', half, (SIDE, SIDE), half)


def frames(seed: int) -> Numbers:
    rng = np.random.default_rng(seed)
    query, key = (_drawn(rng, 1, 1, 1, WIDTH) for _ in range(2))
    stride, layout = rng.choice(STRIDES), visual_tokens((FRAMES + 1, 1, 1))
    for name in ('hope_video', 'videorope'):
        encoding: Any = pj.make(f'{name}(stride={stride})', heads=1, head_dim=WIDTH)
        tok = encoding.place(layout)
        q, k = (np.repeat(a, FRAMES + 1, axis=1) for a in (query, key))
        q, k, *_ = encoding.project(q, k, k, tok, tok)
        pairs = np.asarray(q[0, -1:, 0] * k[0, :, 0]).reshape(FRAMES + 1, 2, -1).sum(1)
        of_time = pairs[-2::-1, -encoding.sections[0] :].sum(1)  # at distances 1, 2, ...
        yield name, float((of_time == of_time[0]).mean())


def circle(seed: int) -> Numbers:
    rng = np.random.default_rng(seed)
    before, behind, rows, columns = rng.integers((1, 1, 3, 3), (65, 65, 17, 17)).tolist()
    layout = visual_tokens(before, (rows, columns), behind)
    cells = np.asarray(layout.pos[0, :, 4]) > 0
    for name, worst in (('circlerope', np.max), ('mrope', np.min)):
        placed = pj.make(f'{name}()', heads=1, head_dim=WIDTH).place(layout).pos[0]
        pos = np.asarray(placed, np.float64)
        apart = np.linalg.norm(pos[~cells][:, None] - pos[cells], axis=-1)
        yield name, float(worst(apart.std(1) / apart.mean(1)))


def moved(seed: int) -> Numbers:
    rng, rngs = np.random.default_rng(seed), nnx.Rngs(seed)
    q, k = (_drawn(rng, 1, SIDE**2, HEADS, WIDTH) for _ in range(2))
    cells = np.stack(np.divmod(np.arange(SIDE**2), SIDE), axis=-1)[None]
    sizes = dict(heads=HEADS, head_dim=WIDTH, rngs=rngs)
    circulant: Any = pj.make('string_circulant(components=2)', **sizes)
    circulant.columns[...] = _drawn(rng, *circulant.columns.shape) / WIDTH**0.5
    # A grid with room for the cells behind the move, so that a cell is as large as before.
    of_blocks = lambda g: f'liere(block={g}, size=({SIDE + 1}, {SIDE + 1}), per_head=True)'
    lie = {f'liere_{g}': pj.make(of_blocks(g), **sizes) for g in (2, 8)}
    for name, encoding in {'string_circulant': circulant, **lie}.items():
        of = lambda pos, own=encoding: _logits(own, q, k, own.place(pj.Tokens.of(positions=pos)))
        yield name, float(np.abs(of(cells + 1) - of(cells)).max())


def windows(seed: int) -> Numbers:
    side = WINDOWS[seed % len(WINDOWS)]
    last = jnp.array([[side - 1, side - 1], [2 * side - 1, 2 * side - 1]])
    before, behind = swin_v2_cpb_coordinates(last, side, side)[:, 0]
    yield 'swin_v2_cpb', float(behind / before)
    yield 'offsets', float(last[1, 0] / last[0, 0])


def petersen(n: int, step: int) -> Shaped[np.ndarray, 'm m']:
    """The generalised Petersen graph of two rings of n nodes, the inner one in steps."""
    ends = ((i, (i + 1) % n, n + i, n + (i + step) % n) for i in range(n))
    return from_edges(2 * n, [edge for a, b, c, d in ends for edge in ((a, b), (a, c), (c, d))])


def told_apart(pairs: Sequence[Float[np.ndarray, 'n n F']]) -> float:
    """The share of nodes of the first of two graphs whose colour the second one does not have.

    Colours are refined until they have settled: two nodes keep one as long as the same numbers of
    nodes have the same colour and the same features of the pair. Where both graphs have the same
    colours, no attention that reads these features alone can tell them.
    """
    both = np.stack(pairs).round(9)
    rows = both.reshape(-1, both.shape[-1])
    codes = np.unique(rows, axis=0, return_inverse=True)[1].reshape(both.shape[:3])
    colours: Int[np.ndarray, '2 n'] = np.zeros(codes.shape[:2], np.int64)
    while True:
        seen = [
            tuple(sorted(zip(row.tolist(), own.tolist())))
            for graph, own in zip(codes, colours)
            for row in graph
        ]
        names = {name: i for i, name in enumerate(sorted(set(seen)))}
        new = np.array([names[name] for name in seen]).reshape(colours.shape)
        if new.max() == colours.max():
            return float((~np.isin(new[0], new[1])).mean())
        colours = new


def graphs(seed: int) -> Numbers:
    rng = np.random.default_rng(seed)
    mixed = lambda both: [relabelled(rng, graph) for graph in both]
    pair = mixed((petersen(10, 2), petersen(10, 3)))
    walks = [rrwp_probabilities(graph.astype(float), STEPS + 1) for graph in pair]
    distances = [graphormer_shortest_paths(graph)[0] for graph in pair]
    returns = [np.sort(np.diagonal(own), axis=-1) for own in walks]  # nodes in no order
    counts = [np.sort([np.bincount(row, minlength=20) for row in own], axis=0) for own in distances]
    for name, (one, other) in (('returns', returns), ('counts', counts)):
        yield name, float(np.abs(one - other).max())
    lone = lambda own: [a[..., None] for a in own]
    molecules = mixed(blind_pair('decalin_bicyclopentyl'))
    yield 'walks', told_apart(walks)
    yield 'distances', told_apart(lone(distances))
    yield (
        'molecules',
        told_apart(lone([graphormer_shortest_paths(graph)[0] for graph in molecules])),
    )
    right = []
    while len(right) < 20:
        edges = np.triu(rng.random((12, 12)) < 0.25, 1)
        distance = graphormer_shortest_paths(edges | edges.T)[0]
        if distance.min() >= 0:
            reached = rrwp_probabilities((edges | edges.T).astype(float), 12) > 0
            right.append((reached.argmax(-1) == distance).mean())
    yield 'recovered', float(np.mean(right))


def sums(seed: int) -> Numbers:
    rng, width, length = np.random.default_rng(seed), HEADS * WIDTH, PREFIX + BEHIND
    q, k = (_drawn(rng, 1, length, HEADS, WIDTH) for _ in range(2))
    x = _drawn(rng, 1, length, width)
    layer = pj.Attention('grape_m_contextual()', width, HEADS, rngs=nnx.Rngs(seed))
    part: Any = layer.encoding.parts[0]
    part.kernel[...] = 14 * _drawn(rng, *part.kernel.shape) / width**0.5  # increments of .2 to .8

    def behind(first: int):
        """Logits of keys up to the query, of a text that begins at a token."""
        tok = pj.Tokens.of(length=length - first)
        own = _logits(part, q[:, first:], k[:, first:], tok, x[:, first:])
        return np.tril(own)[:, PREFIX - first :, PREFIX - first :]

    yield 'moved', float(np.abs(behind(0) - behind(PREFIX)).max())
    step = jax.jit(lambda token, cache: layer.step(token, cache))
    cache, found = layer.start(1, capacity=length), []
    for t in range(length):
        y, cache = step(x[:, t : t + 1], cache)
        found.append(y)
    yield 'decoded', float(jnp.abs(jnp.concatenate(found, axis=1) - layer(jnp.asarray(x))).max())


def gates(seed: int) -> Numbers:
    rng, tok = np.random.default_rng(seed), pj.Tokens.of(length=SIDE**2)
    q, k = (_drawn(rng, 1, SIDE**2, HEADS, WIDTH) for _ in range(2))
    along = 4 * _drawn(rng, 2, HEADS)
    unit = lambda a: np.asarray(a) / np.linalg.norm(a, axis=-1, keepdims=True)
    soft = lambda a: np.log1p(np.exp(a.astype(np.float64)))

    def with_part(a, direction, size):
        """Vectors whose part along a direction is the same for all tokens of a head."""
        own = (a * direction).sum(-1, keepdims=True)
        return (a + (size[:, None] - own) * direction).astype(np.float32)

    for gate in ('key', 'query', 'both'):
        part: Any = pj.make(
            f"grape_a(gate='{gate}')", heads=HEADS, head_dim=WIDTH, rngs=nnx.Rngs(seed)
        )
        part.omega[...] += _drawn(rng, HEADS)
        of_q, of_k, factor = q, k, np.zeros(HEADS)
        if part.of_query is not None:
            of_q = with_part(q, unit(part.of_query[...]), along[0])
            factor = factor + soft(along[0] / WIDTH**0.5)
        if part.of_key is not None:
            of_k = with_part(k, unit(part.of_key[...]), along[1])
            factor = factor + soft(along[1] / WIDTH**0.5)
        slopes = soft(np.asarray(part.omega[...])) * np.asarray(part.slopes[...]) * factor
        alibi = pj.make(f'alibi(slopes={tuple(slopes.tolist())})', heads=HEADS)

        def apart(q, k, gated=part, plain=alibi):
            expected = _logits(plain, q, k, tok)
            return float(np.abs(_logits(gated, q, k, tok) - expected).max() / np.ptp(expected))

        yield gate, apart(of_q, of_k)
        if gate == 'both':
            yield 'drawn', apart(q, k)


GROUPS: dict[str, Callable[[int], Numbers]] = {
    'text': text, 'frames': frames, 'circle': circle, 'moved': moved, 'windows': windows,
    'graphs': graphs, 'sums': sums, 'gates': gates,
}  # fmt: skip


def measured(group: str, seed: int, options: argparse.Namespace) -> Found:
    """The numbers of a group."""
    del options
    return ((group, name, 0, value) for name, value in GROUPS[group](seed))


PROGRAM = Program(
    __name__,
    __doc__,
    each(measured, 'groups'),
    choose={'groups': GROUPS},
    table={'title': 'Without training', 'x': 'place', 'value': 'value'},
)
