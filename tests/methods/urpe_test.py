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
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.methods.t5_rpe import look_up, t5_bucket
from posenc_jax.methods.urpe import urpe_bucket
from tests.golden_files import golden

GOLDEN = golden('urpe')['values']
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


def test_the_numbering_of_the_release():
    rel = jnp.array(GOLDEN['key_minus_query'])
    np.testing.assert_array_equal(
        urpe_bucket(jnp.full((1, 1), 500), 500 + rel[None])[0, 0], GOLDEN['row']
    )
    used = np.unique(urpe_bucket(jnp.full((1, 1), 500), jnp.arange(1001)[None]))
    np.testing.assert_array_equal(np.setdiff1d(np.arange(65), used), GOLDEN['unused'])


def test_distances_within_a_direction_are_those_of_t5():
    pos, keys = jnp.full((1, 1), 500), jnp.arange(501)[None]
    np.testing.assert_array_equal(
        t5_bucket(pos, keys)[:, :, :500], 31 - urpe_bucket(pos, keys)[:, :, :500]
    )


@pytest.mark.full
def test_weights_are_not_normalised_again():
    _, urpe = make(TABLES[1], moved=False)
    n = urpe.max_len
    urpe.biases[...] = jnp.zeros_like(urpe.biases[...]).at[n - 2].set(GOLDEN['log_bias'])
    far, own = GOLDEN['factors']
    urpe.factors[...] = urpe.factors[...].at[n - 2].set(far).at[n - 1].set(own)
    zeros, tok = jnp.zeros((1, 2, N, H)), pj.Tokens.of(length=2)
    out = pj.attend(pj.chain(urpe, pj.make('causal()')), zeros, zeros, zeros + 1.0, tok, tok)
    np.testing.assert_allclose(out[0, 1], GOLDEN['out'], rtol=1e-6)
    np.testing.assert_allclose(out[0, 0], own, rtol=1e-6)


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
@pytest.mark.parametrize(
    'arguments, rows', zip(TABLES, (1, B)), ids=['shared positions', 'positions per row']
)
def test_gradients_equal_those_of_the_definition(arguments, rows):
    encoding, _ = make(arguments)
    graphdef, state = nnx.split(encoding)
    q, k, v = inputs(12)
    pos = np.array([np.arange(12), np.arange(12) * 2])[:rows]
    tok = pj.Tokens.of(positions=jnp.asarray(pos))
    target = jax.random.normal(jax.random.key(5), q.shape)

    def ours(state, *qkv):
        return (pj.attend(nnx.merge(graphdef, state), *qkv, tok, tok, block=(5, 4)) * target).sum()

    def theirs(state, *qkv):
        return (reference(nnx.merge(graphdef, state).parts[0], *qkv, pos) * target).sum()

    found, expected = (jax.jit(jax.grad(f, (0, 1, 2, 3)))(state, q, k, v) for f in (ours, theirs))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-5, rtol=1e-4)


@pytest.mark.full_but_one
@pytest.mark.parametrize('rows', [2, 65, 1001], ids=['small', 'by a product', 'by an indexed sum'])
def test_looking_up_in_a_table_and_its_transpose(rows):
    index = jax.random.randint(jax.random.key(0), (2, 5, 7), 0, rows)
    table, g = (
        jax.random.normal(jax.random.key(1), (rows, 3)),
        jax.random.normal(jax.random.key(2), (2, 3, 5, 7)),
    )
    found, pull = jax.vjp(lambda table: look_up(table, index), table)
    np.testing.assert_array_equal(found, np.moveaxis(np.asarray(table)[np.asarray(index)], -1, 1))
    expected = np.zeros((rows, 3))
    np.add.at(
        expected, np.asarray(index).reshape(-1), np.moveaxis(np.asarray(g), 1, -1).reshape(-1, 3)
    )
    np.testing.assert_allclose(pull(g)[0], expected, atol=1e-5)


@pytest.mark.full
def test_a_large_table_costs_no_more_memory_per_pair_than_a_small_one():
    def size(max_len):
        encoding, _ = make(f"table='toeplitz', max_len={max_len}")
        graphdef, state = nnx.split(encoding)
        tok = pj.Tokens.of(length=256)
        loss = lambda state, q: pj.attend(
            nnx.merge(graphdef, state), q, q, q, tok, tok, block=128
        ).sum()
        shape = jax.ShapeDtypeStruct((1, 256, N, H), jnp.float32)
        return (
            jax.jit(jax.grad(loss))
            .lower(state, shape)
            .compile()
            .memory_analysis()
            .temp_size_in_bytes
        )

    assert size(2048) < 1.5 * size(64)


