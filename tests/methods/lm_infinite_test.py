"""LM-Infinite: what is visible, the ceiling, definition against tiles, decoding, documents,
padding, the middle, the cache.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.lab.decoding.constant_cache import ConstantCache, constant_cache, keep_ends
from posenc_jax.lab.decoding.decode import decode_step, init_cache, prefill
from posenc_jax.lab.decoding.generate import generate
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.layer.cache import Cache, LayerCache
from posenc_jax.methods.rope import rope
from posenc_jax.protocol.capabilities import first_carry
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden
from tests.methods.by_distance import WIDTH, check_decoding, qkv, run

GOLDEN = golden('lm_infinite')['values']
LENGTH, LOCAL, GLOBAL = GOLDEN['length'], GOLDEN['n_local'], GOLDEN['n_global']
attend = jax.jit(functools.partial(pj.attend, applied=pj.TOKEN_STAGE), static_argnames='block')
turned_by = jax.jit(rope)
project = jax.jit(lambda part, q, k, v, tq, tk: part.project(q, k, v, tq, tk))
read, step, trimmed = (
    jax.jit(prefill),
    jax.jit(decode_step),
    jax.jit(constant_cache, static_argnames='room'),
)


def encoding(part='rope()', n_local=LOCAL, n_global=GLOBAL):
    spec = f'lm_infinite(encoding={part}, n_global={n_global}, n_local={n_local})'
    return pj.make(spec, head_dim=WIDTH, heads=2, train_len=64, causal=True)


@jax.jit
def defined(q, k, v, slopes=None):
    """Dense softmax over the Lambda-shaped mask with D = min(i - j, R): rotated pair by pair, or as
    a linear bias.
    """
    length = q.shape[1]
    gap = np.subtract.outer(np.arange(length), np.arange(length))
    distance = np.minimum(gap, LOCAL)
    k, v = (jnp.repeat(a, 2 // a.shape[2], axis=2) for a in (k, v))
    if slopes is None:
        turned = rope(jnp.repeat(q, length, axis=1), jnp.asarray(distance.reshape(1, -1)))
        s = (
            jnp.einsum('btsnh,bsnh->bnts', turned.reshape(1, length, length, 2, WIDTH), k)
            / WIDTH**0.5
        )
    else:
        s = jnp.einsum('btnh,bsnh->bnts', q, k) / WIDTH**0.5 - slopes[:, None, None] * distance
    s = jnp.where((gap >= 0) & ((gap < LOCAL) | (np.arange(length) < GLOBAL)), s, -jnp.inf)
    return jnp.einsum('bnts,bsnh->btnh', jax.nn.softmax(s), v)


def test_golden_visible_counts():
    tok = pj.Tokens.of(length=LENGTH)
    assert encoding().mask(tok, tok)[0, 0].sum(-1).tolist() == GOLDEN['visible']


@pytest.mark.parametrize('block', [None, (1, 1), (5, 3)], ids=str)
@pytest.mark.parametrize('part', ['rope()', 'alibi()'])
@pytest.mark.full
def test_tiles_equal_the_defining_dense_form(part, block):
    arrays = qkv(19)
    out = run(encoding(part), pj.Tokens.of(length=19), *arrays, block=block)
    slopes = pj.make('alibi()', heads=2).slopes[...] if part == 'alibi()' else None
    np.testing.assert_allclose(out, defined(*arrays, slopes), atol=2e-6)


@pytest.mark.full_but_one
@pytest.mark.parametrize(
    'part',
    [
        'rope(partial=0.5, freqs=yarn(factor=4.0))',
        'kerple(kernel="bias_wht")',  # these two change the logit itself before they add to it
        't5_rpe(scaled=False)',
    ],
)
def test_within_the_window_it_is_the_encoding_itself(part):
    arrays, tok = qkv(10), pj.Tokens.of(length=10)
    plain = pj.make(part, head_dim=WIDTH, heads=2, train_len=64, causal=True)
    np.testing.assert_allclose(
        run(encoding(part, n_local=10), tok, *arrays), run(plain, tok, *arrays), atol=1e-6
    )


@pytest.mark.full_but_one
@pytest.mark.parametrize('part', ['alibi()', 'kerple(kernel="bias_wht")', 't5_rpe(scaled=False)'])
def test_a_far_key_has_the_logit_of_the_ceiling(part):
    q, k, v = qkv(12)
    far = encoding(part, n_local=3, n_global=1)
    near = pj.make(part, head_dim=WIDTH, heads=2, train_len=64)
    score = lambda e, i, j: e.logits(
        jnp.ones((1, 2, 1, 1)),
        None,
        None,
        pj.Tokens.of(positions=[[i]]),
        pj.Tokens.of(positions=[[j]]),
        True,
        first_carry(e, jnp.ones((1, 2, 1, WIDTH)), pj.Tokens.of(positions=[[i]])),
    )[0]
    for i, j in ((3, 0), (4, 0), (11, 0)):
        np.testing.assert_allclose(
            score(far.parts[0] if hasattr(far, 'parts') else far, i, j),
            score(near, 3, 0),
            atol=1e-6,
        )


def test_random_positions_change_distances_not_who_is_seen():
    plain = pj.make(
        'lm_infinite(encoding=rope(), n_global=2, n_local=4)', head_dim=WIDTH, train_len=64
    )
    random = pj.make(
        'randomized_pe(max_len=2048) | lm_infinite(encoding=rope(), n_global=2, n_local=4)',
        head_dim=WIDTH,
        train_len=64,
    )
    tok = pj.Tokens.of(length=12)
    placed = random.place(tok, key=jax.random.key(0))
    assert np.diff(placed.pos[0]).max() > 4
    np.testing.assert_array_equal(random.mask(placed, placed), plain.mask(tok, tok))


@pytest.mark.full
def test_a_step_sees_what_the_last_row_of_a_pass_sees_also_where_positions_jump():
    """A single query turns back the first keys alone where nothing else is at the ceiling."""
    part, arrays = encoding(), qkv(20)
    spread = np.sort(np.random.default_rng(0).permutation(200)[:20])[None]
    for tok in (
        pj.Tokens.of(length=20),
        pj.Tokens.of(positions=spread),
        pj.Tokens.of(segment=np.arange(20)[None] // 12),
    ):
        q, k, v, tq, tk = project(part, *arrays, tok, tok)
        whole = np.asarray(attend(part, q, k, v, tq, tk, block=(4, 4)))
        one = attend(part, np.asarray(q)[:, -1:], k, v, jax.jit(lambda tq: tq.slice(19, 1))(tq), tk)
        np.testing.assert_allclose(one, whole[:, -1:], atol=2e-6)


def test_the_ceiling_holds_for_every_rotary_encoding():
    """The only key far away has the logit of a pair at distance R, temperature included."""
    part = 'rope(layout="interleaved", partial=0.5, freqs=yarn(factor=4.0))'
    q, k, v = map(np.asarray, qkv(12))
    far = np.asarray(run(encoding(part, n_local=2, n_global=1), pj.Tokens.of(length=12), q, k, v))[
        :, 11
    ]
    order = np.array([0, 10, 11])
    near = pj.make(part, head_dim=WIDTH, train_len=64)
    tq, tk = pj.Tokens.of(positions=[[12]]), pj.Tokens.of(positions=[[10, 11, 12]])
    expected = attend(near, *project(near, q[:, 11:], k[:, order], v[:, order], tq, tk))
    np.testing.assert_allclose(far, np.asarray(expected)[:, 0], atol=2e-6)


def test_a_row_depends_on_visible_keys_only():
    q, k, v = qkv(LENGTH)
    tok = pj.Tokens.of(length=LENGTH)
    gradient = jax.jit(jax.grad(lambda k, v: run(encoding(), tok, q, k, v)[:, 15].sum(), (0, 1)))(
        k, v
    )
    for g in gradient:
        reached = np.abs(np.asarray(g)).sum((0, 2, 3)) > 0
        assert np.flatnonzero(reached).tolist() == [0, 1, 11, 12, 13, 14, 15]


def test_decoding_over_keys_cached_once():
    check_decoding(encoding('alibi()'), 14, (0, 4, 5, 9, 13))


@pytest.mark.full
def test_left_padding_and_packing_keep_their_own_first_tokens():
    arrays, part = qkv(11), encoding('alibi()')
    alone = run(part, pj.Tokens.of(length=11), *arrays)
    padded = [np.pad(a, ((0, 0), (9, 0), (0, 0), (0, 0)), constant_values=5.0) for a in arrays]
    out = run(part, pj.Tokens.of(valid=np.arange(20)[None] >= 9), *padded, block=(4, 4))
    np.testing.assert_allclose(np.asarray(out)[:, 9:], alone, atol=1e-6)
    twice = [np.concatenate([a, a], 1) for a in arrays]
    packed = run(part, pj.Tokens.of(segment=np.repeat([[0, 1]], 11, axis=1)), *twice, block=(4, 4))
    np.testing.assert_allclose(packed, np.concatenate([alone, alone], 1), atol=1e-6)


def test_it_decides_causality_and_window_defaults_to_the_trained_length():
    assert (
        pj.make('lm_infinite(encoding=rope(), top_k=2)', head_dim=8, train_len=64).distance == 32
    )  # M / 2
    part = pj.make('lm_infinite(encoding=rope())', head_dim=8, train_len=64)
    assert 'decides_causality' in part.traits and (part.n_local, part.n_global) == (64, 10)


def test_bfloat16():
    arrays, tok = [a.astype(jnp.bfloat16) for a in qkv(12)], pj.Tokens.of(length=12)
    out = run(encoding(), tok, *arrays)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        out.astype(jnp.float32), defined(*(a.astype(jnp.float32) for a in arrays)), atol=0.04
    )


@pytest.mark.parametrize(
    'spec, message',
    [
        ('lm_infinite(encoding=nope())', 'relative bias such as alibi.*got nope'),
        ('lm_infinite(encoding=rope(freqs=dynamic_ntk()))', 'do not depend on the current length'),
        ('lm_infinite(encoding=rope(), n_local=0)', 'n_local=0'),
        ('lm_infinite(encoding=rope(), n_global=-1)', 'n_global=-1'),
        ('lm_infinite(encoding=rope(), top_k=-1)', 'at least 0, got -1'),
        ('lm_infinite(encoding=rope(), top_k=2, distance=0)', 'distance must be at least 1, got 0'),
        ('lm_infinite(encoding=rope(), distance=7)', 'distance=7, top_k=0'),
        (
            'lm_infinite(encoding=alibi(), top_k=2)',
            'top_k=2 needs a rotary encoding, got alibi; use top_k=0',
        ),
        ('lm_infinite()', 'extends another encoding'),
    ],
)
def test_errors(spec, message):
    with pytest.raises(SpecError, match=message):
        pj.make(spec, head_dim=8, heads=2, train_len=64)


def chosen(q, k, length, top_k, distance):
    """For every head, the keys of the middle with the largest logits of the last query at this
    distance.
    """
    middle = np.arange(GLOBAL, length - LOCAL)
    turned = np.asarray(turned_by(q[:, -1:], np.full((1, 1), distance)))[0, 0]
    s = np.einsum('nh,snh->ns', turned, np.repeat(k, 2 // k.shape[2], 2)[0])
    best = np.argsort(-s[:, middle], axis=1)[:, :top_k]
    return [middle[rows] for rows in best] if len(middle) >= top_k else [middle[:0]] * 2


@pytest.mark.full_but_one
@pytest.mark.parametrize('length, block', [(19, None), (19, (5, 3)), (11, None), (10, None)])
def test_the_last_query_sees_the_best_keys_of_the_middle_at_one_distance(length, block):
    """Checked with a softmax over the keys that are seen; other rows, and a middle of fewer than k
    keys, are as without.
    """
    q, k, v = map(np.asarray, qkv(length))
    tok = pj.Tokens.of(length=length)
    spec = f'lm_infinite(encoding=rope(), n_global={GLOBAL}, n_local={LOCAL}, top_k=4, distance=9)'
    out = np.asarray(
        run(pj.make(spec, head_dim=WIDTH, train_len=64, causal=True), tok, q, k, v, block=block)
    )
    plain = np.asarray(run(encoding(), tok, q, k, v))
    np.testing.assert_allclose(out[:, :-1], plain[:, :-1], atol=2e-6)
    found = chosen(q, k, length, 4, 9)
    assert len(found[0]) == (4 if length - LOCAL - GLOBAL >= 4 else 0)
    for head in range(2):
        lambda_keys = [j for j in range(length) if j < GLOBAL or length - 1 - j < LOCAL]
        keys = np.array([*lambda_keys, *found[head]], int)
        gap = np.array(
            [*(min(length - 1 - j, LOCAL) for j in lambda_keys), *[9] * len(found[head])]
        )
        turned = np.asarray(turned_by(np.repeat(q[:, -1:], len(keys), 1), gap[None]))[0, :, head]
        w = np.exp((turned * k[0, keys, 0]).sum(-1) / WIDTH**0.5)
        np.testing.assert_allclose(out[0, -1, head], w @ v[0, keys, 0] / w.sum(), atol=2e-6)


TEXT = pj.Tokens.of(valid=np.arange(24)[None] >= np.array([[0], [3]]))
MODEL = dict(vocab_size=11, train_len=16, layers=2, width=16, heads=2)


@functools.cache
def model_of(spec, **fields):
    return Transformer(TransformerConfig(**{**MODEL, **fields}, encoding=spec), rngs=nnx.Rngs(0))


def ids(rows, length):
    return np.random.default_rng(1).integers(11, size=(rows, length), dtype=np.int32)


@pytest.mark.full
def test_top_k_decodes_as_the_last_row_of_a_pass():
    """One layer, whose keys depend on nothing but their own tokens, with padding on the left; keys
    are cached raw.
    """
    spec = f'lm_infinite(encoding=rope(), n_global={GLOBAL}, n_local={LOCAL}, top_k=2)'
    model = model_of(spec, layers=1)
    assert model.encoding(0, model.layers()[0][1]).cached == 'raw'
    tokens, pass_over = ids(2, 16), jax.jit(lambda model, ids, tok: model(ids, tok))
    valid = np.arange(16)[None] >= np.array([[0], [3]])
    _, cache = read(model, init_cache(model, pj.Tokens.of(valid=valid)), tokens[:, :10])
    for n in range(10, 16):
        row, cache = step(model, cache, tokens[:, n])
        seen = pj.Tokens.of(valid=valid & (np.arange(16) <= n))
        np.testing.assert_allclose(row, np.asarray(pass_over(model, tokens, seen))[:, n], atol=2e-5)


@pytest.mark.parametrize('part, room', [('rope()', 1), ('alibi()', 3)])
@pytest.mark.full
def test_a_cache_of_constant_size_decodes_the_same(part, room):
    """The first and the last tokens are all a model of two layers needs, padding apart, also before
    it has so many.
    """
    model = model_of(f'lm_infinite(encoding={part}, n_global={GLOBAL}, n_local={LOCAL})')
    tokens = ids(2, 24)
    empty = init_cache(model, TEXT)
    _, full = read(model, empty, tokens[:, :5])
    small = constant_cache(model, full, empty.tokens, room=room)
    for n in range(5, 23):
        assert small.capacity == small.layers[0].k.shape[2] == GLOBAL + LOCAL - 1 + room
        expected, full = step(model, full, tokens[:, n])
        row, small = step(model, small, tokens[:, n])
        np.testing.assert_allclose(row, expected, atol=2e-5)
        if int(small.cursor) == small.capacity and n + 1 + room <= 24:
            small = trimmed(model, small, empty.tokens, room=room)


@pytest.mark.full
def test_only_what_stays_hidden_may_be_forgotten():
    for spec, message in (
        ('rope()', 'needs lm_infinite in every layer, but a layer of this model has rope'),
        (
            f'lm_infinite(encoding=rope(), n_global={GLOBAL}, n_local={LOCAL}, top_k=2)',
            'use top_k=0',
        ),
        (
            f'bipe(separators=(1, 3)) | lm_infinite(encoding=rope(), n_local={LOCAL})',
            'from the ids of all of them',
        ),
    ):
        model = model_of(spec)
        _, cache = jax.eval_shape(
            prefill, model, empty := init_cache(model, pj.Tokens.of(length=16)), ids(1, 12)
        )
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(constant_cache, model, cache, empty.tokens)


@pytest.mark.parametrize('rows, prompt, room', [(2, 5, 3), (1, 9, 1)])
@pytest.mark.full
def test_generating_with_a_constant_cache_says_the_same(rows, prompt, room):
    model = model_of(f'lm_infinite(encoding=rope(), n_global={GLOBAL}, n_local={LOCAL})')
    tokens = ids(rows, prompt)
    valid = np.arange(prompt)[None] >= np.array([[0], [2]])[:rows]  # padding in front of the second
    arguments = dict(max_new_tokens=16, temperature=0.0, valid=valid)
    expected = generate(model, tokens, **arguments)
    constant = ConstantCache(room=room)
    np.testing.assert_array_equal(generate(model, tokens, **arguments, decoding=constant), expected)
    sizes = set()

    def remember(empty, tokens):
        _, cache = constant.prefill(model, empty, tokens)
        sizes.add((cache.capacity, cache.layers[0].k.shape[2], cache.nbytes))

    for new in (50, 400):  # what is remembered depends neither on the prompt nor on what is to come
        jax.eval_shape(remember, init_cache(model, pj.Tokens.of(length=prompt + new)), tokens)
    assert {size[:2] for size in sizes} == {(GLOBAL + LOCAL - 1 + room,) * 2} and len(sizes) == 1


def test_generating_refuses_to_forget_what_a_model_sees():
    by_ids = f'bipe(separators=(1, 3)) | lm_infinite(encoding=rope(), n_local={LOCAL})'
    write = lambda spec, decoding: generate(
        model_of(spec), [[1, 2]], max_new_tokens=2, temperature=0.0, decoding=decoding
    )
    for call, message in (
        (lambda: write('rope()', ConstantCache()), 'needs lm_infinite in every layer'),
        (lambda: write(by_ids, ConstantCache()), 'from the ids of all'),
        (lambda: write('rope()', ConstantCache), 'must be a Decoding, e.g. .* got <class'),
        (lambda: ConstantCache(0), 'at least 1 new token, an integer, got 0'),
        (lambda: ConstantCache('4'), "got '4'"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.full
def test_room_beyond_the_text_is_padding():
    """Under jit, where the end of the text cannot be an error."""
    model = model_of(f'lm_infinite(encoding=rope(), n_global={GLOBAL}, n_local={LOCAL})')
    tokens = ids(2, 24)
    _, full = read(model, empty := init_cache(model, TEXT), tokens[:, :22])
    small = trimmed(model, full, empty.tokens, room=4)
    assert np.asarray(small.tokens[0].valid)[0, -4:].tolist() == [True, True, False, False]
    for n in (22, 23):
        jax.eval_shape(
            lambda: decode_step(model, full, tokens[:, n])
        )  # with a cursor that is known
        expected, full = step(model, full, tokens[:, n])
        row, small = step(model, small, tokens[:, n])
        np.testing.assert_allclose(row, expected, atol=2e-5)


@pytest.mark.full
def test_a_smaller_window_would_be_noticed():
    """What `keep_ends` forgets counts: with one token fewer than the window holds the result is
    another.
    """
    model = model_of(f'lm_infinite(encoding=rope(), n_global={GLOBAL}, n_local={LOCAL})')
    tokens = ids(2, 24)
    _, full = read(model, empty := init_cache(model, TEXT), tokens[:, :22])
    ends = jax.jit(keep_ends, static_argnames=('first', 'last'))
    expected, _ = step(model, full, tokens[:, 22])
    for last, same in ((LOCAL - 1, True), (LOCAL - 2, False)):
        row, _ = step(model, ends(full, empty.tokens, first=GLOBAL, last=last), tokens[:, 22])
        assert (np.abs(row - expected).max() < 2e-5) == same


def test_errors_of_the_cache_and_of_top_k_at_call():
    tok = pj.Tokens.of(length=9)
    layer = LayerCache(jnp.ones((1, 1, 9, 2)), jnp.ones((1, 1, 9, 2)), {}, jnp.zeros((1, 0, 4)))
    cache = Cache((tok,), jnp.array(8), (layer,))
    for options, message in (
        (dict(first=1, last=0), 'last=0'),
        (dict(first=1, last=2, room=0), 'room=0'),
        (dict(first=1, last=2, room=2), 'room for 2 tokens after 8 exceeds the text of 9 tokens'),
    ):
        with pytest.raises(ValueError, match=message):
            keep_ends(cache, (tok,), **options)
    packed = pj.Tokens.of(segment=np.repeat([[0, 1]], [4, 5], axis=1))
    with pytest.raises(ValueError, match='packed documents'):
        keep_ends(Cache((packed,), jnp.array(8), (layer,)), (packed,), first=1, last=2)
    part = pj.make('lm_infinite(encoding=rope(), n_local=2, top_k=1)', head_dim=WIDTH, train_len=64)
    with pytest.raises(ValueError, match='packed documents'):
        part.project(*qkv(9), packed, packed)
