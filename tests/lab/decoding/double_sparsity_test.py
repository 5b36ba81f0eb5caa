"""Double Sparsity: the numbers of the sheet, decoding with gathered keys against its dense oracle,
what labels are worth.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.base.products import scaled_dot_product
from posenc_jax.lab.decoding.decode import init_cache, prefill
from posenc_jax.lab.decoding.double_sparsity import (
    Sparse,
    calibrate,
    decode_step,
    label,
    sparse_logits,
)
from posenc_jax.lab.decoding.generate import generate
from posenc_jax.lab.decoding.label_channels import (
    channel_scores,
    double_sparsity_attention,
    key_labels,
    label_channels,
    label_logits,
    top_keys,
)
from tests.golden_files import golden
from tests.lab.decoding import passes
from tests.lab.decoding.passes import one_pass
from tests.refusals import check_refused

GOLDEN = golden('double_sparsity')['values']
TEXT = jnp.asarray(np.random.default_rng(0).integers(0, 13, (2, 20)))
CAUSAL = jnp.tril(jnp.ones((5, 5), bool))[None, None]
chosen = jax.jit(calibrate, static_argnames='groups')
chosen_logits = jax.jit(sparse_logits, static_argnames=('keep', 'dense_layers'))
model_of = functools.partial(passes.model_of, layers=3, width=32)


def qkv(seed=0, length=5, heads=4, kv_heads=2):
    keys = jax.random.split(jax.random.key(seed), 3)
    return tuple(
        jax.random.normal(key, (2, n, length, 8))
        for key, n in zip(keys, (heads, kv_heads, kv_heads))
    )


def test_golden_channels_and_logits():
    q, k = (jnp.array(GOLDEN[name]).reshape(1, 1, 1, 4) for name in 'qk')
    scores = channel_scores(q, k)
    np.testing.assert_allclose(scores[0], GOLDEN['scores'])
    channels = label_channels(scores, 2)
    assert channels[0].tolist() == GOLDEN['channels_of_g_2']
    assert label_logits(q, key_labels(k, channels), channels).item() == pytest.approx(
        GOLDEN['label_logit'], rel=1e-6
    )
    every = label_channels(scores, 1)
    assert label_logits(q, key_labels(k, every), every).item() == pytest.approx(
        GOLDEN['logit'], rel=1e-6
    )


def test_scores_are_means_over_real_tokens_by_query_head():
    q, k, _ = (jnp.swapaxes(a, 1, 2) for a in qkv())
    valid = jnp.array([[True] * 5, [False, False, True, True, True]])
    expected = np.abs(np.asarray(q) * np.repeat(np.asarray(k), 2, axis=2))[np.asarray(valid)].mean(
        0
    )
    np.testing.assert_allclose(channel_scores(q, k, valid), expected, rtol=1e-6)


def test_golden_counts_and_exact_choice_with_all_channels():
    q, k, _ = qkv()
    exact = scaled_dot_product(q, k)
    every = jnp.broadcast_to(jnp.arange(8)[::-1], (4, 8))
    kept = top_keys(label_logits(q, key_labels(k, every), every), CAUSAL, 3)
    np.testing.assert_array_equal(kept.sum(-1), np.broadcast_to(GOLDEN['kept_of_h_3'], (2, 4, 5)))
    np.testing.assert_array_equal(kept, top_keys(exact, CAUSAL, 3))
    assert not (kept & ~CAUSAL).any()
    last = np.sort(np.asarray(exact[:, :, 4]), axis=-1)[..., 2:]
    np.testing.assert_array_equal(
        np.sort(np.asarray(exact[:, :, 4])[np.asarray(kept[:, :, 4])].reshape(2, 4, 3), -1), last
    )


def test_as_many_keys_as_there_are_is_dense_attention():
    q, k, v = qkv()
    channels = jnp.zeros((4, 1), jnp.int32)
    weights = jax.nn.softmax(jnp.where(CAUSAL, scaled_dot_product(q, k), -jnp.inf), axis=-1)
    dense = jnp.einsum('bnts,bnsh->bnth', weights, jnp.repeat(v, 2, axis=1))
    for keep in (5, 9):
        np.testing.assert_allclose(
            double_sparsity_attention(q, k, v, CAUSAL, channels, keep), dense, atol=2e-6
        )
    assert np.abs(double_sparsity_attention(q, k, v, CAUSAL, channels, 2) - dense).max() > 1e-2


def test_heads_that_share_keys_choose_for_themselves():
    q, k, v = qkv()
    channels = jnp.array([[0, 1], [2, 3], [4, 5], [6, 7]])
    together = double_sparsity_attention(q, k, v, CAUSAL, channels, 2)
    for n in range(4):
        one = double_sparsity_attention(
            q[:, n : n + 1], k[:, n // 2, None], v[:, n // 2, None], CAUSAL, channels[n : n + 1], 2
        )
        np.testing.assert_allclose(together[:, n], one[:, 0], atol=1e-6)
    kept = top_keys(label_logits(q, key_labels(k, channels), channels), CAUSAL, 2)
    assert (kept[:, 0] != kept[:, 1]).any()


def decoded(model, channels, prompt, tok, **options):
    """Logits of every token behind a prompt that was read densely."""
    dense = {name: value for name, value in options.items() if name == 'dense_layers'}
    _, cache = jax.jit(functools.partial(prefill, last=1))(
        model, init_cache(model, tok), TEXT[:, :prompt]
    )
    step = jax.jit(functools.partial(decode_step, keep=options['keep']))
    return passes.stepped(model, label(cache, channels, **dense), TEXT[:, prompt:], step)[0]


@pytest.mark.parametrize(
    'mask, keep, dense_layers',
    [('', 4, 2), ('| window(size=6)', 3, 0), ('| window(size=6)', 50, 1)],
)
@pytest.mark.full
def test_decoding_from_the_first_token_is_the_dense_oracle(mask, keep, dense_layers):
    model, how = model_of(encoding=f'rope() {mask}'), dict(keep=keep, dense_layers=dense_layers)
    channels = chosen(model, TEXT, groups=4)
    valid = np.arange(20)[None] >= np.array([[0], [1]])  # one row with padding in front
    tok = pj.Tokens.of(valid=valid)
    ours = decoded(model, channels, 2, tok, **how)  # a prompt that no choice is made in
    oracle = chosen_logits(model, channels, TEXT, tok, **how)
    np.testing.assert_allclose(ours, oracle[:, 2:], atol=5e-5)
    gap = np.abs(oracle - one_pass(model, TEXT, tok))[np.asarray(valid)].max()
    assert gap < 5e-5 if keep == 50 else gap > 1e-3


@pytest.mark.full
def test_tokens_are_placed_by_ids_that_decoding_reads():
    model = model_of(encoding='bipe(separators=(1, 3)) | rope()')
    channels, expected = chosen(model, TEXT, groups=4), one_pass(model, TEXT)
    ours = decoded(model, channels, 8, pj.Tokens.of(length=20), keep=50, dense_layers=2)
    np.testing.assert_allclose(ours, expected[:, 8:], atol=5e-5)
    np.testing.assert_allclose(chosen_logits(model, channels, TEXT, keep=50), expected, atol=5e-5)


@pytest.mark.full
def test_dense_layers_alone_are_the_model():
    model = model_of()
    channels = chosen(model, TEXT, groups=8)
    assert channels.shape == (3, 4, 1)
    dense = chosen_logits(model, channels, TEXT, keep=1, dense_layers=3)
    np.testing.assert_allclose(dense, one_pass(model, TEXT), atol=2e-5)


def test_a_key_is_judged_by_a_sixteenth_of_its_channels():
    model = model_of(layers=1, kv_heads=2, heads=2, width=64)
    assert jax.eval_shape(calibrate, model, TEXT).shape == (1, 2, 2)


@pytest.mark.full
def test_calibrated_channels_find_better_keys_than_random_ones():
    """The paper's premise: a few outlier channels carry the logits."""
    model = nnx.clone(model_of(layers=1, kv_heads=4, heads=4, width=64))
    attention = model.blocks[0].attention
    loud = jnp.where(
        jnp.isin(jnp.arange(16), jnp.array([3, 11])), 4.0, 1.0
    )  # one plane of the half layout
    for weights in (attention.w_q, attention.w_k):
        weights[...] = weights[...] * loud
    channels, exact = chosen(model, TEXT, groups=8), one_pass(model, TEXT)
    assert (np.sort(channels[0], -1) == [3, 11]).all()
    others = jnp.broadcast_to(jnp.array([5, 13]), channels.shape)
    logits = lambda c: chosen_logits(model, c, TEXT, keep=4, dense_layers=0)
    error = lambda c: np.abs(logits(c) - exact).mean()
    assert error(channels) < 0.5 * error(others)


