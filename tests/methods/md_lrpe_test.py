"""MD-LRPE: angles by hand, products that see coordinate differences alone, prefixes, refusals."""

import jax
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.methods.md_lrpe import md_lrpe, md_lrpe_angles, md_lrpe_frequencies
from posenc_jax.methods.rope import rope
from tests.golden_files import golden_suite
from tests.methods.pairs import draw

HEADS = dict(head_dim=8, heads=2, kv_heads=2)
GRID = np.stack(np.meshgrid(*map(np.arange, (2, 3, 2)), indexing='ij'), -1).reshape(1, -1, 3)


def make(spec):
    return pj.make(spec, **HEADS)


def theta(values):
    """The form 'cosine' gets the root of the base, which the form 'rotate' takes itself."""
    np.testing.assert_allclose(md_lrpe_frequencies(8, 3, 1000.0), values['theta'])
    return md_lrpe_frequencies(8, 3, 1000**0.5, form='cosine')


def one(x):
    return np.float32(x).reshape(1, 1, 1, -1)


def features(form):
    turns = lambda case: one(np.array(case['quarters']) * np.pi / 2)
    return lambda case: md_lrpe(one(case['x']), turns(case), form).ravel()


test_golden = golden_suite('md_lrpe', atol=1e-6) | {
    'theta': (theta, {'rtol': 1e-7}),
    'angles': (
        lambda v: md_lrpe_angles(np.array([[[1, 2, 1]]]), np.array(v['theta']), 8)[0, 0, 0],
        {'rtol': 1e-6},
    ),
    'rotated': features('rotate'),
    'cosine_of_first.features': features('cosine'),
}


@pytest.mark.parametrize('form', ['rotate', 'cosine'])
@pytest.mark.parametrize('half', ['all', 'high', 'low'])
def test_scores_see_differences_of_coordinates(form, half):
    part = make(f'md_lrpe(components=3, form={form!r}, half={half!r}, base=50.0)')
    tok, far = pj.Tokens.of(positions=GRID), pj.Tokens.of(positions=GRID + [40, 7, 3])
    q, k = draw(0, 1, 1, 2, 8).repeat(12, 1), draw(1, 1, 1, 2, 8).repeat(12, 1)
    scores = lambda tok: np.einsum('bthf,bshf->hts', part.turned(q, tok), part.turned(k, tok))
    s, width = np.float64(scores(tok)), 4 if form == 'rotate' else 8
    np.testing.assert_allclose(s, scores(far), atol=1e-5)
    plain = np.einsum('bthf,bthf->ht', q, k)
    np.testing.assert_allclose(np.diagonal(s, axis1=1, axis2=2), plain, atol=1e-5)
    # The definition, pair by pair.
    theta = np.array(part.fixed)
    assert len(theta) == -(-width // 3) and (theta == 0).any() == (half != 'all')
    delta = (GRID[0, :, None] - GRID[0]) @ np.eye(3)
    angle = (delta[..., None] * theta).reshape(12, 12, -1)[..., :width]
    if form == 'cosine':
        expected = np.einsum('thc,shc,tsc->hts', q[0], k[0], np.cos(angle))
    else:
        z = lambda a: a[0, ..., :4] + 1j * a[0, ..., 4:]
        turned = np.exp(1j * angle)
        expected = np.einsum('thc,shc,tsc->hts', z(q), z(k).conj(), turned).real
    np.testing.assert_allclose(s, expected, atol=1e-5)


def test_with_one_component_it_is_rope():
    x, tok = draw(2, 1, 5, 2, 8), pj.Tokens.of(positions=[[3, 4, 9, 100, 70000]])
    np.testing.assert_allclose(make('md_lrpe()').turned(x, tok), rope(x, tok.pos), atol=1e-6)


def test_a_prefix_has_no_angle():
    part, x = make("md_lrpe(form='cosine', prefix=2)"), draw(3, 1, 4, 2, 8)
    tok = pj.Tokens.of(positions=[[5, 6, 7, 8]])
    turned = np.asarray(part.turned(x, tok))
    np.testing.assert_array_equal(turned[:, :2], np.concatenate([x, 0 * x], -1)[:, :2])
    assert np.abs(turned[:, 2:, :, 8:]).max() > 0.1


def test_attention_with_cosine_divides_by_the_root_of_the_head_width():
    part, tok = make("md_lrpe(form='cosine') | causal()"), pj.Tokens.of(length=6)
    q, k, v = (draw(seed, 1, 6, 2, 8) for seed in (4, 5, 6))
    out = pj.attend(part, *part.project(q, k, v, tok, tok), applied=pj.TOKEN_STAGE)
    delta = np.arange(6)[:, None] - np.arange(6)
    theta = 10000.0 ** (-2 * np.arange(8) / 8)
    s = np.einsum('bthc,bshc,tsc->bhts', q, k, np.cos(delta[..., None] * theta)) / 8**0.5
    w = jax.nn.softmax(np.where(delta >= 0, s, -np.inf))
    np.testing.assert_allclose(out, np.einsum('bhts,bshv->bthv', w, v), atol=1e-5)


@pytest.mark.full
def test_trained_frequencies():
    part, tok = make('md_lrpe(learned=True, half="low")'), pj.Tokens.of(positions=[[0, 1, 2]])
    x = draw(7, 1, 3, 2, 8)
    fixed = make('md_lrpe(half="low")').turned(x, tok)
    np.testing.assert_allclose(part.turned(x, tok), fixed, atol=1e-6)
    graph, state = nnx.split(part)
    loss = lambda state: (nnx.merge(graph, state).turned(x, tok) * draw(8, 1, 3, 2, 8)).sum()
    (slope,) = jax.tree.leaves(jax.grad(loss)(state))
    assert slope.shape == (2, 4) and not slope[:, :2].any() and slope[:, 2:].all()


def test_wrong_values_are_refused():
    with pytest.raises(ValueError, match=r'needs positions \[B, L, 2\]'):
        make('md_lrpe(components=2)').turned(draw(0, 1, 3, 1, 8), pj.Tokens.of(length=3))
    with pytest.raises(ValueError, match='head_dim=8'):
        make('md_lrpe()').turned(draw(0, 1, 3, 1, 6), pj.Tokens.of(length=3))
