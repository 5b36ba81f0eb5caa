"""Tests of caches that keep the keys that a window can see: they decode as a full cache does."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.lab.decoding.bounded_windows import BoundedWindows, bounded_windows
from posenc_jax.lab.decoding.decode import decode_step, init_cache, prefill
from posenc_jax.lab.decoding.generate import generate
from posenc_jax.layer.cache import LayerCache
from posenc_jax.layer.window_cache import WindowCache, bounded, reach
from posenc_jax.protocol.tokens import Tokens
from tests.lab.decoding import passes
from tests.small_models import small_model

IDS = jax.random.randint(jax.random.key(1), (2, 24), 0, 11)
PADDED = Tokens.of(valid=np.arange(24)[None] >= np.array([[0], [6]]))
PROMPT = 9


def model_of(*pattern, **fields):
    sizes = dict(vocab_size=11, train_len=16, layers=len(pattern), width=16, heads=4, kv_heads=2)
    return small_model(**sizes, encoding='', pattern=pattern, **fields)


@pytest.mark.parametrize(
    ('encoding', 'tokens'),
    [
        ('window(size=1)', 0),
        ('window(size=5)', 4),
        ('window(size=5, aligned=True)', 9),
        ('window(size=7) | window(size=3)', 2),
        ('nope()', None),
    ],
)
def test_how_many_tokens_before_itself_a_token_sees(encoding, tokens):
    encoding = pj.make(encoding, causal=True)
    assert reach(encoding) == tokens
    tok = Tokens.of(length=12)
    assert encoding.mask(tok, tok)[0, 0].sum(-1).max() == (12 if tokens is None else tokens + 1)


@pytest.mark.full
@pytest.mark.parametrize(
    ('encoding', 'kept'),
    [
        ('window(size=5) | rope()', 4),
        ('window(size=5, aligned=True) | alibi()', 9),
        ('window(size=1)', 0),
        ('window(size=5) | cope(npos=8)', 4),
        ('window(size=5) | cable()', 4),  # caches a feature of every key
        ('window(size=14) | rope()', 13),  # more than the prompt
        ('window(size=5) | bipe(separators=(3,)) | rope()', 4),  # reads ids
    ],
)
def test_decoding_equals_the_full_pass(encoding, kept):
    model = model_of(encoding, 'nope()')
    expected = jax.jit(model)(IDS, PADDED)
    _, full = passes.prompt(model, init_cache(model, PADDED), IDS[:, :PROMPT])
    cache = bounded_windows(model, full)
    assert [layer.k.shape[2] for layer in cache.layers] == [kept, 24]
    assert cache.nbytes < full.nbytes and isinstance(cache.layers[0], WindowCache)
    logits, _ = passes.stepped(model, cache, IDS[:, PROMPT:])
    np.testing.assert_allclose(logits, expected[:, PROMPT:], atol=2e-5)


@pytest.mark.full
def test_several_tokens_at_once():
    """The results of a step of several tokens, and the state behind it, are those of single steps
    and of a full cache.
    """
    model = model_of('window(size=5) | rope()')
    (layer_type, block), *_ = model.layers()
    mixer, x = model.mixer(layer_type, block), jax.random.normal(jax.random.key(2), (2, 24, 16))
    whole = mixer.whole(x, PADDED)
    _, full = mixer.fill(x[:, :PROMPT], PADDED.slice(0, PROMPT), 24)
    state = bounded(full, 4, PROMPT)
    y, after = mixer.step(x[:, PROMPT:16], PADDED, state, jnp.int32(PROMPT))
    np.testing.assert_allclose(y, whole[:, PROMPT:16], atol=1e-5)
    for number in range(PROMPT, 16):
        _, state = mixer.step(x[:, number : number + 1], PADDED, state, jnp.int32(number))
    chex.assert_trees_all_close(after, state, atol=1e-6, rtol=1e-7)
    grown = mixer.step(x[:, PROMPT:16], PADDED, full, jnp.int32(PROMPT))[1]
    np.testing.assert_allclose(bounded(grown, 4, 16).k, after.k, atol=1e-6)


def test_several_tokens_of_which_some_lie_beyond_the_capacity():
    mixer = model_of('window(size=5) | rope()')
    mixer = mixer.mixer(0, mixer.layers()[0][1])
    x, tok, end = jax.random.normal(jax.random.key(2), (2, 24, 16)), PADDED.slice(0, 14), 14
    _, full = mixer.fill(x[:, :PROMPT], PADDED.slice(0, PROMPT), end)
    states = full, bounded(full, 4, PROMPT)
    expected = mixer.whole(x, PADDED)[:, PROMPT:end]
    for state in states:
        y, _ = jax.jit(lambda x, state, cursor: mixer.step(x, tok, state, cursor))(
            x[:, PROMPT:17], state, PROMPT
        )
        np.testing.assert_allclose(y[:, : end - PROMPT], expected, atol=1e-5)
        assert jnp.isnan(y[:, end - PROMPT :]).all()


def test_the_first_tokens_stand_behind_empty_slots():
    k = jnp.arange(1.0, 7.0).reshape(1, 1, 6, 1)
    cache = LayerCache(k, -k, {'feature': k[..., 0]}, k[0, :, :0])
    for count, expected in ((1, [0, 0, 1]), (2, [0, 1, 2]), (5, [3, 4, 5])):
        kept = bounded(cache, 3, count)
        assert kept.k.ravel().tolist() == expected == kept.feats['feature'].ravel().tolist()
        assert kept.v.ravel().tolist() == [-number for number in expected]


@pytest.mark.full
def test_what_sees_all_keys_keeps_them():
    """Also a window that is as long as the cache, and one of a few heads only."""
    model = model_of('rope()', 'window(size=60) | rope()', 'path()')
    _, cache = prefill(model, init_cache(model, Tokens.of(length=12)), IDS[:, :4])
    assert all(a is b for a, b in zip(bounded_windows(model, cache).layers, cache.layers))
    some = model_of('per_head(first=window(size=3), second=nope(), heads_of_first=2)')
    assert reach(some.encoding(0, some.blocks[0])) is None


@pytest.mark.full
def test_in_an_encoder_decoder_the_keys_of_the_source_stay():
    model = model_of(
        'window(size=4) | rope()',
        kind='encoder_decoder',
        source_size=7,
        source_len=8,
        source_encoding='rope()',
    )
    source = model.encoded(IDS[:, :8] % 7)
    expected = model(IDS, PADDED, source=source)
    _, full = prefill(model, init_cache(model, PADDED, source), IDS[:, :PROMPT])
    cache = bounded_windows(model, full)
    assert cache.layers[0].own.k.shape[2] == 3 and cache.layers[0].source.k.shape[2] == 8
    logits, _ = passes.stepped(model, cache, IDS[:, PROMPT : PROMPT + 2], decode_step)
    np.testing.assert_allclose(logits, expected[:, PROMPT : PROMPT + 2], atol=2e-5)


@pytest.mark.full
@pytest.mark.parametrize('rows', [1, 2])
def test_generation_gives_the_same_tokens(rows):
    model = model_of('window(size=4) | rope()', 'window(size=9)', 'cheems()')
    prompt, valid = IDS[:rows, :PROMPT], PADDED.valid[-rows:, :PROMPT]
    options = dict(valid=valid, max_new_tokens=10, temperature=0.0)
    out = generate(model, prompt, **options, decoding=BoundedWindows())
    np.testing.assert_array_equal(out, generate(model, prompt, **options))


def test_a_model_without_windows_is_refused():
    with pytest.raises(ValueError, match='no layer of this model has one'):
        generate(
            model_of('rope()'), IDS, max_new_tokens=2, temperature=0.0, decoding=BoundedWindows()
        )
