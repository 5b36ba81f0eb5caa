"""Dynamic position encoding: the loss by hand, the layers against numpy, and what reads the order
of the target.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.lab.tasks.translation import Translation
from posenc_jax.methods.dpe import DPE, dpe_loss, ordering_layer
from posenc_jax.methods.sinusoidal import sinusoidal_table
from tests.golden_files import golden, golden_suite
from tests.methods.models import model_of
from tests.methods.pairs import draw
from tests.refusals import refused

GOLDEN = golden('dpe')['values']
B, L, D, N, H = 2, 6, 8, 2, 4
PI = np.array([[0, 5, 1, 2, 3, 4], [3, 2, 1, 0, 4, 5]])
VALID = np.array([[True] * 6, [True] * 4 + [False] * 2])


def make(arguments='', **more):
    sizes = dict(heads=N, head_dim=H, model_dim=D, rngs=nnx.Rngs(0)) | more
    return pj.make(f'dpe({arguments})', **sizes)


def tokens(pi=PI, valid=None, segment=None):
    pos = np.stack(np.broadcast_arrays(np.arange(pi.shape[1]), pi), axis=-1)
    return pj.Tokens.of(positions=pos, valid=valid, segment=segment)


order = jax.jit(lambda encoding, x, tok: encoding.order(x, tok))
loss = jax.jit(lambda encoding, x, tok: encoding.auxiliary_loss(x, tok, key=None))


# The loss.


def layer_by_hand():
    """With the identity as feed-forward network and no attention, of (3, 1): the norm is (1, -1),
    relu makes (2, -1) of it, and the norm of that and a bias of 1 are (2, 0).
    """
    one, zero = jnp.ones(2), jnp.zeros(2)
    weights = dict.fromkeys(('w_q', 'w_k', 'w_v'), jnp.zeros((2, 1, 2)))
    weights |= dict(w_out=jnp.zeros((1, 2, 2)), w_in=jnp.eye(2), w_back=jnp.eye(2))
    weights |= dict(b_in=zero, b_back=zero, scale_1=one, bias_1=zero, scale_2=one, bias_2=one)
    x = jnp.array([[GOLDEN['layer']['x']]])
    return ordering_layer(x, pj.Tokens.of(length=1), weights)[0, 0]


test_golden = golden_suite('dpe') | {
    'loss_of_zero': (lambda: dpe_loss(jnp.zeros((B, L, D)), jnp.asarray(PI)), {'atol': 1e-7}),
    'loss.value': (
        lambda golden: dpe_loss(jnp.array([golden['o']]), jnp.array([golden['pi']])),
        {'atol': 1e-6},
    ),
    'layer.out': (layer_by_hand, {'atol': 1e-5}),
}


def test_the_target_itself_has_no_loss():
    o = sinusoidal_table(jnp.asarray(PI), D)
    assert float(dpe_loss(o, jnp.asarray(PI))) == 0.0
    assert float(dpe_loss(o, jnp.asarray(PI[:, ::-1]))) > 0.1


@pytest.mark.full_but_one
@pytest.mark.parametrize('lam', [0.5, 0.25, 1.0])
def test_the_term_weighs_against_a_cross_entropy_of_one(lam):
    encoding, x = make(f'lam={lam}, layers=1'), draw(0, B, L, D)
    o = np.asarray(order(encoding, x, tokens()), np.float64)
    angle = PI[..., None] * 10000.0 ** (-np.arange(0, D, 2) / D)
    target = np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(B, L, D)
    expected = (1 - lam) / lam * ((o - target) ** 2).mean()
    np.testing.assert_allclose(loss(encoding, x, tokens()), expected, rtol=1e-5, atol=1e-7)


# The layers.


@pytest.mark.full_but_one
@pytest.mark.parametrize('order_input_pe', [True, False])
def test_the_layers_against_numpy(order_input_pe):
    encoding, x = make(f'order_input_pe={order_input_pe}'), draw(0, B, L, D)
    for name in ('b_in', 'b_back', 'bias_1', 'bias_2', 'scale_1', 'scale_2'):
        parameter = getattr(encoding, name)
        parameter[...] = parameter[...] + 0.3 * draw(len(name), *parameter.shape)
    out = np.asarray(encoding.embed(x, tokens(valid=VALID)))
    get = lambda name, layer: np.asarray(getattr(encoding, name)[...], np.float64)[layer]

    def norm(y, scale, bias):
        return (y - y.mean(-1, keepdims=True)) / y.std(-1, keepdims=True) * scale + bias

    for row, count in enumerate(VALID.sum(1)):
        y = x[row, :count].astype(np.float64)
        if order_input_pe:
            angle = np.arange(count)[:, None] * 10000.0 ** (-np.arange(0, D, 2) / D)
            y = y + np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(count, D)
        for layer in range(2):
            q, k, v = (
                np.einsum('ld,dnh->nlh', y, get(name, layer)) for name in ('w_q', 'w_k', 'w_v')
            )
            s = np.exp(q @ k.swapaxes(1, 2) / H**0.5)
            mixed = s / s.sum(-1, keepdims=True) @ v
            y = y + np.einsum('nlh,nhd->ld', mixed, get('w_out', layer))
            y = norm(y, get('scale_1', layer), get('bias_1', layer))
            hidden = np.maximum(y @ get('w_in', layer) + get('b_in', layer), 0)
            y = y + hidden @ get('w_back', layer) + get('b_back', layer)
            y = norm(y, get('scale_2', layer), get('bias_2', layer))
        np.testing.assert_allclose(out[row, :count], x[row, :count] + y, atol=1e-4)
        np.testing.assert_array_equal(out[row, count:], x[row, count:])


# Who reads what.


def test_nothing_but_the_loss_reads_the_order_of_the_target():
    encoding, x = make('layers=1'), draw(0, B, L, D)
    out = order(encoding, x, tokens())
    np.testing.assert_array_equal(out, order(encoding, x, tokens(PI[:, ::-1])))
    np.testing.assert_array_equal(out, order(encoding, x, pj.Tokens.of(length=L)))
    change = float(loss(encoding, x, tokens())) - float(loss(encoding, x, tokens(PI[:, ::-1])))
    assert abs(change) > 1e-3


def test_padding_does_not_change_the_loss():
    encoding, x = make(), draw(0, B, L, D)
    padded = loss(encoding, x, tokens(valid=VALID))
    other = np.where(VALID[..., None], x, 50.0)
    wrong = np.where(VALID, PI, 999)
    np.testing.assert_allclose(loss(encoding, other, tokens(wrong, VALID)), padded, rtol=1e-6)
    alone = [
        loss(encoding, x[i : i + 1, :n], tokens(PI[i : i + 1, :n])) for i, n in ((0, 6), (1, 4))
    ]
    np.testing.assert_allclose((6 * alone[0] + 4 * alone[1]) / 10, padded, rtol=1e-5)
    wide = lambda a: np.pad(a, [(0, 0), (0, 3), *[(0, 0)] * (a.ndim - 2)])
    wider = loss(encoding, wide(x), tokens(wide(PI), wide(VALID)))
    np.testing.assert_allclose(wider, padded, rtol=1e-5)


@pytest.mark.full
def test_the_order_of_the_target_is_learned():
    """Words with the numbers of their places, in any order: pi follows from the word alone."""
    encoding, table = make('layers=1'), draw(0, L, D)
    rng = np.random.default_rng(0)
    graphdef, params = nnx.split(encoding, nnx.Param)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state, pi):
        value = lambda params: nnx.merge(graphdef, params).auxiliary_loss(
            jnp.asarray(table)[pi], pj.Tokens.of(positions=jnp.stack([jnp.zeros_like(pi), pi], -1))
        )
        found, gradient = jax.value_and_grad(value)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, found

    state, losses = optimizer.init(params), []
    for _ in range(100):
        pi = jnp.asarray(rng.permuted(np.tile(np.arange(L), (8, 1)), axis=1))
        params, state, found = step(params, state, pi)
        losses.append(float(found))
    assert losses[-1] < 0.02 < 0.3 < losses[0]


@pytest.mark.full
def test_the_source_of_a_translation_is_read_with_and_without_alignments():
    task = Translation(words=16, alignments=True)
    batch = task.sample(np.random.default_rng(0), 3, L)
    sizes = dict(train_len=L, source_len=L, layers=1, source_layers=2, width=D, heads=N)
    words = dict(vocab_size=task.vocab_size, source_size=task.source_size)
    kind = dict(kind='encoder_decoder', source_encoding='dpe(layers=1)')
    model = model_of('sinusoidal()', **sizes, **words, **kind)
    source = jnp.asarray(batch['source'])
    read = lambda tok: np.asarray(model.encoded(source, tok).x)
    given = pj.Tokens.of(positions=batch['source_positions'])
    np.testing.assert_array_equal(read(given), read(pj.Tokens.of(length=L)))
    (part,) = (part for part in model.encoder.shared if isinstance(part, DPE))
    x = model.encoder.embedding[...][source] * model.cfg.embedding_scale
    assert 0 < float(part.auxiliary_loss(x, given, key=None)) < 5


# Wrong input.


def embed(width, positions):
    tok = pj.Tokens.of(positions=positions)
    return make('layers=1').embed(jnp.zeros((1, 2, width)), tok)


test_wrong_calls = refused() | {
    r'dpe trains with positions \[B, L, 2\].*alignments': lambda: make('layers=1').auxiliary_loss(
        jnp.zeros((1, L, D)), pj.Tokens.of(length=L), key=None
    ),
    r'dpe needs positions \[B, L\].* got \(1, 2, 3\)': lambda: embed(D, [[[0, 1, 2], [1, 0, 2]]]),
    'width 8, got 9': lambda: embed(D + 1, [[0, 1]]),
}
