"""Decoding through the cache is the full forward pass, for every kind of cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posenc_jax.lab.decoding.decode import append, decode_step, init_cache, prefill
from posenc_jax.lab.decoding.generate import continue_cache, generate
from posenc_jax.protocol.tokens import Tokens
from tests.lab.decoding import passes
from tests.lab.decoding.passes import prompt
from tests.refusals import check_refused
from tests.small_models import small_model

BASE = dict(vocab_size=11, train_len=16, layers=2, width=16, heads=4, kv_heads=2)
TOKENS = jax.random.randint(jax.random.key(1), (2, 10), 0, 11)
LEFT_PADDED = np.arange(10)[None] >= np.array([[0], [3]])
PROMPT = 5


model_of = functools.partial(small_model, encoding='alibi()', **BASE)


def stepped(model, tok):
    """Logits of TOKENS, the first PROMPT by prefill, the others one by one."""
    first, cache = prompt(model, init_cache(model, tok), TOKENS[:, :PROMPT])
    logits, cache = passes.stepped(model, cache, TOKENS[:, PROMPT:])
    assert int(cache.cursor) == TOKENS.shape[1]
    return np.concatenate([first, logits], axis=1), cache


greedy = functools.partial(generate, temperature=0.0)


@pytest.mark.full_but_one
@pytest.mark.parametrize('padded', [False, True])
@pytest.mark.parametrize(
    'fields',
    [
        dict(encoding='toy_shift() | toy_table() | toy_gate()'),
        dict(encoding='toy_slope() | toy_sink()'),
        dict(pattern=('toy_path() | toy_gate()', 'toy_slope() | window(size=3)')),
        dict(encoding='toy_length()'),  # below train_len, so that one length holds for all steps
    ],
)
def test_token_by_token_is_the_full_pass(toys, fields, padded):
    model = model_of(**fields)
    tok = Tokens.of(valid=LEFT_PADDED) if padded else Tokens.of(length=10)
    keep = LEFT_PADDED if padded else np.ones_like(LEFT_PADDED)
    np.testing.assert_allclose(stepped(model, tok)[0][keep], model(TOKENS, tok)[keep], atol=1e-5)


@pytest.mark.full
def test_raw_keys_are_encoded_for_the_current_length(toys):
    # One layer, so that nothing remembers an earlier length: every step equals the full pass over
    # the tokens so far.
    model = model_of(encoding='toy_length(train_len=2)', layers=1)
    logits, _ = stepped(model, Tokens.of(valid=LEFT_PADDED))
    whole = model(TOKENS, Tokens.of(valid=LEFT_PADDED))
    for length in range(PROMPT + 1, 11):
        now = model(TOKENS[:, :length], Tokens.of(valid=LEFT_PADDED[:, :length]), last=1)[:, 0]
        np.testing.assert_allclose(logits[:, length - 1], now, atol=1e-5)
    assert jnp.abs(logits[:, PROMPT] - whole[:, PROMPT]).max() > 1e-4  # the length does matter here


@pytest.mark.full
def test_cache_layout_and_what_it_holds(toys):
    model = model_of(pattern=('toy_path() | toy_gate()', 'alibi()'))
    _, cache = stepped(model, Tokens.of(length=10))
    path, alibi = cache.layers
    assert path.k.shape == path.v.shape == alibi.k.shape == (2, 2, 10, 4)  # [B, K, S, H]
    assert {name: f.shape for name, f in path.feats.items()} == {
        'toy_gate': (2, 4, 10)
    } and alibi.feats == {}
    assert path.rows.shape == (2, 2, 16) and alibi.rows.shape == (2, 0, 16)
    assert len(cache.tokens) == 2 and cache.capacity == 10


def test_positions_are_placed_once_for_the_whole_capacity(toys, monkeypatch):
    model = model_of(encoding='toy_shift() | toy_table()')
    shift = type(model.shared[0])
    calls, place = [], shift.place
    monkeypatch.setattr(
        shift,
        'place',
        lambda self, tok, *, key=None: calls.append(tok.length) or place(self, tok, key=key),
    )
    stepped(model, Tokens.of(length=10))
    assert calls == [10]


@pytest.mark.full
def test_greedy_generation_is_repeated_full_passes_for_unequal_prompts(toys):
    model = model_of(encoding='toy_table() | toy_gate()')
    valid = LEFT_PADDED[:, :PROMPT]
    out = generate(model, TOKENS[:, :PROMPT], valid=valid, max_new_tokens=6, temperature=0.0)
    for row in range(2):
        tokens = TOKENS[row : row + 1, :PROMPT][:, valid[row]]
        for _ in range(6):
            tokens = jnp.concatenate([tokens, jnp.argmax(model(tokens, last=1), -1)], axis=1)
        np.testing.assert_array_equal(out[row, PROMPT:], tokens[0, -6:])
    np.testing.assert_array_equal(out[:, :PROMPT], TOKENS[:, :PROMPT])


@pytest.mark.full_but_one
@pytest.mark.parametrize(
    'fields',
    [
        dict(tie=True),
        dict(encoding='toy_shift() | toy_table() | toy_gate()'),
        dict(encoding='toy_path()'),
    ],
)
def test_a_single_row_is_generated_as_in_a_batch(toys, fields):
    model = model_of(**fields)
    alone = generate(model, TOKENS[:1, :PROMPT], max_new_tokens=6, temperature=0.0)
    np.testing.assert_array_equal(alone, greedy(model, TOKENS[:, :PROMPT], max_new_tokens=6)[:1])


@pytest.mark.full
def test_without_stacks_the_model_is_the_same(toys):
    model = model_of(pattern=('toy_path() | toy_gate()', 'toy_slope() | window(size=3)'), layers=4)
    apart = model.unstacked()
    assert len(model.blocks) == 2 and len(apart.blocks) == apart.cfg.layers == 4
    np.testing.assert_allclose(apart(TOKENS), model(TOKENS), atol=1e-6)
    again = lambda model: greedy(model, TOKENS[:, :PROMPT], max_new_tokens=4)
    np.testing.assert_array_equal(again(apart), again(model))


@pytest.mark.full
@pytest.mark.parametrize(
    'fields',
    [
        dict(encoding='toy_path() | toy_gate()', kv_heads=1),
        dict(mlp='swiglu', bias='qkv', norm='rmsnorm'),
        dict(bias='all', mlp='gelu_erf', norm='layernorm', parallel=True),
        dict(lora_rank=2),
        dict(qk_norm='head', norm_place='both', mlp='geglu', output_cap=3.0),
        dict(qk_norm='width', norm_place='after', bias='qkv', head_norm=True),
    ],
)
def test_joined_projections_decode_the_same(toys, fields):
    model = model_of(**fields)
    filled = lambda a: a if a.any() else 0.1 * jax.random.normal(jax.random.key(a.size), a.shape)
    nnx.update(
        model, jax.tree.map(filled, nnx.state(model, nnx.Param))
    )  # biases and adapters start at zero
    joined = model.for_decoding()
    np.testing.assert_allclose(joined(TOKENS), model(TOKENS), atol=2e-6)
    again = lambda model: greedy(model, TOKENS[:, :PROMPT], max_new_tokens=4)
    np.testing.assert_array_equal(again(joined), again(model))
    assert joined.for_decoding() is joined
    with pytest.raises(ValueError, match='a stack of 2; call unstacked'):
        model.blocks[0].mlp.joined()


@pytest.mark.full
def test_continuing_a_cache_says_what_does_not_fit():
    model = model_of(layers=1)
    logits, cache = prefill(
        model, empty := init_cache(model, Tokens.of(length=8)), TOKENS[:, :PROMPT]
    )
    go = lambda **o: continue_cache(model, cache, logits[:, -1], **{'max_new_tokens': 4, **o})
    np.testing.assert_array_equal(
        go(), greedy(model, TOKENS[:, :PROMPT], max_new_tokens=4)[:, PROMPT:]
    )
    calls = {
        r'1 .. 4 \(3 of 8 slots are free, .* got 5': lambda: go(max_new_tokens=5),
        'got 0': lambda: go(max_new_tokens=0),
        'needs a key': lambda: go(temperature=1.0),
        'this one is empty': lambda: continue_cache(model, empty, logits[:, -1], max_new_tokens=1),
    }
    check_refused(calls)


def test_every_new_token_is_drawn_with_a_key_of_its_own():
    """Where all tokens are equally likely, the keys alone decide."""
    graphdef, state = nnx.split(model_of(layers=1))
    model = nnx.merge(graphdef, jax.tree.map(jnp.zeros_like, state))
    key = jax.random.key(3)
    out = generate(model, TOKENS[:, :PROMPT], max_new_tokens=6, key=key)
    draw = lambda number: jax.random.categorical(
        jax.random.fold_in(key, number), jnp.zeros((2, 11))
    )
    np.testing.assert_array_equal(out[:, PROMPT:], np.stack([draw(n) for n in range(6)], axis=1))


@pytest.mark.full
def test_sampling_depends_on_the_key_alone_and_stops_at_eos():
    model = model_of(layers=1)
    draw = lambda seed, **o: np.asarray(
        generate(model, TOKENS[:, :PROMPT], max_new_tokens=12, key=jax.random.key(seed), **o)
    )
    first = draw(0)
    np.testing.assert_array_equal(first, draw(0))
    assert (first != draw(1)).any()
    eos = int(first[0, PROMPT + 2])
    ended = draw(0, eos=eos)
    stop = int(np.argmax(first[0, PROMPT:] == eos)) + PROMPT
    assert (ended[0, stop:] == eos).all()
    np.testing.assert_array_equal(ended[0, :stop], first[0, :stop])
    most = greedy(model, TOKENS[:, :PROMPT], max_new_tokens=12)
    np.testing.assert_array_equal(draw(0, top_k=1), most)


def test_positions_of_the_task_reach_the_new_tokens(toys):
    model = model_of(encoding='toy_table()', layers=1)
    positions = jnp.arange(10)[None] * 2
    out = generate(
        model, TOKENS[:, :PROMPT], positions=positions, max_new_tokens=5, temperature=0.0
    )
    full = model(out, Tokens.of(positions=positions))
    np.testing.assert_array_equal(jnp.argmax(full, -1)[:, PROMPT - 1 : -1], out[:, PROMPT:])


@pytest.mark.full_where(condition=lambda pattern, keys: pattern[-1] not in ('rope()', 'gru()'))
@pytest.mark.parametrize(
    'pattern, keys',
    [
        (('cope()', 'rope()'), True),
        (('cheems()', 'window(size=3) | rope()'), True),
        (('tape()',), True),
        (("gmu_hybrid(part='keys')", "gmu_hybrid(part='cross')"), True),
        (('gru()',), False),  # a state of fixed size is never full
    ],
    ids=str,
)
def test_logits_beyond_the_capacity_of_a_traced_cache_are_nan(pattern, keys):
    model, tok = model_of(pattern=pattern, encoding=''), Tokens.of(length=7)
    _, cache = prompt(model, init_cache(model, tok), TOKENS[:, :PROMPT])
    expected, step = model(TOKENS), jax.jit(decode_step)
    for number in range(PROMPT, TOKENS.shape[1]):
        logits, cache = step(model, cache, TOKENS[:, number])
        if keys and number >= 7:
            assert jnp.isnan(logits).all()
        else:
            np.testing.assert_allclose(logits, expected[:, number], atol=2e-5)
    with pytest.raises(ValueError, match='7 slots is full'):
        decode_step(model, cache, TOKENS[:, 0])


def test_so_they_are_where_a_method_mixes_tokens_by_itself():
    model = model_of(layers=1)
    _, cache = prompt(model, init_cache(model, Tokens.of(length=6)), TOKENS[:, :PROMPT])
    plain = lambda h, mixer, tok, own: (h, own)
    step = jax.jit(lambda cache, tokens: append(model, cache, tokens, plain))
    logits, cache = step(cache, TOKENS[:, PROMPT])
    beyond, _ = step(cache, TOKENS[:, PROMPT])
    assert jnp.isfinite(logits).all() and jnp.isnan(beyond).all()


def test_wrong_calls_are_errors():
    model = model_of(layers=1)
    go = lambda prompts=TOKENS, **o: generate(
        model, prompts, **{'max_new_tokens': 2, 'temperature': 0.0, **o}
    )
    right = LEFT_PADDED[:, ::-1]
    calls = {
        (
            '10 prompt tokens and 2 new ones .the last is not stored. do not fit a cache of 10'
        ): lambda: go(capacity=10),
        'at least 1, got 0': lambda: go(max_new_tokens=0),
        r'\[B, T\] .* \(10,\)': lambda: go(TOKENS[0]),
        'padded on the left .* row 1': lambda: go(valid=right),
        r'\(2, 9\), prompts \(2, 10\)': lambda: go(valid=LEFT_PADDED[:, 1:]),
        'got -1': lambda: go(temperature=-1.0),
        'needs a key': lambda: go(temperature=1.0),
        'no meaning': lambda: go(top_k=3),
        r'1 \.\. 11, got 12': lambda: go(temperature=1.0, key=jax.random.key(0), top_k=12),
        r'\(0, 1\], got 0': lambda: go(temperature=1.0, key=jax.random.key(0), top_p=0.0),
        r'0 \.\. 10, got 11': lambda: go(eos=11),
        r'\(1, 10\); expected 2 rows \(or 1\) of 12': lambda: go(positions=jnp.arange(10)[None]),
        "kind 'encoder'": lambda: init_cache(model_of(kind='encoder'), Tokens.of(length=4)),
        'call prefill first': lambda: decode_step(
            model, init_cache(model, Tokens.of(length=4)), TOKENS[:, 0]
        ),
        r'integer in 0 .. 10, got 11': lambda: prefill(
            model, init_cache(model, Tokens.of(length=10)), TOKENS, last=11
        ),
        r'each of 2 rows, got tokens of shape \(1,\)': lambda: decode_step(
            model, prefill(model, init_cache(model, Tokens.of(length=12)), TOKENS)[1], TOKENS[:1, 0]
        ),
        '10 tokens do not fit a cache of 4': lambda: prefill(
            model, init_cache(model, Tokens.of(length=4)), TOKENS
        ),
    }
    check_refused(calls)
    _, cache = prefill(model, init_cache(model, Tokens.of(length=10)), TOKENS)
    calls = {
        '10 slots is full': lambda: decode_step(model, cache, TOKENS[:, 0]),
        'empty cache': lambda: prefill(model, cache, TOKENS),
    }
    check_refused(calls)
