"""LightNet in both directions: its definition in float64, documents, grids, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.layer.sharding import make_mesh
from posenc_jax.mixers.lightnet import PIECE
from posenc_jax.mixers.lightnet_whole import lightnet_whole
from posenc_jax.protocol.errors import SpecError
from posenc_jax.testing.jaxprs import largest_array
from tests.golden_files import golden
from tests.mixers.lightnet_test import averaged
from tests.mixers.small import MODEL, draw, make, model_of, whole

PLAIN, GRID = 'lightnet_whole()', 'lightnet_whole(encoding=md_lrpe(components=2, form="cosine"))'
LONG = PIECE + 20


@pytest.mark.parametrize('name', ['equal_keys', 'rising_keys'])
def test_golden_averages(name):
    values = golden('lightnet_whole')['values']
    q = np.float32(values['q']).reshape(1, 1, 1, 2).repeat(4, 1)
    v = np.float32(values['v']).reshape(1, 4, 1, 1)
    weights = values['key_weights'] if name == 'rising_keys' else np.ones(4)
    k = np.log(np.float32(weights)).reshape(1, 4, 1, 1).repeat(2, -1)
    np.testing.assert_allclose(lightnet_whole(q, k, v).ravel(), [values[name]] * 4, rtol=1e-6)


def test_both_directions_are_one_softmax_over_the_keys():
    q, k, v = draw(5, 1, 6, 2, 3), draw(6, 1, 6, 2, 3), draw(7, 1, 6, 2, 5)
    valid = np.arange(6)[None] < 4
    out = lightnet_whole(q, k, v, valid)
    weight = np.exp(np.float64(k))[:, :4]
    state = np.einsum('bshf,bshv->bhfv', weight / weight.sum(1, keepdims=True), v[:, :4])
    np.testing.assert_allclose(out, np.einsum('bthf,bhfv->bthv', q, state), atol=1e-5)
    # The last token of the causal form sees the same keys, beside the initial term e^0.
    share = weight.sum(1) / (1 + weight.sum(1))
    last = np.einsum('bhf,bhfv->bhv', q[:, 3] * share, state)
    np.testing.assert_allclose(averaged(q, k, v)[:, 3], last, atol=1e-5)


def defined(mixer, x, positions=None):
    """The layer for one document in float64, from the weights of all keys."""
    to = lambda w: np.einsum('td,dhf->thf', x, np.float64(w[...]))
    sigmoid = lambda a: 1 / (1 + np.exp(-a))
    q, k, v = to(mixer.w_q), np.exp(to(mixer.w_k)), to(mixer.w_v)
    q, k = q * sigmoid(q), k / k.sum(0)
    if mixer.encoding is not None:
        angle = positions[:, :, None] * np.array(mixer.encoding.fixed)
        angle = angle.reshape(len(x), 1, -1)[..., : k.shape[-1]]
        q, k = (np.concatenate([a * np.cos(angle), a * np.sin(angle)], axis=-1) for a in (q, k))
    out = np.einsum('thf,shf,shv->thv', q, k, v)
    out = out / np.sqrt(np.mean(out**2, -1, keepdims=True) + 1e-6) * np.float64(mixer.scale[...])
    gate = sigmoid(np.einsum('td,dr,rhv->thv', x, mixer.w_down[...], mixer.w_up[...]))
    return np.einsum('thv,hvd->td', out * gate, np.float64(mixer.w_out[...]))


def test_a_grid_is_read_in_one_sum():
    mixer, x = make(GRID), draw(0, 1, 12, MODEL)
    cells = np.stack(np.divmod(np.arange(12), 4), axis=-1)
    out = whole(mixer, x, pj.Tokens.of(positions=cells[None]))
    np.testing.assert_allclose(out[0], defined(mixer, np.float64(x[0]), cells), atol=2e-5)
    moved = whole(mixer, x, pj.Tokens.of(positions=cells[None] + 7))
    np.testing.assert_allclose(moved, out, atol=2e-5)


def test_documents_and_padding():
    """Two documents with padding in and behind them; one is longer than a piece of the scans."""
    mixer, x = make(PLAIN), draw(1, 1, LONG, MODEL)
    valid = np.ones((1, LONG), bool)
    valid[0, [2, 40, LONG - 1]] = False
    segment = (np.arange(LONG) >= 9).astype(np.int32)[None]
    out = whole(mixer, x, pj.Tokens.of(valid=valid, segment=segment))
    for document in range(2):
        chosen = valid[0] & (segment[0] == document)
        expected = defined(mixer, np.float64(x[0, chosen]))
        np.testing.assert_allclose(np.asarray(out)[0, chosen], expected, atol=2e-5)
    alone = whole(mixer, x, pj.Tokens.of(valid=valid))
    expected = defined(mixer, np.float64(x[0, valid[0]]))
    np.testing.assert_allclose(np.asarray(alone)[0, valid[0]], expected, atol=2e-5)


@pytest.mark.full
def test_memory_is_linear_and_gradients_are_finite():
    mixer = make(PLAIN)
    loss = lambda x, tok: whole(mixer, x, tok).sum()
    for of in (lambda n: {'length': n}, lambda n: {'segment': np.zeros((1, n), np.int32)}):
        jaxprs = (
            jax.make_jaxpr(jax.grad(loss))(jnp.ones((1, n, MODEL)), pj.Tokens.of(**of(n)))
            for n in (4 * PIECE, 8 * PIECE)
        )
        small, large = map(largest_array, jaxprs)
        assert large <= 2 * small
    rows = pj.Tokens.of(segment=np.arange(LONG)[None] // 50)
    assert np.isfinite(jax.jit(jax.grad(loss))(draw(2, 1, LONG, MODEL), rows)).all()


@pytest.mark.full
@pytest.mark.skipif(len(jax.devices()) < 8, reason='needs eight emulated devices')
def test_a_mesh_changes_nothing():
    model = model_of(PLAIN, kind='encoder')
    ids = jnp.asarray(np.arange(16).reshape(2, 8) % 5)
    expected = model(ids)
    with jax.set_mesh(make_mesh(2, 1, 2, 2, devices=jax.devices()[:8])):
        graphdef, state = nnx.split(model)
        run = jax.jit(lambda state: nnx.merge(graphdef, state)(ids))
        np.testing.assert_allclose(run(state), expected, atol=1e-5)


def test_it_reads_both_sides_and_stands_in_encoders_alone():
    model = model_of(PLAIN, kind='encoder')
    ids = np.arange(8)[None] % 5
    later = ids.copy()
    later[0, -1] = 3
    assert np.abs(model(ids) - model(later))[0, 0].max() > 1e-4
    with pytest.raises(SpecError, match="lightnet_whole sees the tokens on both sides.*'encoder'"):
        model_of(PLAIN)
