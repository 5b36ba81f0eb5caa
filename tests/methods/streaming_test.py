"""StreamingLLM: positions in the cache, and streams of a model of one layer, in which a step is a
pass over the kept tokens alone.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.lab.decoding.decode import init_cache
from posenc_jax.lab.decoding.generate import generate
from posenc_jax.lab.decoding.streaming import StreamingCache
from posenc_jax.lab.model.tiny import tiny_model
from posenc_jax.methods.streaming import streaming_positions
from tests.golden_files import golden, golden_suite

GOLDEN = golden('streaming')


def positions(_):
    index = jnp.asarray([GOLDEN['kept']])
    keys = pj.Tokens.of(index=index)
    queries, keys = streaming_positions(keys.slice(index.shape[1] - 1, 1), keys)
    assert queries.pos[0, 0] == keys.pos[0, -1]
    return keys.pos[0]


test_golden = golden_suite('streaming', {'positions': positions})


def test_padding_takes_no_position():
    tok = pj.Tokens.of(valid=[[False, False, True, True, True]])
    queries, keys = streaming_positions(tok.slice(4, 1), tok)
    assert keys.pos[0, 2:].tolist() == [0, 1, 2] and queries.pos[0, 0] == 2


def stream(model, ids, cache, prompt=3):
    """The logits behind each token from the last of the prompt on."""
    empty = init_cache(model, pj.Tokens.of(length=ids.shape[1]))
    layers = list(model.layers())
    step = jax.jit(lambda state, token: cache.step(model, empty, state, token, layers))
    logits, state = cache.prefill(model, empty, ids[:, :prompt])
    found = [logits[:, 0]]
    for token in ids[:, prompt:].T:
        logits, state = step(state, token)
        found.append(logits)
    assert state.capacity <= cache.first + cache.recent
    return jnp.stack(found, axis=1)


IDS = jax.random.randint(jax.random.key(0), (2, 14), 0, 9)


@pytest.mark.parametrize('spec', ['rope()', 'alibi()'])
@pytest.mark.parametrize('first, recent, room', [(2, 5, 1), (0, 4, 2)])
def test_a_step_of_one_layer_reads_the_kept_tokens_alone(spec, first, recent, room):
    model = tiny_model(f'streaming(encoding={spec})', layers=1, vocab_size=9)
    plain = tiny_model(spec, layers=1, vocab_size=9)
    found = stream(model, IDS, StreamingCache(first, recent, room))
    held, kept = [0, 1, 2], recent - room
    for now in range(2, IDS.shape[1]):
        if now > 2:
            held = [*held, now]
        expected = plain(IDS[:, jnp.asarray(held)])[:, -1]
        np.testing.assert_allclose(found[:, now - 2], expected, atol=2e-5)
        if len(held) == first + recent:
            held = held[:first] + held[first:][-kept:]


@pytest.mark.parametrize('prompt', [1, 6, 7, 12])
def test_the_cut_of_the_text_does_not_matter(prompt):
    """Two layers, whose kept tokens have read dropped ones."""
    model = tiny_model('streaming(encoding=rope())', layers=2, vocab_size=9)
    cache = StreamingCache(2, 5, 2)
    whole = stream(model, IDS, cache)
    found = stream(model, IDS, cache, prompt)
    count = min(found.shape[1], whole.shape[1])
    np.testing.assert_allclose(found[:, -count:], whole[:, -count:], atol=2e-5)


def test_the_tokens_that_are_kept():
    model = tiny_model('streaming(encoding=rope())', vocab_size=9)
    empty, cache = init_cache(model, pj.Tokens.of(length=14)), StreamingCache(2, 5)
    _, state = cache.prefill(model, empty, IDS[:, :10])
    kept = state.tokens[0]
    assert kept.index[0, : int(state.cursor)].tolist()[:2] == GOLDEN['kept'][:2]
    _, state = cache.step(model, empty, state, IDS[:, 10], list(model.layers()))
    expected = [*GOLDEN['kept'][:2], *(n + 1 for n in GOLDEN['kept'][2:])]
    assert state.tokens[0].index[0, : int(state.cursor)].tolist() == expected


def test_rows_that_are_padded_on_the_left():
    model = tiny_model('streaming(encoding=rope())', layers=1, vocab_size=9)
    valid = jnp.arange(14) >= jnp.array([[0], [4]])
    empty, cache = init_cache(model, pj.Tokens.of(valid=valid)), StreamingCache(2, 4)
    logits, state = cache.prefill(model, empty, IDS[:, :6])
    for token in IDS[:, 6:].T:
        logits, state = cache.step(model, empty, state, token, list(model.layers()))
    alone = stream(model, IDS[1:, 4:], StreamingCache(2, 4))
    np.testing.assert_allclose(logits[1], alone[0, -1], atol=2e-5)


def test_a_cache_that_holds_everything_is_rope():
    model = tiny_model('streaming(encoding=rope())', vocab_size=9)
    found = stream(model, IDS, StreamingCache(4, 64))
    expected = tiny_model('rope()', vocab_size=9)(IDS)
    np.testing.assert_allclose(found, expected[:, 2:], atol=2e-5)


def test_refused():
    with pytest.raises(ValueError, match='1 <= room < recent, got first=4, recent=2, room=2'):
        StreamingCache(4, 2, 2)
    model = tiny_model('rope()', vocab_size=9)
    with pytest.raises(ValueError, match=r'has rope.*extend the model by streaming\(\)'):
        generate(model, IDS[:, :3], max_new_tokens=2, temperature=0.0, decoding=StreamingCache())
    model = tiny_model('streaming(encoding=rope()) | fox()', vocab_size=9)
    with pytest.raises(ValueError, match='drops tokens between others, which fox reads'):
        generate(model, IDS[:, :3], max_new_tokens=2, temperature=0.0, decoding=StreamingCache())
