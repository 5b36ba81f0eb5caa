"""RMAT: the gate by hand, the layer segment by segment in float64, and what reaches whom."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.methods.rope import rope
from posenc_jax.mixers.rmat import gated_slots
from tests.golden_files import golden
from tests.mixers.small import MODEL, draw, make, whole

VALUES = golden('rmat')['values']
SPECS = (
    'rmat(segment=5, chunk=2, slots=4)',
    'rmat(segment=4, chunk=2, slots=3, mix=True, through=True)',
)


@pytest.mark.parametrize('case', VALUES['gates'])
def test_golden_gates(case):
    at = lambda *names: np.log(3) * np.float32([case[name] for name in names])
    means = np.float32(case['means']).reshape(1, 2, 1)
    slots = gated_slots(
        means, np.float32([[case['newest']]]), at('of_mean', 'of_slot')[:, None], at('bias')
    )
    np.testing.assert_allclose(slots.ravel(), case['slots'], rtol=1e-6)


def softmax(s):
    w = np.exp(s - s.max(-1, keepdims=True))
    return w / w.sum(-1, keepdims=True)


def sequential(mixer, x):
    """The layer for one row, segment by segment, float64."""
    get = lambda name: np.float64(getattr(mixer, name)[...])
    heads, width = mixer.w_q.shape[1:]
    theta = 10000.0 ** (-np.arange(0, width, 2) / width)
    shares = np.ones((heads, 3)) if mixer.shares is None else softmax(get('shares'))
    memory, out = np.zeros((0, x.shape[1])), []
    for start in range(0, len(x), mixer.segment):
        rows = x[start : start + mixer.segment]
        place = np.arange(len(rows))
        q, k, v = (np.einsum('td,dnh->nth', rows, get(f'w_{name}')) for name in 'qkv')
        turn = np.exp(1j * place[:, None] * theta)
        z = lambda a: (a[..., : width // 2] + 1j * a[..., width // 2 :]) * turn
        s = np.einsum('nth,nsh->nts', z(q), z(k).conj()).real / width**0.5
        seen = place[:, None] >= place
        near = seen & (place[:, None] // mixer.chunk == place // mixer.chunk)
        parts = [softmax(np.where(mask, s, -np.inf)) @ v for mask in (seen, near)]
        if len(memory):
            k, v = (np.einsum('sd,dnh->nsh', memory, get(f'w_{name}')) for name in 'kv')
            parts.append(softmax(q @ k.swapaxes(1, 2) / width**0.5) @ v)
        y = sum(share[:, None, None] * part for share, part in zip(shares.T, parts))
        out.append(np.einsum('nth,nhd->td', y, get('w_out')))
        for first in range(0, len(rows), mixer.chunk):
            mean = rows[first : first + mixer.chunk].mean(0)
            slot = memory[-1] if len(memory) else 0 * mean
            gate = np.concatenate([mean, slot]) @ get('w_gate') + get('b_gate')
            gate = 1 / (1 + np.exp(-gate))
            memory = np.concatenate([memory, [gate * mean + (1 - gate) * slot]])[-mixer.slots :]
    return np.concatenate(out)


@pytest.mark.full_but_one
@pytest.mark.parametrize('spec', SPECS)
def test_segments(spec):
    """Also where the last chunk of a segment is shorter, and where the memory overflows."""
    mixer, x = make(spec), draw(2, 1, 23, MODEL)
    out = whole(mixer, x, pj.Tokens.of(length=23))
    np.testing.assert_allclose(out[0], sequential(mixer, np.float64(x[0])), atol=1e-5)


@pytest.mark.full
def test_segments_longer_than_a_piece():
    mixer, x = make('rmat(segment=200, chunk=60, slots=6)'), draw(3, 1, 450, MODEL)
    out = whole(mixer, x, pj.Tokens.of(length=450))
    np.testing.assert_allclose(out[0], sequential(mixer, np.float64(x[0])), atol=2e-5)


def test_a_chunk_as_long_as_the_segment_sees_what_the_segment_sees():
    """And an empty memory adds nothing: the first segment is twice plain attention with RoPE."""
    mixer, x = make('rmat(segment=6, chunk=64)'), draw(4, 1, 6, MODEL)
    tok = pj.Tokens.of(length=6)
    q, k, v = (np.einsum('btd,dnh->btnh', x, getattr(mixer, f'w_{name}')[...]) for name in 'qkv')
    plain = pj.attend(pj.make('causal()'), rope(q, tok.pos), rope(k, tok.pos), v, tok, tok)
    expected = 2 * np.einsum('btnh,nhd->btd', plain, mixer.w_out[...])
    np.testing.assert_allclose(whole(mixer, x, tok), expected, atol=1e-5)


def influence(mixer, at, length):
    """How much the token `at` changes the results of each segment."""
    x, tok = draw(5, 1, length, MODEL), pj.Tokens.of(length=length)
    changed = x.copy()
    changed[:, at] += 1
    change = np.abs(whole(mixer, changed, tok) - whole(mixer, x, tok))
    return change.max((0, 2)).reshape(-1, mixer.segment).max(-1)


def test_the_memory_carries_a_token_over_two_segments_and_drops_the_oldest():
    for slots, opened, reached in ((4, True, 3), (2, True, 2), (2, False, 4)):
        mixer = make(f'rmat(segment=4, chunk=2, slots={slots})')
        if opened:  # slots are the means of their chunks, without a trace of those before
            mixer.w_gate[...], mixer.b_gate[...] = 0 * mixer.w_gate[...], 50 + 0 * mixer.b_gate[...]
        assert (influence(mixer, 1, 16) > 1e-6).tolist() == [True] * reached + [False] * (
            4 - reached
        )


@pytest.mark.full
def test_no_gradient_reaches_earlier_segments_unless_it_is_asked_for():
    for through in (False, True):
        mixer = make(f'rmat(segment=4, chunk=2, slots=4, through={through})')
        x, tok = draw(6, 1, 12, MODEL), pj.Tokens.of(length=12)
        slope = jax.jit(jax.grad(lambda x: (mixer.whole(x, tok)[:, 8:] ** 2).sum()))(jnp.asarray(x))
        assert bool(slope[:, :8].any()) == through and bool(slope[:, 8:].all())


def test_a_segment_is_half_the_trained_length_if_nothing_is_said():
    assert make('rmat(chunk=3)').segment == 4
