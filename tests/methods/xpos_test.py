"""xPos: the sheet's factors, its limits, and positions where the released form overflows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.attention.tiles import pair_logits
from posenc_jax.methods.rope import rope
from posenc_jax.methods.xpos import xpos_decay
from tests.golden_files import golden, golden_suite

GOLDEN = golden('xpos')['values']


def logits(spec, q, k, pos, **context):
    """Logits [T, S] of one head from one tile."""
    part, tok = pj.make(spec, head_dim=q.shape[-1], **context), pj.Tokens.of(positions=pos)
    q, k, _, tq, tk = part.project(q, k, k, tok, tok)
    s, _, _ = pair_logits(part, q.swapaxes(1, 2), k.swapaxes(1, 2), tq, tk)
    return np.asarray(s[0, 0])


def draw(length, width=64):
    return [jax.random.normal(jax.random.key(i), (1, length, 1, width)) for i in range(2)]


test_golden = golden_suite('xpos', atol=6e-8) | {
    'zeta': lambda values: xpos_decay(64)[values['planes']],
    'factor_at_1024': lambda values: xpos_decay(64)[values['planes']] ** 2,
}


@pytest.mark.full_but_one
@pytest.mark.parametrize('layout', ['half', 'interleaved'])
def test_one_plane_fades_by_its_factor(layout):
    pos = jnp.asarray([[0, 512, 1536]])  # the factor of a key counts from the tile's first query
    for plane, factor in zip(GOLDEN['planes'], GOLDEN['factor_at_1024']):
        features = [plane, plane + 32] if layout == 'half' else [2 * plane, 2 * plane + 1]
        only = np.isin(np.arange(64), features).astype(np.float32)
        q, k = (a * only for a in draw(3))
        at = lambda key, q=q, k=k: logits(f'{key}(layout="{layout}")', q, k, pos)[2, 1]
        assert at('xpos') == pytest.approx(factor * at('rope'), rel=1e-5)


@pytest.mark.full
def test_limits_are_rope():
    (q, k), pos = draw(6), jnp.arange(6)[None]
    plain = logits('rope()', q, k, pos)
    np.testing.assert_allclose(np.diag(logits('xpos()', q, k, pos)), np.diag(plain), atol=1e-5)


@pytest.mark.full
def test_equals_the_released_form_where_that_does_not_overflow():
    (q, k), pos = draw(40), 3 * jnp.arange(40)[None]
    zeta, offset = np.concatenate([xpos_decay(64)] * 2), (np.asarray(pos[0]) - 60)[:, None] / 512
    turned = lambda a, exponent: np.asarray(rope(a, pos))[0, :, 0] * zeta**exponent
    q2, k2 = turned(q, offset), turned(k, -offset)
    np.testing.assert_allclose(logits('xpos()', q, k, pos), q2 @ k2.T / 8, atol=2e-5)


@pytest.mark.full
def test_far_positions_neither_overflow_nor_change_logits():
    (q, k), near = draw(40), jnp.arange(40)[None]
    far = logits('xpos()', q, k, near + 1_000_000)
    np.testing.assert_allclose(far, logits('xpos()', q, k, near), atol=1e-5)
    spread = 500 * near  # 20,000 positions in one tile
    seen = np.tril(logits('xpos()', q, k, spread))
    assert np.isfinite(seen).all() and np.abs(np.tril(seen, -1)).max() < np.abs(np.diag(seen)).max()
