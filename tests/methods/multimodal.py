"""Positions of text, pictures and videos token by token, and rotary logits pair by pair: loops in
NumPy and float64 that the tests of `mrope` and its relatives compare with.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

import posenc_jax as pj
from posenc_jax.methods.multimodal_rotary import component_reads
from posenc_jax.methods.visual_layout import visual_tokens
from tests.methods.pairs import draw

EXAMPLE = (2, (2, 3), 2)  # text, a picture, text
MIXED = (2, (2, 3), 1, (3, 2, 2), (4, 1), 2, (1, 1), 1)  # a video and a picture side by side
SIZES = dict(head_dim=16, heads=4, kv_heads=2)
KEYS = {
    'mrope()': ('mrope', 'chunked'),
    'mrope_interleaved()': ('mrope', 'interleaved'),
    'mhrope(sections=(0, 1, 1))': ('mrope', 'by_head'),
    'videorope()': ('diagonal', 'low_frequency_time'),
    'hope_video(stride=0.75)': ('diagonal', 'no_time'),
    'circlerope()': ('circle', 'chunked'),
}


def circle_points(rows, columns, alpha=0.5, radius=10.0, auto=False, move=True, dff_rate=0.0):
    """(t, h, w) of the cells of a picture on its circle, row by row."""
    cells = [(float(c), float(r)) for r in range(rows) for c in range(columns)]
    if move:
        cells = [(x - (columns - 1) / 2, y - (rows - 1) / 2) for x, y in cells]
    angles = [math.atan2(y, x) for x, y in cells]
    span = max(angles) - min(angles)
    size = radius * abs(max(max(cell) for cell in cells)) if auto else radius
    points = []
    for number, ((x, y), angle) in enumerate(zip(cells, angles)):
        own = 2 * math.pi * (angle - min(angles)) / span if span else angle
        theta = alpha * own + (1 - alpha) * 2 * math.pi * number / len(cells)
        p = (1 - dff_rate) * size * math.cos(theta) + dff_rate * x
        q = (1 - dff_rate) * size * math.sin(theta) + dff_rate * y
        w, h = -p / 2**0.5 - q / 6**0.5, p / 2**0.5 - q / 6**0.5
        points.append((2 * q / 6**0.5, h, w))
    return points


def walk(segments, design='mrope', stride=1.0, per_second=None, **of_circle):
    """(t, h, w) of all tokens, one segment after the other."""
    out, o = [], 0.0
    for segment in segments:
        if isinstance(segment, int):
            out += [(o + n,) * 3 for n in range(segment)]
            o += segment
            continue
        frames, rows, columns = (1, *segment)[-3:] if len(segment) < 4 else segment[:3]
        times = [f * stride for f in range(frames)]
        if len(segment) == 4 and per_second:
            times = [float(math.floor(f * segment[3] * per_second)) for f in range(frames)]
        block, cells = [], list(itertools.product(range(rows), range(columns)))
        for t in times:
            if design == 'circle':
                points = circle_points(rows, columns, **of_circle)
                block += [tuple(t + a for a in point) for point in points]
            elif design == 'diagonal':
                middle = (rows - 1) // 2, (columns - 1) // 2
                block += [(t, t + r - middle[0], t + c - middle[1]) for r, c in cells]
            else:
                block += [(t, r, c) for r, c in cells]
        if design == 'spatial_reset':
            out += [(o + t, r, c) for t, r, c in block]
        else:
            out += [(o + t, o + h, o + w) for t, h, w in block]
        o += 1 + (max(times) if design == 'diagonal' else max(map(max, block)))
    return np.array(out)


def component(frequencies, sections, number):
    """The component that a pair, or a key head, reads; None if it does not turn."""
    a, b, c = sections
    if frequencies == 'interleaved':
        if number % 3 == 1 and number < 3 * b:
            return 1
        return 2 if number % 3 == 2 and number < 3 * c else 0
    if frequencies in ('low_frequency_time', 'no_time'):
        late = 0 if frequencies == 'low_frequency_time' else None
        return late if number >= b + c else 1 + number % 2
    return 0 if number < a else 1 if number < a + b else 2 if number < a + b + c else None


def turned_by_loop(x, pos, frequencies, sections, base):
    """Vectors [L, heads, H] turned pair by pair; `pos` [L, 3]. The heads are all key heads."""
    x, out, half = np.float64(x), np.float64(x).copy(), x.shape[-1] // 2
    for token, head, k in np.ndindex(*x.shape[:2], half):
        number = head if frequencies == 'by_head' else k
        own = component(frequencies, sections, number)
        angle = 0.0 if own is None else pos[token][own] * base ** (-k / half)
        u, v = x[token, head, k], x[token, head, k + half]
        out[token, head, k] = u * math.cos(angle) - v * math.sin(angle)
        out[token, head, k + half] = v * math.cos(angle) + u * math.sin(angle)
    return out


_place = jax.jit(lambda encoding, tok: encoding.place(tok).pos)


def make(spec, **sizes):
    return pj.make(spec, **SIZES | sizes)


def placed(spec, *segments, **sizes):
    """(t, h, w) of the tokens of segments, [L, 3]."""
    return np.asarray(_place(make(spec, **sizes), visual_tokens(*segments)))[0]


def axes(name, spec, *segments):
    """Rows of a golden file: the components of the positions of segments."""
    of = lambda number: lambda: placed(spec, *segments)[:, number]
    return {f'{name}.{axis}': of(number) for number, axis in enumerate('thw')}


def check_against_loops(spec, segments=MIXED):
    """The positions, and the keys turned by them, of one of `KEYS`."""
    design, frequencies = KEYS[spec]
    encoding = make(spec)
    expected = walk(segments, design, encoding.stride)
    tok = encoding.place(visual_tokens(*segments))
    np.testing.assert_allclose(tok.pos[0], expected, rtol=1e-6, atol=1e-6)
    k = draw(1, 1, tok.length, 2, 16)
    turned = encoding.project(np.repeat(k, 2, axis=2), jnp.asarray(k), k, tok, tok)
    by_loop = turned_by_loop(k[0], expected, frequencies, encoding.sections, encoding.base)
    np.testing.assert_allclose(turned[1][0], by_loop, atol=2e-5)
    np.testing.assert_array_equal(turned[0][:, :, ::2], turned[1])  # heads follow their key head
    np.testing.assert_array_equal(turned[0][:, :, 1::2], turned[1])


def mean_cos(spec, distances):
    """The mean over the pairs that read t, of 64, of the cosines by which they turn at times."""
    encoding = make(spec, head_dim=128)
    times = jnp.asarray([*distances])
    x = jnp.zeros((1, len(times), SIZES['heads'], 128)).at[..., :64].set(1.0)
    pos = times[None, :, None] * jnp.array([1, 0, 0])
    reads = component_reads(encoding.frequencies, encoding.sections, 64)
    cosines = encoding.turned(x, pos, encoding.q_heads)[0, :, 0, np.flatnonzero(reads[:, 0])]
    return np.asarray(cosines, np.float64).mean(0)


def text_turned(spec, pos, **sizes):
    """Queries of 9 tokens of text turned, and the same by `rope` with this base."""
    encoding = make(spec, **sizes)
    q = jnp.asarray(draw(2, 1, 9, 4, 16))
    rope = pj.make(f'rope(base={encoding.base})', head_dim=16)
    line = pj.Tokens.of(positions=np.asarray(pos)[None])
    three = pj.Tokens.of(positions=np.repeat(np.asarray(pos)[None, :, None], 3, axis=2))
    own = [encoding.turned(q, tok.pos, encoding.q_heads) for tok in (line, three)]
    return own, rope.rotate(q, line.pos)
