"""Tests of the guides whose examples are code: methods of one's own keep the laws, and models of
public shape compute with `rope()` what they compute with their own lines.
"""

import math

import jax
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.protocol import registry
from tests.documentation_test import blocks

OWN = 'log_slope', 'slow_half', 'every_other', 'shrink', 'average'


def run_own(monkeypatch, laws):
    """Executes the pages of own methods with these laws; ends with the registry as it was."""
    registry.entries()  # which loads all methods
    monkeypatch.setattr(registry, '_ENTRIES', dict(registry._ENTRIES))
    check = pj.testing.check
    monkeypatch.setattr(pj.testing, 'check', lambda spec: check(spec, laws=laws))
    scope = {}
    for page in ('own', 'own_mixer'):
        for code in blocks(f'docs/guides/{page}.md', 'python'):
            exec(code, scope)
    return scope


def test_methods_of_ones_own_keep_some_laws(monkeypatch, capsys):
    scope = run_own(monkeypatch, ('shapes', 'roles', 'decoding'))
    printed = capsys.readouterr().out
    assert printed.count(' 3 laws hold: shapes, roles, decoding\n') == len(OWN)
    assert 'rope() | log_slope() opens project, logits: 3 laws' in printed
    assert 'shrink(encoding=rope(), factor=4.0) | alibi()' in printed
    assert [key for key in OWN if key in printed] == list(OWN)
    # What their docstrings say.
    freqs, _ = scope['SlowHalf'](4.0)(8, 10000.0)
    np.testing.assert_allclose(freqs, [1.0, 0.1, 0.01 / 4, 0.001 / 4])
    with pytest.raises(pj.SpecError, match='slow_half: factor must be at least 1, got 0.5'):
        pj.make('rope(freqs=slow_half(factor=0.5))', head_dim=8)
    t = pj.Tokens.of(length=8)
    seen = pj.make('every_other(near=2, reach=6)', causal=True).mask(t, t)
    assert seen[0, 0, 7].tolist() == [False, False, False, True, False, True, True, True]
    x = jax.random.normal(jax.random.key(0), (1, 8, 1, 8))
    turned = [
        pj.make(f'{spec}', head_dim=8).project(x, x, x, t, t)[0]
        for spec in ('shrink(rope(), factor=4.0)', 'rope(freqs=pi(factor=4.0))')
    ]
    np.testing.assert_allclose(*turned, atol=1e-6)


@pytest.mark.full
def test_methods_of_ones_own_keep_all_laws(monkeypatch, capsys):
    run_own(monkeypatch, ())
    assert capsys.readouterr().out.count(' laws hold: shapes, ') == len(OWN)


@pytest.fixture(scope='module')
def models():
    scope = {}
    for code in blocks('docs/other_models.md', 'python'):
        exec(code, scope)
    return scope


def rotated(x, positions, base=10000.0):
    """The rotation of both libraries: pairs (t, t + H/2), cos and sin in float32."""
    half = x.shape[-1] // 2
    angle = positions[..., None, None] / base ** (np.arange(half) / half)
    (a, b), cos, sin = np.split(x, 2, axis=-1), np.cos(angle), np.sin(angle)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def softmax_attention(q, k, v, seen, bias=0.0):
    """Dense grouped-query attention; `seen` [B, T, S]."""
    k, v = (np.repeat(a, q.shape[2] // k.shape[2], axis=2) for a in (k, v))
    s = np.einsum('btnh,bsnh->bnts', q, k) / math.sqrt(q.shape[-1]) + bias
    s = np.where(seen[:, None], s, -1e30)
    w = np.exp(s - s.max(-1, keepdims=True))
    return np.einsum('bnts,bsnh->btnh', w / w.sum(-1, keepdims=True), v)


def test_the_model_like_maxtext_computes_what_its_own_lines_compute(models):
    x, variables = np.asarray(models['x'], np.float64), models['variables']
    positions = np.array([[0, 1, 2, 0, 1, 2, 3, 0], range(8)])
    segments = np.asarray(models['segments'])
    kernel = {name: np.asarray(of['kernel']) for name, of in variables['params'].items()}
    q, k, v = (np.einsum('bld,dnh->blnh', x, kernel[n]) for n in ('query', 'key', 'value'))
    same = segments[:, :, None] == segments[:, None]
    seen = same & np.tril(np.ones((8, 8), bool))
    out = softmax_attention(rotated(q, positions), rotated(k, positions), v, seen)
    expected = np.einsum('btnh,nhd->btd', out, kernel['out'])
    real = segments != 0
    np.testing.assert_allclose(np.asarray(models['y'])[real], expected[real], atol=2e-5)
    # The other encodings do something, and the trained one has parameters of its own.
    assert np.abs(models['y_longer'] - models['y'])[real].max() > 1e-3
    assert set(models['parameters']['encoded']['encoding']['parts']['1']) == {
        'c',
        'mult',
        'w1',
        'w2',
    }


def test_the_model_like_gemma_computes_what_its_own_lines_compute(models):
    gemma, x = models['gemma'], np.asarray(models['x'], np.float64)
    positions = np.broadcast_to(np.arange(8), (2, 8))
    norm = lambda a, of: a / np.sqrt((a**2).mean(-1, keepdims=True) + of.epsilon) * of.scale[...]
    q = norm(np.einsum('btd,dnh->btnh', x, gemma.q.kernel[...]), gemma.q_norm)
    k, v = np.einsum('btd,cdkh->cbtkh', x, gemma.kv.kernel[...])
    q, k = rotated(q, positions), rotated(norm(k, gemma.k_norm), positions)
    distance = np.arange(8)[:, None] - np.arange(8)
    bias = -(2.0 ** -np.array([2, 4, 6, 8]))[:, None, None] * distance  # alibi() of four heads
    out = softmax_attention(q, k, v, np.broadcast_to(distance >= 0, (2, 8, 8)), bias)
    expected = np.einsum('btnh,nhd->btd', out, gemma.out.kernel[...])
    np.testing.assert_allclose(models['whole'], expected, atol=2e-5)
    steps = np.concatenate(models['steps'], axis=1)
    np.testing.assert_allclose(steps, models['whole'], atol=2e-5)


def test_an_encoding_that_does_not_fit_the_cache_is_refused(models):
    from flax import nnx

    x, positions = models['x'], models['positions']
    gemma = models['GemmaLikeAttention'](64, 4, 2, 16, 'cope()', rngs=nnx.Rngs(0))
    assert gemma(x, positions)[0].shape == x.shape
    with pytest.raises(ValueError, match='feature'):
        gemma(x, positions, gemma.init_cache(2, 8))
    gemma = models['GemmaLikeAttention'](64, 4, 2, 16, 'sinusoidal()', rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="'?embed'?"):
        gemma(x, positions)
    window = 'rope(base=1000000.0, freqs=pi(factor=8.0)) | window(size=4)'
    gemma = models['GemmaLikeAttention'](64, 4, 2, 16, window, rngs=nnx.Rngs(0))
    cached, _ = gemma(x, positions, gemma.init_cache(2, 8))
    np.testing.assert_allclose(cached, gemma(x, positions)[0], atol=2e-5)