@pytest.mark.full
def test_generating_reads_few_keys():
    model = model_of()
    channels = chosen(model, TEXT, groups=4)
    sparse = Sparse(channels, keep=2, dense_layers=1)
    out = generate(model, TEXT[:, :2], max_new_tokens=10, temperature=0.0, decoding=sparse)
    oracle = chosen_logits(model, channels, out[:, :-1], keep=2, dense_layers=1)
    np.testing.assert_array_equal(out[:, 2:], oracle[:, 1:].argmax(-1))
    alone = generate(model, TEXT[:1, :2], max_new_tokens=10, temperature=0.0, decoding=sparse)
    np.testing.assert_array_equal(alone, out[:1])


def test_what_cannot_be_is_refused():
    model = model_of()
    channels = calibrate(model, TEXT, groups=4)
    cache = prefill(model, init_cache(model, pj.Tokens.of(length=20)), TEXT)[1]
    write = lambda model, decoding: generate(
        model, TEXT, max_new_tokens=2, temperature=0.0, decoding=decoding
    )
    of = lambda encoding: model_of(encoding=encoding)
    sparse = lambda own=channels, **o: sparse_logits(model, own, TEXT, **{'keep': 2, **o})
    step = lambda cache, keep=2: decode_step(model, cache, TEXT[:, 0], keep=keep)
    calls = {
        r'divide the head width 8, got 3; nearest: 2': lambda: calibrate(model, TEXT, groups=3),
        'got 0; nearest: 1': lambda: calibrate(model, TEXT, groups=0),
        'got 2.0; nearest: 2': lambda: calibrate(model, TEXT, groups=2.0),
        r'channels 0 \.\. 3 of a multiple of 2 heads, got 0 \.\. 4': lambda: key_labels(
            jnp.ones((1, 2, 3, 4)), jnp.array([[4], [0]])
        ),
        'for 1 heads': lambda: key_labels(jnp.ones((1, 2, 3, 4)), jnp.array([[3]])),
        "but alibi opens 'logits'": lambda: calibrate(of('rope() | alibi()'), TEXT),
        'but rope does not cache keys as encoded': lambda: calibrate(
            of('rope(freqs=dynamic_ntk())'), TEXT
        ),
        'at least 1 key, got keep=0; nearest: 1': lambda: sparse(keep=0),
        r'3 layers and 4 query heads, got \(2, 4, 2\)': lambda: sparse(channels[:2]),
        r'0 .. 3, got 4; nearest: 3': lambda: sparse(dense_layers=4),
        'decode.prefill first': lambda: label(init_cache(model, pj.Tokens.of(length=20)), channels),
        r'3 layers and 2 query heads, got \(3, 3, 2\)': lambda: label(cache, channels[:, :3]),
        r'of width 8 lie in 0 .. 7, got \d+ .. \d+': lambda: label(cache, channels + 8),
        r'of width 8 lie in 0 .. 7, got -\d': lambda: label(cache, channels - 8),
        'integers, got float32': lambda: label(cache, channels * 1.0),
        'of width 8 lie in 0 .. 7': lambda: write(model, Sparse(channels + 8, keep=2)),
        'got 1.5; nearest: 2': lambda: label(cache, channels, dense_layers=1.5),
        r'got \(4, 2\)': lambda: label(cache, channels[0]),
        '20 slots is full': lambda: step(label(cache, channels)),
        'keep=0': lambda: step(label(cache, channels), keep=0),
        'channels of 2 query heads, the model has 4': lambda: step(label(cache, channels[:, :2])),
        'cache of LabelledLayers, .* this one holds LayerCaches': lambda: step(cache),
        'cache of LayerCaches, .* this one holds LabelledLayers': lambda: label(
            label(cache, channels), channels
        ),
        'keep=0; nearest: 1': lambda: Sparse(channels, keep=0),
        r'channels of 3 layers and 4 query heads, got \(2, 4, 2\)': lambda: write(
            model, Sparse(channels[:2], keep=2)
        ),
        "inner products of cached keys, .* but alibi opens 'logits'": lambda: write(
            of('rope() | alibi()'), Sparse(channels, keep=2)
        ),
    }
    check_refused(calls)
