"""APE: contexts cached each on its own, read with temperature and scale, against one dense pass
with a mask of segments.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.base.products import scaled_dot_product
from posenc_jax.lab.decoding import contexts as shared
from posenc_jax.lab.decoding.ape_parallel import (
    AdaptiveAttention,
    ape_layout,
    ape_merge,
    encode,
    join,
)
from posenc_jax.lab.decoding.contexts import QUERY
from posenc_jax.lab.decoding.decode import init_cache
from posenc_jax.lab.decoding.read_contexts import continue_from, read
from posenc_jax.protocol.tokens import Tokens
from tests.golden_files import golden, golden_suite
from tests.lab.decoding import passes
from tests.lab.decoding.passes import dense, lengths_of, model_of, one_pass, prompt, slots_of, step
from tests.refusals import check_refused

GOLDEN = golden('ape_parallel')['values']
RANDOM = np.random.default_rng(0)
PREFIX, QUESTION = (RANDOM.integers(0, 13, (2, n)) for n in (3, 5))
CONTEXTS = [RANDOM.integers(0, 13, (2, n)) for n in (6, 9, 4)]


@functools.cache
def pieces_of(**fields):
    return encode(model_of(**fields), PREFIX, CONTEXTS)


def answers(model, pieces, steps=2, **options):
    reader, cache = join(model, pieces, capacity=slots_of(pieces) + QUESTION.shape[1], **options)
    return passes.answers(reader, cache, QUESTION, steps)


def oracle(model, temperature, scale, contexts=CONTEXTS):
    adaptive = AdaptiveAttention(temperature, scale)
    layout = ape_layout(3, lengths_of(contexts))
    return dense(model, [PREFIX, *contexts], QUESTION, layout, adaptive)


def share_of_contexts(value):
    inside, outside = (jnp.array(GOLDEN[f'{side}_logits']) for side in ('context', 'other'))
    sides = (
        (jnp.ones(1), jax.nn.logsumexp(inside / value)),
        (jnp.zeros(1), jax.nn.logsumexp(outside)),
    )
    return ape_merge(*sides, temperature=value, scale=value)[0]


first_ids = lambda layout: np.unique([ids.min() for ids in layout.ids[1:]])
test_golden = golden_suite(
    'ape_parallel',
    {
        'w_context.*': (lambda _, value: share_of_contexts(float(value)), {'atol': 5e-6}),
        'query_start': lambda case: ape_layout(case['prefix'], case['lengths']).start,
        'prefix': lambda case: first_ids(ape_layout(case['prefix'], case['lengths'])),
    },
)


def one_softmax(q, k, v, tok, t, s):
    """The same as one softmax over all keys: logits of contexts become `a / T + (T s - 1) l_C`."""
    a, segment = scaled_dot_product(*(jnp.swapaxes(x, 1, 2) for x in (q, k))), tok.segment[0]
    context, causal = segment > 0, tok.index[0][None] <= tok.index[0][:, None]
    total = jax.nn.logsumexp(jnp.where(context, a / t, -jnp.inf), -1, keepdims=True)
    a = jnp.where(context, a / t + (t * s - 1) * total, jnp.where(causal, a, -jnp.inf))
    return jnp.swapaxes(jax.nn.softmax(a, -1) @ jnp.swapaxes(v, 1, 2), 1, 2)


SEGMENTS = jnp.array([[0] * 3 + [1] * 6 + [2] * 7 + [QUERY] * 5])


@pytest.mark.full_but_one
@pytest.mark.parametrize('block', [None, (4, 5)])
def test_it_is_one_softmax_over_all_keys(block):
    q, k, v = (
        jax.random.normal(key, (2, 21, 2, 8)) for key in jax.random.split(jax.random.key(1), 3)
    )
    index = jnp.arange(21)[None]
    tok = Tokens(index, index, rank=index, segment=SEGMENTS)
    encoding, adaptive = pj.make('causal()'), AdaptiveAttention(temperature=0.7, scale=0.8)
    rows = lambda f: jax.jit(lambda *qkv: f(*qkv)[:, -5:])
    ours = rows(lambda q, k, v: adaptive(encoding, q, k, v, tok, tok, block=block))
    theirs = rows(lambda q, k, v: one_softmax(q, k, v, tok, 0.7, 0.8))
    np.testing.assert_allclose(ours(q, k, v), theirs(q, k, v), atol=2e-6)
    weights = jax.random.normal(jax.random.key(2), (2, 5, 2, 8))
    grads = [
        jax.jit(jax.grad(lambda *qkv, f=f: (f(*qkv) * weights).sum(), (0, 1, 2)))(q, k, v)
        for f in (ours, theirs)
    ]
    for one, other in zip(*grads):
        np.testing.assert_allclose(one, other, atol=5e-6)


@pytest.mark.full
def test_bfloat16_stays():
    model = model_of(dtype='bfloat16', layers=1)
    contexts = CONTEXTS[:1] * 2
    pieces = encode(model, PREFIX, contexts)
    assert {a.dtype for piece in pieces for a in (*piece.k, *piece.v)} == {jnp.dtype(jnp.bfloat16)}
    ours, exact = answers(model, pieces), oracle(model, 0.9, 0.9, contexts)
    assert np.abs(ours - exact).max() < 2**-5 * np.abs(exact).max()


def test_the_cache_is_the_dense_pass():
    ours = answers(model_of(), pieces_of(), temperature=0.6, scale=1.3)
    np.testing.assert_allclose(ours, oracle(model_of(), 0.6, 1.3), atol=2e-5)


@pytest.mark.full
def test_one_context_without_temperature_is_causal_attention():
    model = model_of()
    pieces = encode(model, PREFIX, CONTEXTS[:1])
    text = jnp.asarray(np.concatenate([PREFIX, CONTEXTS[0], QUESTION], axis=1))
    np.testing.assert_allclose(
        answers(model, pieces, temperature=1.0, scale=1.0), one_pass(model, text)[:, -5:], atol=2e-5
    )


def test_the_order_of_contexts_does_not_matter_and_the_temperature_does():
    model, pieces = model_of(), pieces_of()
    some = answers(model, pieces, chosen=[2, 0, 1])
    np.testing.assert_allclose(some, answers(model, pieces), atol=2e-5)
    assert np.abs(some - answers(model, pieces, temperature=1.0, scale=1.0)).max() > 1e-3


@pytest.mark.full
def test_any_selection_is_that_of_these_contexts_alone():
    model, pieces = model_of(), pieces_of()
    alone = encode(model, PREFIX, [CONTEXTS[2], CONTEXTS[0]])
    np.testing.assert_allclose(
        answers(model, pieces, chosen=[2, 0]), answers(model, alone), atol=2e-5
    )


def test_how_contexts_are_batched_does_not_matter():
    model = model_of()
    for ours, theirs in zip(encode(model, PREFIX, CONTEXTS, together=1), pieces_of()):
        for one, other in zip((*ours.k, *ours.v), (*theirs.k, *theirs.v)):
            np.testing.assert_allclose(one, other, atol=5e-6)


def test_a_smaller_scale_takes_attention_from_contexts():
    a = jax.random.normal(jax.random.key(0), (50, 8))
    contexts = jnp.ones((50, 1)), 2.0 + jax.nn.logsumexp(a[:, :5], -1)
    others = jnp.zeros((50, 1)), jax.nn.logsumexp(a[:, 5:], -1)
    share = lambda s: ape_merge(contexts, others, temperature=1.0, scale=s)
    assert (share(0.8) < share(1.0)).all()


@pytest.mark.full
def test_generation_goes_on_from_the_cache():
    model, pieces = model_of(), pieces_of()
    reader, cache = join(model, pieces, capacity=32)
    new = continue_from(reader, cache, QUESTION, max_new_tokens=3)
    logits, cache = read(reader, cache, QUESTION, last=1)
    for number in range(3):
        logits = logits.reshape(2, -1)
        np.testing.assert_array_equal(new[:, number], logits.argmax(-1))
        logits, cache = step(reader, cache, new[:, number])


@pytest.mark.full
def test_moved_pieces_and_no_prefix():
    model = model_of(layers=1)
    pieces = encode(model, [], CONTEXTS)
    assert pieces[0].length == 0
    shifted = [shared.moved(model, piece, piece.ids + 100) for piece in pieces]
    cache = shared.join('this', model, shifted, capacity=24, start=109)
    reference = shared.join('this', model, pieces, capacity=24, start=9)
    np.testing.assert_allclose(
        read(model, cache, QUESTION)[0], read(model, reference, QUESTION)[0], atol=2e-5
    )


@pytest.mark.parametrize(
    'message, spec',
    {
        'ape_parallel needs one rotary .* got alibi': 'alibi()',
        "got sinusoidal, which opens 'embed'": 'sinusoidal() | rope()',
        'plain causal attention beside its rotary encoding, got window': 'rope() | window(size=4)',
        'ape_parallel .* DynamicNTK.*depend on the current length': 'rope(freqs=dynamic_ntk())',
    }.items(),
)
def test_other_encodings_are_refused_by_name(spec, message):
    with pytest.raises(ValueError, match=message):
        encode(model_of(encoding=spec), PREFIX, CONTEXTS)


@pytest.mark.full
def test_wrong_input_is_an_error():
    model, pieces = model_of(), pieces_of()
    reader, cache = join(model, pieces, capacity=23)
    spacious = join(model, pieces, capacity=40)[1]
    single = encode(model, PREFIX[:1], [CONTEXTS[0][:1]])
    joined = lambda own=pieces, of=model, **o: join(of, own, **{'capacity': 40, **o})
    go_on = lambda cache, tokens, count=2, **o: continue_from(
        reader, cache, tokens, max_new_tokens=count, **o
    )
    more = lambda tokens=QUESTION, **o: read(reader, spacious, tokens, **o)
    empty = init_cache(model, pj.Tokens.of(length=9))
    calls = {
        'at least one context': lambda: encode(model, PREFIX, []),
        r'context 1 has no tokens': lambda: encode(model, [1], [[2], []]),
        r'context 1 must lie in 0 .. 12, got 13 .. 13': lambda: encode(model, [1], [[2], [13]]),
        'integers .* got float64': lambda: encode(model, [1], [[0.5]]),
        'context 1 has 1 rows, context 0 has 2': lambda: encode(
            model, PREFIX, [CONTEXTS[0], [1, 2]]
        ),
        'together must be at least 1, .*got 0': lambda: encode(model, PREFIX, CONTEXTS, together=0),
        '22 tokens .* do not fit a cache of 22': lambda: joined(capacity=22),
        r'among 0 .. 2, got \[0, 3\]': lambda: joined(chosen=[0, 3]),
        'joined contexts, which this model would not see': lambda: read(model, spacious, QUESTION),
        'call prefill or join first': lambda: read(model, empty, QUESTION),
        'an integer, got 30.5': lambda: joined(capacity=30.5),
        r'got 1; did you mean \[1\]': lambda: joined(chosen=1),
        'got a single piece, the prefix': lambda: joined(pieces[:1]),
        'rows of context 0 differ in length': lambda: encode(model, PREFIX, [[[2, 3], [4]]]),
        r'contexts of 1 or more tokens, got 2, \[2.5, 3\]': lambda: ape_layout(2, [2.5, 3]),
        r'got \[\]': lambda: joined(chosen=[]),
        'ape_parallel temperature must be positive, got 0': lambda: joined(temperature=0.0),
        r'\[2, 1 .. 1\].*23 slots, 22 .*got \(2, 5\)': lambda: read(reader, cache, QUESTION),
        r'in 1 .. 1 \(0 of 23 slots are free behind a query of 1 .* got 2': lambda: go_on(
            cache, QUESTION[:, :1]
        ),
        'temperature=1.0 draws at random and needs a key': lambda: go_on(
            cache, [[1]], 1, temperature=1.0
        ),
        r'an integer in 1 .. \d+ .* got 2.5': lambda: go_on(spacious, QUESTION, 2.5),
        r'ids .* 0 .. 12, got 1\d .. 2\d': lambda: go_on(spacious, QUESTION + 13),
        r'must lie in 0 .. 12, got -1\d .. -\d': lambda: more(QUESTION - 13),
        'must be integers': lambda: more(QUESTION * 1.0),
        r'an integer in 0 .. 5, got 6': lambda: more(last=6),
        r'an integer in 0 .. 5, got -1': lambda: more(last=-1),
        'at least 1, an integer, got 1.5': lambda: encode(model, PREFIX, CONTEXTS, together=1.5),
        'piece 0 is of 2 layers, the model has 1': lambda: joined(of=model_of(layers=1)),
        'piece 0 is of 2 layers, the model has 3': lambda: joined(of=model_of(layers=3)),
        r'holds .*\(2, 2, 3, 4\), expected \(2, 4, 3, 4\)': lambda: joined(of=model_of(kv_heads=4)),
        r'piece 1 holds .*\(1, 2, 6, 4\), expected \(2, 2, 6, 4\)': lambda: joined(
            [pieces[0], single[1]]
        ),
        r'got 2, \[\]': lambda: ape_layout(2, []),
    }
    check_refused(calls)


@pytest.mark.parametrize(
    'encoding',
    ['alibi()', 'dca(encoding=rope(), chunk=4, local=2)', 'bipe(separators=(1, 3)) | rope()'],
)
@pytest.mark.full
def test_reading_on_behind_a_prompt_is_one_pass(encoding):
    model, text = (
        model_of(encoding=encoding),
        jnp.asarray(np.random.default_rng(0).integers(0, 13, (2, 14))),
    )
    _, cache = prompt(model, init_cache(model, pj.Tokens.of(length=20)), text[:, :8])
    found = passes.answers(model, cache, text[:, 8:], steps=1)
    np.testing.assert_allclose(found, one_pass(model, text)[:, 8:], atol=5e-5)


@pytest.mark.parametrize(
    'encoding',
    [
        'rope(freqs=dynamic_ntk(train_len=4))',
        'lm_infinite(encoding=rope(), top_k=2)',
        'self_extend(encoding=rope())',
        'cable()',
    ],
)
@pytest.mark.full
def test_reading_on_is_refused_where_more_than_encoded_keys_is_cached(encoding):
    model, text = model_of(encoding=encoding, layers=1), jnp.zeros((2, 4), int)
    _, cache = prompt(model, init_cache(model, pj.Tokens.of(length=9)), text)
    with pytest.raises(
        ValueError, match=f'{encoding.partition("(")[0]}.* append them one by one with decode_step'
    ):
        read(model, cache, text)