def test_factors_of_one_are_the_bias_alone_and_zero_biases_nothing():
    _, urpe = make('std=1.0', moved=False)
    tok = pj.Tokens.of(length=L)
    t5 = pj.make('t5_rpe()', heads=N, head_dim=H)
    t5.table[...] = urpe.biases[...][
        jnp.r_[33, 30:-1:-1]
    ]  # distance 0, then 1, 2, ... before the query
    causal = pj.make('causal()')
    expected = pj.attend(pj.chain(t5, causal), *inputs(), tok, tok)
    np.testing.assert_allclose(
        pj.attend(pj.chain(urpe, causal), *inputs(), tok, tok), expected, atol=1e-6
    )
    plain, _ = make('std=0.0', moved=False)
    nope = pj.attend(pj.make('nope()', causal=True), *inputs(), tok, tok)
    np.testing.assert_allclose(pj.attend(plain, *inputs(), tok, tok), nope, atol=1e-6)


def test_equal_tokens_give_their_value_times_the_row_sum():
    """Under a bias alone they give their value whatever the bias; this is the counter-example of
    the paper.
    """
    encoding, urpe = make(causal=False)
    q, k, v = (jnp.broadcast_to(a[:, :1], a.shape) for a in inputs())
    tok = pj.Tokens.of(length=L)
    pos = tok.pos
    bias, factor = (
        look_up(table[...], urpe.index(pos, pos))[0] for table in (urpe.biases, urpe.factors)
    )
    sums = (jax.nn.softmax(bias, -1) * factor).sum(-1).T
    expected = jnp.repeat(v, N // K, axis=2) * sums[None, :, :, None]
    np.testing.assert_allclose(pj.attend(encoding, q, k, v, tok, tok), expected, atol=2e-5)
    assert np.ptp(np.asarray(sums), axis=0).min() > 0.1
    urpe.factors[...] = jnp.ones_like(urpe.factors[...])
    np.testing.assert_allclose(
        pj.attend(encoding, q, k, v, tok, tok), jnp.repeat(v, N // K, axis=2), atol=2e-6
    )


@pytest.mark.full
def test_positions_of_equal_tokens_are_learned_and_a_bias_alone_stays_at_chance():
    """No mask, no absolute position, all tokens equal: predict the own index, 1 of 32."""
    length = 32

    def trained(encoding):
        sizes = dict(
            vocab_size=length,
            train_len=length,
            layers=1,
            width=32,
            heads=4,
            kind='encoder',
            bias='all',
        )
        graphdef, params, rest = nnx.split(
            Transformer(TransformerConfig(**sizes, encoding=encoding), rngs=nnx.Rngs(0)),
            nnx.Param,
            ...,
        )
        tokens, index = jnp.zeros((1, length), jnp.int32), jnp.arange(length)
        logits = lambda params: nnx.merge(graphdef, params, rest)(tokens)[0]
        loss = lambda params: optax.softmax_cross_entropy_with_integer_labels(
            logits(params), index
        ).mean()
        optimizer = optax.adam(3e-3)

        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        params = jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), length=600)[0][0])(
            params
        )
        return float((logits(params).argmax(-1) == index).mean()), float(loss(params))

    accuracy, loss = trained('t5_rpe(bidirectional=True)')
    assert accuracy <= 2 / length and loss == pytest.approx(np.log(length), abs=0.01)
    for table in ('bucketed', 'toeplitz'):
        accuracy, loss = trained(f'urpe(table="{table}")')
        assert accuracy > 0.9, (table, accuracy, loss)


def test_wrong_input_says_what_is_wrong():
    for arguments, message in (
        ("table='bucket'", "one of 'bucketed', 'toeplitz'"),
        ('buckets=1', 'at least 2 per direction'),
        ('max_distance=16', 'must exceed the 16 exact distances of 32 buckets, got 16'),
        ('table="toeplitz", max_len=-1', 'max_len must be at least 0, got -1'),
        ('max_len=9', "max_len=9 is an argument of table='toeplitz'"),
        ('table="toeplitz", max_distance=99', "max_distance=99 are arguments of table='bucketed'"),
        ('std=-1.0', 'std must be at least 0, got -1.0'),
    ):
        with pytest.raises(ValueError, match=message):
            make(arguments)
    _, urpe = make(TABLES[1])
    tok = pj.Tokens.of(length=3)
    with pytest.raises(ValueError, match='tables for 4 heads, the queries have 2'):
        pj.attend(urpe, *[jnp.zeros((1, 3, 2, H))] * 3, tok, tok)
    with pytest.raises(ValueError, match='needs integer positions, got float32'):
        urpe.index(jnp.zeros((1, 3)), jnp.zeros((1, 3)))
