"""PSC: gains worked out by hand, the base at its start, bounds, gradients, heads of their own, any
rotary part behind it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.methods.psc import psc_calibrate
from posenc_jax.protocol.encoding import Encoding
from tests.golden_files import golden
from tests.methods.models import descend, model_of, read
from tests.refusals import refused

GOLDEN = golden('psc')
N, K, H, L = 4, 2, 8, 21
BASES = [
    'rope(layout="interleaved")',
    'rope(freqs=pi(factor=4.0))',
    'rope(freqs=yarn(factor=4.0))',
    'rope(freqs=longrope(long=(1.0, 2.0, 3.0, 4.0), start=2, factor=4.0))',
    'rope(freqs=dynamic_ntk())',
    'xpos()',
    'alibi()',
]


def build(spec, *, moved=False):
    """`psc() | spec`; `moved` off the start at which it is the base."""
    encoding = pj.make(f'psc() | {spec}', heads=N, kv_heads=K, head_dim=H, train_len=8, causal=True)
    if moved:
        part = encoding.parts[0]
        for number, up in enumerate((part.q_up, part.k_up)):
            up[...] = jax.random.normal(jax.random.key(number), up.shape)
    return encoding


def vectors(seed=3):
    draw = lambda number, heads: jax.random.normal(jax.random.key(seed + number), (2, L, heads, H))
    return draw(0, N), draw(1, K), draw(2, K)


def logits(encoding, q, k, shift=0):
    tok = pj.Tokens.of(positions=jnp.arange(L)[None] + shift)
    q, k, *_ = encoding.project(q, k, k, tok, tok)
    return np.asarray(pj.functional.scaled_dot_product(q.swapaxes(1, 2), k.swapaxes(1, 2)))


def test_golden_gains():
    one = lambda name: jnp.asarray(GOLDEN[name]).reshape(-1, 1, 1)
    y = psc_calibrate(jnp.asarray(GOLDEN['x']).reshape(1, -1, 1), one('up'), one('down')).ravel()
    np.testing.assert_allclose(y, np.multiply(GOLDEN['x'], GOLDEN['gain']), atol=2e-6)


@pytest.mark.full_but_one
@pytest.mark.parametrize('base', BASES)
def test_starts_as_exactly_what_follows_and_stays_independent_of_it(base):
    q, k, v = vectors()
    tok = pj.Tokens.of(length=L)
    alone = pj.make(base, heads=N, kv_heads=K, head_dim=H, train_len=8)

    def same(encoding, *arguments):
        found = encoding.project(q, k, v, tok, tok)
        for a, b in zip(found[:3], alone.project(*arguments, tok, tok)[:3]):
            np.testing.assert_array_equal(a, b)

    same(build(base), q, k, v)
    encoding = build(base, moved=True)
    part = encoding.parts[0]
    by_q = psc_calibrate(q, part.q_up[...], part.q_down[...])
    same(encoding, by_q, psc_calibrate(k, part.k_up[...], part.k_down[...]), v)
    assert encoding.cached == alone.cached
    assert np.abs(logits(encoding, q, k) - logits(build(base), q, k)).max() > 0.1


def test_gains_are_between_a_half_and_three_halves():
    x = 1e3 * jax.random.normal(jax.random.key(0), (50, N, H))
    kernel = lambda seed, scale: scale * jax.random.normal(jax.random.key(seed), (N, H, H))
    gain = psc_calibrate(x, kernel(1, 1.0), kernel(2, 1.0)) / x
    assert 0.5 - 1e-6 <= gain.min() < 0.501 and 1.499 < gain.max() <= 1.5 + 1e-6
    inner = psc_calibrate(x * 1e-3, kernel(1, 0.1), kernel(2, 0.1)) / (x * 1e-3)
    assert 0.5 < inner.min() < 0.99 and 1.01 < inner.max() < 1.5


def test_at_the_start_only_the_first_matrix_has_a_gradient():
    encoding, (q, k, v), tok = build('rope()'), vectors(), pj.Tokens.of(length=L)
    graphdef, params, rest = nnx.split(encoding, nnx.Param, ...)

    def loss(params):
        part = nnx.merge(graphdef, params, rest)
        out = pj.attend(part, *part.project(q, k, v, tok, tok), applied=pj.TOKEN_STAGE)
        return (out**2).sum()

    gradient = nnx.to_pure_dict(jax.jit(jax.grad(loss))(params))['parts'][0]
    for side in ('q', 'k'):
        assert np.abs(gradient[f'{side}_up']).max((1, 2)).min() > 1e-3, 'every head'
        assert not np.asarray(gradient[f'{side}_down']).any()


def test_start_of_the_matrices():
    part = pj.make('psc()', heads=32, kv_heads=8, head_dim=64)
    for up, down in ((part.q_up, part.q_down), (part.k_up, part.k_down)):
        assert not up[...].any() and np.abs(down[...]).max() <= 64**-0.5
        assert np.std(down[...]) == pytest.approx(64**-0.5 / 3**0.5, rel=0.02)
    assert sum(a.size for a in jax.tree.leaves(nnx.state(part))) == 2 * (32 + 8) * 64**2


def test_every_head_has_its_own_and_key_heads_serve_their_groups():
    q, k, _ = vectors()
    before = logits(build('rope()'), q, k)
    for side, head, changed in (('q', 2, [2]), ('k', 1, [2, 3])):
        encoding = build('rope()')
        up = getattr(encoding.parts[0], f'{side}_up')
        up[...] = up[...].at[head].set(jax.random.normal(jax.random.key(7), (H, H)))
        moved = np.abs(logits(encoding, q, k) - before).max((0, 2, 3))
        assert np.flatnonzero(moved > 0.1).tolist() == changed
        assert not np.delete(moved, changed).any()


def test_before_the_rotation_logits_stay_relative_and_behind_it_they_do_not():
    """Why the order of the chain matters."""
    q, k, _ = vectors()
    encoding = build('rope()', moved=True)
    psc, rope = encoding.parts[:2]

    class Behind(Encoding):
        def project(self, *arguments):
            return psc.project(*rope.project(*arguments))

    moved = lambda part: np.abs(logits(part, q, k, shift=40) - logits(part, q, k)).max()
    assert moved(encoding) < 2e-5
    assert moved(Behind()) > 0.1


@pytest.mark.full
def test_it_learns_beside_a_frozen_model():
    """The base never changes, and the loss beyond the trained length falls; each layer learns
    matrices of its own.
    """
    spec = 'psc() | rope(freqs=pi(factor=4.0))'
    model = model_of(spec, kv_heads=1)
    tokens = jax.random.randint(jax.random.key(5), (4, 32), 0, 11)
    ours = lambda path, value: any('encodings' == part for part in path)
    graphdef, trained, frozen = nnx.split(model, ours, ...)
    assert {a.shape[:2] for a in jax.tree.leaves(trained)} == {(2, 2), (2, 1)}

    def loss(trained, _):
        logits = nnx.merge(graphdef, trained, frozen)(tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    after, losses = descend(loss, trained, steps=30, rate=0.03)
    base = model_of('rope(freqs=pi(factor=4.0))', kv_heads=1)
    for name in ('embedding', 'norm', 'output'):
        setattr(base, name, getattr(model, name))
    for name in ('attention_norm', 'attention', 'mlp_norm', 'mlp'):
        setattr(base.blocks[0], name, getattr(model.blocks[0], name))
    np.testing.assert_allclose(read(base, tokens), read(model, tokens), atol=1e-5)
    assert losses[-1] < losses[0] - 0.05
    layers = [np.asarray(a) for a in jax.tree.leaves(after)]
    assert min(np.abs(a[0] - a[1]).max() for a in layers) > 1e-3


def projected(heads, width):
    q, k, v = (a[..., :width] for a in vectors())
    tok = pj.Tokens.of(length=L)
    return lambda: build('rope()').project(q, q[:, :, :heads], v, tok, tok)


OTHER_KEYS = 'psc was built for 2 key heads of width 8, got 4 key heads of width 8'
OTHER_WIDTH = 'psc was built for 4 query heads of width 8, got 4 query heads of width 6'
test_other_sizes = refused({OTHER_KEYS: projected(4, 8), OTHER_WIDTH: projected(2, 6)})
