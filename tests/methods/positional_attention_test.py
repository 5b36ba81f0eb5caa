"""Positional attention: hand-worked weights, what they depend on, and the network of the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.attention.tiles import pair_logits
from posenc_jax.methods.positional_attention import positional_attention_projected
from posenc_jax.mixers.number_network import NumberNetwork
from tests.golden_files import golden_suite
from tests.methods.models import moved

N, H, L = 2, 4, 6


def draw(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def make(spec='positional_attention(max_len=9)', causal=False):
    encoding = pj.make(spec, heads=N, head_dim=H, causal=causal)
    encoding.parts[0].b_q[...] = draw(5, *encoding.parts[0].b_q.shape)
    return encoding


def attention(encoding, q, k, v, pos=None):
    tok = pj.Tokens.of(positions=np.arange(q.shape[1])[None] if pos is None else pos)
    return pj.attend(
        encoding, *encoding.project(q, k, v, encoding.place(tok), tok), applied=pj.TOKEN_STAGE
    )


def qkv(seed=0, rows=2):
    return [draw(seed + i, rows, L, N, H) for i in range(3)]


def by_hand(values):
    encoding = pj.make('positional_attention(max_len=2)', heads=1, head_dim=2, causal=False)
    part = encoding.parts[0]
    for name, shape in (('w_q', (2, 1, 2)), ('w_k', (2, 1, 2)), ('b_q', (1, 2))):
        getattr(part, name)[...] = jnp.array(values[name]).reshape(shape)
    return encoding, part, jnp.zeros((1, 2, 1, 2))


def logits(values):
    encoding, part, zero = by_hand(values)
    tok = pj.Tokens.of(length=2)
    _, _, _, tq, tk = encoding.project(zero, zero, zero, tok, tok)
    return pair_logits(part, zero.swapaxes(1, 2), zero.swapaxes(1, 2), tq, tk)[0][0, 0]


def weights(values):
    encoding, _, zero = by_hand(values)
    return attention(encoding, zero, zero, jnp.eye(2).reshape(1, 2, 1, 2))[0, :, 0]


test_golden = golden_suite('positional_attention', rtol=1e-6) | {
    'logits': logits,
    'weights': weights,
}


@pytest.mark.parametrize(
    'spec', ['positional_attention(max_len=9)', "positional_attention(table='sinusoidal', width=6)"]
)
def test_equals_the_formula(spec):
    encoding, (q, k, v) = make(spec), qkv()
    part, pos = encoding.parts[0], np.array([[0, 1, 2, 3, 4, 5], [5, 3, 8, 1, 1, 0]])
    exact = lambda a: np.asarray(a, np.float64)
    size = part.w_q.shape[0]
    if 'sinusoidal' in spec:
        angle = pos[..., None] * 10000.0 ** (-np.arange(size // 2) / (size // 2))
        code = np.stack([np.sin(angle), np.cos(angle)], -1).reshape(2, L, size)
    else:
        code = np.eye(size)[pos]
    of_q = np.einsum('ble,enf->bnlf', code, exact(part.w_q[...]))
    of_q += exact(part.b_q[...])[None, :, None]
    of_k = np.einsum('ble,enf->bnlf', code, exact(part.w_k[...]))
    s = of_q @ of_k.swapaxes(-1, -2) / size**0.5
    w = np.exp(s) / np.exp(s).sum(-1, keepdims=True)
    expected = np.einsum('bnts,bsnh->btnh', w, exact(v))
    np.testing.assert_allclose(attention(encoding, q, k, v, pos), expected, atol=1e-5)


@pytest.mark.full
def test_weights_do_not_depend_on_the_input():
    encoding, (q, k, v) = make(), qkv()
    out = attention(encoding, q, k, v)
    np.testing.assert_array_equal(attention(encoding, 7 * q, k + 1, v), out)
    np.testing.assert_allclose(attention(encoding, q, k, 3 * v + 1), 3 * out + 1, atol=1e-5)


def test_a_shift_of_the_keys_logits_would_change_nothing():
    """Why there is no b_k: it adds the same to every logit of a row."""
    encoding, (q, k, v) = make(), qkv()
    out = attention(encoding, q, k, v)
    encoding.parts[0].w_k[...] = encoding.parts[0].w_k[...] + draw(8, 1, N, 9)
    np.testing.assert_allclose(attention(encoding, q, k, v), out, atol=1e-6)


def test_initial_projections_are_xavier_uniform():
    w = pj.make('positional_attention(max_len=50)', heads=N, head_dim=H).w_q[...]
    bound = (6 / (50 + 2 * 50 * N)) ** 0.5
    assert 0.97 * bound < jnp.abs(w).max() <= bound and abs(w.std() / bound - 3**-0.5) < 0.02


def test_positions_beyond_the_table():
    encoding = make()
    for length in (10, 30):
        with pytest.raises(ValueError, match=f'position {length - 1} is not in 0 .. 8'):
            encoding.place(pj.Tokens.of(length=length))
    encoding.place(pj.Tokens.of(length=9))
    assert np.isnan(
        positional_attention_projected(jnp.array([[9]]), encoding.parts[0].w_q[...])
    ).all()


# The network of the paper.


def test_the_network_is_its_formula():
    network = NumberNetwork(3, standard=False, width=4, layers=1, rngs=nnx.Rngs(1))
    moved(network)
    x = draw(3, 2, 3)
    apply = lambda linear, a: a @ np.asarray(linear['w'][...]) + np.asarray(linear['b'][...])
    h = apply(network.inputs, np.pad(x, ((0, 0), (0, 1)))[..., None])
    part = network.encodings[0].parts[0]
    # e = 4 positions.
    s = np.einsum('tnf,snf->nts', part.w_q[...] + part.b_q[...], part.w_k[...]) / 2.0
    v = apply(network.attention[0]['v'], h).reshape(2, 4, 2, 2)
    summed = np.einsum('nts,bsnh->btnh', jax.nn.softmax(s), v).reshape(h.shape)
    mixed = apply(network.attention[0]['out'], summed)
    hidden = np.maximum(apply(network.mlps[0]['first'], np.concatenate([h, mixed], -1)), 0)
    expected = apply(network.outputs, apply(network.mlps[0]['second'], hidden))[:, :3, 0]
    np.testing.assert_allclose(network(x), expected, atol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize('standard', [False, True])
def test_values_of_another_size(standard):
    """The paper's claim in the small: with weights from positions nothing but the size of the
    numbers changes with it.
    """
    network = NumberNetwork(8, standard=standard, rngs=nnx.Rngs(0))  # all shifts are zero at first
    x = draw(0, 4, 8)
    error = np.abs(network(10 * x) - 10 * network(x)).max() / np.abs(10 * network(x)).max()
    assert error > 0.02 if standard else error < 1e-5


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match='3 heads do not divide a width of 64'):
        NumberNetwork(8, standard=False, heads=3, rngs=nnx.Rngs(0))
