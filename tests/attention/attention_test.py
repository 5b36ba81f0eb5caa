"""The one attention: against `jax.nn.dot_product_attention`, at every edge, and what it skips."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.base.products import scaled_dot_product
from posenc_jax.methods.alibi import alibi_bias
from posenc_jax.protocol.capabilities import Carries, first_carry
from posenc_jax.protocol.encoding import Constant, Encoding
from posenc_jax.protocol.errors import SpecError

HEADS, WIDTH = 4, 8
BLOCKS = [None, (1, 1), (4, 4), (8, 3), 64]


def draw(seed, length, *, heads=HEADS, batch=2, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), (batch, length, heads, WIDTH), dtype)


def qkv(queries, keys=None, kv_heads=2, **options):
    keys = queries if keys is None else keys
    return (
        draw(0, queries, **options),
        draw(1, keys, heads=kv_heads, **options),
        draw(2, keys, heads=kv_heads, **options),
    )


def close(a, b, tolerance=2e-5):
    np.testing.assert_allclose(
        np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=0, atol=tolerance
    )


def biased(q, k, v, tq, tk, mask):
    """The reference: a dense bias given to JAX's own attention, keys repeated by it for grouped
    queries.
    """
    bias = alibi_bias(jnp.asarray([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8]), tq.pos, tk.pos)
    return jax.nn.dot_product_attention(q, k, v, bias=bias, mask=mask)


def with_gradients(function, *arguments):
    """The value, and the gradients for a fixed cotangent, of one compiled function."""

    def both(*arguments):
        out, pull = jax.vjp(function, *arguments)
        return out, *pull(
            jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape).astype(out.dtype)
        )

    return jax.jit(both)(*arguments)


@pytest.mark.full_but_one
@pytest.mark.parametrize('kv_heads, causal', [(1, False), (2, True), (4, True)])
@pytest.mark.parametrize('block', BLOCKS, ids=str)
def test_equals_dot_product_attention_with_bias_and_mask(block, kv_heads, causal):
    q, k, v = qkv(13, kv_heads=kv_heads)
    valid = np.ones((2, 13), bool)
    valid[1, 9:] = False
    tok = pj.Tokens.of(segment=np.repeat([[0, 1], [5, 6]], [6, 7], axis=1), valid=valid)
    encoding = pj.make('alibi()', heads=HEADS, causal=causal)
    seen = (tok.segment[:, :, None] == tok.segment[:, None, :]) & valid[:, None, :]
    seen = seen & np.tril(np.ones((13, 13), bool)) if causal else seen
    ours = lambda q, k, v: (
        pj.attend(encoding, q, k, v, tok, tok, block=block) * valid[:, :, None, None]
    )
    theirs = lambda q, k, v: biased(q, k, v, tok, tok, seen[:, None]) * valid[:, :, None, None]
    for mine, other in zip(
        with_gradients(ours, q, k, v), with_gradients(theirs, q, k, v), strict=True
    ):
        close(mine, other)


@pytest.mark.full_but_one
@pytest.mark.parametrize('queries, keys', [(1, 11), (3, 11), (11, 11), (1, 1), (7, 5)])
@pytest.mark.parametrize('block', [None, (4, 4), (2, 5)], ids=str)
def test_queries_and_keys_of_different_number(queries, keys, block):
    q, k, v = qkv(queries, keys)
    tk = pj.Tokens.of(length=keys)
    tq = pj.Tokens.of(length=max(queries, keys)).slice(max(queries, keys) - queries, queries)
    mask = (tk.index[:, None, :] <= tq.index[:, :, None])[:, None]
    encoding = pj.make('alibi()', heads=HEADS, causal=True)
    out = jax.jit(functools.partial(pj.attend, block=block))(encoding, q, k, v, tq, tk)
    close(out, biased(q, k, v, tq, tk, mask))


@pytest.mark.parametrize('block', [None, (4, 4)], ids=str)
def test_the_layout_of_the_cache_gives_the_same(block):
    (q, k, v), tok, encoding = (
        qkv(9),
        pj.Tokens.of(length=9),
        pj.make('alibi()', heads=HEADS, causal=True),
    )
    first = lambda a: jnp.swapaxes(a, 1, 2)
    close(
        pj.attend(encoding, q, first(k), first(v), tok, tok, heads_first=True, block=block),
        pj.attend(encoding, q, k, v, tok, tok, block=block),
        1e-6,
    )


@pytest.mark.parametrize('block', [None, (4, 4)], ids=str)
def test_rows_that_see_nothing_give_zeros_and_finite_gradients(block):
    q, k, v = qkv(10)
    valid = np.ones((2, 10), bool)
    valid[0, :6] = False  # left padding: the first six queries see no key
    valid[1] = False  # a row of padding alone
    tok, encoding = pj.Tokens.of(valid=valid), pj.make('alibi()', heads=HEADS, causal=True)
    out, *gradients = with_gradients(
        lambda *a: pj.attend(encoding, *a, tok, tok, block=block), q, k, v
    )
    assert (
        not np.asarray(out[0, :6]).any() and not np.asarray(out[1]).any() and np.isfinite(out).all()
    )
    assert np.abs(out[0, 6:]).max() > 0.1
    for gradient in gradients:
        assert np.isfinite(gradient).all() and not np.asarray(gradient)[~valid].any()


@pytest.mark.full_but_one
@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_low_precision_keeps_its_type_and_float32_logits(dtype):
    q, k, v = qkv(17, dtype=dtype)
    tok, encoding = pj.Tokens.of(length=17), pj.make('alibi()', heads=HEADS, causal=True)
    out = pj.attend(encoding, q, k, v, tok, tok, block=(4, 8))
    exact = pj.attend(encoding, *(a.astype(jnp.float32) for a in (q, k, v)), tok, tok)
    assert out.dtype == dtype
    close(out, exact, 0.03)
    # Logits this large differ by less than one in bfloat16's steps of 2; float32 logits tell them
    # apart.
    q, k = (
        jnp.full((1, 1, 1, 4), 16, dtype),
        jnp.asarray([[[[16] * 4], [[16] * 3 + [15.9375]]]], dtype),
    )
    v = jnp.asarray([[[[1.0] * 4], [[0.0] * 4]]], dtype)
    t = pj.Tokens.of(length=2)
    weight = pj.attend(Encoding(), q, k, v, t.slice(1, 1), t)[0, 0, 0, 0]
    close(weight, jax.nn.sigmoid(16 * 0.0625 / 2), 5e-3)


def test_huge_logits_do_not_overflow():
    (q, k, v), tok = qkv(12), pj.Tokens.of(length=12)
    encoding = pj.make('nope()', causal=True)
    out = pj.attend(encoding, 1e4 * q, 1e4 * k, v, tok, tok, block=(4, 4))
    mask = np.tril(np.ones((12, 12), bool))[None, None]
    close(out, jax.nn.dot_product_attention(1e4 * q, 1e4 * k, v, mask=mask))


# What is never visible is never read.


def planted(keys, poisoned):
    """Keys and values that are NaN where a query of the test may not look."""
    k, v = draw(1, keys, heads=2), draw(2, keys, heads=2)
    where = np.zeros(keys, bool)
    where[poisoned] = True
    return (jnp.where(where[:, None, None], jnp.nan, a) for a in (k, v)), where


@pytest.mark.full_but_one
@pytest.mark.parametrize(
    'spec, poisoned',
    [
        ('nope()', slice(24, 32)),
        ('window(size=5)', slice(0, 8)),
        ('window(size=5)', slice(24, 32)),
        ('alibi() | window(size=9)', slice(24, 32)),
    ],
)
def test_blocks_that_no_query_may_see_are_skipped(spec, poisoned):
    """A NaN in a tile poisons it even where its weight is zero, so a finite result means the tile
    was not visited.
    """
    (k, v), where = planted(32, poisoned)
    tk = pj.Tokens.of(length=32)
    tq, q = tk.slice(16, 8), draw(0, 8)
    encoding = pj.make(spec, heads=HEADS, causal=True)
    run = lambda q, k, v, **options: pj.attend(encoding, q, k, v, tq, tk, **options)
    clean = lambda a: jnp.where(where[:, None, None], 0, a)
    out, *gradients = with_gradients(functools.partial(run, block=(4, 4)), q, k, v)
    close(out, jax.jit(run)(q, clean(k), clean(v)), 1e-5)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert not np.asarray(gradients[1])[:, where].any()
    dense = jax.jit(functools.partial(run, implementation='dense'))(q, k, v)
    assert np.isnan(dense).any()  # the plant would show


def test_blocks_of_other_documents_and_of_padding_are_skipped():
    (k, v), _ = planted(16, slice(0, 8))
    q, encoding = draw(0, 8), pj.make('nope()', causal=True)
    documents = pj.Tokens.of(segment=np.repeat([[0, 1]], 8, axis=1))
    padding = pj.Tokens.of(valid=np.repeat([[False, True]], 8, axis=1))
    for tk in (documents, padding):
        run = jax.jit(functools.partial(pj.attend, block=(4, 4)))
        assert np.isfinite(run(encoding, q, k, v, tk.slice(8, 8), tk)).all()


def test_empty_slots_of_the_last_block_are_not_keys():
    """Eleven keys in blocks of four: the filler is neither seen nor counted."""
    q, k, v = qkv(11)
    tok = pj.Tokens.of(length=11)
    out = pj.attend(pj.make('nope()', causal=False), q, k, v, tok, tok, block=(4, 4))
    close(out, jax.nn.dot_product_attention(q, k, v))


# The doors.


class Recorder(Carries):
    """Carries what it has met: the sweep goes from near to far, through every visible block,
    once.
    """

    def first_carry(self, q, tq):
        return {'last': jnp.full(q.shape[:3], jnp.inf), 'count': jnp.zeros(q.shape[:3])}

    def logits(self, s, q, k, tq, tk, seen, carry):
        seen = jnp.broadcast_to(seen, s.shape)
        index = tk.index[:, None, None, :].astype(jnp.float32)
        high = jnp.where(seen, index, -jnp.inf).max(-1)
        low = jnp.where(seen, index, jnp.inf).min(-1)
        near_to_far = high < carry['last']
        bad = jnp.where(seen.any(-1) & ~near_to_far, jnp.nan, 0.0)
        carry = {'last': jnp.minimum(carry['last'], low), 'count': carry['count'] + seen.sum(-1)}
        return s + carry['count'][..., None] + bad[..., None], carry


@pytest.mark.parametrize('block', [(4, 4), (3, 5), (16, 2)], ids=str)
def test_keys_are_swept_from_near_to_far(block):
    (q, k, v), tok = qkv(14), pj.Tokens.of(length=14)
    out = jax.jit(functools.partial(pj.attend, block=block))(
        pj.make(Recorder(), causal=True), q, k, v, tok, tok
    )
    assert np.isfinite(out).all()
    # The running count at key j, in blocks of block[1], is the number of visible keys from j's
    # block on.
    index = np.arange(14)
    count = np.maximum(index[:, None] - index[None, :] // block[1] * block[1] + 1, 0).astype(
        np.float32
    )
    bias = np.broadcast_to(count, (1, HEADS, 14, 14))
    close(
        out,
        jax.nn.dot_product_attention(
            q, k, v, bias=jnp.asarray(bias), mask=np.tril(np.ones((14, 14), bool))[None, None]
        ),
    )


class Learned(Carries):
    """Parameters and features that the pair stage reads, a collect of its own, and integers that
    have no gradient.
    """

    def __init__(self, scale):
        from flax import nnx

        self.scale = nnx.Param(jnp.asarray(scale, jnp.float32), axes=('heads',))
        self.offset = Constant(jnp.arange(HEADS))

    def project(self, q, k, v, tq, tk, x=None):
        return (
            q,
            k,
            v,
            tq.with_feats(own=q[..., 0]),
            tk.with_feats(own=jnp.repeat(k[..., 1], HEADS // k.shape[2], 2)),
        )

    def first_carry(self, q, tq):
        return jnp.zeros(q.shape[:3])

    def logits(self, s, q, k, tq, tk, seen, carry):
        gate = jnp.where(seen, jax.nn.sigmoid(s), 0.0)
        inside = jnp.cumsum(gate[..., ::-1], -1)[..., ::-1]
        scale = (self.scale[...] + self.offset[...])[:, None, None]
        own = (
            jnp.swapaxes(tq.feats['own'], 1, 2)[..., :, None]
            * jnp.swapaxes(tk.feats['own'], 1, 2)[..., None, :]
        )
        return s + scale * jnp.tanh(inside + carry[..., None]) + own, carry + inside[..., 0]

    def collect(self, w, v, tq, tk):
        return super().collect(w * (1 + tq.feats['own'].mean(-1)[:, None, :, None] ** 2), v, tq, tk)

    def rescale(self, out, lse, tq):
        share = jax.nn.sigmoid(lse - self.scale[...] * tq.feats['own'])
        return out * share[..., None]


def plain(encoding, q, k, v, tq, tk):
    """The doors in one dense tile, differentiated by JAX: nothing of `attend` is used."""
    first = lambda a: jnp.swapaxes(a, 1, 2)
    q, k, v = map(first, (q, k, v))
    seen = encoding.mask(tq, tk)
    s = scaled_dot_product(q, k)
    s, _ = encoding.logits(s, q, k, tq, tk, seen, first_carry(encoding, q, tq))
    s = jnp.where(seen, s, -jnp.inf)
    out = first(encoding.collect(jax.nn.softmax(s, axis=-1), v, tq, tk))
    return encoding.rescale(out, first(jax.nn.logsumexp(s, axis=-1)), tq)


@pytest.mark.full_but_one
@pytest.mark.parametrize('block', [None, (4, 4), (5, 3)], ids=str)
def test_gradients_reach_parameters_features_and_carries(block):
    from flax import nnx

    q, k, v = qkv(11)
    tok, cotangent = pj.Tokens.of(length=11), draw(9, 11)
    graphdef, state = nnx.split(pj.make(Learned([0.3, -0.5, 1.0, 0.7]), causal=True))
    params, rest = nnx.split_state(state, nnx.Param, ...)

    def loss(attention, params, q, k, v):
        encoding = nnx.merge(graphdef, params, rest)
        return (attention(encoding, *encoding.project(q, k, v, tok, tok)) * cotangent).sum()

    applied = functools.partial(pj.attend, applied=pj.TOKEN_STAGE)
    mine = jax.jit(
        jax.value_and_grad(
            functools.partial(loss, functools.partial(applied, block=block)), (0, 1, 2, 3)
        )
    )
    other = jax.jit(jax.value_and_grad(functools.partial(loss, plain), (0, 1, 2, 3)))
    (value, gradients), (expected, expectations) = mine(params, q, k, v), other(params, q, k, v)
    close(value, expected, 1e-4)
    for ours, theirs in zip(jax.tree.leaves(gradients), jax.tree.leaves(expectations), strict=True):
        assert np.abs(theirs).max() > 1e-3
        close(ours, theirs, 5e-5)


def test_an_array_made_inside_jit_may_be_a_parameter():
    """Tiles see every variable explicitly; nothing is captured from the surrounding trace."""
    (q, k, v), tok = qkv(9), pj.Tokens.of(length=9)

    @jax.jit
    def value(scale, q):
        encoding = pj.make(Learned(scale * 2), causal=True)
        return pj.attend(
            encoding, *encoding.project(q, k, v, tok, tok), block=(4, 4), applied=pj.TOKEN_STAGE
        ).sum()

    gradient = jax.jit(jax.grad(value))(jnp.ones(HEADS), q)
    step = 1e-2 * jnp.eye(HEADS)[1]
    close(
        gradient[1],
        (value(jnp.ones(HEADS) + step, q) - value(jnp.ones(HEADS) - step, q)) / 2e-2,
        1e-2,
    )


# Wrong input.


@pytest.mark.parametrize(
    'change, words',
    [
        (dict(k=(2, 7, 2, 8)), r'q \(2, 6, 4, 8\), k \(2, 7, 2, 8\), v \(2, 6, 2, 8\)'),
        (dict(k=(2, 6, 2, 4)), r'k \(2, 6, 2, 4\)'),
        (dict(k=(1, 6, 2, 8), v=(1, 6, 2, 8)), r'q \(2, 6, 4, 8\), k \(1, 6, 2, 8\)'),
        (dict(k=(2, 6, 3, 8), v=(2, 6, 3, 8)), '4 query heads are not a multiple of 3 key heads'),
        (dict(tq=5), 'tokens of length 5, 6 for 6 queries, 6 keys'),
        (dict(tk=9), 'tokens of length 6, 9 for 6 queries, 6 keys'),
        (dict(block=0), 'must be positive, got 0'),
        (dict(block=(4, -1)), r'must be positive, got \(4, -1\)'),
        (dict(block=(1, 2, 3)), r'one or two integers .* got \(1, 2, 3\)'),
        (dict(block='8'), "one or two integers .* got '8'"),
        (dict(implementation='blockd'), "did you mean 'blocked'"),
        (dict(q=(2, 6, 4)), r'q must be floats with four axes, got float32 \(2, 6, 4\)'),
    ],
)
def test_wrong_input(change, words):
    shape = {'q': (2, 6, 4, 8), 'k': (2, 6, 2, 8), 'v': (2, 6, 2, 8), 'tq': 6, 'tk': 6, **change}
    q, k, v = (jnp.ones(shape[name]) for name in 'qkv')
    tq, tk = (pj.Tokens.of(length=shape[name]) for name in ('tq', 'tk'))
    options = {name: change[name] for name in ('block', 'implementation') if name in change}
    with pytest.raises((ValueError, SpecError), match=words):
        pj.attend(Encoding(), q, k, v, tq, tk, **options)


def test_integers_and_rows_that_do_not_fit_are_refused():
    q, tok = jnp.ones((2, 6, 4, 8)), pj.Tokens.of(length=6)
    with pytest.raises(ValueError, match='k must be floats with four axes, got int32'):
        pj.attend(Encoding(), q, q.astype(int), q, tok, tok)
    with pytest.raises(ValueError, match='tk has 3 rows, queries have 2'):
        pj.attend(Encoding(), q, q, q, tok, pj.Tokens.of(valid=np.ones((3, 6), bool)))
    with pytest.raises(ValueError, match=r'one position per token .* \(1, 6, 2\)'):
        two = pj.Tokens.of(positions=np.zeros((1, 6, 2), int))
        pj.attend(pj.make('alibi()', heads=4), q, q, q, two, two)


def temporary(length, **options):
    encoding, tok = pj.make('alibi()', heads=HEADS, causal=True), pj.Tokens.of(length=length)
    shape = jax.ShapeDtypeStruct((1, length, HEADS, WIDTH), jnp.float32)
    loss = lambda q, k, v: pj.attend(encoding, q, k, v, tok, tok, **options).sum()
    return (
        jax.jit(jax.grad(loss, (0, 1, 2)))
        .lower(shape, shape, shape)
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
    )


def test_memory_is_linear_in_the_length_when_blocked():
    assert temporary(2048, block=64) < 2.5 * temporary(1024, block=64)
    assert temporary(1024, implementation='dense') > 3 * temporary(
        512, implementation='dense'
    )  # the measure sees squares


def test_long_sequences_are_blocked_by_default():
    assert temporary(4096) < 2.5 * temporary(2048)


@pytest.mark.full_but_one
@pytest.mark.parametrize('block', [None, (4, 5)], ids=str)
def test_the_log_sum_exp_and_its_gradients(block):
    (q, k, v), tok = qkv(9, kv_heads=4), pj.Tokens.of(length=9)
    encoding = pj.make('causal()')
    weights = jnp.cos(jnp.arange(2 * 9 * HEADS, dtype=jnp.float32)).reshape(2, 9, HEADS)

    def ours(q, k, v):
        out, lse = pj.attend(encoding, q, k, v, tok, tok, block=block, return_lse=True)
        return out.sum() + (weights * lse).sum(), lse

    def theirs(q, k, v):
        s = jnp.einsum('btnh,bsnh->btns', q, k) / WIDTH**0.5
        s = jnp.where(np.tril(np.ones((9, 9), bool))[:, None], s, -jnp.inf)
        lse = jax.nn.logsumexp(s, -1)
        out = jnp.einsum('btns,bsnh->btnh', jax.nn.softmax(s, -1), v)
        return out.sum() + (weights * lse).sum(), lse

    close(ours(q, k, v)[1], theirs(q, k, v)[1])
    gradients = [jax.grad(lambda *a, f=f: f(*a)[0], (0, 1, 2))(q, k, v) for f in (ours, theirs)]
    for one, two in zip(*gradients):
        close(one, two)


def test_two_attentions_are_merged_by_their_log_sum_exps():
    (q, k, v), encoding = qkv(9), pj.make('alibi()', heads=HEADS)
    tok = pj.Tokens.of(length=9)
    parts = [
        pj.attend(encoding, q, k[:, a:b], v[:, a:b], tok, tok.slice(a, b - a), return_lse=True)
        for a, b in ((0, 5), (5, 9))
    ]
    w = jax.nn.softmax(jnp.stack([lse for _, lse in parts]), axis=0)[..., None]
    close(sum(w * jnp.stack([out for out, _ in parts])), pj.attend(encoding, q, k, v, tok, tok))


def test_the_log_sum_exp_of_a_query_without_keys():
    (q, k, v), tok = qkv(3), pj.Tokens.of(length=3)
    unseen = pj.Tokens.of(valid=jnp.zeros((1, 3), bool))
    out, lse = pj.attend(pj.make('nope()'), q, k, v, tok, unseen, return_lse=True)
    assert (out == 0).all() and (lse < -1e28).all()


@pytest.mark.full
def test_forward_mode_works_on_the_dense_form_and_is_refused_by_name_elsewhere():
    (q, k, v), tok = qkv(9), pj.Tokens.of(length=9)
    encoding = pj.make('alibi()', heads=HEADS, causal=True)

    def of(q, **options):
        return pj.attend(encoding, q, k, v, tok, tok, **options)

    dense = functools.partial(of, implementation='dense')
    _, tangent = jax.jvp(dense, (q,), (v.repeat(2, axis=2),))
    step = 1e-2 * v.repeat(2, axis=2)
    close(tangent, (dense(q + step) - dense(q - step)) / 2e-2, 1e-3)
    jacobian = jax.jacfwd(lambda q: dense(q).sum())(q)
    close(jacobian, jax.grad(lambda q: of(q).sum())(q))
    jvp = lambda f: jax.jvp(f, (q,), (q,))
    for options in ({}, dict(block=4)):
        blocked = functools.partial(of, **options)
        forms = (
            lambda: jvp(blocked),
            lambda: jvp(jax.jit(blocked)),
            lambda: jax.jit(lambda: jvp(blocked))(),
            lambda: jax.linearize(blocked, q)[1](q),
        )
        for form in forms:
            with pytest.raises(TypeError, match="forward-mode .* implementation='dense' alone"):
                form()


@pytest.mark.full
def test_second_derivatives_of_the_dense_form():
    (q, k, v), tok = qkv(4), pj.Tokens.of(length=4)
    loss = lambda q: pj.attend(pj.make('causal()'), q, k, v, tok, tok, implementation='dense').sum()
    hessian_product = jax.grad(lambda x: (jax.grad(loss)(x) * q).sum())(q)
    step = 1e-2 * q
    expected = (jax.grad(loss)(q + step) - jax.grad(loss)(q - step)) / 2e-2
    close(hessian_product, expected, 1e-3)


@pytest.mark.full_but_one
@pytest.mark.parametrize('spec', ['alibi()', 'window(size=4)', 'fire()'])
def test_lengths_may_be_symbolic(spec):
    encoding = pj.make(spec, heads=HEADS, causal=True)

    def of(q, k, v):
        tok = pj.Tokens.of(length=q.shape[1])
        return pj.attend(encoding, q, k, v, tok, tok)

    b, n = jax.export.symbolic_shape('b, n')
    shape = lambda heads: jax.ShapeDtypeStruct((b, n, heads, WIDTH), jnp.float32)
    exported = jax.export.export(jax.jit(of))(shape(HEADS), shape(2), shape(2))
    for length in (5, 8):
        arrays = qkv(length)
        close(exported.call(*arrays), of(*arrays))


@pytest.mark.parametrize(
    'spec, door', [('rope()', 'project'), ('sinusoidal()', 'embed'), ('bipe() | rope()', 'place')]
)
def test_a_door_that_was_skipped_is_an_error(spec, door):
    (q, k, v), tok = qkv(5), pj.Tokens.of(length=5)
    encoding = pj.make(spec, heads=HEADS, head_dim=WIDTH, model_dim=32, train_len=16)
    applied = [other for other in pj.TOKEN_STAGE if other != door]
    name = spec.split('(')[0]
    with pytest.raises(ValueError, match=f'attend: {name} acts in {door!r}.*encoding.{door}'):
        pj.attend(encoding, q, k, v, tok, tok, applied=applied)
    pj.attend(encoding, q, k, v, tok, tok, applied=pj.TOKEN_STAGE)
    with pytest.raises(SpecError, match="applied is 'projected'.* 'project'"):
        pj.attend(encoding, q, k, v, tok, tok, applied=['projected'])


def test_a_feature_that_is_missing_is_named():
    (q, k, v), tok = qkv(5), pj.Tokens.of(length=5)
    encoding = pj.make('shaw(max_distance=2)', head_dim=WIDTH, causal=True)
    with pytest.raises(ValueError, match=r"feature 'shaw' of shaw, which acts in 'project'"):
        pj.attend(encoding, q, k, v, tok, tok, applied=pj.TOKEN_STAGE)


@pytest.mark.parametrize('jit', [False, True])
def test_queries_at_an_offset_say_where_they_are(jit):
    q, k, v = qkv(1, 12)
    keys, encoding = pj.Tokens.of(length=12), pj.make('alibi()', heads=HEADS, causal=True)

    def of(**known):
        run = lambda q: pj.attend(encoding, q, k, v, pj.Tokens.of(**known), keys)
        return (jax.jit(run) if jit else run)(q)

    for known in (dict(positions=[[11]]), dict(length=1)):
        with pytest.raises(ValueError, match=r'1 queries have the index of the first of 12 causal'):
            of(**known)
    bias = alibi_bias(0.25 ** jnp.arange(1, 5), jnp.array([[11]]), keys.pos)
    close(of(index=[[11]]), jax.nn.dot_product_attention(q, k, v, bias=bias))
    filled = pj.Tokens.of(valid=(jnp.arange(12) < 1)[None])  # a cache that holds one token
    close(pj.attend(encoding, q, k, v, pj.Tokens.of(length=1), filled)[:, 0, ::2], v[:, 0])


def test_queries_that_are_other_tokens_than_the_keys_of_their_index_are_an_error():
    q, k, v = qkv(6, 6)
    keys, encoding = pj.Tokens.of(length=6), pj.make('alibi()', heads=HEADS, causal=True)
    with pytest.raises(ValueError, match='have other positions than the keys'):
        pj.attend(encoding, q, k, v, pj.Tokens.of(positions=6 + jnp.arange(6)[None]), keys)
    whole = pj.attend(encoding, q, k, v, keys, keys)
    first = pj.attend(encoding, q[:, :4], k, v, keys.slice(0, 4), keys)  # the first queries
    close(first, whole[:, :4])


def test_arrays_on_an_explicit_mesh_that_is_not_set_are_an_error():
    mesh = jax.make_mesh(
        (2,), ('rows',), axis_types=(jax.sharding.AxisType.Explicit,), devices=jax.devices()[:2]
    )
    placed = jax.NamedSharding(mesh, jax.sharding.PartitionSpec('rows'))
    q, k, v = jax.device_put(qkv(4), placed)
    tok = pj.Tokens.of(length=4)
    with pytest.raises(ValueError, match='jax.set_mesh'):
        pj.attend(pj.make('causal()'), q, k, v, tok, tok)
