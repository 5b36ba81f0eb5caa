"""URPE against the definition with written-out tables, the release's numbering, and the
counter-example of the paper.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.methods.t5_rpe import look_up, t5_rpe_bucket
from posenc_jax.methods.urpe import urpe_bucket
from tests.golden_files import golden_suite
from tests.methods.models import descend, model_of

B, N, K, H, L = 2, 4, 2, 8, 33
TABLES = ["table='bucketed', max_distance=20", "table='toeplitz', max_len=9"]


def make(arguments=TABLES[0], causal=True, moved=True):
    encoding = pj.make(f'urpe({arguments})', heads=N, train_len=16, causal=causal, rngs=nnx.Rngs(0))
    urpe = encoding.parts[0]
    if moved:
        for number, table in enumerate((urpe.biases, urpe.factors)):
            table[...] += jax.random.normal(jax.random.key(number + 7), table.shape)
    return encoding, urpe


def inputs(length=L):
    keys = jax.random.split(jax.random.key(1), 3)
    return tuple(jax.random.normal(key, (B, length, n, H)) for key, n in zip(keys, (N, K, K)))


def reference(urpe, q, k, v, pos, causal=True):
    """The definition, with both tables written out over the whole matrix."""
    rel = pos[:, None, :] - pos[:, :, None]
    if urpe.table == 'toeplitz':
        row = np.clip(rel, 1 - urpe.max_len, urpe.max_len - 1) + urpe.max_len - 1
    else:
        n = np.abs(rel)
        far = 16 + np.trunc(np.log(np.maximum(n, 1) / 16) / np.log(urpe.max_distance / 16) * 16)
        e = np.where(n < 16, n, np.minimum(31, far)).astype(int)
        row = np.where(rel >= 0, 33 + e, 31 - e)
    spread = lambda table: jnp.moveaxis(table[...][row], -1, 1)
    repeat = lambda a: jnp.repeat(a, N // K, axis=2)
    s = jnp.einsum('bthd,bshd->bhts', q, repeat(k)) / H**0.5 + spread(urpe.biases)
    if causal:
        s = jnp.where(np.tril(np.ones(s.shape[-2:], bool)), s, -jnp.inf)
    return jnp.einsum('bhts,bshd->bthd', jax.nn.softmax(s) * spread(urpe.factors), repeat(v))


def numbered(values):
    return urpe_bucket(jnp.full((1, 1), 500), 500 + jnp.array([values['key_minus_query']]))[0, 0]


def unused(_):
    used = np.unique(urpe_bucket(jnp.full((1, 1), 500), jnp.arange(1001)[None]))
    return np.setdiff1d(np.arange(65), used)


def second_of_two(values):
    """The result of a query with two keys of value 1; that of the first token is its own factor."""
    _, urpe = make(TABLES[1], moved=False)
    n, (far, own) = urpe.max_len, values['factors']
    urpe.biases[...] = jnp.zeros_like(urpe.biases[...]).at[n - 2].set(values['log_bias'])
    urpe.factors[...] = urpe.factors[...].at[n - 2].set(far).at[n - 1].set(own)
    zeros, tok = jnp.zeros((1, 2, N, H)), pj.Tokens.of(length=2)
    out = pj.attend(pj.chain(urpe, pj.make('causal()')), zeros, zeros, zeros + 1.0, tok, tok)
    np.testing.assert_allclose(out[0, 0], own, rtol=1e-6)
    assert np.ptp(out[0, 1]) == 0
    return out[0, 1, 0, 0]


test_golden = golden_suite('urpe') | {
    'row': numbered,
    'unused': unused,
    'out': (second_of_two, {'rtol': 1e-6}),
}


def test_distances_within_a_direction_are_those_of_t5():
    pos, keys = jnp.full((1, 1), 500), jnp.arange(500)[None]
    np.testing.assert_array_equal(t5_rpe_bucket(pos, keys), 31 - urpe_bucket(pos, keys))


@pytest.mark.full_but_one
@pytest.mark.parametrize('causal', [True, False])
@pytest.mark.parametrize('arguments', TABLES)
def test_equals_the_definition(arguments, causal):
    encoding, urpe = make(arguments, causal)
    q, k, v = inputs()
    tok = pj.Tokens.of(length=L)
    out = pj.attend(encoding, q, k, v, tok, tok, block=(5, 7))
    np.testing.assert_allclose(out, reference(urpe, q, k, v, np.arange(L)[None], causal), atol=2e-5)


@pytest.mark.full_but_one
@pytest.mark.parametrize('rows', [2, 65, 1001], ids=['small', 'by a product', 'by an indexed sum'])
def test_looking_up_in_a_table_and_its_transpose(rows):
    index = jax.random.randint(jax.random.key(0), (2, 5, 7), 0, rows)
    table = jax.random.normal(jax.random.key(1), (rows, 3))
    g = jax.random.normal(jax.random.key(2), (2, 3, 5, 7))
    found, pull = jax.vjp(lambda table: look_up(table, index), table)
    np.testing.assert_array_equal(found, np.moveaxis(np.asarray(table)[np.asarray(index)], -1, 1))
    expected = np.zeros((rows, 3))
    np.add.at(expected, np.ravel(index), np.moveaxis(np.asarray(g), 1, -1).reshape(-1, 3))
    np.testing.assert_allclose(pull(g)[0], expected, atol=1e-5)


@pytest.mark.full
def test_a_large_table_costs_no_more_memory_per_pair_than_a_small_one():
    def size(max_len):
        encoding, _ = make(f"table='toeplitz', max_len={max_len}")
        graphdef, state = nnx.split(encoding)
        tok = pj.Tokens.of(length=256)
        merged = lambda state: nnx.merge(graphdef, state)
        loss = lambda state, q: pj.attend(merged(state), q, q, q, tok, tok, block=128).sum()
        shape = jax.ShapeDtypeStruct((1, 256, N, H), jnp.float32)
        program = jax.jit(jax.grad(loss)).lower(state, shape).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert size(2048) < 1.5 * size(64)


def test_factors_of_one_are_the_bias_alone():
    tok, causal = pj.Tokens.of(length=L), pj.make('causal()')
    run = lambda encoding: pj.attend(encoding, *inputs(), tok, tok)
    ours, urpe = make('std=1.0', moved=False)
    t5 = pj.make('t5_rpe()', heads=N, head_dim=H)
    # Distance 0, then 1, 2, ... before the query.
    t5.table[...] = urpe.biases[...][jnp.r_[33, 30:-1:-1]]
    np.testing.assert_allclose(run(ours), run(pj.chain(t5, causal)), atol=1e-6)


def test_equal_tokens_give_their_value_times_the_row_sum():
    """Under a bias alone they give their value whatever the bias; this is the counter-example of
    the paper.
    """
    encoding, urpe = make(causal=False)
    q, k, v = (jnp.broadcast_to(a[:, :1], a.shape) for a in inputs())
    tok = pj.Tokens.of(length=L)
    index = urpe.index(tok.pos, tok.pos)
    bias, factor = (look_up(table[...], index)[0] for table in (urpe.biases, urpe.factors))
    sums = (jax.nn.softmax(bias, -1) * factor).sum(-1).T
    value = jnp.repeat(v, N // K, axis=2)
    run = lambda: pj.attend(encoding, q, k, v, tok, tok)
    np.testing.assert_allclose(run(), value * sums[None, :, :, None], atol=2e-5)
    assert np.ptp(np.asarray(sums), axis=0).min() > 0.1
    urpe.factors[...] = jnp.ones_like(urpe.factors[...])
    np.testing.assert_allclose(run(), value, atol=2e-6)


@pytest.mark.full
def test_positions_of_equal_tokens_are_learned_and_a_bias_alone_stays_at_chance():
    """No mask, no absolute position, all tokens equal: predict the own index, 1 of 32."""
    length = 32
    tokens, index = jnp.zeros((1, length), jnp.int32), jnp.arange(length)
    sizes = dict(vocab_size=length, train_len=length, layers=1, width=32, heads=4, bias='all')
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels

    def trained(encoding):
        model = model_of(encoding, kind='encoder', **sizes)
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)
        logits = lambda params: nnx.merge(graphdef, params, rest)(tokens)[0]
        loss = lambda params, _: cross_entropy(logits(params), index).mean()
        params, losses = descend(loss, params, steps=600, rate=3e-3)
        return float((logits(params).argmax(-1) == index).mean()), float(losses[-1])

    accuracy, loss = trained('t5_rpe(bidirectional=True)')
    assert accuracy <= 2 / length and loss == pytest.approx(np.log(length), abs=0.01)
    for table in ('bucketed', 'toeplitz'):
        accuracy, loss = trained(f'urpe(table="{table}")')
        assert accuracy > 0.9, (table, accuracy, loss)
