"""LM-Infinite: what is visible, the ceiling, definition against tiles, the middle, the cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.lab.decoding.constant_cache import ConstantCache, constant_cache, keep_ends
from posenc_jax.lab.decoding.decode import decode_step, init_cache, prefill
from posenc_jax.lab.decoding.generate import generate
from posenc_jax.layer.cache import Cache, LayerCache
from posenc_jax.methods.rope import rope
from posenc_jax.protocol.capabilities import first_carry
from tests.golden_files import golden, golden_suite
from tests.methods import models
from tests.methods.by_distance import WIDTH, logits, qkv, run, softmax
from tests.methods.models import decoded, read, read_prompt, step, text
from tests.refusals import refused

GOLDEN = golden('lm_infinite')['values']
LENGTH, LOCAL, GLOBAL = GOLDEN['length'], GOLDEN['n_local'], GOLDEN['n_global']
SIZES = dict(head_dim=WIDTH, heads=2, train_len=64)
attend = jax.jit(functools.partial(pj.attend, applied=pj.TOKEN_STAGE), static_argnames='block')
turned_by = jax.jit(rope)
project = jax.jit(lambda part, q, k, v, tq, tk: part.project(q, k, v, tq, tk))
trimmed = jax.jit(constant_cache, static_argnames='room')


def spec_of(part='rope()', n_local=LOCAL, n_global=GLOBAL, more=''):
    return f'lm_infinite(encoding={part}, n_global={n_global}, n_local={n_local}{more})'


def encoding(*given, **options):
    return pj.make(spec_of(*given, **options), **SIZES, causal=True)


@jax.jit
def defined(q, k, v, slopes=None):
    """Dense softmax over the Lambda-shaped mask with D = min(i - j, R): rotated pair by pair, or as
    a linear bias.
    """
    length = q.shape[1]
    gap = np.subtract.outer(np.arange(length), np.arange(length))
    distance = np.minimum(gap, LOCAL)
    if slopes is None:
        s = logits(q, k, distance)
    else:
        s = logits(q, k, np.zeros_like(gap)) - slopes[:, None, None] * distance
    seen = (gap < LOCAL) | (np.arange(length) < GLOBAL)
    return softmax(jnp.where(seen, s, -jnp.inf), v)


def visible():
    tok = pj.Tokens.of(length=LENGTH)
    return encoding().mask(tok, tok)[0, 0].sum(-1)


test_golden = golden_suite('lm_infinite', {'visible': visible})


@pytest.mark.parametrize('block', [None, (1, 1), (5, 3)], ids=str)
@pytest.mark.parametrize('part', ['rope()', 'alibi()'])
@pytest.mark.full
def test_tiles_equal_the_defining_dense_form(part, block):
    arrays = qkv(19)
    out = run(encoding(part), pj.Tokens.of(length=19), *arrays, block=block)
    slopes = pj.make('alibi()', heads=2).slopes[...] if part == 'alibi()' else None
    np.testing.assert_allclose(out, defined(*arrays, slopes), atol=2e-6)


@pytest.mark.full_but_one
@pytest.mark.parametrize('part', ['alibi()', 'kerple(kernel="bias_wht")', 't5_rpe(scaled=False)'])
def test_a_far_key_has_the_logit_of_the_ceiling(part):
    far, near = pj.make(spec_of(part, 3, 1), **SIZES), pj.make(part, **SIZES)

    def score(encoding, i, j):
        tq, tk = (pj.Tokens.of(positions=[[n]]) for n in (i, j))
        carry = first_carry(encoding, jnp.ones((1, 2, 1, WIDTH)), tq)
        return encoding.logits(jnp.ones((1, 2, 1, 1)), None, None, tq, tk, True, carry)[0]

    for i in (3, 4, 11):
        np.testing.assert_allclose(score(far, i, 0), score(near, 3, 0), atol=1e-6)


def test_random_positions_change_distances_not_who_is_seen():
    plain = pj.make(spec_of(), **SIZES)
    random = pj.make(f'randomized_pe(max_len=2048) | {spec_of()}', **SIZES)
    tok = pj.Tokens.of(length=12)
    placed = random.place(tok, key=jax.random.key(0))
    assert np.diff(placed.pos[0]).max() > 4
    np.testing.assert_array_equal(random.mask(placed, placed), plain.mask(tok, tok))


@pytest.mark.full
@pytest.mark.parametrize(
    'tok',
    [
        pj.Tokens.of(length=20),
        pj.Tokens.of(positions=np.sort(np.random.default_rng(0).permutation(200)[:20])[None]),
        pj.Tokens.of(segment=np.arange(20)[None] // 12),
    ],
    ids=['plain', 'jumps', 'packed'],
)
def test_a_step_sees_what_the_last_row_of_a_pass_sees(tok):
    """A single query turns back the first keys alone where nothing else is at the ceiling."""
    part = encoding()
    q, k, v, tq, tk = project(part, *qkv(20), tok, tok)
    whole = attend(part, q, k, v, tq, tk, block=(4, 4))
    one = attend(part, q[:, -1:], k, v, tq.slice(19, 1), tk)
    np.testing.assert_allclose(one, whole[:, -1:], atol=2e-6)


def test_the_ceiling_holds_for_every_rotary_encoding():
    """The only key far away has the logit of a pair at distance R, temperature included."""
    part = 'rope(layout="interleaved", partial=0.5, freqs=yarn(factor=4.0))'
    q, k, v = map(np.asarray, qkv(12))
    far = run(encoding(part, n_local=2, n_global=1), pj.Tokens.of(length=12), q, k, v)
    order, near = np.array([0, 10, 11]), pj.make(part, **SIZES)
    tq, tk = pj.Tokens.of(positions=[[12]]), pj.Tokens.of(positions=[[10, 11, 12]])
    expected = attend(near, *project(near, q[:, 11:], k[:, order], v[:, order], tq, tk))
    np.testing.assert_allclose(far[:, 11], expected[:, 0], atol=2e-6)


def test_it_decides_causality_and_window_defaults_to_the_trained_length():
    part = pj.make('lm_infinite(encoding=rope(), top_k=2)', **SIZES)
    assert part.distance == SIZES['train_len'] / 2
    part = pj.make('lm_infinite(encoding=rope())', **SIZES)
    assert 'decides_causality' in part.traits and (part.n_local, part.n_global) == (64, 10)


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
    (q, k, v), tok = map(np.asarray, qkv(length)), pj.Tokens.of(length=length)
    out = run(encoding(more=', top_k=4, distance=9'), tok, q, k, v, block=block)
    plain = run(encoding(), tok, q, k, v)
    np.testing.assert_allclose(out[:, :-1], plain[:, :-1], atol=2e-6)
    found = chosen(q, k, length, 4, 9)
    assert len(found[0]) == (4 if length - LOCAL - GLOBAL >= 4 else 0)
    ends = [j for j in range(length) if j < GLOBAL or length - 1 - j < LOCAL]
    for head in range(2):
        keys = np.array([*ends, *found[head]], int)
        gap = [*(min(length - 1 - j, LOCAL) for j in ends), *[9] * len(found[head])]
        last = np.repeat(q[:, -1:], len(keys), 1)
        turned = np.asarray(turned_by(last, np.array([gap])))[0, :, head]
        w = np.exp((turned * k[0, keys, 0]).sum(-1) / WIDTH**0.5)
        np.testing.assert_allclose(out[0, -1, head], w @ v[0, keys, 0] / w.sum(), atol=2e-6)


TEXT = pj.Tokens.of(valid=np.arange(24)[None] >= np.array([[0], [3]]))


PLAIN, BY_IDS = spec_of(), f'bipe(separators=(1, 3)) | {spec_of()}'


@functools.cache
def model_of(spec, **fields):
    return models.model_of(spec, train_len=16, **fields)


@pytest.mark.full
def test_top_k_decodes_as_the_last_row_of_a_pass():
    """One layer, whose keys depend on nothing but their own tokens, with padding on the left; keys
    are cached raw.
    """
    model, ids = model_of(spec_of(more=', top_k=2'), layers=1), text(2, 16)
    assert model.encoding(0, model.layers()[0][1]).cached == 'raw'
    valid = np.arange(16)[None] >= np.array([[0], [3]])
    rows = decoded(model, ids, 10, pj.Tokens.of(valid=valid))
    for n in range(10, 16):
        seen = pj.Tokens.of(valid=valid & (np.arange(16) <= n))
        np.testing.assert_allclose(rows[:, n], read(model, ids, seen)[:, n], atol=2e-5)


def filled(model, ids, prompt):
    """The tokens of `TEXT`, and a cache that holds the prompt."""
    empty = init_cache(model, TEXT)
    return empty.tokens, read_prompt(model, empty, ids[:, :prompt])[1]


@pytest.mark.parametrize('part, room', [('rope()', 1), ('alibi()', 3)])
@pytest.mark.full
def test_a_cache_of_constant_size_decodes_the_same(part, room):
    """The first and the last tokens are all a model of two layers needs, padding apart, also before
    it has so many.
    """
    model, ids = model_of(spec_of(part)), text(2, 24)
    tokens, full = filled(model, ids, 5)
    small = constant_cache(model, full, tokens, room=room)
    for n in range(5, 23):
        assert small.capacity == small.layers[0].k.shape[2] == GLOBAL + LOCAL - 1 + room
        expected, full = step(model, full, ids[:, n])
        row, small = step(model, small, ids[:, n])
        np.testing.assert_allclose(row, expected, atol=2e-5)
        if int(small.cursor) == small.capacity and n + 1 + room <= 24:
            small = trimmed(model, small, tokens, room=room)


@pytest.mark.full
@pytest.mark.parametrize(
    'spec, message',
    [
        ('rope()', 'needs lm_infinite in every layer, but a layer of this model has rope'),
        (spec_of(more=', top_k=2'), 'use top_k=0'),
        (spec_of() + ' | dape_v2(width=4)', 'dape_v2 mixes logits'),
        (BY_IDS, 'from the ids of all of them'),
    ],
)
def test_only_what_stays_hidden_may_be_forgotten(spec, message):
    model = model_of(spec)
    empty = init_cache(model, pj.Tokens.of(length=16))
    _, cache = jax.eval_shape(prefill, model, empty, text(1, 12))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(constant_cache, model, cache, empty.tokens)


@pytest.mark.parametrize('rows, prompt, room', [(2, 5, 3), (1, 9, 1)])
@pytest.mark.full
def test_generating_with_a_constant_cache_says_the_same(rows, prompt, room):
    model, ids, constant = model_of(PLAIN), text(rows, prompt), ConstantCache(room=room)
    valid = np.arange(prompt)[None] >= np.array([[0], [2]])[:rows]  # padding in front of the second
    arguments = dict(max_new_tokens=16, temperature=0.0, valid=valid)
    expected = generate(model, ids, **arguments)
    np.testing.assert_array_equal(generate(model, ids, **arguments, decoding=constant), expected)
    sizes = set()

    def remember(empty, ids):
        _, cache = constant.prefill(model, empty, ids)
        sizes.add((cache.capacity, cache.layers[0].k.shape[2], cache.nbytes))

    for new in (50, 400):  # what is remembered depends neither on the prompt nor on what is to come
        jax.eval_shape(remember, init_cache(model, pj.Tokens.of(length=prompt + new)), ids)
    assert {size[:2] for size in sizes} == {(GLOBAL + LOCAL - 1 + room,) * 2} and len(sizes) == 1


def write(spec, decoding):
    model = model_of(spec)
    return generate(model, [[1, 2]], max_new_tokens=2, temperature=0.0, decoding=decoding)


PACKED = pj.Tokens.of(segment=np.repeat([[0, 1]], [4, 5], axis=1))


def ends_of(tok=pj.Tokens.of(length=9), **options):
    layer = LayerCache(jnp.ones((1, 1, 9, 2)), jnp.ones((1, 1, 9, 2)), {}, jnp.zeros((1, 0, 4)))
    return lambda: keep_ends(Cache((tok,), jnp.array(8), (layer,)), (tok,), first=1, **options)


test_wrong_calls = refused() | {
    'needs lm_infinite in every layer': lambda: write('rope()', ConstantCache()),
    'from the ids of all': lambda: write(BY_IDS, ConstantCache()),
    'must be a Decoding, e.g. .* got <class': lambda: write('rope()', ConstantCache),
    'at least 1 new token, an integer, got 0': lambda: ConstantCache(0),
    "got '4'": lambda: ConstantCache('4'),
    'last=0': ends_of(last=0),
    'room=0': ends_of(last=2, room=0),
    'room for 2 tokens after 8 exceeds the text of 9 tokens': ends_of(last=2, room=2),
    'one text a row, got packed documents': ends_of(PACKED, last=2),
    'whose last token chooses keys, got packed documents': lambda: encoding(
        n_local=2, more=', top_k=1'
    ).project(*qkv(9), PACKED, PACKED),
}


@pytest.mark.full
def test_room_beyond_the_text_is_padding():
    """Under jit, where the end of the text cannot be an error."""
    model, ids = model_of(PLAIN), text(2, 24)
    tokens, full = filled(model, ids, 22)
    small = trimmed(model, full, tokens, room=4)
    assert np.asarray(small.tokens[0].valid)[0, -4:].tolist() == [True, True, False, False]
    for n in (22, 23):
        jax.eval_shape(lambda: decode_step(model, full, ids[:, n]))  # with a cursor that is known
        expected, full = step(model, full, ids[:, n])
        row, small = step(model, small, ids[:, n])
        np.testing.assert_allclose(row, expected, atol=2e-5)


@pytest.mark.full
def test_a_smaller_window_would_be_noticed():
    """What `keep_ends` forgets counts: with one token fewer than the window holds the result is
    another.
    """
    model, ids = model_of(PLAIN), text(2, 24)
    tokens, full = filled(model, ids, 22)
    ends = jax.jit(keep_ends, static_argnames=('first', 'last'))
    expected, _ = step(model, full, ids[:, 22])
    for last, same in ((LOCAL - 1, True), (LOCAL - 2, False)):
        row, _ = step(model, ends(full, tokens, first=GLOBAL, last=last), ids[:, 22])
        assert (np.abs(row - expected).max() < 2e-5) == same
