"""RCMHA: the convolution and tables by hand, an explicit reference, limits, documents, decoding in
the model, errors.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.lab.decoding.generate import generate
from posenc_jax.methods.rcmha import rcmha_bias, rcmha_convolution
from posenc_jax.protocol import capabilities
from tests.golden_files import golden_suite
from tests.methods.models import model_of, turned_off
from tests.refusals import refused

B, N, K, H, D, L = 2, 4, 2, 8, 12, 21
TOLERANCE = 2e-5


def build(options='max_len=32', **context):
    """Tables and u off their zeros."""
    sizes = dict(heads=N, kv_heads=K, head_dim=H, model_dim=D) | context
    encoding = pj.make(f'rcmha({options})', causal=True, rngs=nnx.Rngs(0), **sizes)
    part = encoding.parts[0]
    for number, name in enumerate(('vectors', 'scalars', 'u')):
        parameter = getattr(part, name)
        parameter[...] = 0.5 * jax.random.normal(jax.random.key(number), parameter.shape)
    return encoding


def weights(seed=7):
    """Projections with a bias, which must not leak in before the first token."""
    keys = jax.random.split(jax.random.key(seed), 6)
    draw = lambda number, *shape: jax.random.normal(keys[number], shape)
    return {
        name: (draw(2 * i, D, n, H) * D**-0.5, draw(2 * i + 1, n, H))
        for i, (name, n) in enumerate(dict(q=N, k=K, v=K).items())
    }


def draw_input(length=L):
    return jax.random.normal(jax.random.key(3), (B, length, D))


def run(encoding, x, tok, w=None, **how):
    def whole(encoding, x, tok, w):
        if tok.valid is not None:
            x = jnp.where(tok.valid[..., None], x, 0)
        rows = jnp.pad(x, ((0, 0), (encoding.lookback, 0), (0, 0)))
        linear = lambda x: [jnp.einsum('bld,dnh->blnh', x, m) + b for m, b in (w[n] for n in 'qkv')]
        q, k, v = encoding.qkv(rows, linear, tok) if encoding.opens('qkv') else linear(x)
        q, k, v, tq, tk = encoding.project(q, k, v, tok, tok, rows)
        out = pj.attend(encoding, q, k, v, tq, tk, **how, applied=pj.TOKEN_STAGE)
        return capabilities.merge(encoding, out)

    return jax.jit(whole)(encoding, x, tok, weights() if w is None else w)


def reference(part, x, w, length=L):
    """The definition: zeros before the start, [T, S, N, H] of table rows."""

    def convolved(name, number):
        y = jnp.einsum('bld,dnh->blnh', x, w[name][0]) + w[name][1]
        y = jnp.pad(y, ((0, 0), (2, 0), (0, 0), (0, 0)))
        t = part.taps[:, number]
        return part.bias[number] + t[2] * y[:, 2:] + t[1] * y[:, 1:-1] + t[0] * y[:, :-2]

    q, k, v = (convolved(name, number) for number, name in enumerate('qkv'))
    repeat = lambda a: jnp.repeat(a, N // K, axis=2)
    distance = np.arange(length)[:, None] - np.arange(length)[None]
    row = np.clip(distance, 0, len(part.vectors[...]) - 1)
    s = jnp.einsum('bihd,bjhd->bhij', q + part.u[...], repeat(k))
    s += jnp.einsum('bihd,ijhd->bhij', q, part.vectors[...][row])
    s += jnp.moveaxis(part.scalars[...][row], -1, 0)
    p = jax.nn.softmax(jnp.where(distance >= 0, s / H**0.5, -jnp.inf), axis=-1)
    return jnp.einsum('bhij,bjhd->bihd', p, repeat(v))


def convolved(golden):
    """What lies before the first token of a document does not count."""
    y = jnp.array([7.0, 7.0, *golden['y']]).reshape(1, -1, 1, 1)
    taps, bias = jnp.array(golden['taps'])[:, None], jnp.array([golden['bias']])
    run = lambda y, rank: rcmha_convolution(y, taps, bias, jnp.array([rank]))
    restarted, alone = run(y, [0, 1, 0, 1, 2]), run(y[:, 2:], range(3))
    np.testing.assert_allclose(restarted[:, 2:], alone, atol=1e-6)
    return run(y, range(5)).ravel()


def plain_taps(part, *others):
    """Only the token itself is read, and these variables are zero."""
    for variable in (part.vectors, part.u, part.bias, *others):
        turned_off(variable)
    part.taps[...] = jnp.broadcast_to(jnp.array([0.0, 0.0, 1.0])[:, None, None], part.taps.shape)


def weights_of_the_table(values):
    """The weights of the last query, which blocks of every size give alike."""
    encoding = build('max_len=3', heads=1, kv_heads=1, head_dim=1, model_dim=1)
    part, zero, tok = encoding.parts[0], jnp.zeros((1, 3, 1, 1)), pj.Tokens.of(length=3)
    plain_taps(part)
    part.scalars[...] = jnp.array(values['scalars'])[:, None]
    rows = jnp.eye(3)[None, :, None]
    q, k, _, tq, tk = encoding.project(zero, zero, zero, tok, tok, None)
    run = lambda block: pj.attend(encoding, q, k, rows, tq, tk, block=block, applied=pj.TOKEN_STAGE)
    three, two, one = (run(block)[0, 2, 0] for block in (3, 2, 1))
    np.testing.assert_allclose([two, one], [values['probabilities']] * 2, atol=1e-6)
    return three


test_golden = golden_suite('rcmha', atol=1e-6) | {
    'convolution.z': convolved,
    'probabilities': weights_of_the_table,
}


@pytest.mark.full_but_one
@pytest.mark.parametrize('options', ['max_len=32', 'max_len=100', 'max_len=6, clip=True'])
def test_values_and_gradients_equal_reference(options):
    graphdef, params, rest = nnx.split(build(options), nnx.Param, ...)
    aim, x, w = jax.random.normal(jax.random.key(9), (B, L, N, H)), draw_input(), weights()

    def both(function):
        loss = lambda params, x, w: (function(nnx.merge(graphdef, params, rest), x, w) * aim).sum()
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(params, x, w)

    ours = both(lambda e, x, w: run(e, x, pj.Tokens.of(length=L), w, block=(8, 5)))
    theirs = both(lambda e, x, w: reference(e.parts[0], x, w))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=TOLERANCE * max(1.0, float(jnp.abs(b).max())))


def test_a_tap_of_one_and_no_tables_are_plain_attention():
    encoding, x = build(), draw_input()
    plain_taps(encoding.parts[0], encoding.parts[0].scalars)
    tok = pj.Tokens.of(length=L)
    expected = run(pj.make('nope()', causal=True), x, tok)
    np.testing.assert_allclose(run(encoding, x, tok), expected, atol=2e-6)


@pytest.mark.full
def test_jumps_in_positions_read_the_whole_table():
    """Distances of a block that are no run: the same rows as one by one."""
    q = jax.random.normal(jax.random.key(0), (1, 2, 3, 4))
    vectors = jax.random.normal(jax.random.key(1), (50, 2, 4))
    scalars = jax.random.normal(jax.random.key(2), (50, 2))
    for q_pos in ([40, 41, 42], [11, 20, 49]):
        distance = jnp.array(q_pos)[None, :, None] - jnp.array([0, 1, 10])
        bias = rcmha_bias(q, vectors, scalars, distance, jnp.ones(distance.shape, bool))
        expected = jnp.einsum('bnth,tsnh->bnts', q, vectors[distance[0]])
        expected += jnp.moveaxis(scalars[distance[0]], -1, 0)
        np.testing.assert_allclose(bias, expected, atol=1e-6)


def test_the_convolution_brings_earlier_tokens_where_attention_looks_at_one():
    """Forced onto itself by c, a token still knows the two before it, and no others."""
    encoding, x = build(), draw_input()
    encoding.parts[0].scalars[...] = jnp.zeros((32, N)).at[0].set(500.0)
    out, token = run(encoding, x, pj.Tokens.of(length=L)), 9
    other = run(encoding, x.at[:, token].add(1.0), pj.Tokens.of(length=L))
    moved = np.abs(other - out).max((0, 2, 3)) > 1e-5
    np.testing.assert_array_equal(moved, np.isin(np.arange(L), [token, token + 1, token + 2]))


@pytest.mark.full
def test_a_model_decodes_what_it_reads():
    sizes = dict(train_len=16, heads=4, kv_heads=2, bias='qkv')
    model = model_of('rcmha(max_len=16)', **sizes)
    for block in model.blocks:
        for parameter in (block.attention.b_q, block.attention.b_k, block.attention.b_v):
            parameter[...] = jax.random.normal(jax.random.key(parameter.ndim), parameter.shape)
    prompts = jax.random.randint(jax.random.key(1), (2, 5), 0, 11)
    valid = jnp.ones((2, 5), bool).at[1, :2].set(False)
    out = generate(model, prompts, max_new_tokens=6, temperature=0.0, valid=valid)
    tok = pj.Tokens.of(valid=jnp.concatenate([valid, jnp.ones((2, 6), bool)], axis=1))
    logits = jax.jit(lambda model: model(out, tok))(model)
    np.testing.assert_array_equal(logits.argmax(-1)[:, 4:-1], out[:, 5:])


def projected(q):
    return build().project(q, q, q, *[pj.Tokens.of(length=3)] * 2)


test_wrong_input = refused() | {
    'tables for 16 distances, got 21 positions': (
        lambda: run(build('max_len=16'), draw_input(), pj.Tokens.of(length=L))
    ),
    'tables for 4 heads, queries have 2': lambda: projected(jnp.zeros((1, 3, 2, H))),
    '2 tokens in front: 3 tokens, the layer input of 3$': (
        lambda: build().qkv(jnp.zeros((1, 3, D)), None, pj.Tokens.of(length=3))
    ),
}


@pytest.mark.full
def test_a_distance_beyond_the_tables_is_not_passed_over():
    encoding = build('max_len=16')
    packed = pj.Tokens.of(segment=jnp.zeros((1, L), int))  # documents of unknown length
    out = run(encoding, draw_input(), packed)
    assert np.isnan(out[:, 16:]).all() and np.isfinite(out[:, :16]).all()
